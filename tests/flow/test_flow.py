"""The DAGs, through Airflow, on a miniature market: from files to a second release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.markets import load_market
from csrm_tasks.release import ledger, routing, snapshots
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import all_steps
from csrm_tasks.steps.lineage import edges_of
from csrm_tasks.steps.llm_scores import BEYOND
from tests.executed import missed, undeclared, unread
from tests.flow_fixtures import MARKET, make_flow_market, run_flow

DAYS = ("2026-01-04", "2026-01-05", "2026-01-06", "2026-01-07")
FIRST_DAY: tuple[str, dict[str, Any]] = (f"csrm_ingest__{MARKET}", {"day": DAYS[0]})
COLD_START = (f"csrm_cold_start__{MARKET}", {"until": DAYS[0]})
NIGHTS = [(f"csrm_ingest__{MARKET}", {"day": day}) for day in DAYS[1:]]
RETRAIN = (f"csrm_retrain__{MARKET}", {"week": "2026-W02"})
# The same week before, with fewer rounds than the market's: it judges and releases nothing.
CHANGED = (RETRAIN[0], RETRAIN[1] | {"rounds": 1, "reason": "is one round enough?"})
REPLAYS = [
    (f"csrm_replay__{MARKET}", {"day": DAYS[0]} | more)
    for more in ({}, {"apply": True, "reason": "unknown_product"}, {})  # the last is dry again
]
REFRESH = (f"csrm_refresh__{MARKET}", {"day": DAYS[-1]})
# Once more, after the release: the first day, and the cold start.
RUNS = [FIRST_DAY, COLD_START, *NIGHTS, RETRAIN, FIRST_DAY, COLD_START, *REPLAYS, REFRESH]
BEFORE = RUNS.index(RETRAIN)

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]
Run = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    make_flow_market(folder)
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    markets = str(folder / "markets")
    return load_settings({"CSRM_HOME": str(folder / "home"), "CSRM_MARKETS": markets})


@pytest.fixture(scope="module")
def all_runs(folder: Path, settings: Settings) -> list[Run]:
    """Run everything once."""
    return run_flow(settings, folder / "airflow", [*RUNS[:BEFORE], CHANGED, *RUNS[BEFORE:]])


@pytest.fixture(scope="module")
def runs(all_runs: list[Run]) -> list[Run]:
    """Return what became of :data:`RUNS`."""
    return [*all_runs[:BEFORE], *all_runs[BEFORE + 1 :]]


@pytest.fixture(scope="module")
def changed(all_runs: list[Run]) -> Run:
    """Return what became of :data:`CHANGED`."""
    return all_runs[BEFORE]


def refs(run: Run) -> dict[str, str]:
    return {task: ref for task, (_, ref) in run["tasks"].items() if ref is not None}


def states(run: Run) -> set[str]:
    return {state for state, _ in run["tasks"].values()}


def test_every_task_of_the_first_pass_succeeds(runs: list[Run]) -> None:
    for run in runs[:6]:
        assert states(run) == {"success"}, run


def test_what_travels_between_tasks_are_references_to_what_exists(
    runs: list[Run], settings: Settings
) -> None:
    store = ArtifactStore(settings.artifacts, settings.cache)
    for run in runs:
        for ref in refs(run).values():
            assert store.manifest(ref) is not None, ref


def test_what_was_scored_in_shards_is_joined_from_references(
    runs: list[Run], settings: Settings
) -> None:
    store = ArtifactStore(settings.artifacts, settings.cache)
    for run, tasks in (
        (runs[1], ("score_pseudo", "score_tower_pairs")),
        (runs[5], ("score_pseudo", "relabel_1", "score_tower_pairs")),
    ):
        for task in tasks:
            names = [f"{task}_shards[{k}]" for k in (0, 1)]
            assert [run["called"][name] for name in names] == ["shard 0 of 2", "shard 1 of 2"]
            joined = store.open(refs(run)[task])
            assert joined.inputs["shards"] == [refs(run)[name] for name in names]
            pairs = [store.open(ref).facts["pairs"] for ref in joined.inputs["shards"]]
            assert joined.facts["pairs"] == sum(pairs) > max(pairs)


def test_two_releases_are_registered_and_the_second_is_live(
    runs: list[Run], settings: Settings
) -> None:
    entries = ledger.verified(settings, MARKET)
    promoted = [e.release_id for e in entries if e.action == "promoted"]
    store = ArtifactStore(settings.artifacts, settings.cache)
    assert promoted == [store.open(refs(r)["promote"]).facts["release"] for r in (runs[1], runs[5])]
    assert ledger.live(entries) == promoted[1]
    document = routing.read(settings, MARKET)
    assert document is not None
    assert promoted[1] in json.dumps(document)
    api = tracking.client(settings)
    model = load_market(MARKET, settings.markets).model_name
    tags = {a: api.get_model_version_by_alias(model, a).tags for a in ("champion", "previous")}
    assert [tags[a]["csrm.release"] for a in ("previous", "champion")] == promoted


def test_the_gold_set_judged_everyone(runs: list[Run], settings: Settings) -> None:
    store = ArtifactStore(settings.artifacts, settings.cache)
    evaluation = store.open(refs(runs[5])["evaluate"])
    metrics = json.loads(evaluation.file("metrics.json").read_text(encoding="utf-8"))
    assert [m["name"] for m in metrics["models"]] == [
        "majority", "tfidf", "champion", "stage2", "round1", "round2", "final",
        "champion_towers", "towers_hard", "towers",
    ]  # fmt: skip
    snapshot = store.open(refs(runs[5])["snapshot"])
    pairs = pl.read_parquet(snapshot.file("pairs.parquet"))
    gold = pairs.filter(pl.col("split") == "gold")
    assert metrics["gold"]["pairs"] == gold.height > 0
    others = pairs.filter(pl.col("split") != "gold")
    assert set(gold["query_id"]).isdisjoint(others["query_id"])


def test_the_cold_start_read_nothing_of_the_target_but_its_catalogue(
    runs: list[Run], settings: Settings
) -> None:
    snapshot = ArtifactStore(settings.artifacts, settings.cache).open(refs(runs[1])["snapshot"])
    pairs = pl.read_parquet(snapshot.file("pairs.parquet"))
    assert set(pairs["locale"]) == {"ko-KR"}
    assert (
        pl.read_parquet(snapshot.file("behaviour.parquet"))
        .filter(pl.col("locale") == "zh-TW")
        .is_empty()
    )


def test_a_run_of_fewer_rounds_shares_all_before_them_with_the_normal_week_and_releases_nothing(
    changed: Run, runs: list[Run], settings: Settings
) -> None:
    store = ArtifactStore(settings.artifacts, settings.cache)
    made, normal = refs(changed), refs(runs[BEFORE])
    after = {"relabel_2_shards[0]", "relabel_2_shards[1]", "relabel_2", "train_llm_round2"}
    trained = {t for t in normal if store.require(normal[t])["about"]["step"] == "train_llm"}
    shared = {"snapshot", "build_bm25", "train_ebr", "build_index", "build_rqa", "relabel_1"}
    assert {t: made[t] for t in shared | trained - after} == {
        t: normal[t] for t in shared | trained - after
    }
    assert store.open(made["relabel_2"]).facts["stopped"] == BEYOND
    assert store.open(made["train_llm_round2"]).facts["passed_on"] == made["train_llm_round1"]

    skipped = {t for t, (state, _) in changed["tasks"].items() if state == "skipped"}
    assert {"register", "promote"} <= skipped <= {"register", "is_approved", "promote"}
    verdict = store.open(made["judge"]).facts
    assert json.loads(verdict["asked"]) == {"rounds": 1, "reason": "is one round enough?"}
    assert "asked" not in store.open(normal["judge"]).facts
    entries = ledger.verified(settings, MARKET)
    assert [e.release_id for e in entries if "asked" in e.payload] == []
    assert verdict["release"] not in {e.release_id for e in entries}


def test_a_day_again_stores_nothing_twice(runs: list[Run], settings: Settings) -> None:
    first, again = runs[0], runs[6]
    assert refs(first) == refs(again)
    receipt = ArtifactStore(settings.artifacts, settings.cache).open(refs(first)["store"]).facts
    counts = ("stored", "quarantined", "known", "ignored")
    assert receipt["rows_in"] == sum(receipt[c] for c in counts)
    assert receipt["stored"] > 0


def test_a_cold_start_again_trains_nothing_and_displaces_no_better_release(
    runs: list[Run], settings: Settings
) -> None:
    first, again = refs(runs[1]), refs(runs[7])
    judged = {"find_champion", "judge", "register", "promote"}  # what is live now differs
    assert {k: v for k, v in first.items() if k not in judged} == {
        k: v for k, v in again.items() if k not in judged
    }
    assert runs[7]["tasks"]["promote"][0] == "skipped"
    entries = ledger.verified(settings, MARKET)
    assert sum(e.action == "promoted" for e in entries) == 2


def test_a_replay_publishes_when_it_is_applied_and_only_then(runs: list[Run]) -> None:
    dry, applied, again = (
        {t: state for t, (state, _) in run["tasks"].items()} for run in runs[8:11]
    )
    assert dry == again == {
        "replay": "success", "is_applied": "success",
        "aggregate": "skipped", "publish_day": "skipped",
    }  # fmt: skip
    assert set(applied.values()) == {"success"}


def test_the_live_releases_vectors_are_those_of_todays_catalogue(
    runs: list[Run], settings: Settings
) -> None:
    live = str(ledger.live(ledger.verified(settings, MARKET)))
    found = snapshots.read(settings, MARKET).releases
    assert list(found) == [live]
    assert found[live].ref == refs(runs[11])["refresh"]
    assert found[live].coverage == 1.0 and found[live].encoded < found[live].products / 10


# What this flow does not run; their own tests have the fixture ``fingerprints_hold``.
NOT_IN_FLOW = {
    "baseline_encoder", "baseline_prompt", "export_llm", "train_cross_encoder", "embed_shard",
    "join_index", "shorten_query_tower", "rollout_state", "rollout_evaluate", "audit_tasks",
    "pretrain_llm", "merge_llms", "mine_negatives", "mine_task_negatives", "filter_fold",
    "filter_noise", "ablation_run", "ablate", "evaluate_tasks", "gate_tasks", "translate_shard",
    "translate_queries", "leave_out", "second_stage", "score_second_stage", "review_queue",
    "claim_week", "taught_scores",
}  # fmt: skip
# What only the training of a cross-fit reads, which no teacher of this flow needs (A18).
CROSS_FIT = {"score_pairs": {"llm", "seed"}, "join_shards": {"seed"}}


def recorded(folder: Path, name: str) -> dict[str, set[str]]:
    found = json.loads((folder / "airflow" / f"{name}.json").read_text())
    return {step: set(seen) for step, seen in found.items()}


def test_a_steps_digest_counts_whatever_the_step_executed(runs: list[Run], folder: Path) -> None:
    executed = recorded(folder, "executed")
    assert {n for n, s in all_steps().items() if not s.side_effect} - executed.keys() == NOT_IN_FLOW
    assert sum(len(seen) for seen in executed.values()) > 500
    assert {s: names for s in executed if (names := missed(s, executed[s]))} == {}


def test_a_step_declares_the_keys_of_the_markets_file_that_it_reads(
    runs: list[Run], folder: Path
) -> None:
    read = recorded(folder, "read")
    assert {s: keys for s in read if (keys := undeclared(s, read[s]))} == {}
    assert {s: keys for s in read if (keys := unread(s, read[s]))} == CROSS_FIT


def test_lineage_leads_from_a_landed_day_over_its_publication_to_the_release(
    all_runs: list[Run], runs: list[Run], settings: Settings
) -> None:
    """Whatever was promoted: from days, and by names that a step made and others read."""
    edges = [edges_of(settings, ref) for run in all_runs for ref in refs(run).values()]
    before: dict[str, set[str]] = {}
    for read, made in edges:
        for name in made:
            before.setdefault(name, set()).update(read)
    landed = {f"{MARKET}/landed/{day}" for day in DAYS}
    assert set().union(*before.values()) - before.keys() == landed  # nothing else comes from afar
    store = ArtifactStore(settings.artifacts, settings.cache)
    for run, days in ((runs[1], DAYS[:1]), (runs[5], DAYS)):
        name = f"{MARKET}/releases/{store.open(refs(run)['promote']).facts['release']}"
        assert {x for x in behind(before, name) if "/landed/" in x} == {
            f"{MARKET}/landed/{day}" for day in days
        }
        assert f"{MARKET}/published/{days[-1]}" in behind(before, name)
        assert name in behind(before, f"{MARKET}/live")


def behind(before: dict[str, set[str]], name: str) -> set[str]:
    """Everything that a data set was made from, and itself."""
    found, left = {name}, [name]
    while left:
        new = before.get(left.pop(), set()) - found
        found |= new
        left += new
    return found
