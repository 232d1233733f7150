"""Releases: the bundle, the ledger, the registry as a view of it, routing, and the way back."""
