"""Readers of CSV, JSON Lines and Parquet files: bytes to records, nothing lost."""
