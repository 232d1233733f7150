"""Generate a market's landing zone once; asked again with the same numbers, do nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from csrm_tasks.demo.files import put
from csrm_tasks.demo.landing import Landing
from csrm_tasks.demo.lexicon import load_lexicon
from csrm_tasks.demo.world import World, make_world
from csrm_tasks.errors import CsrmError

VERSION = 1  # of what is generated; a market made by another version is refused
LOG = logging.getLogger("csrm")


def generate_demo(landing: Path, market: str, products: int = 5000, seed: int = 0) -> bool:
    """Write the demo market of ``products`` products (both locales together).

    Returns False when it is there already. Raises :class:`CsrmError` when another one is there,
    or when ``products`` is too small for every kind of query to exist.
    """
    parameters = {"kind": "demo", "products": products, "seed": seed}
    return generate(landing, market, parameters, lambda: demo_world(products, seed))


def demo_world(products: int, seed: int) -> World:
    """Return the demo market's world, also for tests and judged sets that need the truth."""
    return make_world(load_lexicon(), products, seed)


def generate(
    landing: Path, market: str, parameters: dict[str, object], make: Callable[[], World]
) -> bool:
    """Write the world that ``make`` returns, unless the marker says that it was written."""
    products = parameters["products"]
    if not isinstance(products, int) or not 500 <= products <= 1_000_000:
        raise CsrmError(f"products: {products} is not between 500 and 1,000,000")
    marker = landing / market / ".generated.json"
    said = json.dumps(parameters | {"version": VERSION}, sort_keys=True) + "\n"
    if marker.exists():
        if marker.read_text(encoding="utf-8") == said:
            return False
        raise CsrmError(
            f"{marker.parent} holds a market generated with other parameters: "
            f"remove that folder, or name another market"
        )
    started = time.monotonic()
    Landing(make(), landing, market).write()
    put(marker, said.encode())
    LOG.info("generated %s in %.1f s: %s", market, time.monotonic() - started, said.strip())
    return True
