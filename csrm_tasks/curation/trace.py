"""Where a training row came from, and what was done to it on the way to a model (``csrm data``).

Read from what is there: deliveries in the store, the snapshot's tables, and the decisions of the
filters and the inputs of the trainings of that very snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.curation.trace_tasks import judged_in_tasks, negatives_of_tasks
from csrm_tasks.curation.trace_training import (
    Weights,
    decisions_on,
    found_as,
    learnt_negatives,
    learnt_translated,
    made_from,
    trainings_of,
)
from csrm_tasks.curation.translation.run import DECIDED
from csrm_tasks.dataset.tables import table
from csrm_tasks.errors import DataError
from csrm_tasks.records import NEGATIVES, TRANSLATED, read_table
from csrm_tasks.store.tables import AGGREGATES, FILES, LABELS, TRANSLATIONS
from csrm_tasks.text import normalise


def traced(
    store: ArtifactStore, connection: Connection, market: str, row: str, snapshot: str | None
) -> Iterator[str]:
    """Yield lines about ``row`` of ``snapshot`` (default: the newest): a judged or mined pair's
    pair_id, ``query_id/product_id`` of a conversion example, or ``kind:source text`` of a
    translation.

    Raises :class:`DataError` where the snapshot has no such row.
    """
    frozen = _snapshot(store, market, snapshot)
    pairs = table(frozen.path, "pairs").filter(pl.col("pair_id") == row)
    if pairs.height:
        yield from _pair(store, connection, market, frozen, pairs)
        return
    lines = [
        *judged_in_tasks(store, market, frozen, row),
        *_negatives(store, market, frozen, row),
        *negatives_of_tasks(store, market, frozen, row),
        *_conversions(connection, market, frozen, row),
        *_translations(connection, market, frozen, row),
    ]
    if not lines:
        raise DataError(
            f"{frozen.ref} has no row {row!r}: give a pair_id (a judged or mined one), "
            "QUERY_ID/PRODUCT_ID of a conversion example or KIND:SOURCE TEXT of a translation, or "
            "another --snapshot"
        )
    yield from lines


def _snapshot(store: ArtifactStore, market: str, ref: str | None) -> Artifact:
    if ref is not None:
        if not ref.startswith(f"{market}/snapshot/"):
            raise DataError(f"{ref} is no snapshot of market {market}")
        return store.open(ref)
    refs = store.published(f"{market}/snapshot")
    if not refs:
        raise DataError(f"market {market} has no snapshot yet: run the step snapshot")
    return store.open(refs[-1][0])


def _pair(
    store: ArtifactStore, connection: Connection, market: str, frozen: Artifact, pairs: pl.DataFrame
) -> Iterator[str]:
    pair = pairs.row(0, named=True)
    texts = table(frozen.path, "queries").filter(pl.col("query_id") == pair["query_id"])
    query = texts["query"][0]
    yield f"judged pair {pair['pair_id']}, {pair['locale']}: {query!r} with {pair['product_id']}"
    yield from _labels(connection, market, pair, texts["norm"][0], _until(frozen))
    yield (
        f"snapshot {frozen.ref}: label {pair['grade']}, said by {pair['agree']} of "
        f"{pair['raters']} raters; split {pair['split']}"
    )
    if pair["split"] != "train":
        yield f"never learnt from: {pair['split']} is for measuring"
        return
    filters = list(decisions_on(store, market, frozen, pair["pair_id"]))
    weights: Weights = {}
    for made, action, weight, reason in filters:
        weights[made.ref] = weight
        yield f"filter {made.ref}: {action}, weight {weight:g}" + (f": {reason}" if reason else "")
    if not filters:
        yield "filter: none has judged this snapshot"
    yield from trainings_of(store, market, frozen, weights)
    yield from _augmented(store, market, frozen, pair, weights)


def _labels(
    connection: Connection, market: str, pair: dict[str, object], norm: str, until: str | None
) -> Iterator[str]:
    """Yield every label of the pair in the days that the snapshot holds, in order of delivery."""
    named = (
        "label_id", "day", "query", "grade", "rater_id", "guideline_version", "rated_at",
        "explanation", "held_out",
    )  # fmt: skip
    statement = (
        sa.select(*(LABELS.c[c] for c in named), FILES.c.name, LABELS.c.row)
        .join(FILES, FILES.c.id == LABELS.c.file_id)
        .where(LABELS.c.market == market, LABELS.c.locale == pair["locale"])
        .where(LABELS.c.product_id == pair["product_id"])
        .order_by(LABELS.c.day, FILES.c.name, LABELS.c.row, LABELS.c.label_id)
    )
    if until is not None:
        statement = statement.where(LABELS.c.day <= until)
    for found in connection.execute(statement).mappings():
        if normalise(found["query"]) == norm:
            when = f" at {found['rated_at'].isoformat()}" if found["rated_at"] else ""
            guideline = found["guideline_version"]
            yield (
                f"label {found['label_id']}: {found['grade']} by "
                f"{found['rater_id'] or 'a nameless rater'}{when}"
                + (f", guideline {guideline}" if guideline else "")
                + (f", because {found['explanation']!r}" if found["explanation"] else "")
                + (", held out to measure by" if found["held_out"] else "")
                + f"; delivered {found['day']} {found['name']} row {found['row']}"
            )


def _augmented(
    store: ArtifactStore, market: str, frozen: Artifact, pair: dict[str, object], weights: Weights
) -> Iterator[str]:
    """Yield the translations of the pair's query, and what has learnt the pair with them (A37)."""
    for made in made_from(store, market, "translate_queries", frozen):
        own = read_table(made.file("translated.parquet"), TRANSLATED)
        own = own.filter(pair_id=pair["pair_id"])
        decided = read_table(made.file("decisions.parquet"), DECIDED)
        asked = decided.filter(query_id=pair["query_id"]).join(own, on="to_locale", how="anti")
        for row in asked.iter_rows(named=True):
            why = row["reason"] or "another pair has the same translation and product"
            said = f"as {row['text']!r} in" if row["text"] else "into"
            yield f"translated {made.ref}: {said} {row['to_locale']}, dropped: {why}"
        for row in own.iter_rows(named=True):
            held = f"numbers {row['numbers']} kept, " if row["numbers"] else ""
            yield (
                f"translated {made.ref}: {row['query']!r} as {row['text']!r} in "
                f"{row['to_locale']} by {row['translator']}; {held}back {row['back']!r}, likeness "
                f"{row['likeness']:.2f}; label {row['grade']} and product text stay"
            )
        if own.height:
            yield from learnt_translated(
                store, made_from(store, market, "train_llm", frozen), made, weights
            )


def _negatives(store: ArtifactStore, market: str, frozen: Artifact, pair_id: str) -> Iterator[str]:
    """Yield where a pair that nobody judged was found, and what has learnt it (A38)."""
    for mined in made_from(store, market, "mine_negatives", frozen):
        own = read_table(mined.file("negatives.parquet"), NEGATIVES).filter(pair_id=pair_id)
        for row in own.iter_rows(named=True):
            yield (
                f"negative {pair_id}, {row['locale']}: query {row['query_id']} with "
                f"{row['product_id']}, which nobody judged"
            )
            yield found_as(mined, row, "calls it irrelevant")
            yield from learnt_negatives(store, market, frozen, mined, "irrelevant")


def _conversions(connection: Connection, market: str, frozen: Artifact, row: str) -> Iterator[str]:
    query_id, _, product_id = row.partition("/")
    here = (pl.col("query_id") == query_id) & (pl.col("product_id") == product_id)
    counts = ("impressions", "clicks", "carts", "purchases")
    for locale, label in (
        table(frozen.path, "conversions").filter(here).select("locale", "label").iter_rows()
    ):
        yield f"conversion example {row}, {locale}: {'converted' if label else 'not converted'}"
        statement = (
            sa.select(AGGREGATES.c.day, *(AGGREGATES.c[c] for c in counts))
            .where(AGGREGATES.c.market == market, AGGREGATES.c.locale == locale)
            .where(AGGREGATES.c.query_id == query_id, AGGREGATES.c.product_id == product_id)
            .order_by(AGGREGATES.c.day)
        )
        until = _until(frozen)
        if until is not None:
            statement = statement.where(AGGREGATES.c.day <= until)
        days = connection.execute(statement).mappings().all()
        for day in days:
            yield f"log of {day['day']}: " + ", ".join(f"{k} {day[k]}" for k in counts)
        if not days:
            yield "log: nobody was shown it; a random product of the catalogue as a negative (A8)"
        yield f"snapshot {frozen.ref}"


def _translations(connection: Connection, market: str, frozen: Artifact, row: str) -> Iterator[str]:
    kind, _, text = row.partition(":")
    found = table(frozen.path, "translations")
    for target, split in (
        found.filter((pl.col("kind") == kind) & (pl.col("source_text") == text))
        .select("target_text", "split")
        .iter_rows()
    ):
        yield f"translation of {kind} {text!r}: {target!r}; split {split}"
        statement = (
            sa.select(TRANSLATIONS.c.day, FILES.c.name, TRANSLATIONS.c.row)
            .join(FILES, FILES.c.id == TRANSLATIONS.c.file_id)
            .where(TRANSLATIONS.c.market == market, TRANSLATIONS.c.kind == kind)
            .where(TRANSLATIONS.c.source_text == text, TRANSLATIONS.c.target_text == target)
            .order_by(TRANSLATIONS.c.day, FILES.c.name, TRANSLATIONS.c.row)
        )
        for day, file, number in connection.execute(statement):
            yield f"delivered {day} {file} row {number}"
        yield f"snapshot {frozen.ref}"


def _until(frozen: Artifact) -> str | None:
    until: str | None = frozen.facts.get("until")
    return until
