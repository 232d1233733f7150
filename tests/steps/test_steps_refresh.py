"""A35: only what changed is embedded, for every live release, and servers get it at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.errors import DataError, RefusedError
from csrm_tasks.lexical.terms import ProductTerms
from csrm_tasks.release import snapshots
from csrm_tasks.release.bundle.manifest import TOWERS
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.towers.serving import embed
from csrm_tasks.towers.serving.embed import Known, embed_catalogue
from csrm_tasks.towers.serving.runtime import TowerRuntime
from tests.release_fixtures import MARKET, market, store_of
from tests.serving_fixtures import document, release, route, serving

pytestmark = pytest.mark.usefixtures("fingerprints_hold")

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the titles that product towers have read, as they are read."""
    seen: list[str] = []
    encode = TowerRuntime.encode_products

    def counted(self: TowerRuntime, texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(TowerRuntime, "encode_products", counted)
    monkeypatch.setattr("csrm_tasks.tracking.log_run", lambda *_, **__: "")
    return seen


def deliver(settings: Settings, day: str, products: dict[str, str]) -> None:
    """Ingest and publish a day's catalogue."""
    folder = settings.landing / MARKET / day / "zh-TW"
    folder.mkdir(parents=True)
    lines = ["product_id,title", *(f"{p},{t}" for p, t in products.items())]
    (folder / "catalogue.csv").write_text("\n".join(lines) + "\n")
    ref = run_step("land", market(), {}, {"day": day}, settings)
    ref = run_step("validate", market(), {"land": ref}, {}, settings)
    ref = run_step("store", market(), {"validate": ref}, {}, settings)
    ref = run_step("aggregate", market(), {"store": ref}, {"day": day}, settings)
    run_step("publish_day", market(), {"aggregate": ref}, {"day": day}, settings)


def refreshed(settings: Settings, day: str) -> Any:
    """Refresh and publish; returns the artifact of the refresh."""
    ref = run_step("refresh", market(), {}, {"day": day}, settings)
    run_step("publish_refresh", market(), {"refresh": ref}, {}, settings)
    return store_of(settings).open(ref)


def test_one_changed_product_in_a_hundred_is_one_that_is_encoded(
    settings: Settings, read: list[str]
) -> None:
    live = release(settings, "a", evidence=True)
    route(settings, document(live))
    titles = {f"p{i}": f"物品 {i}" for i in range(300)}
    deliver(settings, DAYS[0], titles)
    first = refreshed(settings, DAYS[0])
    assert len(read) == 300
    read.clear()
    changed = {"p7": "紅色 7", "p8": "紅色 8", "new": "紅色 新"}
    deliver(settings, DAYS[1], changed)
    second = refreshed(settings, DAYS[1])
    assert sorted(read) == sorted(changed.values())  # 1 %
    figures = second.facts["releases"][live[0]]
    assert figures == {"products": 301, "encoded": 3, "stale": 3 / 301, "coverage": 1.0}

    folder = second.path / live[0]
    ids = pl.read_parquet(folder / "product_ids.parquet")["product_id"].to_list()
    assert ids == sorted(titles | changed)
    bundle = store_of(settings).open(live[1]).path
    towers, texts = TowerRuntime(bundle / TOWERS), [(titles | changed)[p] for p in ids]
    whole = towers.encode_products(texts)
    assert np.allclose(np.load(folder / "embeddings.npy"), whole, atol=1e-6)
    terms = ProductTerms.load(folder)
    assert terms is not None and towers.brands is not None
    anew = ProductTerms.of(texts, towers.brands)
    assert np.array_equal(terms.values, anew.values) and np.array_equal(terms.ends, anew.ends)

    found = snapshots.read(settings, MARKET).releases[live[0]]
    assert (found.ref, found.previous, found.day) == (second.ref, first.ref, DAYS[1])
    read.clear()
    assert refreshed(settings, DAYS[1]).ref == second.ref  # again: nothing is done
    assert snapshots.read(settings, MARKET).releases[live[0]] == found
    assert read == []
    with pytest.raises(RefusedError, match="published already"):
        refreshed(settings, DAYS[0])


def test_every_release_that_serves_somebody_is_refreshed_with_its_own_towers(
    settings: Settings, read: list[str]
) -> None:
    old, new, gone = (release(settings, key) for key in "abc")
    deliver(settings, DAYS[0], {"p0": "物品 0", "x": "紅色"})
    route(settings, document(gone))
    kept = refreshed(settings, DAYS[0]).ref
    share = {"stable": 90, "next": 10, "holdout": 0}
    bundles = dict([old, new, gone])
    route(
        settings,
        document(old, gone, next=new[0], weights=share, bundles=bundles, seq=2),
    )
    deliver(settings, DAYS[1], {"y": "3"})
    with serving(settings) as (client, service):
        asked = {"query": "紅色", "products": ["x", "y"]}
        assert client.post("/score", json=asked).status_code == 422
        made = refreshed(settings, DAYS[1])
        assert set(made.facts["releases"]) == {old[0], new[0]}
        service.follower.poll()
        assert client.post("/score", json=asked).status_code == 200
        assert client.get("/readyz").json()["alarms"] == {}
    found = snapshots.read(settings, MARKET).releases
    assert {name: s.ref for name, s in found.items()} == {
        old[0]: made.ref, new[0]: made.ref, gone[0]: kept,  # a predecessor keeps what it had
    }  # fmt: skip
    about = json.loads((made.path / new[0] / "snapshot.json").read_text())
    manifest = json.loads(store_of(settings).open(new[1]).file("release.json").read_text())
    assert about["export"] == manifest["parts"]["export"]


def test_nothing_live_is_nothing_to_do_and_no_catalogue_is_an_error(
    settings: Settings, read: list[str]
) -> None:
    assert refreshed(settings, DAYS[0]).facts["releases"] == {}
    assert snapshots.read(settings, MARKET).releases == {}
    route(settings, document(release(settings, "a")))
    with pytest.raises(DataError, match="no published product up to 2026-01-02"):
        refreshed(settings, DAYS[1])


def test_a_catalogue_is_embedded_as_if_each_title_were_read_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "CHUNK", 7)
    rng = np.random.default_rng(0)
    vector = {f"t{i}": rng.normal(size=(2, 3)).astype(np.float32) for i in range(40)}
    for v in vector.values():
        v /= np.linalg.norm(v, axis=1, keepdims=True)
    asked: list[str] = []

    def encode(titles: Sequence[str]) -> Any:
        asked.extend(titles)
        return np.stack([vector[t] for t in titles])

    def frame(titles: list[str]) -> pl.DataFrame:
        return pl.DataFrame({"product_id": [f"{i:03d}" for i in range(len(titles))],
                             "title": titles})  # fmt: skip

    known, out = None, tmp_path
    for turn in range(6):
        titles = [f"t{i}" for i in rng.integers(0, 8 + 6 * turn, 60)]
        have = set(known.row) if known else set()
        asked.clear()
        out = tmp_path / str(turn)
        out.mkdir()
        done = embed_catalogue(frame(titles), encode, 3, out, known)
        want = {t for t in titles if embed.product_digest(t) not in have}
        assert sorted(asked) == sorted(want)
        assert (done.products, done.encoded, done.covered) == (60, len(want), 60)
        assert done.stale == sum(t in want for t in titles)
        assert (np.load(out / embed.VECTORS) == np.stack([vector[t] for t in titles])).all()
        known = Known.load(out)


def test_a_broken_vector_does_not_count_as_coverage(tmp_path: Path) -> None:
    def encode(titles: Sequence[str]) -> Any:
        found = np.ones((len(titles), 2, 1), np.float32)
        found[0] = np.nan
        return found

    two = pl.DataFrame({"product_id": ["a", "b"], "title": ["x", "y"]})
    assert embed_catalogue(two, encode, 1, tmp_path).covered == 1
