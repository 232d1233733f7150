"""The routes: scores as the towers give them, ranking, the door, and what is refused and how."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from csrm_tasks.blobs import open_blobs
from csrm_tasks.errors import ConfigError
from csrm_tasks.release import assignment
from csrm_tasks.release.bundle.scorer import Scored
from csrm_tasks.release.interleaving import coins, draft
from csrm_tasks.serving.alarms import Kind
from csrm_tasks.serving.answering import _order
from csrm_tasks.serving.app import Service
from csrm_tasks.serving.guard import MAX_BYTES, read_token
from csrm_tasks.settings import Settings
from tests.release_fixtures import store_of
from tests.serving_fixtures import HEAD, TOKEN, document, release, route, serving


@pytest.fixture
def one(settings: Settings) -> tuple[str, str]:
    """A release that answers everybody."""
    made = release(settings, "a")
    route(settings, document(made))
    return made


@pytest.fixture
def running(settings: Settings, one: tuple[str, str]) -> Iterator[tuple[TestClient, Service]]:
    with serving(settings) as found:
        yield found


@pytest.fixture
def client(running: tuple[TestClient, Service]) -> TestClient:
    return running[0]


def test_scores_are_those_of_the_release(
    client: TestClient, settings: Settings, one: tuple[str, str]
) -> None:
    from csrm_tasks.release.bundle.scorer import ReleaseScorer

    about = {"brand": "0", "category": "1"}  # of which these towers read the category (A27)
    products = ["p1", {"id": "new", "title": "紅色 物品", **about}, "p0", {"title": "2 3"}]
    found = client.post("/score", json={"query": " 紅色  1 ", "products": products}).json()
    assert (found["release"], found["bucket"]) == (one[0], "stable")
    direct = ReleaseScorer(store_of(settings).open(one[1]).path)
    ids, titles = ["p1", "new", "p0", None], [None, "紅色 物品 | 1", None, "2 3"]
    want = direct.score(["紅色 1"] * 4, ids, titles)
    assert [p["id"] for p in found["products"]] == ["p1", "new", "p0", ""]
    for name in ("em", "defect", "rank_score"):
        assert np.allclose([p[name] for p in found["products"]], getattr(want, name), atol=1e-6)
    assert [p["is_defect"] for p in found["products"]] == want.is_defect.tolist()


def test_a_querys_vector_is_the_stable_releases_for_exact_matches(settings: Settings) -> None:
    from csrm_tasks.release.bundle.scorer import ReleaseScorer

    old, new = release(settings, "a"), release(settings, "b")
    weights = {"stable": 0, "next": 100, "holdout": 0}
    found = document(old, next=new[0], weights=weights, bundles=dict([old, new]))
    with serving(settings) as (client, service):
        assert client.post("/embed", json={"query": "紅色"}).status_code == 503
        route(settings, found)
        service.follower.poll()
        got = client.post("/embed", json={"query": " 紅色  1 "}).json()
        scorer = ReleaseScorer(store_of(settings).open(old[1]).path)
        assert got["release"] == old[0]
        assert np.allclose(got["vector"], scorer.encode_queries(["紅色 1"])[0, 0], atol=1e-6)
        for wrong in ({"query": ""}, {}, {"query": "1", "products": ["p0"]}, {"query": 3}):
            assert client.post("/embed", json=wrong).status_code == 422


def slow_order(em: list[float], defect: list[bool], threshold: float) -> list[int]:
    """Remove defects, then move exact products to the front one by one, the best last."""
    order = [i for i in range(len(em)) if not defect[i]]
    exact = [i for i in order if em[i] >= threshold]
    for i in reversed(sorted(exact, key=lambda i: (-em[i], i))):
        order.remove(i)
        order.insert(0, i)
    return order


def test_ranking_leaves_out_defects_and_puts_exact_products_first() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        em, defect = rng.random(12).round(1), rng.random(12) < 0.3
        scored = Scored(em, defect.astype(float), defect, np.where(defect, 0, em))
        order, out = _order(scored, range(12), 12, 0.6)
        assert order == slow_order(em.tolist(), defect.tolist(), 0.6)
        assert out == np.flatnonzero(defect).tolist()


def test_a_search_keeps_new_products_in_their_place_and_says_so(client: TestClient) -> None:
    asked = ["p0", "brand-new", "p1", {"id": "t", "title": "3"}, "p2"]
    found = client.post("/rank", json={"query": "紅色", "products": asked}).json()
    assert found["unknown"] == ["brand-new"]
    kept = {*found["products"], *found["defects"]}
    assert kept == {"p0", "brand-new", "p1", "t", "p2"}
    assert len(found["query_id"]) == 32
    alone = client.post("/rank", json={"query": "紅色", "products": ["x", "y"]}).json()
    assert alone["products"] == ["x", "y"]


def test_sessions_go_to_the_arm_that_the_routing_library_says(settings: Settings) -> None:
    old, new = release(settings, "a"), release(settings, "b")
    weights = {"stable": 60, "next": 40, "holdout": 0}
    found = document(old, next=new[0], weights=weights, bundles=dict([old, new]))
    route(settings, found)
    with serving(settings) as (client, _):
        for session in [f"s{i}" for i in range(30)] + [""]:
            asked = {"query": "1", "products": ["p0"], "session_id": session}
            got = client.post("/score", json=asked).json()
            assert got["bucket"] == assignment.arm(session, found)
            assert got["release"] == assignment.assign(session, found)


def interleaving(settings: Settings) -> tuple[tuple[str, str], tuple[str, str], dict[str, Any]]:
    """Two releases, all sessions interleaved."""
    old, new = release(settings, "a"), release(settings, "b")
    weights = {"stable": 0, "next": 0, "holdout": 0, "interleaved": 100}
    found = document(old, next=new[0], weights=weights, version=3, bundles=dict([old, new]))
    route(settings, found)
    return old, new, found


def alone(settings: Settings, made: tuple[str, str], asked: dict[str, Any]) -> dict[str, Any]:
    """What one release answers by itself."""
    route(settings, document(made, seq=100))
    with serving(settings) as (client, _):
        return dict(client.post("/rank", json=asked).json())


def test_an_interleaved_search_is_a_draft_of_both_releases_and_says_whose_each_is(
    settings: Settings,
) -> None:
    old, new, found = interleaving(settings)
    products = ["p2", "fresh", "p0", "p1", "p0", {"title": "紅色 物品"}, {"title": "2 3"}]
    asked = {"query": "紅色 1", "products": products}
    seen = {}
    with serving(settings) as (client, _):
        for session in [f"s{n}" for n in range(12)]:
            mine = asked | {"session_id": session}
            seen[session] = client.post("/rank", json=mine).json()
            assert client.post("/rank", json=mine).json()["products"] == seen[session]["products"]
        scored = client.post("/score", json={"query": "1", "products": ["p0"], "session_id": "s1"})
        assert (scored.json()["bucket"], scored.json()["release"]) == ("interleaved", "")
        nobody = client.post("/rank", json=asked).json()  # without a session: no experiment
        assert (nobody["bucket"], nobody["release"]) == ("stable", old[0])
    ours, theirs = (alone(settings, made, asked) for made in (old, new))
    assert "releases" not in ours
    # By the documented rules, on what each release answers by itself; two items have no id.
    names = {"stable": old[0], "next": new[0], None: ""}
    for session, answer in seen.items():
        flips = coins(found["seed"], session, "紅色 1")
        rankings = [list(dict.fromkeys(a["products"])) for a in (ours, theirs)]
        if all(a["products"].count("") <= 1 for a in (ours, theirs)):
            wanted = draft(*rankings, flips)
            assert answer["products"] == list(wanted)
            assert answer["releases"] == [names[t] for t in wanted.values()]
        assert (answer["bucket"], answer["release"]) == ("interleaved", "")
        assert len(answer["releases"]) == len(answer["products"])
        assert answer["products"].count("p0") <= 1
        assert answer["unknown"] == ["fresh"]
    assert len({tuple(a["releases"]) for a in seen.values()}) > 1


def test_what_is_done_with_an_interleaved_list_is_logged_with_the_products_release(
    settings: Settings,
) -> None:
    old, new, _ = interleaving(settings)
    with serving(settings) as (client, _):
        asked = {"query": "1", "products": ["p0", "p1", "p2"], "session_id": "s1"}
        got = client.post("/rank", json=asked).json()
        event = {"query_id": got["query_id"], "action_name": "click", "object_id": "p0",
                 "session_id": "s1", "bucket": "interleaved"}  # fmt: skip
        sent = [event | {"release": r} for r in (old[0], new[0], "")]
        sent.append(event | {"release": "", "bucket": "stable"})
        answer = client.post("/events", json={"events": sent})
        assert answer.status_code == 207
        assert answer.json()["logged"] == 3
        assert "may be of no release" in answer.json()["refused"][0]["detail"]
    logged = [
        json.loads(line)
        for path in sorted(settings.landing.rglob("ubi_*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    searches = [r["query_attributes"] for r in logged if "query_attributes" in r]
    assert searches == [{"bucket": "interleaved", "release": ""}]
    events = [r["event_attributes"]["release"] for r in logged if "event_attributes" in r]
    assert events == [old[0], new[0], ""]


def test_a_new_release_that_fails_costs_no_interleaved_search_its_answer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, _ = interleaving(settings)
    asked = {"query": "1", "products": ["p0", "p1", "p2"], "session_id": "s1"}
    with serving(settings) as (client, service):
        state = service.follower.state
        assert state is not None
        failing = state.releases[new[0]]

        async def fail(*_: Any) -> Scored:
            raise RuntimeError("lost")

        monkeypatch.setattr(type(failing), "score", by_name(type(failing).score, failing, fail))
        got = client.post("/rank", json=asked)
        assert got.status_code == 200
        assert set(got.json()["releases"]) <= {""}
        figures = client.get("/metrics").text
    assert (
        f'csrm_answers_total{{arm="interleaved",outcome="failed",release="{new[0]}"}} 1' in figures
    )
    assert got.json()["products"] == alone(settings, old, asked)["products"]


def by_name(true: Any, failing: Any, fail: Any) -> Any:
    """A method that fails for one object only."""

    async def score(self: Any, *args: Any) -> Any:
        return await (fail() if self is failing else true(self, *args))

    return score


def test_a_release_in_shadow_answers_nobody_but_is_counted(settings: Settings) -> None:
    old, new = release(settings, "a"), release(settings, "b")
    route(settings, document(old, next=new[0], shadow=True, bundles=dict([old, new])))
    with serving(settings) as (client, _):
        for i in range(5):
            asked = {"query": f"{i}", "products": ["p0", "p1"], "session_id": f"s{i}"}
            assert client.post("/rank", json=asked).json()["release"] == old[0]
    blobs = open_blobs(settings.routing)
    [day] = blobs.keys("tiny/serving")  # written when the service ended
    figures = json.loads(blobs.read(day) or b"")
    assert {r: (f["requests"], f["errors"]) for r, f in figures.items()} == {
        old[0]: (5, 0), new[0]: (5, 0),
    }  # fmt: skip
    assert all(f["p99_ms"] > 0 for f in figures.values())
    for found in figures.values():  # all five, whenever they were, by the document of row 1
        assert sum(w["requests"] for w in found["windows"].values()) == 5
        assert {name.split("/", 1)[1] for name in found["windows"]} == {"1"}


def test_a_query_that_is_asked_again_is_counted_as_remembered(settings: Settings) -> None:
    old, new = release(settings, "a"), release(settings, "b")
    route(settings, document(old, next=new[0], shadow=True, bundles=dict([old, new])))
    with serving(settings) as (client, _):
        for _ in range(3):
            client.post("/rank", json={"query": "紅色", "products": ["p0"], "session_id": "s"})
    [day] = (blobs := open_blobs(settings.routing)).keys("tiny/serving")
    counted = {}
    for name, figures in json.loads(blobs.read(day) or b"").items():
        counted[name] = {"1": 0, "1/remembered": 0}
        for window, figure in figures["windows"].items():
            counted[name][window.split("/", 1)[1]] += figure["requests"]
    assert counted[old[0]] == {"1": 1, "1/remembered": 2}
    # In the shadow, requests are answered when there is time, and may be at once: then none of
    # them finds what another is about to remember.
    shadow = counted[new[0]]
    assert shadow["1"] + shadow["1/remembered"] == 3
    assert shadow["1"] >= 1


def test_only_requests_that_chance_gave_to_a_release_are_compared(settings: Settings) -> None:
    """Without a session a request is never the next release's: the two would differ by that."""
    old, new = release(settings, "a"), release(settings, "b")
    weights = {"stable": 60, "next": 40, "holdout": 0}
    for session, compared in (("", 0), ("s1", 3)):
        found = document(old, next=new[0], weights=weights, bundles=dict([old, new]))
        route(settings, found)
        with serving(settings) as (client, _):
            for i in range(3):
                asked = {"query": f"{i}", "products": ["p0"], "session_id": session}
                name = client.post("/score", json=asked).json()["release"]
        [day] = (blobs := open_blobs(settings.routing)).keys("tiny/serving")
        counted = json.loads(blobs.read(day) or b"")[name]["windows"]
        assert sum(w["requests"] for w in counted.values()) == compared


BAD: list[tuple[Any, str]] = [
    ({"query": "", "products": ["p0"]}, "query"),
    ({"query": " \u200b ", "products": ["p0"]}, "query: Value error, is empty"),
    ({"query": "a\0b", "products": ["p0"]}, "NUL"),
    ({"query": "長" * 100_000, "products": ["p0"]}, "at most 500 characters"),
    ({"query": "1", "products": ["p0"] * 10_000}, "at most 1000 items"),
    ({"query": "1", "products": []}, "at least 1 item"),
    ({"query": "1", "products": [{"id": "p0"}]}, "title"),
    ({"query": "1", "products": [{"title": "長" * 100_000}]}, "at most 2000 characters"),
    ({"query": "1", "products": [3]}, "products"),
    ({"query": "1", "products": ["p0"], "colour": "red"}, "colour"),
    ({"query": "1", "products": ["p0", "nope", "p1"]}, "'nope'"),
    ({"query": 7, "products": ["p0"]}, "query"),
    ([], "body"),
]


@pytest.mark.parametrize(("body", "why"), BAD)
def test_what_cannot_be_scored_is_refused_with_a_short_reason(
    client: TestClient, body: Any, why: str
) -> None:
    got = client.post("/score", json=body)
    assert got.status_code == 422
    assert why in got.json()["error"]
    assert len(got.content) < 1_000
    good = client.post("/score", json={"query": "1", "products": ["p0"]})
    assert good.status_code == 200


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b'{"query": "\\ud800", "products": ["p0"]}'])
def test_bytes_that_are_no_text_are_refused(client: TestClient, raw: bytes) -> None:
    got = client.post("/score", content=raw, headers={"Content-Type": "application/json"})
    assert got.status_code in (400, 422)
    assert "error" in got.json()


def test_a_body_without_end_is_refused(client: TestClient) -> None:
    got = client.post("/score", content=b"x" * (MAX_BYTES + 1))
    assert got.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BYTES // 65_536 + 2):
            yield b" " * 65_536

    assert 400 <= client.post("/score", content=endless()).status_code < 500


CLOSED = (
    "/score", "/rank", "/events", "/metrics", "/docs", "/redoc", "/openapi.json", "/", "/nowhere",
    "/healthz/", "//healthz", "/healthz/../metrics", "/readyz%2f", "/HEALTHZ",
)  # fmt: skip
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE")


@pytest.mark.parametrize(
    "given", [None, "", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
              f"Basic {TOKEN}", TOKEN, "Bearer ä"],
)  # fmt: skip
def test_nothing_but_health_is_open(client: TestClient, given: str | None) -> None:
    head = {} if given is None else {"Authorization": given.encode()}
    client.headers.pop("Authorization")
    for method, path in product(METHODS, CLOSED):
        got = client.request(method, path, headers=head)
        assert (got.status_code, got.headers["www-authenticate"]) == (401, "Bearer"), path
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/metrics", headers=head):
        pass
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers=head).status_code == 200
        for method in METHODS[1:]:
            assert client.request(method, path, headers=head).status_code == 405


def test_what_is_not_there_is_404_for_who_brings_the_token(client: TestClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/nowhere"):
        assert client.get(path).status_code == 404
    assert client.get("/score").status_code == 405


def test_the_documentation_names_every_metric_alarm_and_route(
    running: tuple[TestClient, Service],
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "SERVING.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"`(csrm_[a-z_]+)(?:\{([a-z,]+)\})?`", text.split("## Metrics")[1]))
    told.pop("csrm_refresh", None)  # a DAG
    found = {
        f"{m._name}_total" if isinstance(m, Counter) else m._name: ",".join(m._labelnames)
        for m in vars(running[1].metrics).values() if isinstance(m, MetricWrapperBase)
    }  # fmt: skip
    assert told == found
    table = text.split("## Alarms")[1].split("## Metrics")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(get_args(Kind))
    routes = {route.path for route in running[0].app.routes if isinstance(route, Route)}
    assert set(re.findall(r"`(?:GET |POST )?(/[a-z]+)`", text.split("## Switching")[0])) == routes


def test_the_token_comes_from_environment_or_file_and_must_be_one(tmp_path: Any) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token({"CSRM_SERVING_TOKEN_FILE": str(path)}) == "0123456789abcdef"
    assert read_token({"CSRM_SERVING_TOKEN": "fedcba9876543210"}) == "fedcba9876543210"
    for env in ({}, {"CSRM_SERVING_TOKEN": "short"}, {"CSRM_SERVING_TOKEN_FILE": "/nowhere"}):
        with pytest.raises(ConfigError, match="CSRM_SERVING_TOKEN") as refused:
            read_token(env)
        assert "short" not in str(refused.value)


def test_metrics_count_what_was_answered_and_what_was_remembered(client: TestClient) -> None:
    for query in ("1", "1", "2"):
        client.post("/score", json={"query": query, "products": ["p0"]})
    client.post("/score", json={"query": "", "products": ["p0"]})
    client.get("/nowhere")
    text = client.get("/metrics").text
    for line in (
        'csrm_requests_total{route="/score",status="200"} 3.0',
        'csrm_requests_total{route="/score",status="422"} 1.0',
        'csrm_requests_total{route="other",status="404"} 1.0',
        'csrm_query_cache_total{result="hit"} 1.0',
        'csrm_query_cache_total{result="miss"} 2.0',
    ):
        assert line in text


def test_a_failure_inside_is_500_counted_and_tells_nothing(
    running: tuple[TestClient, Service], monkeypatch: pytest.MonkeyPatch, settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    client, service = running
    assert service.follower.state is not None
    release = service.follower.state.document.stable

    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.follower.state.releases[release].scorer, "score_vectors", broken)
    quiet = TestClient(client.app, headers=HEAD, raise_server_exceptions=False)
    got = quiet.post("/score", json={"query": "1", "products": ["p0"]})
    assert got.status_code == 500
    assert "secret" not in got.text
    assert TOKEN not in caplog.text
    service.tend(flush=True)
    blobs = open_blobs(settings.routing)
    [day] = blobs.keys("tiny/serving")
    figures = json.loads(blobs.read(day) or b"")
    one = {"requests": 1, "errors": 1, "buckets": {}}
    parts = figures[release].pop("parts")
    assert list(parts.values()) == [1]
    assert figures[release] == one | {"p99_ms": 0.0, "windows": {}}  # it had no session


def test_without_a_release_it_is_alive_but_not_ready(settings: Settings) -> None:
    with serving(settings) as (client, _):
        assert client.get("/healthz").status_code == 200
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert "none is published" in ready.json()["alarms"]["routing"]
        got = client.post("/score", json={"query": "1", "products": ["p0"]})
        assert got.status_code == 503
