"""The DAGs as Airflow loads them: exact ids, what stands before promote, the contract of steps."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from csrm_tasks.steps.classes import RELEASING, TRAINING
from csrm_tasks.steps.declaration import all_steps
from tests.warm import airflow_environment, warm_airflow

ROOT = Path(__file__).resolve().parents[2]
MARKETS = ROOT / "tests" / "markets"
HEAVY = ("torch", "transformers", "peft", "mlflow", "faiss", "pandas", "polars", "sklearn", "ibis")
LOAD = """
import json, sys
from airflow.dag_processing.dagbag import BundleDagBag
folder = sys.argv[1]
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags")
def kwargs(task):
    if task.is_mapped:
        given = task.op_kwargs_expand_input.value
        first = {k: v[0] for k, v in given.items() if isinstance(v, list)}
        return task.partial_kwargs["op_kwargs"] | first
    return getattr(task, "op_kwargs", {})
def shards(task):
    if not task.is_mapped:
        return 0
    given = task.op_kwargs_expand_input.value
    return len(given["options"]) if "options" in given else -1  # as many as a run finds
def is_list(value):
    return isinstance(value, list) or getattr(getattr(value, "operator", None), "is_mapped", False)
def inputs(task):
    given = kwargs(task).get("inputs") or {}
    return {k: is_list(v) for k, v in given.items()}
def weeks(timetable):
    if not hasattr(timetable, "default_partition_mapper"):
        return None
    mapper = timetable.default_partition_mapper
    kinds = [type(one).__name__ for one in (mapper, mapper.upstream_mapper, mapper.window)]
    return [timetable.asset_condition.uri, *kinds, mapper.wait_policy.n]
print("LOADED" + json.dumps({
    "errors": bag.import_errors,
    "heavy": sorted(set(sys.argv[2].split(",")) & set(sys.modules)),
    "dags": {d.dag_id: {
        "shapes": {k: d.params.get_param(k).schema for k in d.params},
        "help": {k: d.params.get_param(k).description for k in d.params},
        "runs": d.max_active_runs, "links": d.owner_links, "doc": d.doc_md, "catchup": d.catchup,
        "params": {k: v.value if v.has_value else None
                   for k, v in ((k, d.params.get_param(k)) for k in d.params)},
        "parts": {g: x.group_display_name for g, x in d.task_group.get_task_group_dict().items()
                  if g},
        "weeks": weeks(d.timetable), "roots": sorted(t.task_id for t in d.roots),
        "ancestors": sorted(d.get_task("promote").get_flat_relative_ids(upstream=True))
            if d.has_task("promote") else [],
        "after": sorted(d.get_task("promote").downstream_task_ids) if d.has_task("promote") else [],
        "tasks": {t.task_id: {
            "step": kwargs(t).get("step"), "inputs": inputs(t), "rule": t.trigger_rule.value,
            "params": (kwargs(t).get("same") or {}) | (kwargs(t).get("options") or {}),
            "named": t.map_index_template, "asked": kwargs(t).get("asked"),
            "stage": kwargs(t).get("stage"), "retries": t.retries, "shards": shards(t),
            "asks": [[u["id"] for u in t.assigned_users or ()], t.response_timeout.total_seconds(),
                     t.defaults] if t.task_id == "ask" else None,
            "after": sorted(t.downstream_task_ids), "connection": kwargs(t).get("connection"),
            "doc": t.doc_md, "part": t.task_group.group_id, "owner": t.owner, "pool": t.pool,
            "hours": t.execution_timeout.total_seconds() / 3600, "by": t.has_retry_policy,
            "withheld": kwargs(t).get("withheld"), "tells": [o.uri for o in t.outlets],
        } for t in d.tasks},
    } for d in bag.dags.values()},
}))
"""
SHARDED = {"score_pseudo", "relabel_1", "relabel_2", "score_tower_pairs"}
INGEST = ["land", "validate", "store", "aggregate", "publish_day"]
REFRESH = ["refresh", "publish_refresh", "repair_views"]
REPLAY = ["replay", "is_applied", "aggregate", "publish_day"]
ROLLOUT = [
    "find",
    "whether_to_ask",
    "ask",
    "is_approved_by_a_person",
    "start",
    "is_under_way",
    "evaluate",
    "apply",
]  # of a market without steps
AUDITS = ["take_answers", "draw_audit", "has_queries", "send_audit", "grade_by_llm",
          "audit_estimate"]  # fmt: skip
OWN = {
    "is_approved",
    "is_applied",
    "whether_to_ask",
    "ask",
    "is_approved_by_a_person",
    "is_under_way",
    "has_queries",
    "is_due",
    "list_seeds",
    "study_seed",
    "report",
}  # no steps
COLD_START = [
    "snapshot", "build_bm25", "pseudo_pairs", "train_llm_plain", "score_pseudo_shards",
    "score_pseudo", "train_ebr", "build_index", "build_rqa", "train_llm_stage1", "select_llm",
    "tower_pairs", "score_tower_pairs_shards", "score_tower_pairs", "train_towers",
    "export_towers", "embed_products", "bundle", "find_champion",
    "servability", "judge", "register", "is_approved", "promote",
]  # fmt: skip
RETRAIN = [
    "find_champion", "snapshot", "build_bm25", "build_index_live", "build_rqa_live",
    "pseudo_pairs", "score_pseudo_shards", "score_pseudo", "train_ebr", "build_index", "build_rqa",
    "train_llm_stage2", "relabel_1_shards", "relabel_1", "train_llm_round1",
    "relabel_2_shards", "relabel_2", "train_llm_round2", "select_llm", "choose_teacher",
    "tower_pairs",
    "score_tower_pairs_shards", "score_tower_pairs", "train_towers", "export_towers",
    "embed_products", "train_towers_hard", "export_hard",
    "score_champion", "score_stage2", "score_round1", "score_round2", "score_final",
    "score_champion_towers", "score_towers_hard", "score_towers",
    "baselines", "evaluate", "bundle", "servability", "judge", "register", "is_approved", "promote",
]  # fmt: skip


def load(markets: Path, dags: Path = ROOT / "dags") -> dict:
    """Load the DAG folder in a process of its own, forked as the dag-processor forks."""
    env = airflow_environment() | {"CSRM_MARKETS": str(markets)}
    done = warm_airflow().run(LOAD, str(dags), ",".join(HEAVY), env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("LOADED"))


def load_changed(folder: Path, old: str, new: str) -> dict:
    """Load the DAGs of the mini market with one piece of its file changed."""
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    assert old in text
    (folder / "mini.yaml").write_text(text.replace(old, new), encoding="utf-8")
    found = load(folder)
    assert found["errors"] == {}
    return found


@pytest.fixture(scope="module")
def loaded() -> dict:
    return load(MARKETS)


@pytest.mark.airflow
def test_the_exact_dags_load_without_an_error(loaded: dict) -> None:
    assert loaded["errors"] == {}
    names = [
        "csrm_cold_start", "csrm_drill", "csrm_ingest", "csrm_refresh", "csrm_replay",
        "csrm_retrain", "csrm_rollback", "csrm_rollout", "csrm_study",
    ]  # fmt: skip
    assert sorted(loaded["dags"]) == [f"{n}__mini" for n in names]


@pytest.mark.airflow
@pytest.mark.parametrize(
    ("dag", "tasks"),
    [
        ("csrm_ingest", INGEST), ("csrm_refresh", REFRESH), ("csrm_replay", REPLAY),
        ("csrm_cold_start", COLD_START), ("csrm_retrain", RETRAIN), ("csrm_rollout", ROLLOUT),
        ("csrm_rollback", ["roll_back"]), ("csrm_drill", ["drill"]),
        ("csrm_study", ["list_seeds", "study_seed", "report"]),
    ],
)  # fmt: skip
def test_the_exact_tasks(loaded: dict, dag: str, tasks: list[str]) -> None:
    assert sorted(loaded["dags"][f"{dag}__mini"]["tasks"]) == sorted(tasks)


DATA = {"snapshot", "build_bm25"}
RETRIEVAL = {"pseudo_pairs", "score_pseudo_shards", "score_pseudo", "train_ebr", "build_index",
             "build_rqa"}  # fmt: skip
TOWERS = {"tower_pairs", "score_tower_pairs_shards", "score_tower_pairs", "train_towers",
          "export_towers", "embed_products"}  # fmt: skip
RELEASE = {"register", "is_approved", "promote"}


@pytest.mark.airflow
@pytest.mark.parametrize(
    ("dag", "parts"),
    [
        (
            "csrm_cold_start",
            {
                "data": DATA,
                "retrieval": RETRIEVAL | {"train_llm_plain"},
                "llm": {"train_llm_stage1", "select_llm"},
                "towers": TOWERS,
                "judgement": {"bundle", "find_champion", "servability", "judge"},
                "release": RELEASE,
            },
        ),
        (
            "csrm_retrain",
            {
                "data": DATA | {"find_champion"},
                "retrieval": RETRIEVAL | {"build_index_live", "build_rqa_live"},
                "llm": {"train_llm_stage2"},
                "rounds": {f"{name}_{n}{more}" for n in (1, 2) for name, more in
                           (("relabel", "_shards"), ("relabel", ""))}
                | {"train_llm_round1", "train_llm_round2", "select_llm"},
                "towers": TOWERS | {"choose_teacher", "train_towers_hard", "export_hard"},
                "judgement": {t for t in RETRAIN if t.startswith("score_")
                              and t not in RETRIEVAL | TOWERS}
                | {"baselines", "evaluate", "bundle", "servability", "judge"},
                "release": RELEASE,
            },
        ),
    ],
)  # fmt: skip
def test_a_training_is_drawn_in_its_parts_and_every_task_is_in_one(
    loaded: dict, dag: str, parts: dict[str, set[str]]
) -> None:
    """Ids of tasks have no prefix: commands, links and the demo name them."""
    found = loaded["dags"][f"{dag}__mini"]
    drawn: dict[str, set[str]] = {}
    for name, task in found["tasks"].items():
        drawn.setdefault(task["part"], set()).add(name)
    assert drawn == parts
    assert list(found["parts"]) == list(parts)  # in this order
    assert all(title and title != name for name, title in found["parts"].items())


@pytest.mark.airflow
def test_every_task_says_what_its_step_does_and_what_to_do(loaded: dict) -> None:
    for dag in loaded["dags"].values():
        for name, task in dag["tasks"].items():
            assert task["doc"], name
            if task["step"] is None:
                continue
            step = all_steps()[task["step"]]
            words = " ".join(task["doc"].split())
            assert " ".join(step.summary.replace("``", "`").split()) in words, name
            reads = ", ".join(f"`{i}`" for i in task["inputs"]) or "no other artifact"
            assert f"**Reads**: {reads}. **Makes**" in words
            assert f"`MARKET/{step.name}/…`" in words and "**If it fails**" in words
            assert ("always runs" in words) == step.side_effect
            assert "``" not in words and ":func:" not in words


@pytest.mark.airflow
@pytest.mark.parametrize(
    ("dag", "tasks"), [("csrm_cold_start", COLD_START), ("csrm_retrain", RETRAIN)]
)
def test_everything_stands_before_promote_and_nothing_after(
    loaded: dict, dag: str, tasks: list[str]
) -> None:
    found = loaded["dags"][f"{dag}__mini"]
    assert found["ancestors"] == sorted(set(tasks) - {"promote"})
    assert found["after"] == []
    assert {t["rule"] for t in found["tasks"].values()} == {"all_success"}


def stands_between(shard: dict, joined: dict, task: str, whole: dict) -> None:
    """Shards read what the whole task reads, their join stands where it stood."""
    assert shard["inputs"] == whole["inputs"]
    assert joined["inputs"] == whole["inputs"] | {"shards": True}
    assert (shard["after"], joined["after"]) == ([task], whole["after"])


@pytest.mark.airflow
def test_a_market_may_score_in_shards_that_are_mapped_tasks_joined_again(
    loaded: dict, tmp_path: Path
) -> None:
    whole = load_changed(tmp_path, "score_shards: 2", "score_shards: 1")
    for name, expected in (("csrm_cold_start", COLD_START), ("csrm_retrain", RETRAIN)):
        cut, one = (found["dags"][f"{name}__mini"]["tasks"] for found in (loaded, whole))
        asked = SHARDED & set(expected)
        assert set(one) == {t for t in expected if not t.endswith("_shards")}
        assert set(cut) == set(one) | {f"{t}_shards" for t in asked}
        assert {n: t["shards"] for n, t in cut.items() if t["shards"]} == {
            f"{t}_shards": 2 for t in asked
        }
        for task in asked:
            joined, shard = cut[task], cut[f"{task}_shards"]
            assert (joined["step"], shard["step"]) == ("join_shards", "score_shard")
            assert one[task]["step"] == "score_pairs"
            assert shard["params"] == joined["params"] | {"shard": 0, "of": 2}
            assert joined["params"] == one[task]["params"]
            stands_between(shard, joined, task, one[task])


@pytest.mark.airflow
def test_a_market_may_embed_its_catalogue_in_shards(loaded: dict, tmp_path: Path) -> None:
    sharded = load_changed(tmp_path, "retrieval:\n", "retrieval:\n  index_shards: 3\n")
    for name, asked in (
        ("csrm_cold_start", {"build_index"}),
        ("csrm_retrain", {"build_index", "build_index_live"}),
    ):
        one, many = (found["dags"][f"{name}__mini"]["tasks"] for found in (loaded, sharded))
        assert set(many) == set(one) | {f"{t}_shards" for t in asked}
        for task in asked:
            joined, shard = many[task], many[f"{task}_shards"]
            assert (joined["step"], shard["step"]) == ("join_index", "embed_shard")
            assert (one[task]["step"], shard["shards"]) == ("build_index", 3)
            assert shard["params"] == {"shard": 0, "of": 3}
            stands_between(shard, joined, task, one[task])


@pytest.mark.airflow
def test_a_market_may_serve_a_shorter_query_tower(loaded: dict, tmp_path: Path) -> None:
    short = load_changed(tmp_path, "towers:\n", "towers:\n  query_layers: 1\n")
    for name in ("csrm_cold_start", "csrm_retrain"):
        one, other = (found["dags"][f"{name}__mini"]["tasks"] for found in (loaded, short))
        assert set(other) == set(one) | {"shorten_query_tower"}
        assert other["train_towers"]["after"] == ["shorten_query_tower"]
        assert set(other["shorten_query_tower"]["inputs"]) == {"snapshot", "towers", "scored"}
        assert other["shorten_query_tower"]["after"] == one["train_towers"]["after"]


@pytest.mark.airflow
def test_a_week_may_start_from_the_live_adapter(loaded: dict, tmp_path: Path) -> None:
    """All its trainings alike (A17); the rest of the week, and the cold start, as ever."""
    found = load_changed(tmp_path, "  steps: 16", "  warm_start: live\n  steps: 16")
    for dag in ("csrm_retrain__mini", "csrm_cold_start__mini"):
        for name, task in found["dags"][dag]["tasks"].items():
            before = loaded["dags"][dag]["tasks"][name]
            warmed = dag.startswith("csrm_retrain") and task["step"] == "train_llm"
            more = {"warm": False} if warmed else {}  # one, not a list
            assert task["inputs"] == before["inputs"] | more, name


@pytest.mark.airflow
def test_a_week_may_merge_its_adapters_and_the_live_one(loaded: dict, tmp_path: Path) -> None:
    found = load_changed(tmp_path, "  steps: 16", "  merge: [linear, dare]\n  steps: 16")
    one, other = (f["dags"]["csrm_retrain__mini"] for f in (loaded, found))
    merged = {"merge_linear", "merge_dare"}
    scores = {"score_merged_linear", "score_merged_dare"}
    assert set(other["tasks"]) == set(one["tasks"]) | merged | scores
    assert set(other["ancestors"]) == set(one["ancestors"]) | merged | scores
    for name in merged:
        task = other["tasks"][name]
        assert task["params"] == {"method": name.removeprefix("merge_")}
        given = {"snapshot": False, "rqa": False, "live": False, "llms": True}
        assert (task["step"], task["inputs"]) == ("merge_llms", given)
        assert set(task["after"]) == {"select_llm", f"score_merged_{task['params']['method']}"}
        before = {n for n, t in other["tasks"].items() if name in t["after"]}
        rounds = {"train_llm_stage2", "train_llm_round1", "train_llm_round2"}
        assert before == rounds | {"snapshot", "build_rqa", "find_champion"}
    names = other["tasks"]["evaluate"]["params"]["names"].split(",")
    assert names.index("round2") < names.index("merged_linear") < names.index("final")
    cold = "csrm_cold_start__mini"  # one model, none live: nothing to merge
    assert found["dags"][cold] == loaded["dags"][cold]


@pytest.mark.airflow
def test_every_training_reads_what_the_filter_has_left(loaded: dict, tmp_path: Path) -> None:
    """With a stage 0, from which the folds' LLMs start as the others do (A39)."""
    changed = "filter: {action: remove, folds: 3}\nllm:\n  pretraining: {steps: 4}\n"
    found = load_changed(tmp_path, "llm:\n", changed)
    for name in ("csrm_cold_start__mini", "csrm_retrain__mini"):
        one, other = (f["dags"][name] for f in (loaded, found))
        more = {"filter_folds", "filter_noise"}
        assert set(other["tasks"]) == set(one["tasks"]) | more | {"pretrain_llm"}
        assert more <= set(other["ancestors"])
        folds, decided = (other["tasks"][t] for t in ("filter_folds", "filter_noise"))
        assert (folds["step"], folds["shards"], folds["params"]) == ("filter_fold", 3, {"fold": 0})
        assert set(folds["inputs"]) == {"snapshot", "pretrained"}
        assert decided["inputs"] == {"snapshot": False, "folds": True}
        trainings = {n for n, task in other["tasks"].items() if task["step"] == "train_llm"}
        assert set(decided["after"]) == trainings
        for n in trainings:
            given = set(one["tasks"][n]["inputs"])
            assert set(other["tasks"][n]["inputs"]) == given | {"pretrained", "filtered"}


@pytest.mark.airflow
def test_nothing_waits_for_a_review(loaded: dict, tmp_path: Path) -> None:
    review = "filter: {action: review, scorer: linear}\nllm:\n"
    found = load_changed(tmp_path, "llm:\n", review)
    for name in ("csrm_cold_start__mini", "csrm_retrain__mini"):
        one, other = (f["dags"][name] for f in (loaded, found))
        assert set(other["tasks"]) == set(one["tasks"]) | {"filter_folds", "filter_noise"}
        assert set(other["tasks"]["filter_folds"]["inputs"]) == {"snapshot"}
        assert other["tasks"]["filter_noise"]["after"] == []
        assert other["ancestors"] == one["ancestors"]


@pytest.mark.airflow
def test_a_runs_trainings_obey_its_ablation(loaded: dict, tmp_path: Path) -> None:
    """The ranker of a cold start comes before it; a live adapter is none of its inputs (A41)."""
    asked = "ablation: {enabled: true, seeds: 2}\nfilter: {action: remove, scorer: linear}\nllm:\n"
    found = load_changed(
        tmp_path, "llm:\n", f"{asked}  warm_start: live\n  negatives: {{per_query: 2}}\n"
    )
    for name in ("csrm_cold_start__mini", "csrm_retrain__mini"):
        tasks = found["dags"][name]["tasks"]
        assert {"ablation_runs", "ablate"} <= set(found["dags"][name]["ancestors"])
        runs, decided = tasks["ablation_runs"], tasks["ablate"]
        assert (runs["step"], runs["shards"]) == ("ablation_run", 6)
        assert runs["params"] == {"without": "", "repeat": 0}
        assert set(runs["inputs"]) == {"snapshot", "rqa", "negatives", "filtered"}
        assert decided["inputs"] == {"snapshot": False, "runs": True}
        trainings = {n for n, t in tasks.items() if t["step"] == "train_llm"} - {"train_llm_plain"}
        told = {n for n, t in tasks.items() if "ablation" in t["inputs"]}
        judges = {"judge", "evaluate"} if "evaluate" in tasks else {"judge"}
        assert told == trainings | judges == set(decided["after"])


@pytest.mark.airflow
def test_an_ablation_of_nothing_adds_no_task(loaded: dict, tmp_path: Path) -> None:
    found = load_changed(tmp_path, "llm:\n", "ablation: {enabled: true}\nllm:\n")
    assert found["dags"] == loaded["dags"]


def test_every_training_of_a_market_with_a_stage_0_starts_from_it(
    loaded: dict, tmp_path: Path
) -> None:
    more = load_changed(tmp_path, "  lora: {", "  pretraining: {steps: 4}\n  lora: {")
    for name, given in (("cold_start", {"snapshot"}), ("retrain", {"snapshot", "previous"})):
        one, other = (found["dags"][f"csrm_{name}__mini"]["tasks"] for found in (loaded, more))
        assert set(other) == set(one) | {"pretrain_llm"}
        assert set(other["pretrain_llm"]["inputs"]) == given
        trainings = {n for n, task in other.items() if task["step"] == "train_llm"}
        assert set(other["pretrain_llm"]["after"]) == trainings
        for n in trainings:
            assert set(other[n]["inputs"]) == set(one[n]["inputs"]) | {"pretrained"}


@pytest.mark.airflow
def test_a_market_may_add_negatives_to_its_trainings(loaded: dict, tmp_path: Path) -> None:
    """The current LLM has its say; the ranker, which learns before there is an EBR, has none."""
    more = load_changed(tmp_path, "  lora: {", "  negatives: {per_query: 2}\n  lora: {")
    found = {"snapshot", "bm25", "ebr", "index", "llm"}
    for name, given in (("cold_start", found), ("retrain", found | {"rqa"})):
        one, other = (f["dags"][f"csrm_{name}__mini"]["tasks"] for f in (loaded, more))
        assert set(other) == set(one) | {"mine_negatives"}
        assert set(other["mine_negatives"]["inputs"]) == given
        trainings = {n for n, task in other.items() if task["step"] == "train_llm"}
        assert set(other["mine_negatives"]["after"]) == trainings - {"train_llm_plain"}
        for n, task in other.items():
            added = {"negatives"} if n in trainings - {"train_llm_plain"} else set()
            assert set(task["inputs"]) == set(one.get(n, task)["inputs"]) | added, n
        before = {n for n, task in other.items() if "mine_negatives" in task["after"]}
        asked = {"train_llm_plain"} if name == "cold_start" else {"find_champion", "build_rqa_live"}
        assert before == asked | {"snapshot", "build_bm25", "train_ebr", "build_index"}


@pytest.mark.airflow
@pytest.mark.parametrize("who", ["table", "llm"])
def test_a_market_may_translate_train_queries(loaded: dict, tmp_path: Path, who: str) -> None:
    """In mapped shards, by the current LLM where it translates; not for the ranker (A37)."""
    more = load_changed(tmp_path, "  lora: {", f"  augmentation: {{translator: {who}}}\n  lora: {{")
    for name, current in (("cold_start", "train_llm_plain"), ("retrain", "find_champion")):
        one, other = (f["dags"][f"csrm_{name}__mini"]["tasks"] for f in (loaded, more))
        assert set(other) == set(one) | {"translate_shards", "translate_queries"}
        shards, joined = other["translate_shards"], other["translate_queries"]
        given = {"snapshot"} | ({"llm"} if who == "llm" else set())
        assert (shards["step"], shards["shards"], set(shards["inputs"])) == (
            "translate_shard", 2, given,
        )  # fmt: skip
        assert joined["inputs"] == {"snapshot": False, "shards": True}
        before = {n for n, task in other.items() if "translate_shards" in task["after"]}
        assert before == {"snapshot"} | ({current} if who == "llm" else set())
        trainings = {n for n, task in other.items() if task["step"] == "train_llm"}
        assert set(joined["after"]) == trainings - {"train_llm_plain"}
        for n in trainings:
            added = {"translated"} if n != "train_llm_plain" else set()
            assert set(other[n]["inputs"]) == set(one[n]["inputs"]) | added, n


@pytest.mark.airflow
def test_the_towers_pairs_may_have_shards_of_their_own(tmp_path: Path) -> None:
    found = load_changed(tmp_path, "towers:\n", "towers:\n  score_shards: 3\n")
    for name in ("csrm_cold_start", "csrm_retrain"):
        tasks = found["dags"][f"{name}__mini"]["tasks"]
        assert tasks["score_tower_pairs_shards"]["shards"] == 3
        assert tasks["score_pseudo_shards"]["shards"] == 2


@pytest.mark.airflow
def test_a_replay_is_a_dry_run_unless_told_and_publishes_only_what_it_applied(loaded: dict) -> None:
    found = loaded["dags"]["csrm_replay__mini"]
    assert found["params"] == {"day": None, "reason": None, "apply": False}
    after = {name: task["after"] for name, task in found["tasks"].items()}
    assert after == {
        "replay": ["aggregate", "is_applied"], "is_applied": ["aggregate"],
        "aggregate": ["publish_day"], "publish_day": [],
    }  # fmt: skip


@pytest.mark.airflow
def test_a_market_with_steps_has_audits_and_asks_its_approvers(tmp_path: Path) -> None:
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    steps = "rollout: {approvers: [ann], approval_hours: 5}\n"
    text = "\n".join(line for line in text.splitlines() if not line.startswith("rollout:"))
    (tmp_path / "mini.yaml").write_text(f"{text}\n{steps}")
    loaded = load(tmp_path)
    assert loaded["errors"] == {}
    tasks = loaded["dags"]["csrm_rollout__mini"]["tasks"]
    assert sorted(tasks) == sorted(ROLLOUT + AUDITS)
    rules = {name: t["rule"] for name, t in tasks.items() if t["rule"] != "all_success"}
    assert rules == {
        "start": "none_failed_min_one_success",
        "evaluate": "all_done_min_one_success",  # answers that cannot be read hold up no rollback
    }
    after = {name: t["after"] for name, t in tasks.items()}
    assert after["whether_to_ask"] == ["ask", "start"]
    assert after["ask"] == ["is_approved_by_a_person"]
    assert after["is_approved_by_a_person"] == ["start"]
    assert (after["start"], after["evaluate"], after["apply"]) == ([], ["apply"], [])
    assert tasks["ask"]["asks"] == [["ann"], 5 * 3600, ["Reject"]]


@pytest.mark.airflow
def test_dags_say_what_they_are_and_run_one_at_a_time(loaded: dict) -> None:
    for dag in loaded["dags"].values():
        assert (dag["runs"], dag["catchup"]) == (1, False)
        assert "**Window**" in dag["doc"]
        assert {(t["retries"], t["by"]) for t in dag["tasks"].values()} == {(3, True)}


@pytest.mark.airflow
def test_a_day_is_told_of_where_it_is_published_and_a_market_may_train_by_that(
    loaded: dict, tmp_path: Path
) -> None:
    days, name = "x-csrm://mini/days", "csrm_retrain__mini"
    by_days = load_changed(tmp_path, "retrain: null", "retrain: {at_least: 6}")
    for found in (loaded, by_days):
        tell = {(dag, task) for dag, x in found["dags"].items() for task, t in x["tasks"].items()
                if t["tells"] == [days]}  # fmt: skip
        assert tell == {(f"csrm_{n}__mini", "publish_day") for n in ("ingest", "replay")}
    week = ["RollupMapper", "StartOfWeekMapper", "WeekWindow", 6]
    assert {n: x["weeks"] for n, x in by_days["dags"].items() if x["weeks"]} == {
        name: [days, *week]
    }
    assert by_days["heavy"] == []
    # Nothing runs before the store was asked; where the clock says, there is nothing to ask.
    assert by_days["dags"][name]["roots"] == ["is_due"]
    assert sorted(by_days["dags"][name]["tasks"]) == sorted([*RETRAIN, "is_due"])
    assert by_days["dags"][name]["tasks"]["is_due"]["part"] == "data"


@pytest.mark.airflow
def test_tasks_take_so_long_run_there_and_are_theirs_as_the_market_says(
    loaded: dict, tmp_path: Path
) -> None:
    more = (
        "drill: null, task_hours: 2, training_hours: 5, training_pool: heavy, owner: search, "
        "owner_link: https://wiki.example/search}\nnotify: {connection: ops}\n"
    )
    found = load_changed(tmp_path, "drill: null}\n", more)
    assert found["heavy"] == []  # nor for having people told
    for name, dag in found["dags"].items():
        before = loaded["dags"][name]
        assert (dag["links"], before["links"]) == ({"search": "https://wiki.example/search"}, {})
        for task_id, task in dag["tasks"].items():
            trains = task["step"] in TRAINING or task_id == "study_seed"
            given = (task["hours"], task["pool"], task["owner"])
            assert given == ((5, "heavy", "search") if trains else (2, "default_pool", "search"))
            old = before["tasks"][task_id]
            assert (old["hours"], old["pool"]) == (72 if trains else 12, "default_pool")


@pytest.mark.airflow
def test_every_task_that_changes_what_is_served_asks_whether_its_run_may(loaded: dict) -> None:
    asked = {
        (name.removesuffix("__mini"), task_id)
        for name, dag in loaded["dags"].items()
        for task_id, task in dag["tasks"].items()
        if task["withheld"] == "{{ withheld(params, dag_run) }}"
    }
    trained = {(f"csrm_{n}", t) for n in ("retrain", "cold_start") for t in ("register", "promote")}
    assert asked == trained | {
        ("csrm_refresh", "publish_refresh"), ("csrm_rollout", "find"), ("csrm_rollout", "start"),
        ("csrm_rollout", "apply"),
    }  # fmt: skip
    steps = all_steps()
    assert set(steps) >= RELEASING and set(steps) >= TRAINING
    # And what is not asked acts on nothing that is served, or is a person's own act.
    acts = {name for name, step in steps.items() if step.side_effect} - RELEASING
    assert acts == {
        "store", "aggregate", "publish_day", "replay", "champion", "passed_llm", "audit_estimate",
        "roll_back", "repair_views", "drill",
    }  # fmt: skip


@pytest.mark.airflow
def test_loading_dags_imports_nothing_heavy(loaded: dict) -> None:
    """What a file imports, the dag-processor imports again and again, and so does every task."""
    assert loaded["heavy"] == []


@pytest.mark.airflow
def test_every_task_gives_its_step_what_it_declares(loaded: dict) -> None:
    steps = all_steps()
    for dag in loaded["dags"].values():
        for task_id, task in dag["tasks"].items():
            if task_id in OWN:
                continue
            spec = steps[task["step"]]
            lists = {name for name, is_list in task["inputs"].items() if is_list}
            assert lists == set(spec.many) & set(task["inputs"]), task_id
            known = {*spec.inputs, *spec.optional, *spec.many}
            assert {*spec.inputs, *spec.many} <= set(task["inputs"]) <= known, task_id
            required = {n for n, p in spec.params.items() if p.default is inspect.Parameter.empty}
            assert required <= set(task["params"]) <= set(spec.params), task_id


@pytest.mark.airflow
def test_evaluation_names_match_its_scores_in_order(loaded: dict) -> None:
    tasks = loaded["dags"]["csrm_retrain__mini"]["tasks"]
    names = tasks["evaluate"]["params"]["names"].split(",")
    assert [f"score_{n}" for n in names] == [t for t in tasks if t in {f"score_{n}" for n in names}]
    assert names.index("champion") < names.index("stage2") < names.index("final")


@pytest.mark.airflow
def test_a_second_market_is_a_file_and_a_broken_one_names_its_key(tmp_path: Path) -> None:
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("market: mini", f"market: {name}"))
    assert len(load(tmp_path)["dags"]) == 18
    (tmp_path / "two.yaml").write_text(text.replace("market: mini", "market: two\ncolour: red"))
    broken = load(tmp_path)
    ((file, said),) = broken["errors"].items()
    assert Path(file).name == "csrm_market_files.py" and "two.yaml: colour:" in said
    assert {name.partition("__")[2] for name in broken["dags"]} == {"one"}  # as if it were alone
    assert len(broken["dags"]) == 9


@pytest.mark.airflow
def test_a_second_stage_is_chosen_before_products_are_embedded_and_judged_as_served(
    tmp_path: Path,
) -> None:
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    (tmp_path / "mini.yaml").write_text(text + "second_stage: {enabled: true}\n")
    loaded = load(tmp_path)
    assert loaded["errors"] == {}
    tasks = loaded["dags"]["csrm_retrain__mini"]["tasks"]
    more = {"train_cross_encoder", "second_stage", "score_champion_served", "score_served"}
    assert set(tasks) == {*RETRAIN, *more}
    assert tasks["train_cross_encoder"]["after"] == ["second_stage"]
    assert set(tasks["second_stage"]["after"]) == {"bundle", "embed_products", "score_served"}
    for name in ("score_champion_served", "score_served"):
        assert tasks[name]["after"] == ["evaluate"]
    names = tasks["evaluate"]["params"]["names"].split(",")
    assert names[-3:] == ["towers", "champion_served", "served"]
    cold = loaded["dags"]["csrm_cold_start__mini"]["tasks"]
    assert not {"train_cross_encoder", "second_stage"} & {*cold}


@pytest.mark.airflow
def test_a_market_may_ask_for_more_than_the_papers_system(tmp_path: Path) -> None:
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    asked = (
        "controls: {encoder: ./xlm-roberta-base, prompt: gpt-x, prompt_connection: shop_llm, "
        "cross_encoder: true, rqa_unclicked: true, towers_seen: true, leave_out: true}\n"
        "review: {pairs: 100}\n"
    )
    text = text.replace("approval: auto", "approval: auto, export_llm: true")
    text = text.replace("towers:\n", "towers:\n  stacked_teacher: true\n")
    (tmp_path / "mini.yaml").write_text(text + asked)
    loaded = load(tmp_path)
    assert loaded["errors"] == {}
    tasks = loaded["dags"]["csrm_retrain__mini"]["tasks"]
    more = {"baseline_encoder", "baseline_prompt", "export_llm", "leave_out", "review_queue"}
    more |= {"train_cross_encoder", "score_cross_encoder", "score_teacher"}
    more |= {"train_ebr_unclicked", "build_index_unclicked", "build_rqa_unclicked"}
    more |= {"score_rqa_unclicked", "train_towers_seen", "export_seen", "score_towers_seen"}
    assert set(tasks) == {*RETRAIN, *more}
    assert "evaluate" in tasks["score_cross_encoder"]["after"]
    assert tasks["leave_out"]["after"] == ["evaluate"]
    assert {"evaluate", "judge"} <= set(tasks["review_queue"]["after"])
    # What was taught gold queries, or reads without their clicks, is judged and never released.
    for made, scores in (("export_seen", "towers_seen"), ("build_rqa_unclicked", "rqa_unclicked")):
        assert tasks[made]["after"] == [f"score_{scores}"]
        assert tasks[f"score_{scores}"]["after"] == ["evaluate"]
    assert tasks["train_towers"]["params"] == {"target": "soft"}
    assert tasks["train_towers_seen"]["params"] == {"seen": True}
    assert "bundle" in tasks["export_llm"]["after"]
    assert tasks["baseline_encoder"]["params"] == {"encoder": "./xlm-roberta-base"}
    assert tasks["baseline_prompt"]["params"] == {"model": "gpt-x", "remote": True}
    assert tasks["baseline_prompt"]["connection"] == "shop_llm"
    assert tasks["evaluate"]["params"]["names"].split(",")[-9:-5] == [
        "final", "teacher", "encoder", "prompt",
    ]  # fmt: skip
    # Who teaches is known before the first pair is scored for the towers.
    for scoring in ("score_tower_pairs_shards", "score_tower_pairs", "score_teacher"):
        assert "teacher" in tasks[scoring]["inputs"] and scoring in tasks["choose_teacher"]["after"]
    # No LLM scores gold twice: what the chosen one and the stack on it say is there already.
    steps = {task: tasks[task]["step"] for task in ("score_final", "score_teacher")}
    assert steps == {"score_final": "chosen_scores", "score_teacher": "taught_scores"}
    assert all("score_final" in tasks[f"score_{one}"]["after"] for one in ("stage2", "round2"))
    assert "evaluate" in tasks["baseline_prompt"]["after"]


def test_no_heavy_import_at_module_top_of_the_command_line(tmp_path: Path) -> None:
    script = (
        "import sys; from csrm_tasks.cli.main import main; code = main(['--help']);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules) - {{'polars'}})); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train-llm" in done.stdout
