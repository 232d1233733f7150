"""One module an engine: how it takes vectors and deletions, and what its schema says."""
