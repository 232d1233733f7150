"""Following the documents: switch, roll back, and stay on the last good release otherwise."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from csrm_tasks.release import snapshots
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.serving import follower
from csrm_tasks.serving.app import create_app
from csrm_tasks.settings import Settings
from tests.release_fixtures import MARKET, market, store_of
from tests.serving_fixtures import (
    HEAD,
    TOKEN,
    ByHand,
    document,
    refreshed,
    release,
    route,
    serving,
)

ASKED = {"query": "紅色 1", "products": ["p0", "p1", "p2"]}


def answer(client: TestClient) -> tuple[str, list[float]]:
    """Return who answers, and its EM probabilities."""
    found = client.post("/score", json=ASKED).json()
    return found["release"], [p["em"] for p in found["products"]]


def alarms(client: TestClient) -> dict[str, str]:
    found: dict[str, str] = client.get("/readyz").json()["alarms"]
    return found


def test_a_new_release_takes_over_and_the_one_before_stays_loaded(settings: Settings) -> None:
    one, two = release(settings, "a"), release(settings, "b")
    route(settings, document(one))
    with serving(settings) as (client, service):
        first = answer(client)
        assert first[0] == one[0]
        route(settings, document(two, one, seq=2))
        service.follower.poll()
        second = answer(client)
        assert second[0] == two[0] and second[1] != first[1]
        assert service.follower.state is not None
        kept = service.follower.state.releases[one[0]]
        shutil.rmtree(store_of(settings).open(one[1]).path)  # going back reads nothing
        route(settings, document(one, seq=3))
        service.follower.poll()
        assert answer(client) == first
        assert service.follower.state.releases == {one[0]: kept}
        assert alarms(client) == {}


def test_a_service_that_starts_loads_the_predecessors_too(settings: Settings) -> None:
    one, two = release(settings, "a"), release(settings, "b")
    route(settings, document(two, one, seq=2))
    with serving(settings) as (client, _):
        assert client.get("/readyz").json()["loaded"] == sorted([one[0], two[0]])
        text = client.get("/metrics").text
        assert f'csrm_release_info{{backend="fp32",release="{two[0]}",role="stable"}} 1.0' in text
        assert (
            f'csrm_release_info{{backend="fp32",release="{one[0]}",role="predecessor"}} 1.0' in text
        )


def weights(stable: int, next_: int) -> dict[str, int]:
    return {"stable": stable, "next": next_, "holdout": 0}


BAD: list[tuple[dict[str, Any] | bytes, str]] = [
    (b"{", "not JSON"),
    (b"[]", "valid dictionary"),
    ({"weights": weights(90, 5)}, "do not add to 100"),
    ({"weights": weights(110, -10)}, "do not add to 100"),
    ({"weights": weights(90, 10)}, "traffic for a release not there"),
    ({"weights": weights(90, 0) | {"interleaved": 10}}, "traffic for a release not there"),
    ({"weights": weights(90, 0) | {"interleaved": 20}}, "do not add to 100"),
    ({"weights": {"stable": 100}}, "weights.next: Field required"),
    ({"version": 4}, "version 4"),
    ({"market": "other"}, "market other"),
    ({"stable": "tiny-missing"}, "no bundle is named for tiny-missing"),
    ({"predecessors": ["tiny-gone"]}, "no bundle is named for tiny-gone"),
    ({"ledger_seq": 4}, "row 4 is older than 5"),
    ({"seed": None}, "seed"),
]


@pytest.mark.parametrize(("changed", "why"), BAD)
def test_a_document_that_cannot_be_followed_changes_nothing(
    settings: Settings, changed: dict[str, Any] | bytes, why: str
) -> None:
    good = document(release(settings, "a"), seq=5)
    route(settings, good)
    with serving(settings) as (client, service):
        before = answer(client)
        bad = changed if isinstance(changed, bytes) else {**good, "ledger_seq": 6, **changed}
        route(settings, bad)
        service.follower.poll()
        assert answer(client) == before
        assert why in alarms(client)["routing"]
        assert 'csrm_alarm{kind="routing"} 1.0' in client.get("/metrics").text
        client.headers.pop("Authorization")
        assert alarms(client) == ["routing"]  # without the token only the kind
        route(settings, {**good, "ledger_seq": 7})
        service.follower.poll()
        assert alarms(client) == []


@pytest.mark.parametrize("how", ["missing", "changed", "another", "not onnx"])
def test_a_release_that_cannot_be_loaded_leaves_the_last_good_one(
    settings: Settings, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = release(settings, "a"), release(settings, "b")
    route(settings, document(one))
    folder = store_of(settings).open(two[1]).path
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with serving(settings) as (client, service):
        before = answer(client)
        named = {"missing": "tiny/bundle/nowhere", "another": one[1]}.get(how, two[1])
        if how == "changed":
            data = bytearray(kept[folder / "embeddings.npy"])
            data[-1] ^= 1
            (folder / "embeddings.npy").write_bytes(data)
        if how == "not onnx":
            (folder / "towers" / "query.onnx").write_bytes(b"")
        route(settings, document((two[0], named), one, seq=2))
        service.follower.poll()
        assert answer(client) == before
        assert alarms(client)["release"].startswith(f"{two[0]} cannot be loaded: ")
        for path, data in kept.items():  # mended, it is taken; not sooner than it may be tried
            path.write_bytes(data)
        route(settings, document(two, one, seq=3))
        service.follower.poll()
        assert answer(client) == before
        monkeypatch.setattr(follower.time, "monotonic", lambda: 1e12)
        service.follower.poll()
        assert answer(client)[0] == two[0]
        assert alarms(client) == {}


def test_a_service_that_starts_with_a_document_it_cannot_follow_waits_for_one_it_can(
    settings: Settings,
) -> None:
    good = document(release(settings, "a"))
    route(settings, {**good, "bundles": {good["stable"]: "tiny/bundle/nowhere"}})
    with serving(settings) as (client, service):
        assert client.get("/readyz").status_code == 503
        assert set(alarms(client)) == {"release"}
        assert client.post("/score", json=ASKED).status_code == 503
        service.follower._failed.clear()  # half a minute later
        route(settings, good)
        service.follower.poll()
        assert answer(client)[0] == good["stable"]
        assert alarms(client) == {}


def test_a_lost_predecessor_is_an_alarm_and_nothing_else(settings: Settings) -> None:
    one, two = release(settings, "a"), release(settings, "b")
    shutil.rmtree(store_of(settings).open(one[1]).path)
    route(settings, document(two, one, seq=2))
    with serving(settings) as (client, _):
        assert answer(client)[0] == two[0]
        assert one[0] in alarms(client)["predecessor"]


def test_of_two_predecessors_the_one_that_can_be_loaded_is(settings: Settings) -> None:
    lost, kept, live = (release(settings, key) for key in "abc")
    shutil.rmtree(store_of(settings).open(lost[1]).path)
    route(settings, document(live, lost, kept, seq=3))
    with serving(settings) as (client, _):
        assert client.get("/readyz").json()["loaded"] == sorted([live[0], kept[0]])
        assert lost[0] in alarms(client)["predecessor"]


def test_a_bad_release_that_is_taken_back_is_an_alarm_no_more(settings: Settings) -> None:
    good = document(release(settings, "a"))
    route(settings, good)
    with serving(settings) as (client, service):
        route(settings, {**good, "stable": "tiny-gone", "bundles": {"tiny-gone": "tiny/bundle/x"}})
        service.follower.poll()
        assert set(alarms(client)) == {"release"}
        route(settings, good)
        service.follower.poll()
        assert alarms(client) == {}


def test_without_the_document_the_last_good_one_is_followed(settings: Settings) -> None:
    route(settings, document(release(settings, "a")))
    with serving(settings) as (client, service):
        before = answer(client)
        (Path(settings.routing) / f"{MARKET}.json").unlink()
        service.follower.poll()
        assert answer(client) == before
        assert "none is published" in alarms(client)["routing"]


def test_refreshed_vectors_are_taken_up_and_those_of_another_release_are_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = release(settings, "a"), release(settings, "b")
    route(settings, document(one))
    with serving(settings) as (client, service):
        before = answer(client)
        wrong = refreshed(settings, "wrong", one[0], of=two[1])
        snapshots.publish(settings, MARKET, {one[0]: wrong})
        service.follower.poll()
        assert answer(client) == before
        assert "run the refresh step again" in alarms(client)["embeddings"]

        right = refreshed(settings, "right", *one)
        snapshots.publish(settings, MARKET, {one[0]: right})
        service.follower.poll()
        assert alarms(client) == {}
        after = answer(client)
        assert after[0] == one[0] and after[1] != before[1]
        text = client.get("/metrics").text
        assert f'csrm_embedded_products{{release="{one[0]}"}} 3.0' in text


def test_an_embeddings_document_that_cannot_be_read_is_an_alarm(settings: Settings) -> None:
    route(settings, document(release(settings, "a")))
    with serving(settings) as (client, service):
        before = answer(client)
        path = Path(settings.routing) / snapshots.key(MARKET)
        path.parent.mkdir(parents=True, exist_ok=True)
        for text in ("{", '{"market": "other"}', '{"market": "tiny", "releases": {"x": {}}}'):
            path.write_text(text)
            service.follower.poll()
            assert "embeddings" in alarms(client)
            assert answer(client) == before


def test_switching_under_load_drops_nothing_and_mixes_nothing(settings: Settings) -> None:
    made = [release(settings, key) for key in "abcd"]
    want = {
        name: ReleaseScorer(store_of(settings).open(ref).path)
        .score(["紅色 1"] * 3, ["p0", "p1", "p2"], [None] * 3)
        .em.tolist()
        for name, ref in made
    }
    route(settings, document(made[0]))
    service = ByHand(settings, market(), "t")
    seen: list[tuple[int, str, list[float]]] = []
    done = False

    async def client(asker: httpx.AsyncClient) -> None:
        while not done:
            got = await asker.post("/score", json=ASKED)
            found = got.json()
            seen.append((got.status_code, found["release"], [p["em"] for p in found["products"]]))
            await asyncio.sleep(0)  # without a network nothing else would let others run

    async def answered_by(name: str) -> None:
        while not seen or seen[-1][1] != name:
            await asyncio.sleep(0)

    async def operator() -> None:
        nonlocal done
        moves = [(made[1], made[0]), (made[2], made[1]), (made[3], made[2]), (made[2], made[1])]
        for seq, (stable, before) in enumerate(moves, start=2):
            route(settings, document(stable, before, seq=seq))
            await asyncio.to_thread(service.follower.poll)
            await answered_by(stable[0])
        done = True

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=create_app(service, TOKEN))
        address = "http://service"
        async with httpx.AsyncClient(transport=transport, base_url=address, headers=HEAD) as asker:
            await asyncio.gather(operator(), *(client(asker) for _ in range(6)))

    service.start()
    asyncio.run(scenario())
    service.stop()
    assert {status for status, _, _ in seen} == {200}
    assert {name for _, name, _ in seen} == {name for name, _ in made[1:]} | {made[0][0]}
    for _, name, em in seen:
        assert np.allclose(em, want[name], atol=1e-6)
