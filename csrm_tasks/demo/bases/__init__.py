"""The tiny base models of the demo: how they are made, and the shipped ones."""
