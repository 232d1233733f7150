"""Judging a rollout by live traffic: evidence, sequential tests, audits by raters."""
