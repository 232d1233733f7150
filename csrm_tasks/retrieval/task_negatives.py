"""Semantic negatives of qc and qi where no relevance is learnt and nothing was retrieved (A38).

Paper 2 takes the items at ranks 20 to 50 among the neighbours of a right one. Items are titles of
the query's own language (qi) or all category paths that somebody was asked about (qc); neighbours
are found by TF-IDF of character n-grams, which needs no training. Each train query gets up to
``per_query`` for each task, in the market's shares:

- ``easy``: a random item that is none of the nearest ``last`` of a right one (of qc: under another
  top category);
- ``ranked``: at ranks ``first`` to ``last`` among a right item's neighbours. Without retrieval
  there are no channels to find an item alone: the share of ``mined`` is drawn here, too.

No item qualifies that was judged for the query's text in whichever locale, has or nearly has the
text of a right one, or whose cosine with it is above 0.95; of qc none above or below a right path.
A query whose text is on dev or gold gets none (A10). What is drawn depends on the seed and the
query alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.splits import uniform
from csrm_tasks.lexical.analyser import tokens
from csrm_tasks.llm.prompt.prompts import QC
from csrm_tasks.records import TASK_NEGATIVES
from csrm_tasks.retrieval.negatives import POSITIVE, TRIES, Counts, kinds
from csrm_tasks.retrieval.rqa import NEAR, jaccard
from csrm_tasks.sections import Negatives
from csrm_tasks.text import LEVEL_SEPARATOR, normalise, normalised, pair_id

CELLS = 2**24  # of a block of similarities, which bounds the memory: 128 MiB
Found = tuple[str, int | None, int]  # kind, rank, place of the item


class Items:
    """The items that one task may be asked about, and the neighbours of each."""

    def __init__(self, ids: list[str], texts: list[str]) -> None:
        """``texts`` stand for ``ids``, each once."""
        self.ids, self.texts = ids, texts
        self.place = {name: i for i, name in enumerate(ids)}
        lowered = [text.lower() for text in texts]
        self.norms = [normalise(text) for text in texts]
        self.words = [frozenset(tokens(text)) for text in texts]
        ngrams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), dtype=np.float32)
        self._vectors = ngrams.fit_transform(lowered)

    def neighbours(self, places: list[int], most: int) -> dict[int, tuple[list[int], list[float]]]:
        """Return of each of ``places`` the nearest ``most`` others, best first, with cosines."""
        found = {}
        step = max(1, CELLS // max(1, len(self.ids)))
        for start in range(0, len(places), step):
            block = places[start : start + step]
            cosines = (self._vectors[block] @ self._vectors.T).toarray()
            cosines[np.arange(len(block)), block] = -1.0  # itself
            order = np.argsort(-cosines, axis=1, kind="stable")[:, :most]
            for row, place in enumerate(block):
                near = [int(i) for i in order[row] if i != place]
                found[place] = (near, [float(cosines[row, i]) for i in near])
        return found


@dataclass
class _Known:
    """What was said of one query's text in one task, in all locales together."""

    items: set[str] = field(default_factory=set)  # ids that were judged
    right: list[str] = field(default_factory=list)  # ids of those that are right
    texts: list[str] = field(default_factory=list)  # of those


def draw_task_negatives(
    judged: pl.DataFrame, products: pl.DataFrame, config: Negatives, seed: int, counts: Counts
) -> pl.DataFrame:
    """Return TASK_NEGATIVES of the train queries of ``judged`` (TASK_PAIRS), not asked of a model.

    ``products``: the catalogue. What became of queries and candidates is added to ``counts``.
    """
    parts = [pl.DataFrame(schema=TASK_NEGATIVES)]
    named = judged.with_columns(normalised(judged["query"]).alias("norm"))
    held_out = named.filter(pl.col("split") != "train")["norm"].unique()
    for (task,), own in named.group_by("task", maintain_order=True):
        known = _known(own.filter(split="train"))
        asked = own.filter(split="train").sort("query_id", "query")
        asked = asked.unique(["locale", "query_id"], keep="first", maintain_order=True)
        free = asked.filter(~pl.col("norm").is_in(held_out.implode()))
        counts.held_out += asked.height - free.height
        for (locale,), here in free.sort("locale").group_by("locale", maintain_order=True):
            items = items_of(str(task), str(locale), own, products)
            if len(items.ids) > 1:
                drawer = _Drawer(str(task), items, known, config, seed)
                parts.append(drawer.draw(here, counts))
    return pl.concat(parts).sort("task", "query_id", "pair_id")


def items_of(task: str, locale: str, judged: pl.DataFrame, products: pl.DataFrame) -> Items:
    """Return the items of ``task`` for queries of ``locale``: paths that were asked, or titles."""
    found = judged.select(id="product_id", text="item")  # of all splits: texts, not labels
    if task != QC.name:
        found = products.filter(locale=locale).select(id="product_id", text="title")
    found = found.sort("id", "text").unique("id", keep="first", maintain_order=True)
    return Items(found["id"].to_list(), found["text"].to_list())


def _known(train: pl.DataFrame) -> dict[str, _Known]:
    found: dict[str, _Known] = defaultdict(_Known)
    columns = train.select("norm", "product_id", "item", "grade").unique().sort(pl.all())
    for norm, product, item, grade in columns.iter_rows():
        found[norm].items.add(product)
        if grade == 1:
            found[norm].right.append(product)
            found[norm].texts.append(item)
    return found


class _Drawer:
    """Draws the negatives of one task's queries of one locale."""

    def __init__(
        self, task: str, items: Items, known: dict[str, _Known], config: Negatives, seed: int
    ) -> None:
        self._task, self._items, self._known = task, items, known
        self._config, self._seed = config, seed

    def draw(self, asked: pl.DataFrame, counts: Counts) -> pl.DataFrame:
        """``asked``: query_id, locale, query and norm, each query once."""
        right = {
            self._items.place[one]
            for norm in asked["norm"] for one in self._known[norm].right if one in self._items.place
        }  # fmt: skip
        near = self._items.neighbours(sorted(right), self._config.last)
        rows = []
        columns = asked.select("query_id", "locale", "query", "norm")
        for query_id, locale, query, norm in columns.iter_rows():
            taken = list(self._of(query_id, self._known[norm], near, counts))
            counts.queries += 1
            counts.short += len(taken) < self._config.per_query
            for kind, rank, at in taken:
                product = self._items.ids[at]
                channel = "random" if rank is None else "items"
                rows.append((
                    self._task, pair_id(query_id, product), query_id, product, locale, query,
                    self._items.texts[at], kind, channel, rank, None,
                ))  # fmt: skip
        return pl.DataFrame(rows, TASK_NEGATIVES, orient="row")

    def _of(
        self, query_id: str, known: _Known, near: dict[int, tuple[list[int], list[float]]],
        counts: Counts,
    ) -> Iterator[Found]:  # fmt: skip
        places = [self._items.place[x] for x in known.right if x in self._items.place]
        rng = np.random.default_rng(
            int(text_digest(str(self._seed), self._task, "negatives", query_id), 16)
        )
        streams = {
            "easy": self._easy(known, {i for p in places for i in near[p][0]}, rng),
            "ranked": self._ranked(places, near, counts, rng),
        }
        taken: set[int] = set()
        for kind in kinds(self._config, uniform(self._seed, self._task, query_id)):
            name = "ranked" if kind == "mined" else kind
            for rank, at in streams[name]:
                if at not in taken and self._may_be_wrong(at, known, taken, counts):
                    taken.add(at)
                    yield name, rank, at
                    break

    def _easy(
        self, known: _Known, near: set[int], rng: np.random.Generator
    ) -> Iterator[tuple[None, int]]:
        tops = {_top(text) for text in known.texts}
        tries = TRIES * max(1, self._config.per_query)
        for at in rng.integers(len(self._items.ids), size=tries).tolist():
            if self._task == QC.name:
                far = _top(self._items.texts[at]) not in tops
            else:
                far = at not in near
            if far:
                yield None, at

    def _ranked(
        self, places: list[int], near: dict[int, tuple[list[int], list[float]]], counts: Counts,
        rng: np.random.Generator,
    ) -> Iterator[tuple[int, int]]:  # fmt: skip
        if not places:
            return
        hits, cosines = near[places[int(rng.integers(len(places)))]]
        for rank in rng.permutation(np.arange(self._config.first, len(hits))).tolist():
            if cosines[rank] > POSITIVE:
                counts.near += 1
            else:
                yield rank, hits[rank]

    def _may_be_wrong(self, at: int, known: _Known, taken: set[int], counts: Counts) -> bool:
        text, items = self._items.texts[at], self._items
        if items.ids[at] in known.items:
            counts.known += 1
            return False
        if self._task == QC.name:
            alike = any(_one_holds_the_other(text, other) for other in known.texts)
        else:
            right = [frozenset(tokens(other)) for other in known.texts]
            others = (*right, *(items.words[i] for i in taken))
            alike = items.norms[at] in {normalise(other) for other in known.texts} or any(
                jaccard(items.words[at], other) >= NEAR for other in others
            )
        counts.copies += alike
        return not alike


def _top(path: str) -> str:
    return normalise(path.split(LEVEL_SEPARATOR)[0])


def _one_holds_the_other(one: str, other: str) -> bool:
    """Whether two category paths are one, or one lies below the other: both may be right."""
    a, b = ([normalise(x) for x in path.split(LEVEL_SEPARATOR)] for path in (one, other))
    least = min(len(a), len(b))
    return a[:least] == b[:least]
