"""The HTML report and the model card of one run."""
