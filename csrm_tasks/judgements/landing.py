"""Judgements of other tools on their way into the landing zone, and what does not get there.

They land as an ordinary delivery of labels; the rest is kept by reason beside the other imports'.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import polars as pl
import sqlalchemy as sa

from csrm_tasks.dataset.sides import text_ids
from csrm_tasks.errors import ConfigError, DataError, RefusedError
from csrm_tasks.ingest.contract.contracts import EARLIEST
from csrm_tasks.ingest.validation.times import parse_times
from csrm_tasks.ingest.validation.validate import times_of
from csrm_tasks.judgements import held_out
from csrm_tasks.judgements.formats.book import Judgement, grades_digest
from csrm_tasks.judgements.reading import Place, Readings, Wanted, read_files
from csrm_tasks.layouts.delivery import hidden
from csrm_tasks.layouts.labels import land
from csrm_tasks.layouts.landing import LIMITS, refusal
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading
from csrm_tasks.store.tables import PRODUCTS, SIDES, fetch
from csrm_tasks.text import normalise

GUIDELINE = "csrm import judgements"


@dataclass(frozen=True)
class Import:
    """What an import is to become."""

    wanted: Wanted
    day: str
    locale: str
    gold: bool = False
    adjudicator: str | None = None  # whose word counts where raters of gold differ


@dataclass
class _Sorted:
    """Judgements that land, and those left out by reason."""

    judgements: list[Judgement]
    places: list[Place]
    left_out: dict[str, list[tuple[Judgement, Place]]]

    def leave_out(self, reasons: Mapping[str, Sequence[int]]) -> None:
        """Take judgements out by their positions now."""
        both = list(zip(self.judgements, self.places, strict=True))
        for reason, positions in reasons.items():
            if positions:
                self.left_out[reason] = [both[n] for n in positions]
        gone = {n for positions in reasons.values() for n in positions}
        kept = [pair for n, pair in enumerate(both) if n not in gone]
        self.judgements = [one for one, _ in kept]
        self.places = [place for _, place in kept]


def import_judgements(
    paths: Sequence[Path], asked: Import, market: MarketConfig, settings: Settings
) -> list[str]:
    """Read files and land what they judge; returns what to tell, in lines.

    Nothing has changed where it raises: :class:`DataError` for a file at fault,
    :class:`ConfigError` for what was asked, :class:`RefusedError` where our own gold or consensus
    would come back as labels.
    """
    _check(asked, market)
    found = read_files(paths, asked.wanted)
    _refuse_own(found, asked, market)
    sorting = _Sorted(found.judgements, found.places, {})
    unjudged = [n for n, one in enumerate(sorting.judgements) if one.grade is None]
    sorting.leave_out({"unrateable": unjudged})
    _leave_out_unfit(sorting)
    _check_times(sorting, asked, market)
    _leave_out_unknown(sorting, asked, market, settings)
    if asked.gold:
        _only_gold(sorting, asked, market, settings)
    if not sorting.judgements:
        why = ", ".join(f"{reason} {len(ones)}" for reason, ones in sorting.left_out.items())
        raise DataError(f"no judgement is left to land: {why}{_advice(sorting.left_out)}")
    path, new = _land(sorting, asked, market, settings)
    kept = settings.home / "imports" / market.market / "judgements" / path.stem
    told = [*_told_of(found), *_left_out(sorting, kept)]
    return [*told, *_landed(sorting, asked, market, path, new)]


def _check(asked: Import, market: MarketConfig) -> None:
    if asked.gold and asked.locale != market.target_locale:
        raise ConfigError(
            f"--as gold: gold judges {market.target_locale}, the market's target, not "
            f"{asked.locale}"
        )
    if asked.adjudicator is not None and not asked.gold:
        raise ConfigError("--adjudicator settles gold; for labels the market's consensus decides")


def _refuse_own(found: Readings, asked: Import, market: MarketConfig) -> None:
    """Refuse what CSRM has written where it would come back as something else."""
    for title in found.ours:
        what, _, whose = title.removeprefix("csrm-").partition(" ")
        if what == "gold" and not asked.gold:
            raise RefusedError(
                f"this is the gold of {whose}, held out to measure by, and must not be learnt "
                "from; import it --as gold"
            )
        if what == "soft":
            raise RefusedError(f"these are soft grades of {whose}: a model's, and no rater's")
        if what == "consensus" and whose.split(" ")[0] == market.market:
            raise RefusedError(
                f"this is the consensus of {whose}: its raters' labels are in the store, and would "
                "count twice; import what the tool's own raters judged"
            )


def _leave_out_unfit(sorting: _Sorted) -> None:
    """Leave out what the contract would refuse, and cut reasons that are too long for it."""
    unfit: dict[str, list[int]] = {}
    for n, one in enumerate(sorting.judgements):
        fields = {"query": one.query, "product_id": one.product_id, "rater_id": one.rater}
        why = next((f"{c}_{w}" for c, text in fields.items() if (w := refusal(c, text))), None)
        if why is not None:
            unfit.setdefault(why, []).append(n)
    sorting.leave_out(unfit)
    limit = LIMITS["explanation"]
    sorting.judgements = [
        replace(one, explanation=_storable(one.explanation)[:limit]) for one in sorting.judgements
    ]


def _storable(text: str) -> str:
    """Return a reason without what no store takes: NUL, and halves of UTF-16 characters."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _check_times(sorting: _Sorted, asked: Import, market: MarketConfig) -> None:
    """Raise where something was judged after the delivery's day; forget times that are none."""
    given = pl.Series("rated_at", [one.rated_at for one in sorting.judgements], pl.String)
    times = parse_times(given)
    latest = times_of(asked.day, market.ingest.late_days, market.schedule.timezone).latest
    last = times.max()
    if isinstance(last, datetime) and last > latest:
        raise DataError(
            f"judged at {last.isoformat()}, after --day {asked.day} has ended: say the day on "
            "which the judgements are delivered"
        )
    known = (times >= EARLIEST).fill_null(False).to_list()
    sorting.judgements = [
        one if fine else replace(one, rated_at="")
        for one, fine in zip(sorting.judgements, known, strict=True)
    ]


def _leave_out_unknown(
    sorting: _Sorted, asked: Import, market: MarketConfig, settings: Settings
) -> None:
    statement = (
        sa.select(PRODUCTS.c.product_id)
        .where(PRODUCTS.c.market == market.market, PRODUCTS.c.locale == asked.locale)
        .where(PRODUCTS.c.day <= asked.day)
        .distinct()
    )
    with reading(open_store(settings.db_url)) as connection:
        known = set(fetch(connection, statement, {"product_id": pl.String})["product_id"])
    unknown = [n for n, one in enumerate(sorting.judgements) if one.product_id not in known]
    sorting.leave_out({"unknown_product": unknown})


def _only_gold(sorting: _Sorted, asked: Import, market: MarketConfig, settings: Settings) -> None:
    """Leave out what cannot be gold: learnt from before, or not agreed upon."""
    norms = pl.Series("norm", sorted({normalise(one.query) for one in sorting.judgements}))
    texts = pl.DataFrame({"norm": norms, "text": text_ids(norms.cast(pl.String))})
    statement = sa.select(SIDES.c.text).where(
        SIDES.c.market == market.market, SIDES.c.side != "gold"
    )
    with reading(open_store(settings.db_url)) as connection:
        held = fetch(connection, statement, {"text": pl.String})
    before = set(texts.join(held, on="text", how="semi")["norm"])
    late = [n for n, one in enumerate(sorting.judgements) if normalise(one.query) in before]
    sorting.leave_out({"learnt_from": late})
    settled = held_out.settle(sorting.judgements, asked.adjudicator)
    sorting.leave_out({"disputed": settled.disputed, "overruled": settled.overruled})


def _land(
    sorting: _Sorted, asked: Import, market: MarketConfig, settings: Settings
) -> tuple[Path, bool]:
    rows = []
    for one in sorting.judgements:
        about = {
            "query": one.query, "product_id": one.product_id, "grade": one.grade,
            "rater_id": one.rater, "guideline_version": f"{GUIDELINE} {asked.wanted.format}",
        }  # fmt: skip
        more = {"rated_at": one.rated_at, "explanation": one.explanation}
        about |= {name: value for name, value in more.items() if value}
        about |= {"held_out": 1} if asked.gold else {}
        key = (normalise(one.query), one.product_id, one.rater, one.rated_at)
        rows.append((key, about))
    rows.sort(key=lambda row: row[0])
    folder = settings.landing / market.market / asked.day / asked.locale
    name = f"{asked.wanted.format.replace('-', '_')}_{'gold' if asked.gold else 'labels'}"
    return land(folder, name, rows, market.ingest)


def _left_out(sorting: _Sorted, folder: Path) -> list[str]:
    """Keep what did not land, by reason; returns what to tell."""
    told = []
    for reason, ones in sorted(sorting.left_out.items()):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"left_out-{reason}.jsonl"
        lines = [
            {"file": place[0].name, "row": place[1], "query": one.query,
             "product_id": one.product_id, "grade": one.grade, "rater_id": one.rater,
             "explanation": one.explanation}
            for one, place in ones
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)  # ASCII: half characters too
        hidden(path).write_text(text, encoding="utf-8")
        hidden(path).replace(path)
        told.append(f"left out, {reason}: {len(ones):,} ({path}){_advice({reason: ones})}")
    return told


ADVICE = {
    "unknown_product": "the market's catalogue has no such product by --day: ingest it first, or "
    "say the documents by its product_id",
    "disputed": "have a third person judge these, and give all files with --adjudicator NAME",
    "learnt_from": "an earlier snapshot has learnt from these queries; judge others",
}


def _advice(reasons: Iterable[str]) -> str:
    found = [ADVICE[reason] for reason in reasons if reason in ADVICE]
    return f"; {'; '.join(found)}" if found else ""


def _told_of(found: Readings) -> list[str]:
    scale = ", ".join(f"{rating}={meaning}" for rating, meaning in sorted(found.scale.items()))
    told = [f"scale: {scale}"] if scale else []
    told += [f"passed over, {what}: {n:,}" for what, n in found.passed_over.items() if n]
    return told + ([f"said twice by the same rater: {found.repeated:,}"] * bool(found.repeated))


def _landed(
    sorting: _Sorted, asked: Import, market: MarketConfig, path: Path, new: bool
) -> list[str]:
    queries = len({normalise(one.query) for one in sorting.judgements})
    state = "landed" if new else "landed before"
    what = "gold judgements" if asked.gold else "labels"
    grades: dict[tuple[str, str], set[int | None]] = {}
    for one in sorting.judgements:
        grades.setdefault((normalise(one.query), one.product_id), set()).add(one.grade)
    differ = sum(len(found) > 1 for found in grades.values())
    lines = [f"raters differ on {differ:,} pairs: the market's consensus decides"] * bool(differ)
    lines += [
        f"{state}: {len(sorting.judgements):,} {what} of {queries:,} queries ({path})",
        f"digest of their grades: {grades_digest(sorting.judgements)}",
    ]
    if asked.gold:
        lines.append(
            f"with {queries:,} gold queries the gate decides differences from about "
            f"{held_out.margin(queries):.1%} on; equal ones stay undecided below that"
        )
    return [*lines, f"next: csrm ingest --market {market.market} --day {asked.day}"]
