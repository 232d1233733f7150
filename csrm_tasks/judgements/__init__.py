"""Judgements to and from the tools that searches are judged in (docs/JUDGEMENTS.md)."""
