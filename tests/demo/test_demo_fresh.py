"""Fresh queries, on which the demo's towers are chosen: new to the market, truly graded."""

from __future__ import annotations

from pathlib import Path

import pytest

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.labels import default_queries
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.world import TARGET
from csrm_tasks.demo.study.fresh_towers import fresh_pairs, retrained
from csrm_tasks.errors import ArtifactError
from csrm_tasks.text import normalise


def test_fresh_queries_are_none_of_the_markets_and_come_again_the_same() -> None:
    world = demo_world(500, 0)
    market = make_queries(world, TARGET, default_queries(world)[TARGET])
    known = {normalise(q.text) for q in market.queries}
    found = fresh_pairs(world, known)
    assert found.equals(fresh_pairs(world, known))
    assert found["query"].n_unique() > 50
    assert not known & set(found["query"])
    assert set(found["grade"]) == {0, 1, 2}
    assert found.select("query", "product_id").is_unique().all()
    assert set(found["product_id"]) <= {p.product_id for p in world.target.products}
    assert not fresh_pairs(demo_world(500, 1), known).equals(found)


def test_a_retraining_is_told_from_a_cold_start_by_its_snapshot(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    empty = tmp_path / "out"
    empty.mkdir()

    def publish(ref: str, inputs: dict[str, str], **facts: int) -> str:
        store.publish(f"demo/{ref}", empty, facts=facts, inputs=inputs, about={})
        return f"demo/{ref}"

    with pytest.raises(ArtifactError, match="run make demo first"):
        retrained(store)
    for name, stage in (("weekly", 2), ("cold", 1)):  # the cold start's were made last
        own = {"snapshot": publish(f"snapshot/{name}", {}, stage=stage)}
        own |= {part: f"demo/{part}/{name}" for part in ("bm25", "ebr", "index")}
        pairs = publish(f"tower_pairs/{name}", own)
        read = {"llm": f"demo/llm/{name}", "rqa": f"demo/rqa/{name}", "pairs": pairs}
        read |= {"teacher": f"demo/teacher/{name}"} if name == "weekly" else {}
        publish(f"join_shards/{name}", read)
    found = retrained(store)
    assert set(found) == {"snapshot", "bm25", "ebr", "index", "llm", "rqa", "teacher"}
    assert all(ref.endswith("/weekly") for ref in found.values())
