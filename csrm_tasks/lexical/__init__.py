"""Lexical evidence: terms of texts, and how well a query and a product match by them."""
