"""What the towers read: one form of query and product text for training, export and serving."""

from __future__ import annotations

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.text import normalise

TEXT_VERSION = "1"  # recorded with every export; another version is another model


def tower_text(text: str) -> str:
    """Return the normalised text that is tokenised; a query's ``norm`` is its own fixed point."""
    return normalise(text)


def product_digest(title: str) -> str:
    """Return the content hash of what the product tower reads; equal hash, equal vector (A35)."""
    return text_digest(TEXT_VERSION, tower_text(title))
