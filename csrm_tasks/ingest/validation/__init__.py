"""Validation of records against their contract, and the quarantine."""
