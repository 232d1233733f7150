"""The runner behind ``make demo``: a private Airflow, the DAG runs of the demo, its summary."""
