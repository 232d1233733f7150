"""Rows beside what people judged: negatives by weight, misspelt queries by seed (A38)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from csrm_tasks.errors import DataError
from csrm_tasks.llm.augmented import joined, load_negatives, misspelt_rows, negative_rows
from csrm_tasks.llm.data import Fields, LabelRows, load_fields, load_pairs, relevance_rows
from csrm_tasks.llm.network.head import label_logits
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields
from csrm_tasks.llm.training.tasks import LabelTask
from csrm_tasks.records import NEGATIVES, PAIRS, write_table
from csrm_tasks.text import normalise, pair_id
from tests.llm_fixtures import SOURCE, TARGET, make_base, make_given, make_market, run_as

TEXTS = ["tea", "eta", "te", "녹차잔", "녹차", "紅茶壺", "茶紅壺", "acme mug", "cme mug", "mug 500"]


def a_world(texts: list[str]) -> tuple[Fields, pl.DataFrame]:
    """Every text is a query in both locales; the first half's are train queries."""
    ids = [(f"{locale}{text}", text, locale) for text in texts for locale in (SOURCE, TARGET)]
    queries = {i: QueryFields(text, "acme", ("a title",)) for i, text, _ in ids}
    products = {(locale, "p"): ProductFields("tea", "", "", "") for locale in (SOURCE, TARGET)}
    rows = [
        (pair_id(i, "p"), i, "p", locale, n % 3, "train", 1, 1)
        for n, (i, _, locale) in enumerate(ids[: max(1, len(ids) // 2)])
    ]
    return Fields(queries, products), pl.DataFrame(rows, PAIRS, orient="row")


def by_name(rows: LabelRows) -> dict[str, tuple[QueryFields, list[float]]]:
    targets = rows.targets.tolist()
    return dict(zip(rows.names, zip(rows.queries, targets, strict=True), strict=True))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(TEXTS) | st.text("abté 가茶1", min_size=1, max_size=6), min_size=1,
             max_size=8, unique=True),
    st.integers(0, 10**6), st.floats(0, 1),
)  # fmt: skip
def test_no_misspelt_copy_is_a_query_of_the_snapshot(
    texts: list[str], seed: int, share: float
) -> None:
    fields, pairs = a_world(texts)
    rows = relevance_rows(fields, pairs)
    made = misspelt_rows(fields, pairs, rows, share, seed)
    known, whole = {normalise(t) for t in texts}, by_name(rows)
    for name, (query, target) in by_name(made).items():
        meant, meant_target = whole[name.removeprefix("misspelt/")]
        assert normalise(query.query) not in known
        assert target == meant_target and query.titles == ()
        assert query.brand == (meant.brand if "acme" in normalise(query.query) else "")
    if share == 1.0 or share == 0.0:
        assert share == 1.0 or len(made) == 0
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    again = misspelt_rows(fields, pairs[order], relevance_rows(fields, pairs[order]), share, seed)
    assert by_name(again) == by_name(made)
    fewer = pairs.head(1)
    own = misspelt_rows(fields, fewer, relevance_rows(fields, fewer), share, seed)
    assert by_name(own).items() <= by_name(made).items()


def test_about_the_share_of_the_queries_is_misspelt_with_all_their_pairs() -> None:
    fields, pairs = a_world(
        [f"{a}{b}{c}" for a in "茶壺傘紅白" for b in "大中小" for c in "天地人"]
    )
    rows = relevance_rows(fields, pairs)
    made = misspelt_rows(fields, pairs, rows, 0.4, seed=0)
    assert 0.2 * len(rows) < len(made) < 0.6 * len(rows)
    assert made.weights is None and len({q.query for q in made.queries}) > 5
    weights = np.linspace(0.1, 1.0, len(rows), dtype=np.float32)  # as a filter would set (A39)
    weighed = misspelt_rows(fields, pairs, replace(rows, weights=weights), 0.4, seed=0)
    assert weighed.weights is not None
    of = dict(zip(rows.names, weights.tolist(), strict=True))
    assert weighed.weights.tolist() == [of[n.removeprefix("misspelt/")] for n in weighed.names]


def negatives_of(snapshot: Path, folder: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [(pair_id(q, p), q, p, SOURCE, "mined", "bm25", 3, 0.9) for q, p in pairs]
    write_table(
        pl.DataFrame(rows, NEGATIVES, orient="row"), NEGATIVES, folder / "negatives.parquet"
    )
    return folder


def free_pairs(snapshot: Path, split: str) -> list[tuple[str, str]]:
    """Return pairs that nobody judged, of the source queries of a split."""
    pairs = pl.read_parquet(snapshot / "pairs.parquet").filter(locale=SOURCE)
    judged = set(pairs.select("query_id", "product_id").rows())
    queries = pairs.filter(split=split)["query_id"].unique().sort().to_list()
    return [(q, f"p{i}") for q in queries for i in range(3) if (q, f"p{i}") not in judged]


def test_negatives_of_another_snapshot_are_refused_in_a_line(tmp_path: Path) -> None:
    snapshot = make_given(tmp_path).snapshot
    assert load_negatives(snapshot, None).is_empty()
    norms = dict(pl.read_parquet(snapshot / "queries.parquet").select("query_id", "norm").rows())
    out = pl.read_parquet(snapshot / "pairs.parquet").filter(pl.col("split") != "train")
    held_out = {norms[q] for q in out["query_id"]}
    train = free_pairs(snapshot, "train")
    good = [p for p in train if norms[p[0]] not in held_out]
    found = load_negatives(snapshot, negatives_of(snapshot, tmp_path / "good", good))
    assert len(found) == len(good) > 0
    judged = load_pairs(snapshot, "train").select("query_id", "product_id").row(0)
    dev, gold = (free_pairs(snapshot, split)[0] for split in ("dev", "gold"))
    for name, bad in (("judged", judged), ("dev", dev), ("gold", gold), ("gone", ("q", "p0"))):
        folder = negatives_of(snapshot, tmp_path / name, [good[0], bad])
        with pytest.raises(DataError, match=r"1 of 2 are judged.*run mine_negatives") as caught:
            load_negatives(snapshot, folder)
        assert "\n" not in str(caught.value)


def test_a_negatives_loss_has_its_weight(tmp_path: Path) -> None:
    """Value and gradient of a batch equal the sum over samples, one by one."""
    torch.manual_seed(0)
    given = make_given(tmp_path)
    fields, pairs = load_fields(given.snapshot), load_pairs(given.snapshot, "train").head(6)
    folder = negatives_of(given.snapshot, tmp_path, free_pairs(given.snapshot, "train")[:4])
    added = pl.read_parquet(folder / "negatives.parquet")
    negatives = negative_rows(fields, added, 0.3)
    assert negatives.names[0].startswith("mined/bm25/") and (negatives.targets[:, 0] == 1).all()
    rows = joined(relevance_rows(fields, pairs), negatives)
    assert rows.weights is not None
    assert rows.weights.tolist() == pytest.approx([1.0] * 6 + [0.3] * 4)
    model = load_base(str(make_base(tmp_path / "base")))
    head = model.causal.get_input_embeddings().weight
    head.requires_grad_(True)
    encoder = PromptEncoder(model.tokenizer, 96)
    task = LabelTask(model, rows, encoder, rqa_dropout=0.0, siblings=1, seed=0)
    epoch = task.start_epoch(0)
    got, _ = task.loss(epoch, np.arange(len(rows)))

    total = torch.zeros(())
    for i in range(len(rows)):
        parts = [encoder.parts(RELEVANCE, rows.queries[i], rows.products[i])]
        hidden = run_packed(model.causal, pack(parts, model.device))
        logits = label_logits(model.causal, hidden, model.labels["relevance"])
        label = torch.tensor([int(rows.targets[i].argmax())])
        total = total + (1.0 if i < 6 else 0.3) * functional.cross_entropy(logits, label)
    assert float(got.detach()) == pytest.approx(float(total.detach()) / len(rows), rel=1e-5)
    both = [torch.autograd.grad(loss, head, retain_graph=True)[0] for loss in (got, total)]
    assert torch.allclose(both[0], both[1] / len(rows), atol=1e-6)


def test_a_training_counts_what_was_added_and_judges_itself_by_what_people_said(
    tmp_path: Path,
) -> None:
    given, market = make_given(tmp_path), make_market(make_base(tmp_path / "base"), steps=4)
    norms = dict(
        pl.read_parquet(given.snapshot / "queries.parquet").select("query_id", "norm").rows()
    )
    out = pl.read_parquet(given.snapshot / "pairs.parquet").filter(pl.col("split") != "train")
    held_out = {norms[q] for q in out["query_id"]}
    free = [p for p in free_pairs(given.snapshot, "train") if norms[p[0]] not in held_out]
    more = replace(given, negatives=negatives_of(given.snapshot, tmp_path / "neg", free))
    plain = run_as("plain", market, given, tmp_path)
    added = run_as("added", market, more, tmp_path, misspelt_share=1.0)
    assert (plain.facts["negatives"], plain.facts["misspelt_pairs"]) == (0, 0)
    assert added.facts["negatives"] == len(free) and added.facts["misspelt_pairs"] > 0
    assert added.facts["train_pairs"] == plain.facts["train_pairs"]
    assert added.facts["class_entropy"] == plain.facts["class_entropy"]
    assert added.facts["dev_log_loss"] != plain.facts["dev_log_loss"]
    assert added.params["negatives.per_query"] == 0
    half = run_as("half", market, replace(more, fold=0), tmp_path)
    other = run_as("other", market, replace(more, fold=1), tmp_path)
    assert half.facts["negatives"] + other.facts["negatives"] == len(free)
