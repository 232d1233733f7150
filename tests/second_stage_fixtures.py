"""A release with a second stage: made-up towers, and a real cross-encoder, exported from torch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.markets import MarketConfig
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.sections import SecondStage as Section
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.towers.cross import export as cross_export
from csrm_tasks.towers.cross.model import CrossEncoder, cross_probabilities
from csrm_tasks.towers.serving.product_tokens import write_tokens
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.second_stage import SecondStage, write_second_stage
from csrm_tasks.towers.serving.texts import TEXT_VERSION
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.tower import HEADS
from tests.release_fixtures import DIM, market, parts, publish, store_of, write_export
from tests.towers_fixtures import COLOURS, TYPES, make_encoder, reader_of

TITLES = [f"{c} {t} 品牌" for t in TYPES[:4] for c in COLOURS]
IDS = [f"p{i:02}" for i in range(len(TITLES))]
LONG = 1e7  # ms: a budget that no request of a test comes near


@dataclass(frozen=True)
class Cross:
    """A random cross-encoder, and the folder it was exported to (fp32)."""

    model: CrossEncoder
    reader: TowerTokenizer
    folder: Path

    def logits(self, query: str, titles: list[str]) -> list[float]:
        """Return EM logits by torch, a pair at a time: the slow reference."""
        found = []
        for title in titles:
            tables = self.reader.queries([query]), self.reader.products([title])
            one = cross_probabilities(self.model, *tables, np.array([0]), np.array([0]))
            found.append(float(np.log(one[0, 0] / (1 - one[0, 0]))))
        return found


def make_cross(folder: Path) -> Cross:
    """Export a random cross-encoder, no int8."""
    base = make_encoder(folder / "base", layers=1)
    model = CrossEncoder.from_base(
        str(base), dim=16, scale=8.0, learn_scale=True, tokens=24, seed=0
    ).eval()
    reader, out = reader_of(base, 8, 16), folder / "cross"
    out.mkdir()
    (out / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    about = {
        "text_version": TEXT_VERSION, "query_tokens": 8, "title_tokens": 16, "pad_id": 1,
        "product_fields": ["category"], "heads": {name: {"threshold": 0.5} for name in HEADS},
    }  # fmt: skip
    rows = np.arange(len(TITLES))
    queries = [TYPES[i % 4] for i in range(len(TITLES))]
    texts = reader.queries(queries), reader.products(TITLES)
    judged = cross_export.ScoredPairs(
        queries, TITLES, cross_probabilities(model, *texts, rows, rows)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cross_export.MAX_DELTA, "int8", -1.0)
        cross_export.export_cross(model, out, about, judged)
    return Cross(model, reader, out)


def second_market(budget_ms: float = LONG, *, enabled: bool = True) -> MarketConfig:
    """Return the made-up market, with the second stage switched on."""
    section = Section(enabled=enabled, budget_ms=budget_ms)
    return market().model_copy(update={"second_stage": section})


def second_release(
    settings: Settings, cross: Cross, key: str = "s", *, top: int = 6, kept: bool = True,
    weights: tuple[float, float] = (0.5, 1.0),
) -> tuple[str, str]:  # fmt: skip
    """Publish a release of sixteen products with a second stage; its id and its bundle."""
    part = second_parts(settings, cross, key, top=top, kept=kept, weights=weights)
    bundle = store_of(settings).open(run_step("bundle", market(), part, {}, settings))
    return release_id(bundle), bundle.ref


def second_parts(
    settings: Settings, cross: Cross, key: str = "s", *, top: int = 6, kept: bool = True,
    weights: tuple[float, float] = (0.5, 1.0),
) -> dict[str, str]:  # fmt: skip
    """Publish what such a release is made of."""
    part = parts(settings, key, stage=1)

    def stage(folder: Path) -> None:
        if kept:
            named = dict(zip(("first", "cross"), weights, strict=True))
            write_second_stage(cross.folder, folder, top, named)
        (folder / "note").write_text(key)

    of: dict[str, Any] = {"snapshot": part["snapshot"], "export": part["export"]}
    facts = {"kept": kept, "top": top, "reason": "EM@1 0.500 → 0.600"}
    made = publish(settings, "second_stage", f"{key}-{top}", stage, facts, of)
    part["second_stage"] = made.ref

    def vectors(folder: Path) -> None:
        write_catalogue(folder, made.path if kept else None)

    of = of | {"second_stage": made.ref}
    part["embeddings"] = publish(settings, "embed_products", f"{key}-{top}", vectors, inputs=of).ref
    return part


def write_catalogue(folder: Path, second: Path | None, seed: int = 5) -> None:
    """Write vectors of the sixteen products, and their tokens for a second stage.

    The made-up towers know none of these words, so to them every query is the same.
    """
    drawn = np.random.default_rng(seed).normal(size=(len(IDS), 2, DIM))
    with tempfile.TemporaryDirectory() as export:
        write_export(Path(export))
        asked = TowerRuntime(Path(export)).encode_queries([TYPES[0]])[0]
    drawn[:, 1] = 0.3 * drawn[:, 1] + asked[1]  # near what is asked, so no defects …
    drawn[[3, 8], 1] *= -1.0  # … but for two
    vectors = drawn / np.linalg.norm(drawn, axis=2, keepdims=True)
    np.save(folder / "embeddings.npy", vectors.astype(np.float32))
    pl.DataFrame({"product_id": IDS, "digest": IDS}).write_parquet(folder / "product_ids.parquet")
    if second is not None:
        write_tokens(folder, TITLES, SecondStage(second).cross.title_reader)
