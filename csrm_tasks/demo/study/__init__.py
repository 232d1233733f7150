"""Comparisons on generated markets: training recipes, rollouts, settings of towers."""
