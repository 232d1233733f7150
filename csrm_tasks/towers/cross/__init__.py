"""A cross-encoder: compared with the twin towers, and the second stage of a search."""
