"""Stage 0: what it reads, packed windows against one text at a time, what it learns, resuming."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given as any_of
from hypothesis import settings as searched
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from csrm_tasks.errors import DataError
from csrm_tasks.llm.corpus import load_corpus
from csrm_tasks.llm.network import next_token
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.prompts import (
    RELEVANCE,
    ProductFields,
    ProductForm,
    QueryFields,
    product_segments,
    query_segments,
)
from csrm_tasks.llm.training import pretrain as module
from csrm_tasks.llm.training import train as train_module
from csrm_tasks.llm.training import worker
from csrm_tasks.llm.training.finetune import Finetuned
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.pretrain import PretrainInputs
from csrm_tasks.llm.training.windows import Sequences, WindowTask, fill, mean_loss, sequence_loss
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import TRANSLATIONS
from csrm_tasks.sections import Pretraining
from csrm_tasks.text import query_id
from tests.llm_fixtures import SOURCE, TARGET, make_base, make_market, make_snapshot, run_as

VOCABULARY = 300


@pytest.fixture
def market(tmp_path: Path) -> MarketConfig:
    lora = {"r": 4, "alpha": 8, "dropout": 0.05, "targets": ("q_proj", "v_proj", "up_proj")}
    stage0 = {"steps": 12, "tokens": 512, "lr": 2e-2}
    return make_market(make_base(tmp_path / "base"), pretraining=stage0, lora=lora)


@pytest.fixture
def given(tmp_path: Path) -> PretrainInputs:
    return PretrainInputs(make_snapshot(tmp_path / "snapshot"))


# What is read


def test_texts_are_the_segments_of_prompts_without_dev_and_gold_queries(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, target_labels=True)
    pairs = pl.read_parquet(snapshot / "pairs.parquet")
    judged = pairs.filter(pl.col("split") != "train")["query_id"].unique()
    queries = pl.read_parquet(snapshot / "queries.parquet")
    corpus = load_corpus(snapshot)
    kept = queries.filter(~pl.col("query_id").is_in(judged.to_list()))
    assert 0 < len(kept) < len(queries)
    for locale in (SOURCE, TARGET):
        own = {t.segments for t in corpus.texts if t.kind == f"{locale} query"}
        words = kept.filter(pl.col("locale") == locale)["query"]
        assert own == {query_segments(RELEVANCE, QueryFields(q))[1:2] for q in words}
        titles = {t.segments for t in corpus.texts if t.kind == f"{locale} title"}
        products = pl.read_parquet(snapshot / "products.parquet")
        every = products.filter(pl.col("locale") == locale)["title"].unique()
        held_out = {t.segments for t in corpus.held_out[locale]}
        out = {t for t in every if product_segments(ProductFields(t)) in held_out}
        assert len(out) == len(held_out) == 1
        assert titles == {
            product_segments(ProductFields(t, "milk", "soup > milk")) for t in every if t not in out
        }
    assert corpus == load_corpus(snapshot)


def test_a_judged_text_is_left_out_in_the_other_language_too(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, target_labels=True)
    queries = pl.read_parquet(snapshot / "queries.parquet")
    gold = pl.read_parquet(snapshot / "pairs.parquet").filter(split="gold")["query_id"][0]
    judged = queries.filter(query_id=gold)
    alike = judged.with_columns(locale=pl.lit(SOURCE), query_id=pl.lit("alike"))
    pl.concat([queries, alike]).write_parquet(snapshot / "queries.parquet")
    text = judged["query"][0]
    translations = pl.read_parquet(snapshot / "translations.parquet")
    new = (
        translations.filter(split="train")
        .head(1)
        .with_columns(
            kind=pl.lit("query"), source_text=pl.lit(text), target_text=pl.lit("another text")
        )
    )
    pl.concat([translations, new]).write_parquet(snapshot / "translations.parquet")
    corpus = load_corpus(snapshot)
    assert not [t for t in corpus.texts if text in "".join(t.segments) and "query" in t.kind]
    assert corpus.translations and "another text" not in str(corpus.translations)


def test_products_are_read_in_the_parts_that_prompts_hold(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path)
    only = load_corpus(snapshot, without=[TARGET])
    assert not any(t.kind == f"{TARGET} title" for t in only.texts) and TARGET not in only.held_out
    corpus = load_corpus(snapshot, ProductForm(("category",), 1))
    titles = [t.segments for t in corpus.texts if t.kind == f"{TARGET} title"]
    assert titles and all(segments[1:] == ("\nC:milk",) for segments in titles)


def test_translations_go_both_ways_without_what_is_judged_or_held_out(tmp_path: Path) -> None:
    """A query of gold may stand on either side, a title that is held out as well."""
    snapshot = make_snapshot(tmp_path)
    held_out = [t.segments[0].removeprefix("\nT:") for t in
                load_corpus(snapshot).held_out[TARGET]]  # fmt: skip
    rows = [
        ("query", "우유", "牛奶", "train"), ("query", "라면", "Gold  Query", "train"),
        ("query", "gold source", "拉麵", "train"), ("query", "dev", "尿布", "dev"),
        ("title", "멸균 우유", held_out[0], "train"), ("brand", "gold query", "g", "train"),
    ]  # fmt: skip
    directed = [(*row, SOURCE, TARGET) for row in rows]
    table = pl.DataFrame(directed, TRANSLATIONS, orient="row")
    table.write_parquet(snapshot / "translations.parquet")
    pairs = pl.read_parquet(snapshot / "pairs.parquet")
    gold = pairs.head(2).with_columns(
        query_id=pl.Series([query_id(TARGET, "gold query"), query_id(SOURCE, "gold source")]),
        split=pl.lit("gold"),
    )
    pl.concat([pairs, gold]).write_parquet(snapshot / "pairs.parquet")
    there, back = load_corpus(snapshot).translations
    assert [*zip(there.kinds, there.sources, there.targets, strict=True)] == [
        ("brand", "gold query", "g"), ("query", "우유", "牛奶")
    ]  # fmt: skip
    assert (back.sources, back.targets) == (there.targets, there.sources)
    assert (set(back.source_locales), set(back.target_locales)) == ({TARGET}, {SOURCE})


def test_a_snapshot_without_titles_is_refused(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path)
    path = snapshot / "products.parquet"
    pl.read_parquet(path).clear().write_parquet(path)
    with pytest.raises(DataError, match="no titles to pre-train on"):
        load_corpus(snapshot)


# Packed windows


@cache
def gemma() -> Model:
    """A tiny Gemma 3 whose first and last layers see six tokens."""
    torch.manual_seed(0)
    slides = "sliding_attention"
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, initializer_range=0.15,
        sliding_window=6, layer_types=[slides, "full_attention", slides],
    )  # fmt: skip
    causal = Gemma3ForCausalLM(config).eval()
    return Model(causal, None, {}, torch.device("cpu"), torch.float32, "gemma", "0")


def some_sequences(rng: np.random.Generator, lengths: list[int]) -> Sequences:
    ids = [rng.integers(0, VOCABULARY, n, np.int32) for n in lengths]
    starts = np.asarray([rng.integers(1, n) for n in lengths], np.int64)
    kinds = np.asarray(["ab"[i % 2] for i in range(len(ids))])
    return Sequences(ids, starts, kinds, [str(i) for i in range(len(ids))])


def alone(model: Model, ids: np.ndarray, start: int) -> torch.Tensor:
    """The losses of one text's tokens by the model's own logits."""
    row = torch.from_numpy(ids).long()[None]
    logits = model.causal(input_ids=row).logits[0]
    return functional.cross_entropy(logits[start - 1 : -1], row[0, start:], reduction="none")


@searched(max_examples=60, deadline=None)
@any_of(st.lists(st.integers(2, 30), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_a_row_of_texts_has_the_losses_of_one_text_at_a_time(lengths: list[int], seed: int) -> None:
    rng, model = np.random.default_rng(seed), gemma()
    sequences = some_sequences(rng, lengths)
    chosen = rng.permutation(len(lengths))
    weights = rng.random(len(lengths))
    with torch.no_grad():
        found, tokens = sequence_loss(model, sequences, chosen, weights)
        each = [alone(model, sequences.ids[i], int(sequences.starts[i])) for i in chosen]
    expected = sum(float(x.sum()) * w for x, w in zip(each, weights, strict=True))
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert tokens == sum(lengths)
    mean = float(torch.cat(each).mean())
    assert mean_loss(model, sequences, 40) == pytest.approx(mean, rel=1e-5)


def test_a_step_has_the_gradients_of_one_text_at_a_time_however_it_is_cut() -> None:
    model, rng = gemma(), np.random.default_rng(3)
    sequences = some_sequences(rng, [int(n) for n in rng.integers(2, 30, 24)])
    task = WindowTask("text", model, sequences, 60, 5)
    epoch = task.start_epoch(0)
    assert len(epoch.order) > 4
    trained = [p for n, p in model.causal.named_parameters() if "_proj" in n]
    means = []
    for window in epoch.windows:
        each = [alone(model, sequences.ids[i], int(sequences.starts[i])) for i in window]
        means.append(torch.cat(each).mean())
    expected = torch.autograd.grad(torch.stack(means).mean(), trained)
    n = len(epoch.order)
    for pieces in (1, 3):
        parts = np.array_split(np.arange(n), pieces)
        loss = sum(task.loss(epoch, at)[0] * (len(at) / n) for at in parts)
        assert isinstance(loss, torch.Tensor)
        for ours, theirs in zip(torch.autograd.grad(loss, trained), expected, strict=True):
            assert theirs.abs().max() > 1e-5
            assert (ours - theirs).abs().max() <= 1e-6
    assert task.sample_names(epoch, np.arange(1)) == [str(i) for i in epoch.windows[0]]


@searched(max_examples=200, deadline=None)
@any_of(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_windows_hold_every_text_in_order_and_no_more_than_fits(
    lengths: list[int], window: int
) -> None:
    order = np.random.default_rng(len(lengths)).permutation(len(lengths))
    sizes = np.asarray(lengths)
    windows = fill(order, sizes, window)
    assert np.concatenate(windows).tolist() == order.tolist()
    tokens = [int(sizes[w].sum()) for w in windows]
    assert all(t <= window or len(w) == 1 for t, w in zip(tokens, windows, strict=True))
    for t, following in zip(tokens, windows[1:], strict=False):
        assert t + sizes[following[0]] > window  # the next one did not fit


@pytest.mark.parametrize("biased", [False, True])
def test_the_loss_in_pieces_is_that_of_all_logits(
    biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_token, "AT_ONCE", 7 * VOCABULARY)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, VOCABULARY, bias=biased).requires_grad_(False)
    causal = SimpleNamespace(get_output_embeddings=lambda: head)
    hidden = torch.randn(30, 16, requires_grad=True)
    targets, weights = torch.randint(0, VOCABULARY, (30,)), torch.rand(30)
    ours = next_token.next_token_loss(causal, hidden, targets, weights)
    theirs = functional.cross_entropy(head(hidden), targets, reduction="none") @ weights
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    a, b = (torch.autograd.grad(3.0 * x, hidden)[0] for x in (ours, theirs))
    assert b.abs().max() > 1e-3 and (a - b).abs().max() <= 1e-6


# What is learnt


def changed(market: MarketConfig, **stage0: Any) -> dict[str, Any]:
    """The section of stage 0 with some keys changed, as a change of the LLM's section."""
    return {"pretraining": market.llm.pretraining.model_copy(update=stage0)}


def perplexities(found: Finetuned, locale: str) -> tuple[float, float]:
    return found.facts[f"perplexity_before_{locale}"], found.facts[f"perplexity_{locale}"]


def test_it_lowers_both_losses_and_the_perplexity_of_titles_kept_aside(
    market: MarketConfig, given: PretrainInputs, tmp_path: Path
) -> None:
    found = run_as("a", market, given, tmp_path, **changed(market, steps=60))
    for name in ("loss_text", "loss_translation"):
        values = [v for _, v in found.curves[name]]
        assert values[-1] < 0.9 * values[0]
    for locale in (SOURCE, TARGET):
        before, after = perplexities(found, locale)
        assert after < 0.7 * before
        assert after == pytest.approx(dict(found.curves[f"perplexity_{locale}"])[
            found.facts["best_step"]
        ], rel=1e-4)  # fmt: skip
    losses = dict(found.curves["dev_log_loss"])
    assert found.facts["best_step"] == min(losses, key=lambda step: losses[step])
    logs = [math.log(found.facts[f"perplexity_{locale}"]) for locale in (SOURCE, TARGET)]
    assert losses[found.facts["best_step"]] == pytest.approx(sum(logs) / 2, rel=1e-4)
    assert "dev_micro_f1" not in found.curves
    assert found.facts["tokens"] <= 60 * (512 + 2 * 64)


def test_nothing_learnt_is_said(
    market: MarketConfig, given: PretrainInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run_as("a", market, given, tmp_path, **changed(market, steps=1, lr=0.0))
    for locale in (SOURCE, TARGET):
        before, after = perplexities(found, locale)
        assert after == pytest.approx(before, rel=1e-6)
    assert "stage 0 taught nothing" in caplog.text


def test_a_market_without_translations_learns_its_texts(
    market: MarketConfig, given: PretrainInputs, tmp_path: Path
) -> None:
    path = given.snapshot / "translations.parquet"
    pl.read_parquet(path).clear().write_parquet(path)
    found = run_as("a", market, given, tmp_path, **changed(market, steps=2))
    assert "loss_text" in found.curves and "loss_translation" not in found.curves
    assert found.facts["translations"] == 0


def test_killed_at_any_step_it_ends_as_if_it_had_not_been(
    market: MarketConfig, given: PretrainInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after every step; the end comes in the midst of the eighth, then of the ninth.

    Windows are drawn anew in each epoch, and the run goes through several.
    """
    whole = run_as("whole", market, given, tmp_path)
    real, step = module.train, train_module._Run.step
    monkeypatch.setattr(module, "train", lambda *a: real(*a[:-1], 0.0))
    for last in (7, 8):

        def stopping(self: train_module._Run, due: bool, last: int = last) -> bool:
            if self.progress.step == last:
                self._gradients(self.mixture.next_step())
                raise KeyboardInterrupt
            return step(self, due)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train_module._Run, "step", stopping)
            run_as("cut", market, given, tmp_path)
        assert not [*(tmp_path / "out-cut").iterdir()]  # nothing was written
    resumed = run_as("cut", market, given, tmp_path)
    assert resumed.curves == whole.curves
    timed = {"seconds", "tokens_per_second"}
    facts = [{k: v for k, v in x.facts.items() if k not in timed} for x in (resumed, whole)]
    assert facts[0] == facts[1]
    a, b = (
        load_file(tmp_path / f"out-{name}" / "pretraining" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    cards = [tmp_path / f"out-{n}" / "pretraining" / "pretraining.json" for n in ("whole", "cut")]
    assert cards[0].read_bytes() == cards[1].read_bytes()


def test_several_processes_are_given_what_one_is(tmp_path: Path) -> None:
    stage0 = PretrainInputs(tmp_path / "snapshot")
    pretrained, soft = tmp_path / "pretraining", tmp_path / "soft"
    round1 = FinetuneInputs(tmp_path, None, soft, "round1", 1, pretraining=pretrained)
    for one in (stage0, round1):
        text = json.dumps(asdict(one), default=str)  # as it stands in the job's file
        assert worker._inputs(type(one).__name__, json.loads(text)) == one


def test_a_seed_is_a_run_of_its_own(
    market: MarketConfig, given: PretrainInputs, tmp_path: Path
) -> None:
    few = {"pretraining": Pretraining(steps=2, tokens=512)}
    a = run_as("a", market, given, tmp_path, **few)
    b = run_as("b", market.model_copy(update={"seed": 1}), given, tmp_path, **few)
    assert a.curves["loss_text"] != b.curves["loss_text"]
