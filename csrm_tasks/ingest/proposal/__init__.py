"""Proposing which column of a file is which of the contract's."""
