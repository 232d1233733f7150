"""Every benchmark runs to its end in its quick form and says what it promises to say."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from benchmarks.__main__ import RESULTS, _sections, names
from tests.warm import warm_models

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "aggregate": {"events", "seconds", "peak_memory", "time_ratio_polars", "memory_ratio_polars",
                  "time_ratio_pandas", "memory_ratio_pandas", "day100_over_day1"},
    "base_trim": {"memory_ratio", "memory_ratio_cast", "memory_ratio_whole", "step_ratio",
                  "step_ratio_cast", "step_ratio_whole", "tower_step_ratio",
                  "tower_step_ratio_whole", "file_ratio", "log_prob_difference"},
    "batching": {"useful_share", "group_by_length", "random", "packed_attention"},
    "bm25": {"ratio_rank_bm25", "ratio_bm25s", "ratio_tantivy", "recall_delta", "update_ratio",
             "peak_bytes_1m"},
    "brand_match": {"queries_per_s", "ratio_pyahocorasick", "ratio_dict"},
    "embed": {"ratio_sentence_transformers", "ratio_chosen_precision", "least_cosine",
              "useful_share"},
    "import_cikm": {"seconds", "rows_per_second", "peak_memory"},
    "index": {"recall_at_100", "queries_per_s", "bytes", "ratio_flat", "peak_bytes_1m",
              "ratio_best_peer", "memory_ratio_best_peer"},
    "ingest": {"share_of_copy", "ratio_to_sql", "ratio_to_sql_copy_callable", "day100_over_day1"},
    "lexical_evidence": {"em_f1_gain", "em_at_1_gain", "defect_f1_gain", "teacher_micro_f1_gain",
                         "latency_ratio", "memory_ratio"},
    "llm_cost": {"error_train", "error_score"},
    "llm_epoch": {"pairs_ratio_trl", "pairs_ratio_trl_label_head", "dev_loss", "dev_loss_trl"},
    "llm_score": {"ratio_32", "ratio_120", "ratio_all", "ratio_tree_mask"},
    "llm_step": {"time_ratio_fp32", "memory_ratio_fp32", "memory_ratio_fp32_resident",
                 "time_ratio_bf16", "time_ratio_fp32_checkpointed",
                 "memory_ratio_fp32_checkpointed_resident"},
    "night_scale": {f"{what}_{step}" for what in ("seconds", "peak_memory") for step in (
        "land", "validate", "store", "aggregate", "publish_day", "snapshot", "build_bm25",
        "pseudo_pairs")} | {"day100_over_day1", "night_s", "day1_s"},
    "orchestration": {"parse_s_1", "parse_s_5", "week_s"},
    "paired": {"ratio_loop", "ratio_scipy", "baseline_s"},
    "serving": {"requests_per_s", "p99_s", "failed", "ratio_mlflow", "p99_switching_s",
                "refresh_share", "ready_s_1m", "memory_two_over_one",
                "memory_two_over_one_asked", "memory_two_over_one_own"},
    "tower_query": {"int8_ratio_torch", "p99_2layer_s", "flips", "flips_2layer"},
    "tower_train": {"ratio_naive", "ratio_sentence_transformers", "ratio_naive_chosen_precision"},
}  # fmt: skip
AS_MODULE = "import runpy; runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)"
OPTIONAL = {"tower_query": {"ratio_st_onnx_int8", "ratio_2layer_st_onnx_int8"}}  # with its peer


def test_the_list_is_complete() -> None:
    assert sorted(FIGURES) == names()


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten seconds of work; others may keep the machine busy
@pytest.mark.parametrize("name", sorted(FIGURES))
def test_it_runs_to_its_end_and_closes_with_its_figures(name: str) -> None:
    before = RESULTS.read_bytes()
    env = {k: v for k, v in os.environ.items() if k != "CSRM_PREVIOUS"}
    done = warm_models().run(AS_MODULE, name, "--quick", env=env | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["name"] == name
    assert set(said["figures"]) - OPTIONAL.get(name, set()) == FIGURES[name]
    assert all(math.isfinite(value) for value in said["figures"].values())
    assert said["versions"]
    assert RESULTS.read_bytes() == before  # only --record writes


def test_recorded_results_have_the_figures_of_the_benchmarks() -> None:
    """What stands in RESULTS.md was written by a benchmark that still exists."""
    sections = _sections(RESULTS.read_text(encoding="utf-8"))
    assert set(sections) <= set(names())
    for name, text in sections.items():
        assert json.loads(text.strip().splitlines()[-1])["name"] == name
