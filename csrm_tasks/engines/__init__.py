"""Search engines plugged in: product vectors and search pipelines as their own files."""
