"""Rows of a stored file that are out of the store, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from csrm_tasks.ingest.contract.identity import Outcome
from csrm_tasks.ingest.validation.validate import REJECTED


@dataclass(frozen=True)
class Taken:
    """Rows of one stored file that are out of the store, to be judged again."""

    file: Mapping[Any, Any]  # its row of FILES as it was
    rows: pl.DataFrame  # the contract's schema: stored, known, refused and ignored ones
    kept: pl.DataFrame  # those that had been kept, as the lake or the contract's table has them
    ignored: pl.DataFrame  # row: those that had been ignored
    refused: pl.DataFrame  # REJECTED: those that had been refused
    left: pl.DataFrame  # the file's other rows that are not kept: the contract's schema and IGNORED
    rest: pl.DataFrame  # the file's other rows that are kept, of kinds of the lake

    @property
    def outcome(self) -> Outcome:
        """What had become of the rows."""
        stored = self.kept.join(self.ignored, on="row", how="anti", maintain_order="left")
        others = stored.height + self.refused.height + self.ignored.height
        return Outcome(stored, self.rows.height - others, self.refused, self.ignored)


def same(one: Taken, outcome: Outcome) -> bool:
    """Return whether rows come to what they had been."""
    why = ["row", "reason", "detail"]
    kept = outcome.lake.select(one.kept.columns).sort("row")
    return (
        kept.equals(one.kept.sort("row"))
        and outcome.refused.select(why).sort("row").equals(one.refused.select(why).sort("row"))
        and outcome.ignored.select("row").sort("row").equals(one.ignored.sort("row"))
    )


def with_raw(refused: pl.DataFrame, one: Taken) -> pl.DataFrame:
    """Add the bytes of refused rows: as they were kept, or else as JSON of what was read, for the
    file may be gone from the landing zone.
    """
    read = one.rows.select("row", pl.struct(pl.exclude("row")).struct.json_encode().alias("json"))
    kept = one.refused.select("row", "raw")
    found = refused.join(read, on="row", how="left", maintain_order="left").join(
        kept, on="row", how="left", maintain_order="left"
    )
    raw = pl.coalesce("raw", pl.col("json").cast(pl.Binary)).alias("raw")
    return found.with_columns(raw).select(list(REJECTED))
