"""Telling people about a run: what a message says, once, and how it is sent. No Airflow here."""
