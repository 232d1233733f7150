"""Gold set, slices, alignment of scores, and the tables that the gate reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation import evidence
from csrm_tasks.evaluation.gold import counts, gold_set, llm_answers, tower_answers
from csrm_tasks.evaluation.metrics import accuracy
from tests.evaluation_fixtures import gold, llm_frame, models, tables, tower_frame


def test_gold_holds_gold_pairs_only_sorted_by_query() -> None:
    pairs, queries, products = tables()
    found = gold_set(pairs, queries, products)
    assert set(found.frame["pair_id"]) == set(pairs.filter(split="gold")["pair_id"])
    assert found.frame["query_id"].is_sorted()
    assert [found.query_ids[i] for i in found.query] == found.frame["query_id"].to_list()


def test_slices_are_what_they_say() -> None:
    pairs, queries, products = tables()
    found = gold_set(pairs, queries, products)
    brand = dict(queries.select("query_id", "brand").iter_rows())
    category = dict(products.select("product_id", "category").iter_rows())
    shown = dict(queries.select("query_id", "impressions").iter_rows())
    for i, row in enumerate(found.frame.iter_rows(named=True)):
        assert found.slices["brand"][i] == (brand[row["query_id"]] != "")
        unseen = category[row["product_id"]] == "類別9"
        assert found.slices["unseen_category"][i] == unseen
    head = {q for q, m in zip(found.frame["query_id"], found.slices["head"], strict=True) if m}
    ranked = sorted(found.query_ids, key=lambda q: -shown[q])
    assert head == set(ranked[: len(ranked) // 5])
    parts = [found.slices[s] for s in ("head", "torso", "tail")]
    assert (np.sum(parts, axis=0) == 1).all()


def test_new_products_languages_and_categories_are_told_apart() -> None:
    pairs, queries, products = tables()
    trained = set(pairs.filter(split="train")["product_id"])
    found = gold_set(pairs, queries, products)
    for product, new in zip(found.frame["product_id"], found.slices["new_product"], strict=True):
        assert new == (product not in trained)
    categories = [n for n in found.slices if n.startswith("category ")]
    assert len(categories) == 8  # the largest of ten
    assert not any(n.startswith("language") for n in found.slices)  # there is one only
    korean = pl.col("query_id").is_in(["q1", "q3"])
    locale = pl.when(korean).then(pl.lit("ko-KR")).otherwise("locale").alias("locale")
    both = gold_set(
        pairs.with_columns(locale),
        queries.with_columns(locale),
        pl.concat([products, products.with_columns(locale=pl.lit("ko-KR"))]),
    )
    mask = both.slices["language ko-KR"]
    assert (both.frame["locale"].to_numpy()[mask] == "ko-KR").all()
    assert (mask ^ both.slices["language zh-TW"]).all()
    assert both.slices["new_product"][mask].all()  # trained on in another market is not trained on


def test_nicknames_are_queries_in_other_words_than_their_exact_products() -> None:
    pairs, queries, products = tables()
    assert "nickname" not in gold_set(pairs, queries, products).slices  # all are called by name

    def marked(slang: str, brand: str) -> set[str]:
        ours = pl.col("query_id").is_in(["q1", "q5"])
        said = queries.with_columns(
            norm=pl.when(ours).then(pl.lit(slang)).otherwise("norm"),
            brand=pl.when(pl.col("query_id") == "q5").then(pl.lit(brand)).otherwise("brand"),
        )
        found = gold_set(pairs, said, products)
        mask = found.slices.get("nickname", np.zeros(found.pairs, bool))
        return set(found.frame["query_id"].to_numpy()[mask])

    exact = set(gold_set(pairs, queries, products).frame.filter(pl.col("grade") == 2)["query_id"])
    assert marked("安城", "") == marked("安城 紅色", "") == {"q1", "q5"} & exact != set()
    assert marked("安城", "農心") == {"q1"} & exact  # q5 names a brand
    assert marked("紅色 安城", "") == set()  # every title has the first of the longest words


def test_without_traffic_there_is_no_head() -> None:
    pairs, queries, products = tables()
    quiet = queries.with_columns(impressions=pl.lit(0, pl.Int64))
    assert "head" not in gold_set(pairs, quiet, products).slices


def test_the_digest_changes_with_a_grade_and_not_with_row_order() -> None:
    pairs, queries, products = tables()
    first = gold_set(pairs, queries, products).digest
    assert gold_set(pairs.reverse(), queries, products).digest == first
    flipped = pairs.with_columns(grade=(2 - pl.col("grade")).cast(pl.Int8))
    assert gold_set(flipped, queries, products).digest != first


def test_scores_are_aligned_by_pair_whatever_their_order() -> None:
    judged = gold()
    frame = llm_frame(judged, 1.0)
    answers = llm_answers("x", "llm", "ref", frame.sample(fraction=1, shuffle=True, seed=3), judged)
    assert answers.predicted is not None
    assert (answers.predicted == judged.grade).all()
    assert accuracy(counts(answers, judged)["relevance"].sum(0)) == 1.0


def test_a_missing_or_undefined_score_is_an_error_that_names_the_model() -> None:
    judged = gold()
    frame = llm_frame(judged, 1.0)
    with pytest.raises(DataError, match="'x' has no finite score for 3 of"):
        llm_answers("x", "llm", "ref", frame[3:], judged)
    broken = frame.with_columns(p1=pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise("p1"))
    with pytest.raises(DataError, match="for 1 of"):
        llm_answers("x", "llm", "ref", broken, judged)
    nan = tower_frame(judged, 1.0).with_columns(em=pl.lit(float("nan")))
    with pytest.raises(DataError, match="'t' has no finite"):
        tower_answers("t", "ref", nan, judged)
    with pytest.raises(DataError, match="no column 'p2'"):
        llm_answers("x", "llm", "ref", frame.drop("p2"), judged)


def test_towers_rank_filtered_products_last() -> None:
    judged = gold()
    answers = tower_answers("t", "ref", tower_frame(judged, 0.8), judged)
    assert answers.score[answers.defect].max() < answers.score[~answers.defect].min()


def test_evidence_read_back_equals_what_was_judged(tmp_path: Path) -> None:
    judged = gold()
    known = models(judged)
    evidence.write(tmp_path, judged, known)
    again, read = evidence.read(tmp_path)
    assert again.query_ids == judged.query_ids
    assert again.digest == judged.digest
    assert set(again.slices) == set(judged.slices)
    assert all((again.slices[s] == judged.slices[s]).all() for s in judged.slices)
    for old, new in zip(known, read, strict=True):
        assert (old.name, old.kind, old.source) == (new.name, new.kind, new.source)
        for family, table in counts(old, judged).items():
            if family == "calibration":
                continue  # probabilities are not kept: the gate reads none
            assert np.array_equal(table, counts(new, again)[family])


def test_queries_that_towers_were_taught_are_remembered_and_controls_are_not_released(
    tmp_path: Path,
) -> None:
    judged = gold()
    known = list(judged.query_ids[:7])
    frame = tower_frame(judged, 0.8).with_columns(seen=pl.col("query_id").is_in(known))
    towers = tower_answers("towers", "m/export_towers/new", frame, judged)
    control = tower_answers("seen", "m/export_towers/new", frame, judged, "control")
    evidence.write(tmp_path, judged, [control, towers])
    again, (first, second) = evidence.read(tmp_path)
    assert (first.kind, second.kind) == ("control", "towers")
    found = evidence.evidence(tmp_path, "new", [], "m/export_towers/new")
    assert found.seen is not None
    assert found.seen.tolist() == [q in known for q in again.query_ids]
    np.testing.assert_array_equal(found.counts["em"], counts(towers, judged)["em"])


def test_evidence_is_found_by_what_was_scored_and_not_by_name(tmp_path: Path) -> None:
    judged = gold()
    evidence.write(tmp_path, judged, models(judged))
    found = evidence.evidence(tmp_path, "r", ["m/select_llm/new"], "m/export_towers/new")
    assert set(found.counts) == {"relevance", "em", "defect", "em_at_1"}
    assert set(found.slices) == set(judged.slices)
    lost = evidence.evidence(tmp_path, "r", ["champion"], "champion_towers")
    assert dict(lost.counts) == {}


def test_an_empty_gold_set_is_judged_as_nothing(tmp_path: Path) -> None:
    pairs, queries, products = tables()
    none = gold_set(pairs.filter(pl.col("split") != "gold"), queries, products)
    assert (none.pairs, none.queries) == (0, 0)
    evidence.write(tmp_path, none, models(none))
    assert evidence.evidence(tmp_path, "r", ["m/select_llm/new"], None).counts == {}
