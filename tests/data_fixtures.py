"""A tiny market written by hand: files in a landing zone, and the steps that take them in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.markets import MarketConfig
from csrm_tasks.sections import Ebr, Ingest, Llm, Retrieval, Snapshot, Towers
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step

KO, ZH = "ko-KR", "zh-TW"
DAY0, DAY1, DAY2 = "2026-01-04", "2026-01-05", "2026-01-06"


def market(**sections: Any) -> MarketConfig:
    given: dict[str, Any] = {
        "market": "tiny", "source_locale": KO, "target_locale": ZH, "seed": 7,
        "snapshot": Snapshot(dev_share=0.25),
        "ingest": Ingest(tolerance=0.5),
        "llm": Llm(base="./none"), "retrieval": Retrieval(ebr=Ebr(encoder="./none")),
        "towers": Towers(encoder="./none"),
    }  # fmt: skip
    return MarketConfig(**(given | sections))


def land_lines(
    settings: Settings,
    day: str,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    market: str = "tiny",
) -> Path:
    path = settings.landing / market / day / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return path


def product(n: int, title: str, brand: str = "", category: str = "") -> dict[str, Any]:
    return {"product_id": f"p{n}", "title": title, "brand": brand, "category": category,
            "description": ""}  # fmt: skip


def label(
    n: int | str, query: str, product_id: str, grade: Any, rater: str = "r1"
) -> dict[str, Any]:
    return {"label_id": f"l{n}", "query": query, "product_id": product_id, "grade": grade,
            "rater_id": rater, "guideline_version": "1",
            "rated_at": "2026-01-03T10:00:00Z"}  # fmt: skip


def search(n: int | str, query: str, day: str = DAY0) -> dict[str, Any]:
    return {"query_id": f"s{n}", "user_query": query, "client_id": f"c{n}", "session_id": f"v{n}",
            "timestamp": f"{day}T09:00:00Z", "application": "web"}  # fmt: skip


def event(
    n: int | str, action: str, product_id: str, position: int | None, day: str = DAY0
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "object": {"object_id": product_id, "object_id_field": "product_id"},
        "bucket": "A", "release": "r0",
    }  # fmt: skip
    if position is not None:
        attributes["position"] = {"ordinal": position}
    return {"application": "web", "action_name": action, "query_id": f"s{n}", "client_id": f"c{n}",
            "session_id": f"v{n}", "timestamp": f"{day}T09:00:{(position or 0) % 60:02d}Z",
            "event_attributes": attributes}  # fmt: skip


def session(
    n: int | str, query: str, shown: list[str], day: str = DAY0, **did: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One search: what was shown in order, and ``click="p1", purchase="p1"``."""
    events = [event(n, "impression", p, i, day) for i, p in enumerate(shown)]
    events += [event(n, action, p, shown.index(p), day) for action, p in did.items()]
    return search(n, query, day), events


def land_sessions(settings: Settings, day: str, locale: str, sessions: Iterable[Any]) -> None:
    found = list(sessions)
    land_lines(settings, day, f"{locale}/ubi_queries.jsonl", [s for s, _ in found])
    land_lines(settings, day, f"{locale}/ubi_events.jsonl", [e for _, es in found for e in es])


def open_artifact(settings: Settings, ref: str) -> Artifact:
    return ArtifactStore(settings.artifacts, settings.cache).open(ref)


def ingest(settings: Settings, day: str, config: MarketConfig | None = None) -> dict[str, Artifact]:
    """Run the five nightly steps; returns their artifacts by name."""
    config = config or market()
    refs: dict[str, str] = {}
    refs["land"] = run_step("land", config, {}, {"day": day}, settings)
    refs["validate"] = run_step("validate", config, {"land": refs["land"]}, {}, settings)
    refs["store"] = run_step("store", config, {"validate": refs["validate"]}, {}, settings)
    refs["aggregate"] = run_step(
        "aggregate", config, {"store": refs["store"]}, {"day": day}, settings
    )
    refs["publish_day"] = run_step(
        "publish_day", config, {"aggregate": refs["aggregate"]}, {"day": day}, settings
    )
    return {name: open_artifact(settings, ref) for name, ref in refs.items()}


def snapshot(
    settings: Settings, stage: int, until: str, config: MarketConfig | None = None
) -> Artifact:
    params = {"stage": stage, "until": until}
    return open_artifact(settings, run_step("snapshot", config or market(), {}, params, settings))
