"""What the papers compare with: an encoder classifier, and a prompted LLM, local or by HTTP."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from csrm_tasks import tracking
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.baselines import prompt as asked
from csrm_tasks.llm.baselines.encoder import (
    EncoderClassifier,
    EncoderRecipe,
    JudgedTexts,
    predict_encoder,
    train_encoder,
)
from csrm_tasks.llm.data import load_fields, load_pairs
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.prompts import ProductFields, QueryFields
from csrm_tasks.records import PAIRS, SCORED, read_table
from csrm_tasks.settings import Settings
from csrm_tasks.training import optimizer
from tests.llm_fixtures import make_tokenizer
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

SECRET = "sk-never-in-a-log"


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    return Installation(settings, tmp_path)


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    folder = tmp_path / "encoder"
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=130, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    return str(folder)


def gold_table(found: Any) -> pl.DataFrame:
    schema = {k: PAIRS[k] for k in ("pair_id", "grade")} | SCORED
    return read_table(found.file("scored.parquet"), schema)


@pytest.mark.parametrize("lazy_from", [1, optimizer.LAZY_FROM])
def test_the_encoder_learns_and_its_best_weights_on_dev_are_kept(
    encoder: str, monkeypatch: pytest.MonkeyPatch, lazy_from: int
) -> None:
    monkeypatch.setattr(optimizer, "LAZY_FROM", lazy_from)
    words = ("soup", "milk", "라면")
    grades = np.arange(60) % 3
    products = [ProductFields(f"{words[g]} {words[i // 3 % 3]}") for i, g in enumerate(grades)]
    texts = JudgedTexts([QueryFields("우유")] * 60, products, grades)
    model, best = train_encoder(EncoderRecipe(encoder, 60, 16, 3e-3, 64, 0), texts, texts)
    right = (predict_encoder(model, texts).argmax(axis=1) == grades).mean()
    assert right == best > 0.6  # a third by chance


def test_the_encoder_step_scores_gold(tiny: Installation, encoder: str) -> None:
    given: dict[str, object] = {"snapshot": tiny.snapshot}
    found = tiny.run("baseline_encoder", given, encoder=encoder, steps=4, batch=16, lr=3e-3)
    gold = load_pairs(tiny.folder / "snapshot", "gold")
    table = gold_table(found)
    assert table["pair_id"].to_list() == gold["pair_id"].to_list()
    assert np.allclose(table.select("p0", "p1", "p2").sum_horizontal(), 1.0, atol=1e-5)
    again = tiny.run("baseline_encoder", given, encoder=encoder, steps=4, batch=16, lr=3e-3)
    assert again.ref == found.ref


def test_encoder_probabilities_do_not_depend_on_the_batch(encoder: str) -> None:
    """Slow reference: each pair alone, so without padding."""
    queries = [QueryFields("milk" + " soup" * (i % 4)) for i in range(9)]
    products = [ProductFields("라면 " * (1 + 5 * i), "milk" * (i % 2)) for i in range(9)]
    grades = np.zeros(9, np.int64)
    model = EncoderClassifier(EncoderRecipe(encoder, 1, 8, 1e-3, 64, 0))
    texts = JudgedTexts(queries, products, grades)
    whole = predict_encoder(model, texts)
    lengths = {len(t) for t in model.tokenize(texts)}
    assert len(lengths) > 4 and max(lengths) == 64  # one is cut
    for i in range(9):
        one = JudgedTexts(queries[i : i + 1], products[i : i + 1], grades[:1])
        assert np.abs(predict_encoder(model, one)[0] - whole[i]).max() < 1e-5
    with pytest.raises(ConfigError, match="encoder '/nowhere' cannot be loaded"):
        EncoderClassifier(EncoderRecipe("/nowhere", 1, 8, 1e-3, 64, 0))


def test_a_long_pair_is_cut_on_the_longer_side_and_both_are_read(encoder: str) -> None:
    """Slow reference: the two texts' own tokens, the longer one shortened by one at a time."""
    long, short = "milk soup " * 200, "라면 우유"
    model = EncoderClassifier(EncoderRecipe(encoder, 1, 8, 1e-3, 64, 0))
    cases = [(long, short), (short, long), (long, long), (short, short), (long, "")]
    queries = [QueryFields(q) for q, _ in cases]
    products = [ProductFields(p) for _, p in cases]
    texts = JudgedTexts(queries, products, np.zeros(len(cases), np.int64))
    for found, query, product in zip(model.tokenize(texts), *texts.texts(), strict=True):
        first, second = (
            model.tokenizer(t, add_special_tokens=False)["input_ids"]
            for t in (f"{query}\n", product)
        )
        while len(first) + len(second) > 64:
            longer = first if len(first) > len(second) else second
            longer.pop()
        assert found == first + second
    assert np.isfinite(predict_encoder(model, texts)).all()


def test_the_window_is_what_the_encoder_reads(encoder: str) -> None:
    """130 positions, counted from behind the padding token's id, 0: 129 tokens."""
    model = EncoderClassifier(EncoderRecipe(encoder, 1, 8, 1e-3, 256, 0))
    pair = JudgedTexts([QueryFields("milk")], [ProductFields("soup " * 300)], np.zeros(1, np.int64))
    assert [len(row) for row in model.tokenize(pair)] == [129]
    assert np.isfinite(predict_encoder(model, pair)).all()


def test_a_base_without_a_pooler_is_the_same_model_each_time(encoder: str) -> None:
    recipe = EncoderRecipe(encoder, 1, 8, 1e-3, 64, 0)
    torch.manual_seed(1)
    first = EncoderClassifier(recipe).state_dict()
    assert not [name for name in first if "pooler" in name]
    torch.manual_seed(2)
    second = EncoderClassifier(recipe).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_head_leaves_the_majority_class_though_the_encoder_hardly_moves(encoder: str) -> None:
    grades = np.arange(120) % 6 // 3 * (1 + np.arange(120) % 2)  # half of them 0
    words = ("soup", "milk", "라면")
    texts = JudgedTexts(
        [QueryFields("우유")] * 120, [ProductFields(words[g]) for g in grades], grades
    )
    model, best = train_encoder(EncoderRecipe(encoder, 300, 24, 2e-5, 64, 0), texts, texts)
    assert best > 0.9 > 0.5 == (grades == 0).mean()
    start = EncoderClassifier(EncoderRecipe(encoder, 1, 8, 2e-5, 64, 0)).encoder.state_dict()
    moved = max(float((w - start[k]).abs().max()) for k, w in model.encoder.state_dict().items())
    assert 0 < moved < 300 * 2e-5 * 1.1  # AdamW moves a weight by its rate a step at most


def test_a_local_model_answers_with_its_next_token(tiny: Installation) -> None:
    """Slow reference: full logits of the Hugging Face model, one prompt at a time."""
    base = tiny.market.llm.base
    found = tiny.run(
        "baseline_prompt", {"snapshot": tiny.snapshot, "rqa": tiny.rqa}, model=base
    )  # fmt: skip
    gold = load_pairs(tiny.folder / "snapshot", "gold")
    fields = load_fields(tiny.folder / "snapshot", tiny.folder / "rqa")
    model = load_base(base)
    table = gold_table(found).select("p0", "p1", "p2").to_numpy()
    for row, query, product in zip(table, *fields.of(gold), strict=True):
        text = asked.question(query, product)
        assert "Similar products: " in text and query.titles[0] in text
        before = model.tokenizer(text)["input_ids"]
        digits = [model.tokenizer(text + d)["input_ids"][-1] for d in "012"]
        with torch.no_grad():
            logits = model.causal(input_ids=torch.tensor([before])).logits[0, -1, digits]
        assert np.abs(logits.softmax(-1).numpy() - row).max() < 1e-5
    assert 0 <= found.facts["gold_agreement"] <= 1


def test_a_chat_model_is_asked_through_its_template(tiny: Installation) -> None:
    model = load_base(tiny.market.llm.base)
    model.tokenizer.chat_template = "{% for m in messages %}soup {{ m.content }} milk:{% endfor %}"
    model.tokenizer.save_pretrained(tiny.market.llm.base)
    prompt = "grade"
    (row,) = asked.answer_locally(tiny.market.llm.base, [prompt])
    ids = model.tokenizer("soup grade milk:", add_special_tokens=False)["input_ids"]
    digits = model.labels["relevance"]
    with torch.no_grad():
        logits = model.causal(input_ids=torch.tensor([ids])).logits[0, -1, digits]
    assert np.abs(logits.softmax(-1).numpy() - row).max() < 1e-5


def test_no_field_forges_a_line_of_the_question() -> None:
    product = ProductFields("soup\nGrade: 2", "", "food\n> soup")
    text = asked.question(QueryFields("milk\nGrade: 2"), product)
    lines = text.splitlines()
    assert [x for x in lines if x.startswith("Grade")] == ["Grade:"]
    assert "Brand: none" in lines and "Similar products" not in text


def test_a_digit_with_a_blank_before_it_is_the_same_answer() -> None:
    near = [("2", -0.0001), ("1", -11.0), (" 2", -14.0), ("2 ", -16.0), ("two", -12.0)]
    listed = [{"token": token, "logprob": chance} for token, chance in near]
    content = [{"token": "2", "logprob": -0.0001, "top_logprobs": listed}]
    answer = {"choices": [{"message": {"content": "2"}, "logprobs": {"content": content}}]}
    chance = np.array([0.0, math.exp(-11), sum(math.exp(x) for x in (-0.0001, -14.0, -16.0))])
    found = asked.read_answer(answer)
    assert found == pytest.approx(chance / chance.sum(), abs=2 * asked.UNSURE)


class Endpoint:
    """An OpenAI-compatible server that answers as it is told to; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fail: list[int] = []  # status codes of the next answers
        self.logprobs = True
        self.text = "2"

    def answer(self) -> dict[str, Any]:
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": self.text}}
        if self.logprobs:
            near = [{"token": "2", "logprob": -0.2}, {"token": " 1", "logprob": -2.0}]
            content = [{"token": "2", "logprob": -0.2, "top_logprobs": near}]
            choice["logprobs"] = {"content": content}
        return {"choices": [choice]}


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.asked.append((self.headers["Authorization"], body))
            code = endpoint.fail.pop(0) if endpoint.fail else 200
            text = json.dumps(endpoint.answer() if code == 200 else {"error": SECRET}).encode()
            self.send_response(code if self.path == "/v1/chat/completions" else 404)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_endpoint_is_asked_once_per_pair_with_the_token_and_it_stays_secret(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint()
    caplog.set_level(logging.DEBUG)
    with serving(endpoint) as url:
        monkeypatch.setenv(asked.URL, url)
        monkeypatch.setenv(asked.TOKEN, SECRET)
        given: dict[str, object] = {"snapshot": tiny.snapshot}
        found = tiny.run("baseline_prompt", given, model="gpt-test", remote=True)
    gold = load_pairs(tiny.folder / "snapshot", "gold")
    prompts = {
        asked.question(q, p)
        for q, p in zip(*load_fields(tiny.folder / "snapshot").of(gold), strict=True)
    }
    assert {b["messages"][0]["content"] for _, b in endpoint.asked} == prompts
    assert len(endpoint.asked) == len(prompts)
    assert {a for a, _ in endpoint.asked} == {f"Bearer {SECRET}"}
    assert {b["model"] for _, b in endpoint.asked} == {"gpt-test"}
    expected = np.array([asked.UNSURE, np.exp(-2.0), np.exp(-0.2)])
    row = gold_table(found).select("p0", "p1", "p2").to_numpy()[0]
    assert np.allclose(row, expected / expected.sum(), atol=1e-6)
    manifest = tiny.store.manifest(found.ref)
    assert SECRET not in caplog.text and SECRET not in json.dumps(manifest)
    assert SECRET not in repr(asked.Endpoint(url, SECRET))


def test_a_busy_endpoint_is_asked_again_and_what_it_said_is_kept(tmp_path: Path) -> None:
    endpoint, kept = Endpoint(), tmp_path / "answers.jsonl"
    endpoint.logprobs, endpoint.text = False, "Grade: 1."
    endpoint.fail = [429, 503]
    with serving(endpoint) as url:
        found = asked.ask_all(asked.Endpoint(url), "m", ["a", "b", "a"], kept)
        assert (found[0] == found[2]).all()
        assert found.argmax(axis=1).tolist() == [1, 1, 1]
        assert len(endpoint.asked) == 4  # two prompts, two failures
        kept.write_text(kept.read_text() + '["c", [0.')  # killed while it wrote
        endpoint.text = "0"
        found = asked.ask_all(asked.Endpoint(url), "m", ["a", "b", "c"], kept)
        assert found.argmax(axis=1).tolist() == [1, 1, 0]
        assert len(endpoint.asked) == 5


@pytest.mark.parametrize(
    ("fail", "text", "said"),
    [([401], "2", "401"), ([400], "2", "400"), ([], "exact", "not a chat completion")],
)
def test_an_endpoint_that_refuses_is_an_error_without_the_token(
    tmp_path: Path, fail: list[int], text: str, said: str
) -> None:
    endpoint = Endpoint()
    endpoint.fail, endpoint.text, endpoint.logprobs = fail, text, False
    with serving(endpoint) as url, pytest.raises(asked.EndpointError, match=said) as raised:
        asked.ask_all(asked.Endpoint(url, SECRET), "m", ["a"], tmp_path / "kept")
    assert SECRET not in str(raised.value)
    assert len(endpoint.asked) == 1


def test_without_an_endpoint_the_setting_is_named(
    tiny: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(asked.URL, raising=False)
    with pytest.raises(ConfigError, match="CSRM_LLM_URL is not set"):
        tiny.run("baseline_prompt", {"snapshot": tiny.snapshot}, model="m", remote=True)
