"""Aggregates of behaviour logs: per pair, position, session and shopper."""
