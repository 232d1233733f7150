"""The gate's verdict as a sealed document: its digest covers everything else in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from csrm_tasks.artifacts import Artifact, json_digest
from csrm_tasks.errors import RefusedError

FILE = "verdict.json"


def marked(body: Mapping[str, Any], asked: str) -> dict[str, Any]:
    """Return a verdict's body with how its run differed from the market's normal one, as JSON
    (:mod:`csrm_tasks.steps.asked`), and a reason that says so wherever reasons are shown.
    """
    if not asked:
        return dict(body)
    said = f"this run is none of the market's normal ones: it was given {asked}"
    return {**body, "asked": asked, "reasons": [*body["reasons"], said]}


def mark(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Return what else records such a run, by name: nothing of a normal one."""
    return {"asked": verdict["asked"]} if "asked" in verdict else {}


def seal(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``body`` with its ``digest``."""
    return {**body, "digest": json_digest(body)}


def read(gate: Artifact) -> dict[str, Any]:
    """Read the verdict of a gate artifact; raises :class:`RefusedError` when its seal is broken."""
    return parse(gate.ref, gate.file(FILE).read_bytes(), gate.facts.get("digest"))


def parse(ref: str, document: bytes, digest: str | None) -> dict[str, Any]:
    """Return the verdict that ``document`` of artifact ``ref`` is, as :func:`read` does.

    ``digest``: what the artifact's facts say of it.
    """
    verdict: dict[str, Any] = json.loads(document)
    body = {k: v for k, v in verdict.items() if k != "digest"}
    if verdict.get("digest") != json_digest(body) or verdict["digest"] != digest:
        raise RefusedError(f"{ref}: the verdict was changed after the gate wrote it")
    return verdict
