"""From the tables of a snapshot to rows of the training tasks (A6-A9, A15, A24)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from csrm_tasks.blobs import text_digest
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.llm.corrected import Corrected, seen_through_raters
from csrm_tasks.llm.pivot import load_translated
from csrm_tasks.llm.prompt.prompts import (
    CVR,
    RELEVANCE,
    TASK_SPACES,
    LabelSpace,
    ProductFields,
    QueryFields,
)
from csrm_tasks.llm.soft_targets import Floats, mixed_target, one_hot, smoothed
from csrm_tasks.records import (
    PRODUCTS,
    RQA,
    WEIGHTS,
    read_table,
)

DIRECTED = ("kind", "source_text", "target_text", "source_locale", "target_locale")


@dataclass(frozen=True)
class Fields:
    """Prompt fields of every query and product of a snapshot, one object each."""

    queries: dict[str, QueryFields]  # by query_id
    products: dict[tuple[str, str], ProductFields]  # by (locale, product_id)
    pivot: str | None = None  # whose translations they hold (A52)

    def titles(self) -> Iterator[tuple[str, str]]:
        """Yield locale and title of every product."""
        return ((locale, p.title) for (locale, _), p in self.products.items())

    def of(self, pairs: pl.DataFrame) -> tuple[list[QueryFields], list[ProductFields]]:
        """Return the fields of ``pairs`` (query_id, product_id, locale), aligned.

        Raises :class:`DataError` for a pair whose query or product the snapshot does not hold.
        """
        try:
            queries = [self.queries[q] for q in pairs["query_id"]]
            keys = zip(pairs["locale"], pairs["product_id"], strict=True)
            return queries, [self.products[k] for k in keys]
        except KeyError as e:
            raise DataError(
                f"a pair names {e.args[0]!r}, which is not in the snapshot's queries or products; "
                "pairs and snapshot must come from one run"
            ) from e


class Texts(Protocol):
    """What tells the prompt fields of pairs."""

    def of(self, pairs: pl.DataFrame) -> tuple[list[QueryFields], list[ProductFields]]:
        """Return the fields of ``pairs``, aligned."""
        ...


def load_fields(snapshot: Path, rqa: Path | None = None, pivot: str | None = None) -> Fields:
    """Read queries, products and (from the folder ``rqa``) retrieved titles.

    ``pivot``: with the translations of both into this language (A52). What a trained model reads
    is :meth:`csrm_tasks.llm.scoring.scoring.RelevanceScorer.fields`.
    """
    titles: dict[str, tuple[str, ...]] = {}
    if rqa is not None:
        retrieved = read_table(rqa / "rqa.parquet", RQA)
        titles = {q: tuple(t) for q, t in retrieved.select("query_id", "titles").iter_rows()}
    queries = table(snapshot, "queries")
    goods = table(snapshot, "products").select(list(PRODUCTS)).iter_rows()
    known = None if pivot is None else load_translated(snapshot, pivot)

    def translated(kind: str, locale: str, text: str) -> str:
        return "" if known is None else known.of(kind, locale, text)

    columns = ("query_id", "locale", "query", "brand")
    return Fields(
        {
            i: QueryFields(query, brand, titles.get(i, ()), translated("query", locale, query))
            for i, locale, query, brand in queries.select(columns).iter_rows()
        },
        {
            (locale, i): ProductFields(
                title, brand, category, description, translated("title", locale, title)
            )
            for i, locale, title, brand, category, description in goods
        },
        pivot,
    )


def load_pairs(snapshot: Path, split: str) -> pl.DataFrame:
    """Return the judged pairs of one split (train, dev or gold)."""
    pairs = table(snapshot, "pairs")
    return pairs.filter(pl.col("split") == split)


def weighted(pairs: pl.DataFrame, filtered: Path) -> tuple[pl.DataFrame, Floats]:
    """Return the train pairs that the filter has left, and their weights, (N,) (A39).

    ``filtered``: a folder with ``decisions.parquet``. Raises :class:`DataError` where it says
    nothing of a pair: it was made of another snapshot.
    """
    known = read_table(filtered / "decisions.parquet", WEIGHTS)
    joined = pairs.join(known, on="pair_id", how="left", maintain_order="left")
    lost = joined.filter(pl.col("weight").is_null())
    if lost.height:
        raise DataError(
            f"the filter's decisions say nothing of {lost.height} of {pairs.height} train pairs, "
            f"first {lost['pair_id'][0]!r}; run filter_fold and filter_noise of this snapshot"
        )
    left = joined.filter(pl.col("weight") > 0)
    return left.drop("weight"), left["weight"].to_numpy()


def in_fold(pairs: pl.DataFrame, fold: int) -> pl.DataFrame:
    """Return the pairs of half ``fold`` (0 or 1) of the queries, for cross-fitting (A18).

    A query's half follows from its identifier, so all its products fall into one half, always.
    """
    return pairs.filter(_parts(pairs, "fold", 2) == fold)


def shard_numbers(pairs: pl.DataFrame, of: int) -> pl.Series:
    """Return the shard (0 … of - 1) of each pair, aligned; a query is in one shard, always."""
    return _parts(pairs, "shard", of)


def _parts(pairs: pl.DataFrame, salt: str, of: int) -> pl.Series:
    ids = pairs["query_id"].unique()
    parts = [int(text_digest(salt, i), 16) % of for i in ids]
    return pairs["query_id"].replace_strict(ids, parts, return_dtype=pl.Int64)


def selection_dev(snapshot: Path, target: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the dev pairs that select checkpoints and those of all sources (A10).

    They are the same where the target has none. Raises :class:`DataError` where both are empty.
    """
    dev = load_pairs(snapshot, "dev")
    own = dev.filter(pl.col("locale") == target)
    other = dev.filter(pl.col("locale") != target)
    if dev.is_empty():
        raise DataError(
            "the snapshot has no dev pairs; more judged queries are needed, "
            "or a larger snapshot.dev_share in the market file"
        )
    return (other if own.is_empty() else own), other


def languages(pairs: pl.DataFrame) -> str:
    """Name the languages of ``pairs`` in a line."""
    return ", ".join(pairs["locale"].unique().sort())


def relevance_rows(fields: Fields, pairs: pl.DataFrame, targets: Floats | None = None) -> LabelRows:
    """Return judged pairs as rows; the target is the human grade unless ``targets`` is given."""
    if targets is None:
        targets = human_targets(pairs)
    return LabelRows(RELEVANCE, pairs["pair_id"].to_list(), *fields.of(pairs), targets)


def human_targets(pairs: pl.DataFrame, smoothing: float = 0.0) -> Floats:
    """Return human grades as one-hot rows, (N, 3), smoothed by ε = ``smoothing`` (A53)."""
    grades = one_hot(pairs["grade"].to_numpy().astype(np.int64), len(RELEVANCE.tokens))
    return smoothed(grades, smoothing)


def distilled_targets(
    pairs: pl.DataFrame, soft: Path, alpha: float, smoothing: float = 0.0
) -> Floats:
    """Mix :func:`human_targets` with the teacher's soft labels from ``soft/scored.parquet`` (A15).

    Raises :class:`DataError` where a pair was not scored.
    """
    return mixed_target(human_targets(pairs, smoothing), soft_labels(pairs, soft), alpha)


def soft_labels(pairs: pl.DataFrame, soft: Path) -> Floats:
    """Return the teacher's probabilities of ``pairs``, (N, 3), from ``soft/scored.parquet``.

    Raises :class:`DataError` where a pair was not scored: a silent human label would be a
    different experiment.
    """
    scored = pl.read_parquet(soft / "scored.parquet", columns=["pair_id", "p0", "p1", "p2"])
    joined = pairs.select("pair_id").join(scored, on="pair_id", how="left", maintain_order="left")
    teacher = joined.select("p0", "p1", "p2").to_numpy().astype(np.float32)
    missing = np.isnan(teacher).any(axis=1)
    if missing.any():
        raise DataError(
            f"soft labels: {int(missing.sum())} of {len(pairs)} train pairs have none, first "
            f"{joined['pair_id'][int(missing.argmax())]!r}; score split=train of this snapshot"
        )
    return teacher


def corrected_targets(
    pairs: pl.DataFrame, snapshot: Path, soft: Path | None, alpha: float
) -> Corrected:
    """Return what is learnt of human labels through their raters' confusion (A51).

    ``soft``: with a teacher's soft labels, of weight 1 − ``alpha`` (A15). Raises
    :class:`DataError` where a pair was not scored.
    """
    votes = seen_through_raters(pairs, snapshot, human_targets(pairs))
    if soft is None:
        return Corrected(votes, np.zeros_like(votes))
    rest = np.float32(1.0 - alpha) * soft_labels(pairs, soft)
    return Corrected(np.float32(alpha) * votes, rest)


def cvr_rows(fields: Fields, snapshot: Path) -> LabelRows:
    """Return the conversion examples (A8); may be empty."""
    examples = table(snapshot, "conversions")
    labels = one_hot(examples["label"].to_numpy().astype(np.int64), len(CVR.tokens))
    names = [f"{q}/{p}" for q, p in examples.select("query_id", "product_id").iter_rows()]
    return LabelRows(CVR, names, *fields.of(examples), labels)


def load_translations(snapshot: Path, split: str) -> pl.DataFrame:
    """Return the translations of one split (train or dev); may be empty."""
    return table(snapshot, "translations").filter(pl.col("split") == split)


def translation_rows(snapshot: Path) -> TranslationRows:
    """Return the training translations of every direction (A7); may be empty."""
    rows = load_translations(snapshot, "train")
    return TranslationRows(*(rows[c].to_list() for c in DIRECTED))


def space_named(name: str) -> LabelSpace:
    """Return a label space by name; raises :class:`DataError` with the known names."""
    spaces = {s.name: s for s in (RELEVANCE, CVR)} | TASK_SPACES
    if name not in spaces:
        raise DataError(f"there is no label space {name!r}; known: {', '.join(spaces)}")
    return spaces[name]


@dataclass(frozen=True)
class LabelRows:
    """Pairs of one label space, as aligned columns."""

    space: LabelSpace
    names: Sequence[str]  # pair ids
    queries: Sequence[QueryFields]
    products: Sequence[ProductFields]
    targets: npt.NDArray[np.float32]  # (N, K), rows sum to 1
    weights: npt.NDArray[np.float32] | None = None  # (N,), of each sample's loss; None: all 1
    corrected: Corrected | None = None  # what is learnt instead of ``targets`` (A51)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class TranslationRows:
    """Translations, as aligned columns."""

    kinds: Sequence[str]
    sources: Sequence[str]
    targets: Sequence[str]
    source_locales: Sequence[str]
    target_locales: Sequence[str]

    @property
    def groups(self) -> list[str]:
        """Kind and direction of each, as ``title ko-KR>zh-TW``."""
        parts = zip(self.kinds, self.source_locales, self.target_locales, strict=True)
        return [f"{kind} {source}>{target}" for kind, source, target in parts]

    def __len__(self) -> int:
        return len(self.kinds)

    def turned(self) -> TranslationRows:
        """Return them the other way round."""
        locales = (self.target_locales, self.source_locales)
        return TranslationRows(self.kinds, self.targets, self.sources, *locales)
