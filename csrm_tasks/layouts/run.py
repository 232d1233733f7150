"""An import from beginning to end: check, read, show, and the market's file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from filelock import FileLock, Timeout

from csrm_tasks.errors import ConfigError, RefusedError
from csrm_tasks.layouts import cikm2025, esci, trec, wands
from csrm_tasks.layouts.delivery import hidden
from csrm_tasks.layouts.landing import Landing
from csrm_tasks.layouts.languages import check_languages, locale_of
from csrm_tasks.market_files.new import new_market
from csrm_tasks.markets import load_market
from csrm_tasks.settings import Settings


@dataclass(frozen=True)
class Layout:
    """What differs between the layouts beside how their files are read."""

    spoken: Collection[str]  # languages
    splits: tuple[str, ...]


LAYOUTS = {
    "cikm2025": Layout(cikm2025.SPOKEN, cikm2025.SPLITS),
    "esci": Layout(esci.SPOKEN.values(), esci.SPLITS),
    "wands": Layout(wands.SPOKEN, wands.SPLITS),
    "trec": Layout(trec.SPOKEN, trec.SPLITS),
}


@dataclass(frozen=True)
class Asked:
    """What an import is to become."""

    layout: str
    market: str
    sources: tuple[str, ...]
    target: str
    day: date  # of the first split


def import_layout(asked: Asked, settings: Settings, read: Callable[[Landing], None]) -> list[str]:
    """Land what ``read`` finds as a market; returns what to tell, in lines.

    Nothing is visible before all has been read; killed and run again it is the same files. One
    import of a market at a time: both would write the same hidden files. Raises
    :class:`ConfigError`, :class:`RefusedError` (another one is under way) or
    :class:`~csrm_tasks.errors.DataError`; then nothing has changed.
    """
    text = new_market(asked.market, asked.sources, asked.target, "UTC", None, None)
    file = settings.markets / f"{asked.market}.yaml"
    judged_in = _check_market(file, asked)
    layout = LAYOUTS[asked.layout]
    locales = locale_of([*asked.sources, asked.target, *judged_in])
    check_languages(asked.layout, layout.spoken, locales)
    settings.landing.mkdir(parents=True, exist_ok=True)
    lock = settings.landing / f".{asked.market}.lock"
    try:
        with FileLock(lock, timeout=0):
            try:
                return _landed(asked, settings, layout, locales, file, text, read)
            finally:
                lock.unlink()  # still held: who has opened it meanwhile is refused
    except Timeout as e:
        raise RefusedError(
            f"another import of market {asked.market} is under way; wait for its end, then run "
            "this again"
        ) from e


def _landed(
    asked: Asked, settings: Settings, layout: Layout, locales: Mapping[str, str], file: Path,
    text: str, read: Callable[[Landing], None],
) -> list[str]:  # fmt: skip
    """Read, and show all of it at once; ``file`` is the market's, ``text`` what a new one says."""
    landing = Landing(
        asked.layout, settings.landing / asked.market, settings.home / "imports" / asked.market,
        locales, asked.day, layout.splits,
    )  # fmt: skip
    try:
        read(landing)
        told = landing.show()
    except BaseException:
        landing.abandon()
        raise
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        hidden(file).write_text(text, encoding="utf-8")
        hidden(file).replace(file)
    return [*told, f"market file: {file}", *_next(landing, asked)]


def _check_market(file: Path, asked: Asked) -> tuple[str, ...]:
    """Return the languages that an existing market is judged in beside its target.

    Its file is kept as it is; raises where it learns from other languages, or for another.
    """
    if not file.exists():
        return ()
    config = load_market(asked.market, file.parent)
    if (config.source_locales, config.target_locale) != (asked.sources, asked.target):
        raise ConfigError(
            f"{file}: market {asked.market} learns from {' and '.join(config.source_locales)} for "
            f"{config.target_locale}, not from {' and '.join(asked.sources)} for {asked.target}; "
            "give another --market, or these --source and --target"
        )
    return config.evaluation_locales


def _next(landing: Landing, asked: Asked) -> list[str]:
    days = [day for day in landing.days.values() if (landing.root / day).is_dir()]
    lines = [
        f"{locale}: nothing landed; deliver its files (docs/OWN_MARKET.md)"
        for locale in (*asked.sources, asked.target)
        if not any((landing.root / day / locale).is_dir() for day in days)
    ]
    return [*lines, *(f"next: csrm ingest --market {asked.market} --day {day}" for day in days)]
