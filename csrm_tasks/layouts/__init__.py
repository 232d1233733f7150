"""Readers of public data sets' layouts: their files become deliveries of a market."""
