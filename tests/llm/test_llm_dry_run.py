"""Hours on this machine: the dry run's speed, the market's own lengths, and what the demo says."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from csrm_tasks.cli.main import main
from csrm_tasks.demo.runner import estimate as demo_estimate
from csrm_tasks.demo.runner.home import Home
from csrm_tasks.errors import CsrmError
from csrm_tasks.llm.cost.formula import Shape, Work, forward_flops, shared, train_flops
from csrm_tasks.llm.cost.job import Speed, here, most_steps, pretraining_flops, step_flops
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.network.packed import Parts
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.prompts import RELEVANCE
from csrm_tasks.llm.training import dry_run as tried
from csrm_tasks.llm.training.dry_run import dry_run
from csrm_tasks.llm.training.landed import landed_texts
from csrm_tasks.sections import Pretraining
from tests.llm_fixtures import SOURCE, TARGET, make_base, make_market

CATALOGUE = "product_id,title,brand,category\np1,milk soup,拉麵,soup\np2,라면 우유 milk,,\n"
LABELS = '{"query": "milk 보", "product_id": "p1", "grade": 2, "label_id": "a", "rater_id": "r"}\n'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def shape_of(base: Path) -> Shape:
    return Shape.of(AutoConfig.from_pretrained(base))


def landed(folder: Path) -> Path:
    for locale in (SOURCE, TARGET):
        place = folder / "tiny" / "2026-01-04" / locale
        place.mkdir(parents=True)
        (place / "catalogue.csv").write_text(CATALOGUE, encoding="utf-8")
        (place / "labels-a.jsonl").write_text(LABELS, encoding="utf-8")
        (place / "labels-b.csv.gz").write_bytes(b"no gzip")
        (place / "notes.txt").write_text("no delivery")
    return folder


def work_of(parts: Parts) -> Work:
    """As the formula counts what stands in these prompts."""
    prefixes = {prefix.tobytes() for prefix, _ in parts}
    prefix, product = parts[0]
    return shared(len(prefixes), len(parts) / len(prefixes), len(prefix), len(product))


def test_the_speed_is_the_formulas_flops_over_the_seconds_of_the_last_pass(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a false clock: what is slow once only takes five seconds, other passes one each."""
    ran: list[Parts] = []
    now = [0.0]

    def timed(name: str) -> None:
        own = getattr(tried, name)

        def run(*args: Any) -> float:
            own(*args)
            now[0] += 1.0 if ran else 5.0
            ran.append(args[-1])
            return 1.0

        monkeypatch.setattr(tried, name, run)

    timed("_train")
    timed("_score")
    monkeypatch.setattr(tried.time, "monotonic", lambda: now[0])
    llm, shape = make_market(base, batch=16, siblings=2).llm, shape_of(base)
    found = dry_run(llm, shape, 1, seconds=100.0)
    assert [len(parts) for parts in ran] == [1, 1, 2, 4, 8, 16, 16]
    assert found.train == train_flops(shape, work_of(ran[-2]), llm.lora)
    assert found.score == forward_flops(shape, work_of(ran[-1]), llm.lora)
    assert found.seconds == now[0] == 11.0
    assert (found.prefix + found.product, found.threads) == (95, 1)  # cut to llm.max_length, 96
    ran.clear()
    dry_run(llm, shape, 1, seconds=10.0)
    assert [len(parts) for parts in ran] == [1, 1, 2, 4, 4]  # 2.5 s more would not fit


def test_prompts_are_as_long_as_the_landed_texts(base: Path, tmp_path: Path) -> None:
    market = make_market(base)
    texts = landed_texts(market, landed(tmp_path / "landing"))
    queries, products = texts
    assert [q.query for q in queries] == ["milk 보"]
    assert len(queries[0].titles) == market.retrieval.rqa.k
    assert sorted({p.title for p in products}) == ["milk soup", "라면 우유 milk"]
    found = dry_run(market.llm, shape_of(base), 1, texts, seconds=10.0)
    encoder = PromptEncoder(load_base(str(base)).tokenizer, market.llm.max_length)
    whole = [len(encoder.prompt(RELEVANCE, queries[0], p)) for p in products]
    assert sum(whole) / len(whole) == pytest.approx(found.prefix + found.product, abs=2)
    assert landed_texts(market, tmp_path / "nothing") == ([], [])


def test_what_cannot_be_tried_here_is_said_in_a_line(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, shape = make_market(base).llm, shape_of(base)
    with pytest.raises(CsrmError, match=r"no dry run: the weights of .* are not on this machine"):
        away = "org/none@" + "0" * 40
        dry_run(llm.model_copy(update={"base": away}), shape, 1)
    with monkeypatch.context() as few:
        few.setattr(tried, "_free_bytes", lambda: 1000.0)
        with pytest.raises(CsrmError, match=r"no dry run: .* GiB while it is loaded"):
            dry_run(llm, shape, 1)
    monkeypatch.setattr(tried, "_free_bytes", lambda: 1e15)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CsrmError, match=r"no dry run: a single prompt takes .* for a CPU"):
        dry_run(llm, replace(shape, layers=10**6, vocabulary=1, hidden=64, intermediate=9), 1)


def test_hours_are_steps_by_a_steps_flops_over_the_speed(base: Path) -> None:
    market, shape = make_market(base, ranker_steps=5, steps=12), shape_of(base)
    assert most_steps(market) == [5, 12, 12, 12, 12]  # two rounds, no control
    flops = step_flops(shape, market.llm, 40, 20)
    fast, slow = (here(shape, market, Speed(flops / s, 1e9, 40, 20, 3.0, 2)) for s in (90.0, 900.0))
    assert "a step of 16 samples 90 s; 5 trainings of 53 steps together at most 1.3 hours" in fast
    assert "900 s" in slow.replace("9e+02", "900") and "at most 13 hours" in slow
    assert "threads: 2; tokens of a prompt: 40 + 20" in fast
    assert "stage 0" not in fast
    stage0 = market.llm.model_copy(update={"pretraining": Pretraining(steps=7)})
    speed = Speed(pretraining_flops(shape, stage0) / 7200, 1e9)
    said = here(shape, market.model_copy(update={"llm": stage0}), speed)
    assert said.startswith("LLM on this machine: stage 0 at most 2 hours; a step of 16 samples")
    longer = step_flops(shape, market.llm, 80, 40)
    assert 1.5 < longer / flops < 2.3  # translations stay as they are


def test_the_command_says_hours_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm-cost", "--market", "demo", "--here"]) == 0
    out = capsys.readouterr().out
    assert out.strip().startswith("LLM on this machine: a step of 86 samples ")
    assert "6 trainings of 1,330 steps" in out and "GPU" not in out


def test_the_demo_says_nothing_of_a_small_base_and_the_hours_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    asked: list[list[str]] = []
    answer = [subprocess.CompletedProcess([], 0, "\nLLM on this machine: hours\n", "noise")]

    def run(command: list[str], **more: Any) -> Any:
        asked.append(command)
        assert more["env"]["CSRM_HOME"] == str(tmp_path / "home")
        return answer[0]

    monkeypatch.setattr(demo_estimate.subprocess, "run", run)
    home = Home.of("demo")
    assert demo_estimate.estimate(home) == "" and not asked  # nothing is started or imported
    monkeypatch.setattr(demo_estimate, "SMALL", 1.0)
    assert demo_estimate.estimate(home) == "LLM on this machine: hours"
    assert asked[0][-4:] == ["llm-cost", "--market", "demo", "--here"]
    answer[0] = subprocess.CompletedProcess([], 1, "", "noise\nError: cannot be loaded\n")
    assert demo_estimate.estimate(home) == (
        "no estimate of the LLM's hours: Error: cannot be loaded"
    )
