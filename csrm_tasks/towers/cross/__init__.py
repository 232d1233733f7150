"""A cross-encoder to compare the twin towers with."""
