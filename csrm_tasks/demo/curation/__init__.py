"""Does curation of the qc and qi tasks help, on generated markets of many languages? Over seeds."""
