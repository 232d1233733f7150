-- Airflow, MLflow and CSRM own an alembic_version table each: a database each keeps them apart.
CREATE DATABASE airflow OWNER csrm;
CREATE DATABASE mlflow OWNER csrm;
