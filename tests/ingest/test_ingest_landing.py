"""The landing zone: what is no delivery stops the day in one line, and no link is followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csrm_tasks.errors import DataError
from csrm_tasks.ingest.reading import landing
from csrm_tasks.ingest.reading.landing import list_landing

DAY = "2026-01-04"
LOCALES = ("ko-KR", "zh-TW")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A day with one good file, beside a file outside the landing zone."""
    (tmp_path / "secret.csv").write_text("secret")
    day = tmp_path / "landing" / "tiny" / DAY
    (day / "zh-TW").mkdir(parents=True)
    (day / "zh-TW" / "labels-1.csv.gz").write_bytes(b"x")
    return day


def names(folder: Path) -> list[str]:
    return [d.name for d in list_landing(folder.parents[1], "tiny", DAY, LOCALES)]


def test_uploads_under_way_are_left_alone(folder: Path) -> None:
    (folder / "zh-TW" / ".labels-2.csv.part").write_bytes(b"x")
    for hidden in (".~tmp~", ".rsync-partial"):  # in which rsync collects them
        (folder / "zh-TW" / hidden).mkdir()
        (folder / "zh-TW" / hidden / "labels.csv").write_bytes(b"x")
    assert names(folder) == ["zh-TW/labels-1.csv.gz"]


TRICKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absolute link": (
        lambda f: (f / "zh-TW" / "labels.csv").symlink_to("/etc/hostname"), r"labels\.csv: is a li"
    ),
    "link out": (
        lambda f: (f / "zh-TW" / "labels.csv").symlink_to("../../../../secret.csv"), "is a link"
    ),
    "dangling link": (lambda f: (f / "zh-TW" / "labels.csv").symlink_to("nowhere"), "is a link"),
    "linked folder": (lambda f: (f / "ko-KR").symlink_to(f / "zh-TW"), r"ko-KR: is a link"),
    "pipe": (lambda f: os.mkfifo(f / "zh-TW" / "labels.csv"), "is neither a file nor a folder"),
    "two dots": (lambda f: (f / "zh-TW" / "labels.csv..").write_bytes(b"x"), "name it"),
    "escaped slash": (lambda f: (f / "zh-TW" / "labels-%2e.csv").write_bytes(b"x"), "name it"),
    "line break": (lambda f: (f / "zh-TW" / "labels-\n.csv").write_bytes(b"x"), r"\\n\.csv'"),
    "not UTF-8": (
        lambda f: (f / "zh-TW" / os.fsdecode(b"labels-\xff.csv")).write_bytes(b"x"), r"\\udcff"
    ),
    "very long": (lambda f: (f / "zh-TW" / f"labels-{'x' * 230}.csv").write_bytes(b"x"), "name it"),
    "no locale": (lambda f: (f / "labels.csv").write_bytes(b"x"), "folder per locale"),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_what_is_no_delivery_is_named_on_one_line(trick: str, folder: Path) -> None:
    make, message = TRICKS[trick]
    make(folder)
    with pytest.raises(DataError, match=message) as caught:
        names(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("level", [0, 1])
def test_the_days_own_folders_are_no_links_either(level: int, folder: Path) -> None:
    place = [folder, folder.parent][level]
    aside = folder.parents[2] / "aside"
    place.rename(aside)
    place.symlink_to(aside)
    with pytest.raises(DataError, match="is a link"):
        names(folder)


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(landing, "file_digest", denied)  # root may read everything
    with pytest.raises(DataError, match=r"labels-1\.csv\.gz: cannot be read \(Permission denied\)"):
        names(folder)


@pytest.mark.parametrize("day", ["../2026-01-04", "2026-1-4", "20260104", "", "2026-02-30"])
def test_a_day_is_a_day(day: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a day"):
        list_landing(tmp_path, "tiny", day, LOCALES)
