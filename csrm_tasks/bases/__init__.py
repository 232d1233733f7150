"""Base models kept by name: added from where they come, checked, cut to a market's vocabulary."""
