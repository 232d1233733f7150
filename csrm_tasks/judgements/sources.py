"""What leaves CSRM as judgements: consensus, gold, soft grades, answers to audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import ConfigError, DataError, RefusedError
from csrm_tasks.judgements.formats.book import Judgement
from csrm_tasks.records import SCORED, read_table
from csrm_tasks.release.ledger import Entry, find, live
from csrm_tasks.store.tables import LABELS, fetch
from csrm_tasks.text import normalised, query_ids

What = Literal["consensus", "gold", "soft", "audits"]
RELEASED = ("soft", "audits")  # what belongs to a release, and not to a snapshot alone


@dataclass(frozen=True)
class Source:
    """Where judgements come from."""

    store: ArtifactStore
    connection: Connection
    market: str
    locale: str
    entries: Sequence[Entry]  # of the ledger


@dataclass(frozen=True)
class Found:
    """Judgements, the snapshot that knows their texts, and what both were made of."""

    judgements: list[Judgement]
    snapshot: Artifact
    made_of: str


def judgements_of(source: Source, what: What, snapshot: str | None, release: str | None) -> Found:
    """Return judgements by what is asked; raises :class:`CsrmError` where there are none.

    ``release`` must be the live one: a file that says what is live must not say something else.
    ``snapshot`` is a reference; None: the release's, else the market's newest.
    """
    if snapshot is not None and (release is not None or what in RELEASED):
        raise ConfigError(f"--snapshot: {what} of a release comes from the release's own snapshot")
    if release is not None or what in RELEASED:
        release = live_release(source, release)
        bundle = _bundle(source, release)
        frozen = source.store.open(bundle.inputs["snapshot"])
        if what in RELEASED:
            made = _soft if what == "soft" else _audits
            return made(source, bundle, frozen, release)
    else:
        frozen = snapshot_of(source, snapshot)
    return Found(_judged(source, frozen, what), frozen, frozen.ref)


def live_release(source: Source, release: str | None) -> str:
    """Return the release that is live; raises :class:`RefusedError` where another was asked for."""
    now = live(source.entries)
    if now is None:
        raise RefusedError(
            f"no release of {source.market} is live; export consensus or gold of a --snapshot"
        )
    if release not in (None, now):
        raise RefusedError(
            f"--release: {release} is not live in {source.market}, {now} is; say that one, or "
            "promote the other first"
        )
    return now


def snapshot_of(source: Source, ref: str | None) -> Artifact:
    """Return a snapshot of the market, by default the newest; raises :class:`DataError`."""
    if ref is not None:
        if not ref.startswith(f"{source.market}/snapshot/"):
            raise DataError(f"{ref} is no snapshot of market {source.market}")
        return source.store.open(ref)
    refs = source.store.published(f"{source.market}/snapshot")
    if not refs:
        raise DataError(f"market {source.market} has no snapshot yet: run the step snapshot")
    return source.store.open(refs[-1][0])


def texts_of(frozen: Artifact, locale: str, products: set[str]) -> dict[str, Mapping[str, str]]:
    """Return title, brand and category of a locale's products."""
    here = (pl.col("locale") == locale) & pl.col("product_id").is_in(sorted(products))
    found = table(frozen.path, "products").filter(here)
    rows = found.select("product_id", "title", "brand", "category").iter_rows(named=True)
    return {row.pop("product_id"): row for row in rows}


def _bundle(source: Source, release: str) -> Artifact:
    row = find(source.entries, "promoted", release)
    if row is None:
        raise RefusedError(f"{release} was never promoted here; csrm release history says what was")
    return source.store.open(row.payload["bundle"])


def _judged(source: Source, frozen: Artifact, what: What) -> list[Judgement]:
    """Return the snapshot's pairs of one side: gold, or what is learnt from and chosen on."""
    sides = ("gold",) if what == "gold" else ("train", "dev")
    here = (pl.col("locale") == source.locale) & pl.col("split").is_in(sides)
    pairs = _with_texts(table(frozen.path, "pairs").filter(here), frozen)
    if pairs.is_empty():
        raise DataError(f"{frozen.ref} has no {what} pair of {source.locale}")
    why = _reasons(source, frozen)
    return [
        Judgement(query, product, grade, explanation=why.get((query_id, product, grade), ""))
        for query_id, query, product, grade in pairs.select(
            "query_id", "query", "product_id", "grade"
        ).iter_rows()
    ]


def _with_texts(pairs: pl.DataFrame, frozen: Artifact) -> pl.DataFrame:
    texts = table(frozen.path, "queries").select("query_id", "query").unique("query_id")
    return pairs.join(texts, on="query_id").sort("query", "product_id")


def _reasons(source: Source, frozen: Artifact) -> dict[tuple[str, str, int], str]:
    """Return why raters gave the grade that a pair has, by query, product and grade."""
    schema = {"query": pl.String, "product_id": pl.String, "grade": pl.Int64}
    schema |= {"rater_id": pl.String, "explanation": pl.String}
    statement = (
        sa.select(*(LABELS.c[c] for c in schema))
        .where(LABELS.c.market == source.market, LABELS.c.locale == source.locale)
        .where(LABELS.c.explanation != "", LABELS.c.day <= str(frozen.facts["until"]))
    )
    said = fetch(source.connection, statement, schema)
    ids = query_ids(source.locale, normalised(said["query"]))
    each = said.with_columns(ids.alias("query_id")).sort("rater_id", "explanation")
    found: dict[tuple[str, str, int], list[str]] = {}
    for query, product, grade, rater, why in each.select(
        "query_id", "product_id", "grade", "rater_id", "explanation"
    ).iter_rows():
        found.setdefault((query, product, grade), []).append(f"{rater}: {why}" if rater else why)
    return {key: "; ".join(dict.fromkeys(ones)) for key, ones in found.items()}


def _soft(source: Source, bundle: Artifact, frozen: Artifact, release: str) -> Found:
    """Return what the live release's towers were taught: its LLM's probabilities."""
    towers = source.store.open(source.store.open(bundle.inputs["export"]).inputs["towers"])
    scored = towers.inputs.get("scored")
    if scored is None:
        raise DataError(f"{release}: its towers learnt from labels; there are no soft grades of it")
    rows = read_table(source.store.open(scored).file("scored.parquet"), SCORED)
    pairs = _with_texts(rows.filter(pl.col("locale") == source.locale), frozen)
    if pairs.is_empty():
        raise DataError(f"{scored} has no pair of {source.locale}")
    wanted = pairs.select("query", "product_id", "p0", "p1", "p2").iter_rows()
    judgements = [
        Judgement(query, product, None, probabilities=(p0, p1, p2))
        for query, product, p0, p1, p2 in wanted
    ]
    return Found(judgements, frozen, scored)


def _audits(source: Source, _bundle: Artifact, frozen: Artifact, release: str) -> Found:
    """Return what raters answered to the audits of a release's rollout."""
    newest: dict[str, Entry] = {}
    for row in source.entries:
        if (row.action, row.release_id, row.payload.get("by")) == ("audited", release, "rater"):
            newest[row.payload["audit"]] = row
    found: list[Judgement] = []
    for ref, row in sorted(newest.items()):
        audit = source.store.open(ref)
        items = pl.read_parquet(audit.file("items.parquet"))
        answers = pl.read_parquet(source.store.open(row.payload["grades"]).file("answers.parquet"))
        judged = answers.join(items, on="item", maintain_order="left")
        pairs = _with_texts(judged, source.store.open(audit.facts["snapshot"]))
        wanted = pairs.select("query", "product_id", "grade", "rater_id").iter_rows()
        found += [Judgement(q, product, grade, rater) for q, product, grade, rater in wanted]
    if not found:
        raise DataError(f"raters have not answered any audit of {release} yet")
    return Found(found, frozen, release)
