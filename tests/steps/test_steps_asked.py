"""A run that asks for something else than its market's file: what is made anew, what is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings
from csrm_tasks.steps import asked as asking
from csrm_tasks.steps import declaration as registry
from csrm_tasks.steps import running
from csrm_tasks.steps.asked import Asked, asked_of, from_text, refuse_unknown
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.running import run_step

MARKET = MarketConfig.model_validate(
    {
        "market": "tiny", "source_locale": "ko-KR", "target_locale": "zh-TW",
        "llm": {"base": "./own", "distillation": {"rounds": 2}},
        "retrieval": {"ebr": {"encoder": "./e"}}, "towers": {"encoder": "./e"},
    }
)  # fmt: skip
TRAINED = "t_train"
NORMAL_RUN = Asked()


class World:
    """Steps of our own that count how often they run; ``luck`` is what no seed fixes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = ArtifactStore(settings.artifacts, settings.cache)
        self.calls: list[str] = []
        self.luck = "same"

    def run(self, name: str, asked: Asked = NORMAL_RUN, task: str = "", **given: Any) -> str:
        inputs = {k: v for k, v in given.items() if k in ("data", "more")}
        params = {k: v for k, v in given.items() if k not in inputs}
        told = Asked(**{**vars(asked), "task": task})
        return run_step(name, MARKET, inputs, params, self.settings, asked=told)


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = World(settings)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.all_steps()))
    monkeypatch.setattr(asking, "TRAINING", frozenset({TRAINED}))

    @step("t_data")
    def data(ctx: Context, *, week: int = 1) -> Metadata:
        found.calls.append("data")
        return {"week": week}

    @step(TRAINED, inputs=["data"], optional=["more"], config=["llm"])
    def train(ctx: Context, *, arm: str = "a", late: int = 0) -> Metadata:
        found.calls.append(f"train {ctx.market.llm.base}")
        if not (ctx.work / "begun").exists() and found.luck == "killed":
            (ctx.work / "begun").touch()
            raise KeyboardInterrupt
        (ctx.out / "weights").write_text(f"{ctx.market.llm.base} {arm} {found.luck}")
        return {"arm": arm}

    return found


def test_a_normal_run_finds_what_is_there_whoever_asks_for_what_elsewhere(world: World) -> None:
    data = world.run("t_data")
    first = world.run(TRAINED, data=data)
    for asked in (Asked(rounds=1, reason="r"), Asked(reuse={"other": first}, reason="r")):
        assert world.run("t_data", asked) == data
        assert world.run(TRAINED, asked, "task", data=data) == first
    assert world.calls == ["data", "train ./own"]


def test_another_base_trains_anew_and_data_is_found(world: World) -> None:
    other = Asked(base="./other", reason="r")
    data = world.run("t_data")
    first = world.run(TRAINED, data=data)
    second = world.run(TRAINED, other, data=world.run("t_data", other))
    assert second != first and world.run(TRAINED, other, data=data) == second
    assert world.run(TRAINED, data=data) == first  # the market's normal week is what it was
    assert world.calls == ["data", "train ./own", "train ./other"]
    with pytest.raises(ConfigError, match=r"parameter 'base'.*needs the commit"):
        world.run(TRAINED, Asked(base="org/name", reason="r"), data=data)


def test_a_forced_run_trains_again_once_and_the_same_result_keeps_its_name(world: World) -> None:
    data = world.run("t_data")
    first = world.run(TRAINED, data=data)
    forced = Asked(force="run 7", reason="r")
    assert world.run("t_data", forced) == data
    assert world.run(TRAINED, forced, data=data) == first
    assert world.run(TRAINED, forced, data=data) == first  # its task was cleared
    assert world.calls == ["data", "train ./own", "train ./own"]
    world.run(TRAINED, Asked(force="run 8", reason="r"), data=data)
    assert world.calls[3:] == ["train ./own"]


def test_a_forced_run_that_comes_out_otherwise_is_its_own_and_no_normal_week(world: World) -> None:
    data = world.run("t_data")
    first = world.run(TRAINED, data=data)
    world.luck = "another"
    forced = Asked(force="run 7", reason="r")
    second = world.run(TRAINED, forced, data=data)
    assert second != first and world.run(TRAINED, forced, data=data) == second
    assert world.run(TRAINED, data=data) == first
    assert world.store.open(second).file("weights").read_text() == "./own a another"


def test_a_forced_training_that_is_killed_goes_on_where_it_was(world: World) -> None:
    data, forced = world.run("t_data"), Asked(force="run 7", reason="r")
    world.luck = "killed"
    with pytest.raises(KeyboardInterrupt):
        world.run(TRAINED, forced, data=data)
    world.run(TRAINED, forced, data=data)  # finds its folder: it has begun
    assert world.calls == ["data", "train ./own", "train ./own"]


def test_a_stage_of_an_earlier_run_stands_for_this_ones_though_code_and_file_have_changed(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = world.run("t_data")
    old = world.run(TRAINED, Asked(base="./other", reason="r"), data=data)
    true = running.code_digest
    monkeypatch.setattr(running, "code_digest", lambda f, kept: f"edited {true(f, kept)}")
    lent = Asked(reuse={"train": old}, reason="only a log line was edited")
    caplog.set_level("INFO", logger="csrm")
    assert world.run(TRAINED, lent, "train", data=data) == old
    assert f"{old} is reused, as this run asks: only a log line was edited" in caplog.text
    assert world.calls == ["data", "train ./other"]
    assert world.run(TRAINED, lent, "another", data=data) != old


def test_what_an_earlier_run_made_before_a_parameter_had_a_default_can_be_reused(
    world: World,
) -> None:
    data = world.run("t_data")
    old = world.run(TRAINED, Asked(base="./other", reason="r"), data=data)
    path = Path(world.settings.artifacts, old, "manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["about"]["params"]["late"]
    path.write_text(json.dumps(manifest))
    lent = Asked(reuse={"train": old}, reason="r")
    assert world.run(TRAINED, lent, "train", data=data) == old
    with pytest.raises(ConfigError, match="was made with parameters"):
        world.run(TRAINED, lent, "train", data=data, late=1)


def test_what_was_made_of_other_data_or_is_something_else_is_not_reused(world: World) -> None:
    data, other = world.run("t_data"), world.run("t_data", week=2)
    old = world.run(TRAINED, data=other)
    more = world.run(TRAINED, data=data, more=other)
    for ref, changed, said in (
        (old, {}, "was made of another data than this run's"),
        (more, {}, "was made of another more than this run's"),
        (old, {"arm": "b"}, "'arm': 'a'.* not with .*'arm': 'b'"),
        (data, {}, f"is no {TRAINED} of market tiny"),
    ):
        with pytest.raises(ConfigError, match=f"parameter 'reuse': {ref}.*{said}|{ref} {said}"):
            world.run(TRAINED, Asked(reuse={"t": ref}, reason="r"), "t", data=data, **changed)
    gone = f"tiny/{TRAINED}/{'0' * 20}"
    with pytest.raises(ArtifactError, match=f"{gone} does not exist"):
        world.run(TRAINED, Asked(reuse={"t": gone}, reason="r"), "t", data=data)


def test_what_was_damaged_is_not_reused(world: World) -> None:
    data = world.run("t_data")
    old = world.run(TRAINED, Asked(base="./other", reason="r"), data=data)
    world.store.open(old).file("weights").write_text("changed")
    with pytest.raises(ArtifactError, match="was changed after it was published"):
        world.run(TRAINED, Asked(reuse={"t": old}, reason="r"), "t", data=data)


NORMAL = {
    "week": None, "base": "./own", "rounds": 2, "force": False, "reuse": None, "reason": None,
    "dry_run": False, "release": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "params", [NORMAL, {}, NORMAL | {"reason": "a look"}, {"day": "2026-01-05"}]
)
def test_the_markets_own_values_ask_for_nothing(params: dict[str, Any]) -> None:
    found = asked_of(MARKET, params, "run")
    assert not found and found.as_text() == "" and from_text("") == Asked()


@given(
    base=st.sampled_from(["./own", "./other", "base:x", None]),
    rounds=st.sampled_from([0, 1, 2, None]),
    force=st.booleans(),
    reuse=st.none() | st.dictionaries(st.sampled_from(["train_ebr", "train_llm"]), st.text()),
    reason=st.none() | st.text(max_size=5),
)
def test_what_is_asked_for_survives_as_text_and_is_nothing_only_where_all_is_the_markets(
    base: str | None, rounds: int | None, force: bool, reuse: dict[str, str] | None,
    reason: str | None,
) -> None:  # fmt: skip
    params = NORMAL | {
        "base": base, "rounds": rounds, "force": force, "reuse": reuse, "reason": reason,
    }  # fmt: skip
    normal = base in ("./own", None) and rounds in (2, None) and not force and not reuse
    if not normal and not (reason or "").strip():
        with pytest.raises(ConfigError, match=r"parameter 'reason': this run is none of .* say"):
            asked_of(MARKET, params, "run")
        return
    found = asked_of(MARKET, params, "run")
    assert bool(found) is not normal
    assert from_text(found.as_text()) == found
    assert bool(found.in_words()) is not normal


def test_a_run_cannot_be_dry_and_release() -> None:
    with pytest.raises(ConfigError, match="'dry_run' and 'release': one forbids what the other"):
        asked_of(MARKET, NORMAL | {"dry_run": True, "release": True}, "run")


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"round": 1}, "'round': this DAG has none of that name; did you mean 'rounds'"),
        ({"x": 1}, "'x': this DAG has none of that name; known: rounds, week"),
        ({"rounds": 1}, "'rounds': 1 was given and does not count; set AIRFLOW__CORE__DAG_RUN"),
        ({"week": "2026-W02", "rounds": 2}, ""),
        ({}, ""),
    ],
)
def test_what_no_parameter_takes_is_refused(conf: dict[str, Any], said: str) -> None:
    params = {"rounds": 2, "week": "2026-W02"}
    if not said:
        refuse_unknown(conf, params, {"rounds", "week"})
        return
    with pytest.raises(ConfigError, match=said):
        refuse_unknown(conf, params, {"rounds", "week"})


@pytest.mark.parametrize("text", ["{", "[1]", '{"colour": 1}', "3"])
def test_what_was_not_written_by_a_run_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="what the run asks for cannot be read"):
        from_text(text)
