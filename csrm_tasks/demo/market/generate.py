"""Generate a market's landing zone once; asked again with the same numbers, do nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from csrm_tasks.demo.market.files import put
from csrm_tasks.demo.market.landing import NIGHTS, Landing
from csrm_tasks.demo.market.lexicon import Lexicon, first_groups, load_lexicon
from csrm_tasks.demo.market.world import TARGET, World, make_multi_world, make_world
from csrm_tasks.errors import CsrmError
from csrm_tasks.markets import load_market
from csrm_tasks.settings import PROJECT_ROOT, Settings

VERSION = 2  # of what is generated; a market made by another version is refused
DEMO_PRODUCTS, NAMES_PRODUCTS = 5_000, 10_000  # both locales together
MULTI_PRODUCTS = 1_600  # of the first two locales; each further one has half as many
FEWEST, MOST = 500, 1_000_000  # fewer would leave kinds of queries without products
NAMES_DATA = PROJECT_ROOT.parent / "shared" / "data"  # where --data is not given
MARKER = ".generated.json"  # what was generated, written last
LOG = logging.getLogger("csrm")


def generate(market: str, settings: Settings, data: Path | None) -> str:
    """Generate ``market`` (demo, multi or names) in its landing zone; say in a line what was done.

    The market file's seed is used. Raises :class:`CsrmError` for a market that is not generated,
    where real names are absent, or where something else was generated before.
    """
    seed = load_market(market, settings.markets).seed
    if market == "demo":
        new = generate_demo(settings.landing, market, DEMO_PRODUCTS, seed)
    elif market == "multi":
        new = generate_multi(settings.landing, market, MULTI_PRODUCTS, seed)
    elif market == "names":
        new = generate_names(settings.landing, market, data or NAMES_DATA, NAMES_PRODUCTS, seed)
    else:
        raise CsrmError(
            f"market {market!r} is not a generated one (demo, multi, names): land its files"
        )
    done = "generated" if new else "is there already"
    return f"market {market} {done}: {settings.landing / market}"


def require_data(market: str, settings: Settings, data: Path | None) -> None:
    """Raise :class:`CsrmError` where the names that ``market`` is made of are still needed, and
    absent.
    """
    from csrm_tasks.demo.market.names import EVENTS, data_file

    if market == "names" and not (settings.landing / market / MARKER).exists():
        data_file(data or NAMES_DATA, EVENTS)


def generate_demo(landing: Path, market: str, products: int = DEMO_PRODUCTS, seed: int = 0) -> bool:
    """Write the demo market of ``products`` products; returns False when it is there already.

    Raises :class:`CsrmError` when another one is there or ``products`` is out of range.
    """
    parameters: dict[str, str | int] = {"kind": "demo", "products": products, "seed": seed}
    return _once(landing, market, parameters, lambda: demo_world(products, seed))


def generate_multi(
    landing: Path,
    market: str,
    products: int = MULTI_PRODUCTS,
    seed: int = 0,
    groups: int | None = None,
) -> bool:
    """Write a market of three source languages and one that is only judged in beside the target.

    ``groups``: of so many leaf categories alone, without nicknames. Returns and raises as
    :func:`generate_demo` does.
    """
    parameters: dict[str, str | int] = {"kind": "multi", "products": products, "seed": seed}
    if groups is not None:
        parameters["groups"] = groups
    make = partial(make_multi_world, lexicon_of(groups), products, seed)
    return _once(landing, market, parameters, make)


def demo_world(products: int, seed: int) -> World:
    """Return the demo market's world, also for tests and judged sets that need the truth."""
    return make_world(load_lexicon(), products, seed)


def lexicon_of(groups: int | None) -> Lexicon:
    """Return the demo's lexicon, or its ``groups`` first leaf categories and what they hold."""
    whole = load_lexicon()
    return whole if groups is None else first_groups(whole, groups)


def generate_names(
    landing: Path, market: str, data: Path, products: int = NAMES_PRODUCTS, seed: int = 0
) -> bool:
    """Write a market with the real names below ``data``; returns False when it is there already.

    The UBI sample file in ``data`` is landed as it is with the last night's files. Raises
    :class:`CsrmError` as :func:`generate_demo` does, and where a file of ``data`` is absent.
    """
    from csrm_tasks.demo.market.names import EVENTS, data_file, names_lexicon

    def make() -> World:
        sample = data_file(data, EVENTS).read_bytes()
        world = make_world(names_lexicon(data, seed), products, seed)
        put(landing / market / NIGHTS[-1] / TARGET / "ubi_events-sample.parquet", sample)
        return world

    return _once(landing, market, {"kind": "names", "products": products, "seed": seed}, make)


def _once(
    landing: Path, market: str, parameters: dict[str, str | int], make: Callable[[], World]
) -> bool:
    """Write the world that ``make`` returns, unless the marker says that it was written."""
    if not FEWEST <= int(parameters["products"]) <= MOST:
        raise CsrmError(f"products: {parameters['products']} is not between {FEWEST} and {MOST:,}")
    marker = landing / market / MARKER
    said = json.dumps(parameters | {"version": VERSION}, sort_keys=True) + "\n"
    if marker.exists():
        if marker.read_text(encoding="utf-8") == said:
            return False
        raise CsrmError(
            f"{marker.parent} holds a market generated with other parameters: "
            "remove that folder, or name another market"
        )
    started = time.monotonic()
    Landing(make(), landing, market).write()
    put(marker, said.encode())
    LOG.info("generated %s in %.1f s: %s", market, time.monotonic() - started, said.strip())
    return True
