"""A base model appears whole or not at all, once, whoever adds it at the same time.

It is built in a hidden folder beside its place and moved there by one rename, with ``base.json``
written last. What a killed process left is removed by the next one that adds the same name; a lock
says that nobody is at it still.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from csrm_tasks.base_models import KEPT_NAME, RECORD
from csrm_tasks.bases.record import BaseRecord, read_record
from csrm_tasks.errors import ConfigError, RefusedError, disk_full_as_one_line

Same = Callable[[BaseRecord], bool]


def land(bases: Path, name: str, same: Same, build: Callable[[Path], BaseRecord]) -> bool:
    """Put what ``build`` writes into a folder in the place of ``name``; False: it is there.

    ``same`` says whether the base that has the name already is the one that is meant. Raises
    :class:`RefusedError` where it is another one, or no base at all: nothing is overwritten.
    """
    if not KEPT_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a base: a-z, 0-9, - and _, at most 64")
    bases.mkdir(parents=True, exist_ok=True)
    place = bases / name
    with FileLock(bases / f".{name}.lock"), disk_full_as_one_line(f"base {name}", bases):
        for left in bases.glob(f".{name}.part-*"):
            shutil.rmtree(left)
        if place.exists():
            _refuse_another(place, same)
            return False
        part = bases / f".{name}.part-{uuid.uuid4().hex[:8]}"
        part.mkdir()
        try:
            build(part).write(part)
            for path in part.rglob("*.safetensors"):  # written for nobody but this user's eyes
                path.chmod((part / RECORD).stat().st_mode)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)  # only where it did not get so far
    return True


def _refuse_another(place: Path, same: Same) -> None:
    if not (place / RECORD).is_file():
        raise RefusedError(f"{place} is there and is no base; move it away, or choose another name")
    found = read_record(place)
    if not same(found):
        made = f"trimmed for {found.trimmed.market}" if found.trimmed else "whole"
        raise RefusedError(
            f"there is another base {place.name} ({found.origin.source}, {found.origin.revision}, "
            f"{made}); choose another name, or remove {place}"
        )
