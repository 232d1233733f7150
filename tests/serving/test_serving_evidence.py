"""Lexical evidence in the service (A50): same scores at every door, explained, old releases too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.features import NAMES
from csrm_tasks.release import snapshots
from csrm_tasks.release.bundle.scorer import ReleaseScorer
from csrm_tasks.settings import Settings
from csrm_tasks.towers.serving.runtime import TowerRuntime
from tests.release_fixtures import MARKET, TEXTS, parts, store_of
from tests.serving_fixtures import document, refreshed, release, route, serving

QUERY = " 韓光燦 物品  1000g "
PRODUCTS: list[Any] = ["p1", {"id": "new", "title": "Hanbit 物品", "category": "1"}, "p0", "p2"]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.fixture
def one(settings: Settings) -> tuple[str, str]:
    """A release with evidence, that answers everybody."""
    made = release(settings, "a", evidence=True)
    route(settings, document(made))
    return made


def test_the_service_scores_as_the_bundle_and_as_the_exported_towers(
    settings: Settings, one: tuple[str, str]
) -> None:
    with serving(settings) as (client, _):
        found = client.post("/score", json={"query": QUERY, "products": PRODUCTS}).json()
        again = client.post("/score", json={"query": QUERY, "products": PRODUCTS}).json()
    assert found == again  # the second time the query's terms are remembered
    bundle = store_of(settings).open(one[1]).path
    scorer = ReleaseScorer(bundle)
    titles = [None, "Hanbit 物品 | 1", None, None]
    direct = scorer.score(["韓光燦 物品 1000g"] * 4, ["p1", "new", "p0", "p2"], titles)
    towers = TowerRuntime(bundle / "towers")
    evidence = towers.evidence
    assert evidence is not None
    for i, text in enumerate([TEXTS[1], "Hanbit 物品 | 1", TEXTS[0], TEXTS[2]]):
        row = found["products"][i]
        assert row["em"] == pytest.approx(direct.em[i], abs=1e-6)
        assert row["defect"] == pytest.approx(direct.defect[i], abs=1e-6)
        features = towers.features(
            ["韓光燦 物品 1000g"], [text], np.zeros(1, np.int64), np.zeros(1, np.int64)
        )
        query = towers.encode_queries(["韓光燦 物品 1000g"])[0]
        if i == 1:
            product = towers.encode_products([text])
        else:
            product = scorer.products.take([[1, 0, 0, 2][i]])
        alone = towers.score(query, product, features)
        assert row["em"] == pytest.approx(float(alone.em[0]), abs=1e-6)
        assert row["defect"] == pytest.approx(float(alone.defect[0]), abs=1e-6)
    brand = NAMES.index("brand_equal")
    scored = scorer.listing_features(scorer.asked("韓光燦"), scorer.products, [0, 1], None)
    assert scored is not None
    assert scored[:, brand].tolist() == [0.0, 1.0]


def test_an_explanation_adds_up_to_the_logits(settings: Settings, one: tuple[str, str]) -> None:
    body = {"query": QUERY, "products": PRODUCTS}
    with serving(settings) as (client, _):
        plain = client.post("/score", json=body).json()
        found = client.post("/score?explain=1", json=body).json()
        off = client.post("/score?explain=0", json=body).json()
    assert off == plain
    for row, without in zip(found["products"], plain["products"], strict=True):
        table = row.pop("explain")
        assert row == without
        assert list(table) == ["cosine", "bias", *NAMES]
        for head in ("em", "defect"):
            added = sum(part[head] for part in table.values())
            assert added == pytest.approx(logit(row[head]), abs=1e-3)


def test_a_release_without_evidence_explains_its_cosine(settings: Settings) -> None:
    route(settings, document(release(settings, "a")))
    with serving(settings) as (client, _):
        body = {"query": QUERY, "products": PRODUCTS}
        found = client.post("/score?explain=true", json=body).json()
    for row in found["products"]:
        assert set(row["explain"]) == {"cosine", "bias"}
        added = sum(part["em"] for part in row["explain"].values())
        assert added == pytest.approx(logit(row["em"]), abs=1e-3)


@pytest.mark.parametrize("value", ["2", "maybe", "", "1&explain=x"])
def test_another_value_of_explain_is_one_line(
    settings: Settings, one: tuple[str, str], value: str
) -> None:
    with serving(settings) as (client, _):
        got = client.post(f"/score?explain={value}", json={"query": "1", "products": ["p0"]})
    assert got.status_code == 422
    assert got.json()["error"].startswith("query.explain: ")
    assert "\n" not in got.json()["error"]


def test_a_server_of_earlier_code_refuses_a_release_with_evidence(
    settings: Settings, one: tuple[str, str]
) -> None:
    formats = [
        json.loads(store_of(settings).open(ref).file("release.json").read_text())["format"]
        for _, ref in (one, release(settings, "b"))
    ]
    assert formats == [3, 2]  # it reads 2 alone


def test_going_back_to_a_release_without_evidence_and_forth(
    settings: Settings, one: tuple[str, str]
) -> None:
    old, body = release(settings, "b"), {"query": QUERY, "products": ["p0", "p1"]}
    with serving(settings) as (client, service):
        for seq, order in enumerate([(one, old), (old, one), (one, old)], start=2):
            route(settings, document(*order, seq=seq))
            service.follower.poll()
            found = client.post("/score", json=body).json()
            assert found["release"] == order[0][0]
            want = ReleaseScorer(store_of(settings).open(order[0][1]).path).score(
                [QUERY.strip()] * 2, ["p0", "p1"], [None, None]
            )
            assert [p["em"] for p in found["products"]] == pytest.approx(want.em.tolist(), abs=1e-6)
        assert not service.alarms.texts()


def test_refreshed_vectors_without_their_terms_are_not_taken(
    settings: Settings, one: tuple[str, str]
) -> None:
    name, ref = one
    lacking = refreshed(settings, "x", name, ref)
    whole = refreshed(settings, "y", name, ref, terms=True)
    with serving(settings) as (client, service):
        snapshots.publish(settings, MARKET, {name: lacking})
        service.follower.poll()
        assert "terms" in json.dumps(service.alarms.texts())
        body = {"query": "1", "products": ["p0"]}
        assert client.post("/score", json=body).status_code == 200
        snapshots.publish(settings, MARKET, {name: whole})
        service.follower.poll()
        assert not service.alarms.texts()


def test_evidence_of_other_features_is_refused(settings: Settings, tmp_path: Path) -> None:
    export = store_of(settings).open(parts(settings, "a", stage=1, evidence=True)["export"]).path
    folder = tmp_path / "export"
    folder.mkdir()
    for path in export.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    TowerRuntime(folder)
    about = json.loads((folder / "serving.json").read_text())
    about["evidence"]["version"] += 1
    (folder / "serving.json").write_text(json.dumps(about))
    with pytest.raises(ArtifactError, match="lexical evidence of version 3"):
        TowerRuntime(folder)
    about["evidence"]["version"] -= 1
    (folder / "serving.json").write_text(json.dumps(about))
    (folder / "lexicon.npz").unlink()
    with pytest.raises(ArtifactError, match=r"without lexicon\.npz"):
        TowerRuntime(folder)
