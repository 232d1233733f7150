"""The generated market: world, queries, grades, logs and the files that a shop would deliver."""
