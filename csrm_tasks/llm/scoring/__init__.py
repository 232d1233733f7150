"""Scoring with the relevance LLM: prediction, calibration, transfer gap, export."""
