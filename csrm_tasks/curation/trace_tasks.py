"""Where a row came from that qc or qi learn by themselves, for :mod:`.trace`."""

from __future__ import annotations

from collections.abc import Iterator

from csrm_tasks.artifacts import Artifact, ArtifactStore
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
from csrm_tasks.records import TASK_NEGATIVES, read_table


def judged_in_tasks(store: ArtifactStore, market: str, frozen: Artifact, row: str) -> Iterator[str]:
    """Yield what is known of a judged pair of qc or qi that is none of relevance."""
    if not (frozen.path / "task_pairs.parquet").is_file():
        return  # a snapshot from before there were tasks
    found = table(frozen.path, "task_pairs").filter(pair_id=row)
    for pair in found.iter_rows(named=True):
        yield (
            f"judged pair {row} of {pair['task']}, {pair['locale']}: {pair['query']!r} with "
            f"{pair['item']!r}"
        )
        yield (
            f"snapshot {frozen.ref}: label {pair['grade']}, said by {pair['agree']} of "
            f"{pair['raters']} raters; split {pair['split']}"
        )
        if pair["split"] != "train":
            yield f"never learnt from: {pair['split']} is for measuring"
            continue
        weights: Weights = {}
        for made, action, weight, reason in decisions_on(store, market, frozen, row):
            weights[made.ref] = weight
            yield f"filter {made.ref}: {action}, weight {weight:g}: {reason or 'not flagged'}"
        yield from trainings_of(store, market, frozen, weights)
        for made in made_from(store, market, "translate_queries", frozen):
            decided = read_table(made.file("decisions.parquet"), DECIDED)
            for told in decided.filter(query_id=pair["query_id"]).iter_rows(named=True):
                why = f"dropped: {told['reason']}" if told["reason"] else "label and item stay"
                yield f"translated {made.ref}: {told['text']!r} in {told['to_locale']}, {why}"
            yield from learnt_translated(
                store, made_from(store, market, "train_llm", frozen), made, weights
            )


def negatives_of_tasks(
    store: ArtifactStore, market: str, frozen: Artifact, pair_id: str
) -> Iterator[str]:
    """Yield where a pair that nobody judged in a task was found, and what has learnt it (A38)."""
    for mined in made_from(store, market, "mine_task_negatives", frozen):
        own = read_table(mined.file("task_negatives.parquet"), TASK_NEGATIVES)
        for row in own.filter(pair_id=pair_id).iter_rows(named=True):
            yield (
                f"negative {pair_id} of {row['task']}, {row['locale']}: {row['query']!r} with "
                f"{row['item']!r}, which nobody judged"
            )
            yield found_as(mined, row, "says no")
            yield from learnt_negatives(store, market, frozen, mined, "a no")
