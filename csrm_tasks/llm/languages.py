"""Which queries are one in several languages, by the market's translation table (LcRL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csrm_tasks.dataset.tables import table
from csrm_tasks.llm.prompt.prompts import QueryFields
from csrm_tasks.text import normalise


def load_meanings(snapshot: Path) -> dict[str, str]:
    """Return normalised query text → the source text that it is a translation of.

    A source text stands for itself, also where it is a translation of another; of several that a
    text translates the first in order is taken. So no chain of synonyms makes one family of many.
    """
    rows = table(snapshot, "translations").filter(kind="query").select("source_text", "target_text")
    pairs = [(normalise(s), normalise(t)) for s, t in rows.unique().sort(rows.columns).iter_rows()]
    meanings = {source: source for source, _ in pairs}
    for source, target in pairs:
        meanings.setdefault(target, source)
    return meanings


def families(queries: Sequence[QueryFields], meanings: Mapping[str, str]) -> npt.NDArray[np.int64]:
    """Number the queries (N,) so that equal texts and a text's translations have one number."""
    numbers: dict[str, int] = {}
    texts = [normalise(query.query) for query in queries]
    found = [numbers.setdefault(meanings.get(t, t), len(numbers)) for t in texts]
    return np.asarray(found, np.int64)
