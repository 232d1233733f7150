"""Studies on data that others have published: a taxonomy's real names, AnalytiCup 2025, ESCI."""
