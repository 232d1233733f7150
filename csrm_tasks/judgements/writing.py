"""An export: judgements in the files of one tool, all of them or none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import ConfigError, DataError, RefusedError
from csrm_tasks.judgements import scales
from csrm_tasks.judgements.formats.book import Judgement, Page, grades_digest
from csrm_tasks.judgements.formats.registry import FORMATS
from csrm_tasks.judgements.sources import Found, Source, What, judgements_of, texts_of
from csrm_tasks.markets import MarketConfig
from csrm_tasks.release import ledger
from csrm_tasks.settings import Settings
from csrm_tasks.store import open_store, reading


@dataclass(frozen=True)
class Export:
    """What is to be written."""

    to: str
    what: What
    locale: str
    out: Path
    snapshot: str | None = None
    release: str | None = None
    grades: str | None = None
    index: str | None = None
    allow_gold: bool = False


def export_judgements(asked: Export, market: MarketConfig, settings: Settings) -> list[str]:
    """Write what is asked for into a folder; returns what to tell, in lines.

    Raises :class:`CsrmError` before anything is written: :class:`RefusedError` for gold that
    nobody has allowed to leave, and for a release that is not live.
    """
    _check(asked)
    ratings = scales.writing(asked.grades)
    with reading(open_store(settings.db_url)) as connection:
        source = Source(
            ArtifactStore(settings.artifacts, settings.cache), connection, market.market,
            asked.locale, ledger.verified(settings, market.market),
        )  # fmt: skip
        found = judgements_of(source, asked.what, asked.snapshot, asked.release)
    judgements = _fitted(found, asked)
    page = Page(
        asked.what, f"{market.market} {asked.locale}", judgements, ratings,
        texts_of(found.snapshot, asked.locale, {one.product_id for one in judgements}),
        asked.index or f"{market.market}-{asked.locale.lower()}",
    )  # fmt: skip
    paths = write_page(page, asked.to, asked.out)
    lines = [str(path) for path in paths]
    lines.append(
        f"{len(judgements):,} judgements of {len(page.by_query()):,} queries, {asked.what} of "
        f"{found.made_of}"
    )
    if asked.what != "soft":
        lines.append(f"digest of their grades: {grades_digest(judgements)}")
    if asked.what == "gold":
        lines.append("this is gold: whoever trains on it cannot be judged by it any more")
    return lines


def _check(asked: Export) -> None:
    if asked.what == "gold" and not asked.allow_gold:
        raise RefusedError(
            "gold is held out to measure by; say --allow-gold to let it leave, and keep it from "
            "whatever is trained"
        )
    if asked.what == "soft" and not FORMATS[asked.to].soft:
        able = ", ".join(name for name, one in FORMATS.items() if one.soft)
        raise ConfigError(f"--to {asked.to}: has no place for a model's soft grades; {able} have")


def _fitted(found: Found, asked: Export) -> list[Judgement]:
    """Return judgements as the format has room for them: one a pair, where it knows no raters."""
    if FORMATS[asked.to].raters or asked.what != "audits":
        return found.judgements
    said: dict[tuple[str, str], list[Judgement]] = {}
    for one in found.judgements:
        said.setdefault((one.query, one.product_id), []).append(one)
    disputed = sum(len({one.grade for one in ones}) > 1 for ones in said.values())
    if disputed:
        able = ", ".join(name for name, one in FORMATS.items() if one.raters)
        raise DataError(
            f"--to {asked.to}: raters differ on {disputed} pairs of the audits, and the format "
            f"knows no raters; {able} do"
        )
    return [replace(ones[0], rater="") for ones in said.values()]


def write_page(page: Page, to: str, out: Path) -> list[Path]:
    """Write a page into a folder, which has all its files or none of them; return these."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out is a folder")
    out = out.resolve()  # of "." a name is needed, too
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write: Callable[[Page, Path], list[Path]] = FORMATS[to].write
    try:
        written = write(page, part)
        out.mkdir(exist_ok=True)
        return [path.replace(out / path.name) for path in written]
    finally:
        shutil.rmtree(part, ignore_errors=True)
