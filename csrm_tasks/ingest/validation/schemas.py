"""A contract as a pandera schema: which check a value fails becomes the row's reason code.

The frame that it checks has every column twice: as text under its own name and, where it holds
something else, as the parsed value under ``name!`` (null where the text cannot be parsed).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from csrm_tasks.ingest.contract.contracts import EARLIEST, Column, Contract, Reason
from csrm_tasks.ingest.validation.looks import Look

if TYPE_CHECKING:
    from pandera.polars import Check, DataFrameSchema


class Times(NamedTuple):
    """Between which moments a delivery's times lie."""

    late: datetime  # of columns that are refused when late
    latest: datetime


def parsed(name: str) -> str:
    """Return the name of the column's parsed values."""
    return f"{name}!"


def is_parsed(column: Column) -> bool:
    """Return whether the clean value is another than the text."""
    return column.vocabulary is not None or column.holds in ("integer", "time")


def schema_of(contract: Contract, times: Times, looks: Mapping[str, Look]) -> DataFrameSchema:
    """Return the pandera ``DataFrameSchema`` of a contract.

    ``looks``: what is in the columns of texts; checks that nothing there can break are left out.
    """
    import pandera.polars as pa

    columns: dict[str, Any] = {}
    for column in contract.columns:
        if column.holds == "list":  # what its items refer to is looked up when they are counted
            continue
        checks = []
        if looks[column.name].nul:
            has_nul = pl.col(column.name).str.contains("\0", literal=True)
            checks.append(_check(Reason.NUL, ~has_nul))
        if looks[column.name].longest > column.max_chars:  # no text has more characters than bytes
            most = column.max_chars
            checks.append(pa.Check.str_length(max_value=most, error=str(Reason.TOO_LONG)))
        columns[column.name] = pa.Column(pl.String, checks, nullable=not column.required)
        if is_parsed(column):
            name = parsed(column.name)
            columns[name] = pa.Column(column.dtype, _value_checks(column, times), nullable=True)
    return pa.DataFrameSchema(columns)


def first_failures(schema: DataFrameSchema, frame: pl.DataFrame) -> pl.DataFrame:
    """Return index (of a row of ``frame``), reason and detail of each row's first failed check.

    The order is the contract's: column by column, and in a column as :func:`schema_of` lists them.
    """
    from pandera.config import ValidationDepth, config_context
    from pandera.errors import SchemaErrors

    empty = pl.DataFrame(
        schema={"index": pl.Int32, "reason": pl.String, "detail": pl.String, "at": pl.Int64}
    )
    # An environment variable may switch pandera off: not here.
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as e:
            failures: pl.DataFrame = e.failure_cases
        else:
            return empty.drop("at")
    at = {name: i for i, name in enumerate(schema.columns)}
    return (
        failures.select(
            pl.col("index"),
            pl.col("check").replace("not_nullable", str(Reason.MISSING)).alias("reason"),
            pl.col("column").str.strip_suffix("!").alias("detail"),
            pl.col("column").replace_strict(at, return_dtype=pl.Int64).alias("at"),
            pl.col("check_number").fill_null(-1).alias("number"),
        )
        .sort("index", "at", "number")
        .unique("index", keep="first", maintain_order=True)
        .select("index", "reason", "detail")
    )


def _value_checks(column: Column, times: Times) -> list[Check]:
    import pandera.polars as pa

    text, value = pl.col(column.name), pl.col(parsed(column.name))
    wrong = Reason.VOCABULARY if column.vocabulary is not None else Reason.TYPE
    checks = [_check(wrong, text.is_null() | value.is_not_null(), ignore_na=False)]
    if column.holds == "time":
        checks.append(pa.Check.ge(EARLIEST, error=str(Reason.RANGE)))
        checks.append(pa.Check.le(times.latest, error=str(Reason.FUTURE)))
        if column.late:
            checks.append(pa.Check.ge(times.late, error=str(Reason.TOO_OLD)))
    if column.at_least is not None:
        checks.append(pa.Check.ge(column.at_least, error=str(Reason.RANGE)))
    if column.at_most is not None:
        checks.append(pa.Check.le(column.at_most, error=str(Reason.RANGE)))
    return checks


def _check(reason: Reason, holds: pl.Expr, ignore_na: bool = True) -> Check:
    import pandera.polars as pa

    return pa.Check(
        lambda data: data.lazyframe.select(holds), error=str(reason), ignore_na=ignore_na
    )
