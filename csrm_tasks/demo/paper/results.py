"""What the study has found: one file of counts for each part of each seed, written at once.

A file says which recipe and market it is of; those of another one are passed over, so that a
changed study does not mix with what was there. Several processes may write seeds of one study into
one folder: each report holds all that is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrm_tasks.demo.paper.measures import MEASURES
from csrm_tasks.evaluation.metrics import Floats
from csrm_tasks.json_files import write_json

PASSED_ON = "no training of its own"  # begins the note of an arm that is another one's model
UNTRAINED = "has not left the majority class"  # … of one that was trained in vain
COUNTS: dict[str, Any] = {
    "arm": pl.String,
    "measure": pl.String,
    "query_id": pl.String,
    "counts": pl.List(pl.Float64),
}
CURVE: dict[str, Any] = {"arm": pl.String, "measure": pl.String, "x": pl.Float64, "y": pl.Float64}


@dataclass
class Found:
    """What one part of one seed has found."""

    counts: list[pl.DataFrame] = field(default_factory=list)  # COUNTS
    curves: list[pl.DataFrame] = field(default_factory=list)  # CURVE
    notes: dict[str, str] = field(default_factory=dict)  # what was not run, and why
    seconds: float = 0.0  # of the processors, all threads

    def add(self, arm: str, measure: str, queries: Sequence[str], counts: Floats) -> None:
        """Keep (Q, …) ``counts`` of an arm, by query."""
        flat = counts.reshape(len(counts), -1)
        frame = pl.DataFrame(
            {"query_id": list(queries), "counts": flat.tolist()},
            schema={"query_id": pl.String, "counts": pl.List(pl.Float64)},
        ).with_columns(arm=pl.lit(arm), measure=pl.lit(measure))
        self.counts.append(frame.select(pl.col(c).cast(t) for c, t in COUNTS.items()))

    def value(self, arm: str, measure: str, value: float) -> None:
        """Keep a figure that has no queries."""
        self.add(arm, measure, [""], np.array([[value, 1.0]]))

    def curve(self, arm: str, measure: str, points: Sequence[tuple[float, float]]) -> None:
        """Keep a curve of an arm."""
        frame = pl.DataFrame(points, ["x", "y"], orient="row")
        frame = frame.with_columns(arm=pl.lit(arm), measure=pl.lit(measure))
        self.curves.append(frame.select(pl.col(c).cast(t) for c, t in CURVE.items()))


@dataclass(frozen=True)
class PartResult:
    """What is known of a part of a seed."""

    seed: int
    part: str
    counts: pl.DataFrame  # COUNTS
    curves: pl.DataFrame  # CURVE
    notes: Mapping[str, str]
    seconds: float

    def of(self, arm: str, measure: str) -> tuple[list[str], Floats] | None:
        """Return query ids, sorted, and counts (Q, …) of an arm; None where there are none.

        And of an arm that says nothing in this seed: a model that was passed on is the one that it
        is compared with, and one that has learnt nothing is no peer.
        """
        if self.notes.get(arm, "").startswith((PASSED_ON, UNTRAINED)):
            return None
        own = self.counts.filter(arm=arm, measure=measure).sort("query_id")
        if own.is_empty():
            return None
        table = np.array(own["counts"].to_list(), np.float64)
        return own["query_id"].to_list(), table.reshape(len(own), *MEASURES[measure].shape)


class Results:
    """The results below ``folder`` of one recipe and market, which ``digest`` stands for."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest

    def _path(self, seed: int, part: str, ending: str) -> Path:
        return self.folder / self.digest / f"seed{seed}" / f"{part}.{ending}"

    def write(self, seed: int, part: str, found: Found) -> None:
        """Keep what a part has found; the JSON comes last and says that the rest is whole."""
        path = self._path(seed, part, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        for name, schema, frames in (
            ("counts", COUNTS, found.counts),
            ("curves", CURVE, found.curves),
        ):
            whole = pl.concat([pl.DataFrame(schema=schema), *frames])
            _replace(self._path(seed, part, f"{name}.parquet"), whole.write_parquet)
        about = {"notes": found.notes, "seconds": found.seconds}
        _replace(path, partial(write_json, value=about))

    def read(self) -> Iterator[PartResult]:
        """Yield every part of every seed that is whole."""
        for path in sorted((self.folder / self.digest).glob("seed*/*.json")):
            seed, part = int(path.parent.name.removeprefix("seed")), path.stem
            counts, curves = (
                pl.read_parquet(self._path(seed, part, f"{name}.parquet"))
                for name in ("counts", "curves")
            )
            about = json.loads(path.read_text(encoding="utf-8"))
            yield PartResult(seed, part, counts, curves, about["notes"], about["seconds"])


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write(beside)
    beside.replace(path)
