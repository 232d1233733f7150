"""Writing rows to the store exactly once, in the order of their days, and corrections."""
