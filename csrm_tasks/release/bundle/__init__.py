"""The release bundle: files, scorer, MLflow model, probe, servability checks."""
