"""Judging models: metrics, paired statistics, baselines, the gate and the report."""
