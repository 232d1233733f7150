"""Which training rows are kept: the self-validation filter, its review by people, provenance."""
