"""The second stage in the service: the order of ``/rank`` within a budget, and what says so."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csrm_tasks.release import snapshots
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.serving.app import Service
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.towers.serving.second_stage import Costs, SecondStage
from tests.release_fixtures import MARKET, publish, store_of
from tests.second_stage_fixtures import (
    IDS,
    TITLES,
    Cross,
    make_cross,
    second_market,
    second_release,
    write_catalogue,
)
from tests.serving_fixtures import document, release, route, serving

QUERY = "紅色 雨傘"
NEW = {"id": "new", "title": "藍色 雨傘", "category": "品牌"}


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Cross:
    return make_cross(tmp_path_factory.mktemp("cross"))


@pytest.fixture
def one(settings: Settings, cross: Cross) -> tuple[str, str]:
    """A release with a second stage, that answers everybody."""
    made = second_release(settings, cross)
    route(settings, document(made))
    return made


def asked(*more: Any) -> dict[str, Any]:
    return {"query": QUERY, "products": [*IDS, NEW, *more], "session_id": "s"}


def first_order(settings: Settings, bundle: str, query: str, body: dict[str, Any]) -> list[str]:
    """The first stage's answer, by a service that leaves the second one alone."""
    with serving(settings, second_market(enabled=False)) as (client, _):
        found = client.post("/rank", json=body | {"query": query}).json()
    assert "second_stage" not in found
    products: list[str] = found["products"]
    return products


def slowly(
    settings: Settings, cross: Cross, bundle: str, query: str, shown: list[str], top: int
) -> list[str]:
    """Re-rank by torch over all pairs, one at a time: products without a title keep their place."""
    texts = {**dict(zip(IDS, TITLES, strict=True)), "new": "藍色 雨傘 | 品牌"}
    scorer = ReleaseScorer(store_of(settings).open(bundle).path)
    every = list(texts)
    em = scorer.score([query] * len(every), every, [*TITLES, texts["new"]]).em.astype(float)
    torch = cross.logits(query, [texts[name] for name in every])
    score = {
        name: 0.5 * np.log(p / (1 - p)) + z for name, p, z in zip(every, em, torch, strict=True)
    }
    first = [name for name in shown[:top] if name in score]
    best = iter(sorted(first, key=lambda name: (-score[name], first.index(name))))
    return [next(best) if name in score else name for name in shown[:top]] + shown[top:]


@pytest.mark.parametrize("query", [QUERY, "茶壺", " 白色  背包 品牌 "])
def test_the_top_is_ordered_as_torch_orders_all_pairs(
    settings: Settings, cross: Cross, one: tuple[str, str], query: str
) -> None:
    body = asked("unheard-of")
    body["products"] = body["products"][-1:] + body["products"][:-1]
    shown = first_order(settings, one[1], query, body)
    with serving(settings, second_market()) as (client, _):
        found = client.post("/rank", json=body | {"query": query}).json()
        again = client.post("/rank", json=body | {"query": query}).json()
    want = slowly(settings, cross, one[1], " ".join(query.split()), shown, 6)
    assert found["products"] == again["products"] == want != shown
    assert found["products"][6:] == shown[6:]
    taken = len([name for name in shown[:6] if name != "unheard-of"])
    assert found["second_stage"] == [{"release": one[0], "reranked": taken, "outcome": "all"}]


def test_without_one_an_answer_is_what_it_was(settings: Settings) -> None:
    """Also where the market wants one: a release from before has none."""
    route(settings, document(release(settings, "a")))
    body = {"query": "紅色 1", "products": ["p0", "p1", "p2"]}
    with serving(settings, second_market()) as (client, _):
        found = client.post("/rank", json=body).json()
        explained = client.post("/score?explain=1", json=body).json()
    assert list(found) == ["query_id", "release", "bucket", "products", "defects", "unknown"]
    assert list(explained) == ["release", "bucket", "products"]


def within(costs: Costs, service: Service) -> None:
    """Let the loaded release's second stage take ``costs``, as if measured."""
    state = service.follower.state
    assert state is not None
    changed = {name: replace(r, costs=costs) for name, r in state.releases.items()}
    service.follower.state = replace(state, releases=changed)


@pytest.mark.parametrize(
    ("seconds", "reranked", "outcome"),
    [(0.0, 6, "all"), (2_400.0, 4, "fewer"), (5_100.0, 0, "none"), (1e9, 0, "none")],
)
def test_what_does_not_fit_into_the_budget_is_not_reranked(
    settings: Settings, cross: Cross, one: tuple[str, str], seconds: float, reranked: int,
    outcome: str,
) -> None:  # fmt: skip
    body = {"query": QUERY, "products": IDS}
    shown = first_order(settings, one[1], QUERY, body)
    with serving(settings, second_market(budget_ms=1e7)) as (client, service):
        # All titles here are as long as each other, so that a product costs so many seconds.
        pair = _pair_tokens(cross)
        within(Costs((pair, pair * 6), (seconds, seconds * 6)), service)
        found = client.post("/rank", json=body).json()
        text = client.get("/metrics").text
    assert found["products"] == slowly(settings, cross, one[1], QUERY, shown, reranked)
    told = {"release": one[0], "reranked": reranked, "outcome": outcome}
    assert found["second_stage"] == [told]
    assert f'csrm_second_stage_total{{outcome="{outcome}",release="{one[0]}"}} 1.0' in text
    assert f'csrm_reranked_products_total{{release="{one[0]}"}} {float(reranked)}' in text


def _pair_tokens(cross: Cross) -> float:
    lengths = {*cross.reader.products(TITLES).lengths.tolist()}
    assert len(lengths) == 1
    return float(cross.reader.queries([QUERY]).lengths[0] + lengths.pop())


def test_a_budget_that_the_first_stage_has_spent_leaves_its_order(
    settings: Settings, one: tuple[str, str]
) -> None:
    shown = first_order(settings, one[1], QUERY, asked())
    with serving(settings, second_market(budget_ms=1e-6)) as (client, _):
        found = client.post("/rank", json=asked()).json()
    assert found["products"] == shown
    assert found["second_stage"][0]["outcome"] == "none"


def test_a_run_that_takes_longer_than_it_should_is_not_waited_for(
    settings: Settings, one: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, over = first_order(settings, one[1], QUERY, asked()), threading.Event()

    def stuck(*_: object) -> Any:
        over.wait()
        raise AssertionError("nobody waits for it any more")

    with serving(settings, second_market(budget_ms=200.0)) as (client, service):
        within(Costs((1.0,), (0.0,)), service)
        monkeypatch.setattr(SecondStage, "score", stuck)
        found = client.post("/rank", json=asked()).json()
        over.set()
    assert found["products"] == shown
    assert found["second_stage"] == [{"release": one[0], "reranked": 0, "outcome": "late"}]


def test_a_second_stage_that_fails_costs_nobody_the_answer(
    settings: Settings, one: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = first_order(settings, one[1], QUERY, asked())

    def broken(*_: object) -> Any:
        raise RuntimeError("no")

    with serving(settings, second_market()) as (client, _):
        monkeypatch.setattr(SecondStage, "score", broken)
        found = client.post("/rank", json=asked()).json()
    assert found["products"] == shown
    assert found["second_stage"][0]["outcome"] == "failed"


def test_the_log_says_what_ordered_and_scores_say_whose_they_are(
    settings: Settings, one: tuple[str, str]
) -> None:
    with serving(settings, second_market()) as (client, _):
        found = client.post("/rank", json=asked()).json()
        plain = client.post("/score", json=asked()).json()
        explained = client.post("/score?explain=1", json=asked()).json()
    assert "stage" not in plain and explained["stage"] == "first"
    logs = [*(settings.landing / MARKET).rglob("ubi_queries-*.jsonl")]
    (record,) = (json.loads(line) for log in logs for line in log.read_text().splitlines())
    assert record["query_response_hit_ids"] == found["products"]
    assert record["query_attributes"] == {
        "bucket": "stable", "release": one[0], "second_stage": found["second_stage"],
    }  # fmt: skip
    day = logs[0].parent.parent.name
    ref = run_step("land", second_market(), {}, {"day": day}, settings)
    ref = run_step("validate", second_market(), {"land": ref}, {}, settings)
    ref = run_step("store", second_market(), {"validate": ref}, {}, settings)
    receipt = json.loads(store_of(settings).open(ref).file("receipt.json").read_text())
    assert [(f["stored"], f["quarantined"]) for f in receipt["files"]] == [(1, 0)]


def test_each_release_of_an_interleaved_answer_has_its_own(
    settings: Settings, cross: Cross, one: tuple[str, str]
) -> None:
    other = second_release(settings, cross, "t", top=3, weights=(0.0, 1.0))
    weights = {"stable": 0, "next": 0, "holdout": 0, "interleaved": 100}
    seen = document(one, other, next=other[0], predecessors=[], weights=weights, version=2)
    route(settings, seen)
    with serving(settings, second_market()) as (client, service):
        assert not service.alarms.texts()
        found = client.post("/rank", json=asked()).json()
    assert found["bucket"] == "interleaved"
    assert found["second_stage"] == [
        {"release": one[0], "reranked": 6, "outcome": "all"},
        {"release": other[0], "reranked": 3, "outcome": "all"},
    ]
    assert set(found["releases"]) <= {one[0], other[0], ""}


def test_a_release_in_shadow_reranks_its_copies_too(
    settings: Settings, cross: Cross, one: tuple[str, str]
) -> None:
    old = release(settings, "a")
    route(settings, document(old, one, next=one[0], shadow=True, predecessors=[]))
    with serving(settings, second_market()) as (client, service):
        found = client.post("/rank", json={"query": QUERY, "products": [*IDS[:3], NEW]}).json()
        assert "second_stage" not in found
    # Copies are settled when the service ends.
    told = f'csrm_second_stage_total{{outcome="all",release="{one[0]}"}} 1.0'
    assert told in service.metrics.text().decode()


def test_back_to_a_release_without_one_and_forth(settings: Settings, one: tuple[str, str]) -> None:
    old = release(settings, "a")
    with serving(settings, second_market()) as (client, service):
        for seq, order in enumerate([(one, old), (old, one), (one, old)], start=2):
            route(settings, document(*order, seq=seq))
            service.follower.poll()
            found = client.post("/rank", json={"query": QUERY, "products": [NEW, NEW]}).json()
            assert found["release"] == order[0][0]
            assert ("second_stage" in found) == (order[0] == one)
        assert not service.alarms.texts()


def test_refreshed_vectors_without_tokens_are_not_taken(
    settings: Settings, cross: Cross, one: tuple[str, str]
) -> None:
    name, ref = one
    bundle = store_of(settings).open(ref)
    export = json.loads(bundle.file("release.json").read_text())["parts"]["export"]

    def write(second: Path | None) -> Any:
        def inner(folder: Path) -> None:
            (folder / name).mkdir(exist_ok=True)
            write_catalogue(folder / name, second, seed=9)
            about = json.dumps(snapshots.about(name, export))
            (folder / name / snapshots.SNAPSHOT).write_text(about)

        return inner

    def refreshed(key: str, second: Path | None) -> snapshots.Snapshot:
        made = publish(settings, "refresh", key, write(second)).ref
        figures: dict[str, Any] = {"products": 16, "encoded": 1, "coverage": 1.0, "stale": 0.3}
        return snapshots.Snapshot(ref=made, day="2026-01-02", **figures)

    lacking, whole = refreshed("x", None), refreshed("y", bundle.path / "second_stage")
    with serving(settings, second_market()) as (client, service):
        snapshots.publish(settings, MARKET, {name: lacking})
        service.follower.poll()
        assert "has not the tokens of its 16 products" in json.dumps(service.alarms.texts())
        assert client.post("/rank", json=asked()).status_code == 200
        snapshots.publish(settings, MARKET, {name: whole})
        service.follower.poll()
        assert not service.alarms.texts()
        assert client.post("/rank", json=asked()).json()["second_stage"][0]["reranked"] == 6
