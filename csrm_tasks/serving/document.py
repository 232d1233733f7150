"""The routing document as a server reads it: checked whole before anything follows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from csrm_tasks.errors import RefusedError
from csrm_tasks.release import routing


class Weights(BaseModel):
    """Percent of the sessions of each arm."""

    model_config = ConfigDict(frozen=True, strict=True)

    stable: int
    next: int
    holdout: int
    interleaved: int = 0


class Document(BaseModel):
    """See ``docs/ROUTING.md``; what it has beyond these fields is left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    version: int
    market: str
    stable: str
    next: str | None
    holdout: str | None
    shadow: bool
    weights: Weights
    seed: str
    predecessors: list[str]
    bundles: dict[str, str]
    ledger_seq: int

    @property
    def answering(self) -> list[str]:
        """Releases that answer or shadow: without one of them the document is not followed."""
        return list(dict.fromkeys(r for r in (self.stable, self.next, self.holdout) if r))

    def fields(self) -> Mapping[str, Any]:
        """Return what :mod:`csrm_tasks.release.assignment` reads."""
        return self.model_dump()


def parse(market: str, raw: bytes) -> Document:
    """Read and check a document; raises :class:`RefusedError` saying what is wrong with it."""
    try:
        document = Document.model_validate(json.loads(raw))
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise RefusedError(f"routing of {market}: {at}: {first['msg']}") from e
    except ValueError as e:
        raise RefusedError(f"routing of {market}: not JSON") from e
    known = (routing.VERSION, routing.INTERLEAVING)
    if document.version not in known or document.market != market:
        raise RefusedError(
            f"routing of {market}: version {document.version} of market {document.market}, this "
            f"server follows versions {routing.VERSION} and {routing.INTERLEAVING}"
        )
    routing.check(document.fields())
    lost = [r for r in (*document.answering, *document.predecessors) if r not in document.bundles]
    if lost:
        raise RefusedError(f"routing of {market}: no bundle is named for {lost[0]}")
    return document
