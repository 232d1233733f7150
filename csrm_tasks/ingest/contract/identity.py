"""Which rows are new, known already, or contradict what their identifier stood for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from csrm_tasks.ingest.contract.contracts import Reason

REFUSED: dict[str, type[pl.DataType]] = {
    "row": pl.Int64, "reason": pl.String, "detail": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What becomes of a file's clean rows: stored + known + refused + ignored is all of them."""

    stored: pl.DataFrame
    known: int
    refused: pl.DataFrame  # REFUSED
    ignored: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"row": pl.Int64}))

    @property
    def lake(self) -> pl.DataFrame:
        """What the lake keeps: of ignored rows the searches, that events may refer to."""
        if "search_id" not in self.ignored.columns:
            return self.stored
        return pl.concat([self.stored, self.ignored.select(self.stored.columns)]).sort("row")


def refuse(rows: pl.DataFrame, reason: Reason, detail: str) -> pl.DataFrame:
    """Return ``rows`` (a column ``row``) as refused for one reason."""
    return rows.select(
        "row", pl.lit(str(reason)).alias("reason"), pl.lit(detail).alias("detail")
    ).cast(REFUSED)  # type: ignore[arg-type]


def resolve(
    clean: pl.DataFrame, existing: pl.DataFrame, key: str, content: Sequence[str]
) -> Outcome:
    """Compare rows with the stored ones, or else with the first of their identifier in the file.

    ``existing`` has ``key`` and ``content``. Equal content again is known; other content conflicts.
    """
    if existing.is_empty() and clean[key].n_unique() == clean.height:  # the usual night
        return Outcome(clean, 0, refuse(clean.clear(), Reason.CONFLICT, key))
    columns = [key, *content]
    seen = existing.select(pl.lit(0, dtype=pl.Int64).alias("row"), *columns)
    first = pl.concat([seen, clean.select("row", *columns)]).unique(
        key, keep="first", maintain_order=True
    )
    both = clean.join(first, on=key, how="left", suffix="!", maintain_order="left")
    same = pl.all_horizontal(pl.col(c).eq_missing(pl.col(f"{c}!")) for c in content)
    new = pl.col("row") == pl.col("row!")
    conflicts = both.filter(~new & ~same)
    stored = both.filter(new).select(clean.columns)
    known = clean.height - stored.height - conflicts.height
    return Outcome(stored, known, refuse(conflicts, Reason.CONFLICT, key))
