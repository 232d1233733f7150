"""``csrm study paper``: every part of every seed, by the rule that says which seeds are needed.

What a part trains are artifacts of the product's own steps, so a killed study goes on where it was;
what it has found is kept by seed and part (:mod:`.results`) and read by every report. A seed is
taken on for a part unless all claims of the part are decided already at the newest look
(:mod:`.stopping`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csrm_tasks.artifacts import json_digest
from csrm_tasks.demo.curation.market import CurationMarket, curation_market
from csrm_tasks.demo.paper.baselines import baselines
from csrm_tasks.demo.paper.curated import curated
from csrm_tasks.demo.paper.distil import distil
from csrm_tasks.demo.paper.effects import decided
from csrm_tasks.demo.paper.labels import labels
from csrm_tasks.demo.paper.ladder import ladder
from csrm_tasks.demo.paper.market import StudyMarket, days_of, generated, own
from csrm_tasks.demo.paper.plan import chosen
from csrm_tasks.demo.paper.recipe import Recipe, as_studied, recipe_of, small, small_market
from csrm_tasks.demo.paper.results import Found, PartResult, Results
from csrm_tasks.demo.paper.titles import titles
from csrm_tasks.errors import ConfigError
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.settings import Settings, load_settings

log = logging.getLogger("csrm")

GENERATED, LANGUAGES = "demo", "multi"  # markets whose seeds are generated
Part = Callable[[Any, Recipe, Found], None]
OF_PAPER_1: dict[str, Part] = {
    "ladder": ladder, "baselines": baselines, "titles": titles, "distil": distil, "labels": labels,
}  # fmt: skip
OF_PAPER_2: dict[str, Part] = {"curation": curated}


@dataclass(frozen=True)
class PaperStudy:
    """A study of one market by one recipe."""

    market: MarketConfig
    languages: MarketConfig | None  # generated for paper 2's parts; None: there are none
    settings: Settings
    recipe: Recipe
    home: Path
    first: int  # the seed from which on looks count

    @property
    def generated(self) -> bool:
        """Whether each seed is a generated market of its own, whose truth is known."""
        return self.market.market == GENERATED

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that this market can have: paper 2's are on generated languages alone."""
        return tuple(OF_PAPER_1) if self.languages is None else (*OF_PAPER_1, *OF_PAPER_2)

    @property
    def results(self) -> Results:
        """Where what was found is kept: of this market file, recipe and, of an own market, days."""
        # Without what is as by default: a setting that is new, and off, loses nothing found.
        asked = (self.market, self.languages)
        read = [m and m.model_dump(mode="json", exclude_defaults=True) for m in asked]
        about: dict[str, Any] = {"recipe": asdict(self.recipe), "markets": read}
        if not self.generated:
            about["days"] = days_of(self.market, self.settings, self.home)
        return Results(self.home / "results", json_digest(about)[:12])

    def read(self) -> list[PartResult]:
        """Return all that was found so far, by whichever process."""
        return list(self.results.read())

    def run(self, seeds: Sequence[int], parts: Sequence[str]) -> Iterator[list[PartResult]]:
        """Yield all that is known after each part of each seed."""
        for part in parts:
            for seed in seeds:
                self.run_part(seed, part)
                yield self.read()

    def run_part(self, seed: int, part: str) -> None:
        """Run a part of a seed, and keep what it finds; nothing where it needs no more seeds."""
        known = self.read()
        before = next((r for r in known if (r.seed, r.part) == (seed, part)), None)
        if before is None and decided(part, known, self.first, shared=not self.generated):
            log.info("study: seed %d is not needed, all claims of %s are decided", seed, part)
            return
        log.info("study: seed %d, %s", seed, part)
        found, begun = Found(), time.process_time()
        if part in OF_PAPER_1:
            OF_PAPER_1[part](self._study_market(seed), self.recipe, found)
        elif self.languages is not None:
            OF_PAPER_2[part](self._curation(seed, self.languages), self.recipe, found)
        # What is found again takes seconds: that is not what it takes.
        found.seconds = max(time.process_time() - begun, before.seconds if before else 0.0)
        self.results.write(seed, part, found)

    def chosen(self, names: str | None) -> tuple[str, ...]:
        """Return the parts of a comma-separated list, or all that this market can have.

        Raises :class:`ConfigError` for a name that is no part, or no part of this market.
        """
        asked = chosen(names)
        missing = [p for p in asked if p not in self.parts]
        if missing and names is not None:
            raise ConfigError(
                f"--only names {missing[0]!r}, which market {self.market.market} cannot have: its "
                f"parts are {', '.join(self.parts)}"
            )
        return tuple(p for p in asked if p in self.parts)

    def _study_market(self, seed: int) -> StudyMarket:
        if self.generated:
            return generated(self.market, self.home, seed, self.recipe.products)
        return own(self.market, self.settings, self.home, seed)

    def _curation(self, seed: int, base: MarketConfig) -> CurationMarket:
        home = self.home / "curation"
        return curation_market(base, home, seed, self.recipe.curation_products)


def study_of(market: str, first: int, quick: bool = False) -> PaperStudy:
    """Return the study of a market, kept below ``paper`` of the home that studies have.

    ``quick``: as small as can be, apart from the others: it tells whether the study runs, not what
    the papers' steps earn. Raises :class:`ConfigError` for a market without relevance.
    """
    whose = load_settings(market=market)
    config = as_studied(load_market(market, whose.markets))
    if "relevance" not in config.tasks:
        raise ConfigError(f"market {market} has no task relevance: paper 1 has nothing to judge")
    recipe = Recipe() if market == GENERATED else recipe_of(config)
    languages = as_studied(load_market(LANGUAGES, whose.markets)) if market == GENERATED else None
    if quick:
        config, recipe = small_market(config), small(recipe)
        languages = languages and small_market(languages)
    home = load_settings(market="study").home / ("quick" if quick else "paper") / market
    return PaperStudy(config, languages, whose, recipe, home, first)
