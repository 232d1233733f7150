"""CSRM: the retraining system for query-product relevance in a new market.

This package is the product. It never imports Airflow; `dags/` wires its steps together.
"""
