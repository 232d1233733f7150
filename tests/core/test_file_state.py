"""A folder's digest is read once for each state of its files, and a change is always noticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks import artifacts, file_state
from csrm_tasks import tracking as tracked_runs
from csrm_tasks.artifacts import describe_files, json_digest
from csrm_tasks.base_models import base_digest
from csrm_tasks.file_state import digests_kept_in, folder_digest, where_kept
from csrm_tasks.settings import Settings
from tests.steps.test_steps_llm import Installation


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were digested, in order."""
    names: list[str] = []
    own = artifacts.file_digest

    def digest(path: Path) -> str:
        names.append(path.name)
        return own(path)

    monkeypatch.setattr(artifacts, "file_digest", digest)
    return names


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of two files, the last change of which counts as long ago."""
    monkeypatch.setattr(file_state, "SETTLED", -1.0)
    folder = tmp_path / "base"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"one")
    (folder / "inner" / "config").write_bytes(b"two")
    with digests_kept_in(tmp_path / "kept"):
        yield folder


def slow(folder: Path) -> str:
    return json_digest(describe_files(folder))


def overwrite(path: Path, data: bytes) -> None:
    """Write ``data`` until the clock of the file system has moved on, with the old time of change.

    As tools do that unpack and copy with the times that files had elsewhere.
    """
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_files_are_read_once_for_each_state(base: Path, tmp_path: Path, read: list[str]) -> None:
    expected = slow(base)
    read.clear()
    assert [folder_digest(base) for _ in range(3)] == [expected] * 3
    assert base_digest(str(base)) == expected
    assert sorted(read) == ["config", "weights"]


def test_another_file_of_the_same_size_and_time_is_noticed(base: Path) -> None:
    first = folder_digest(base)
    overwrite(base / "weights", b"ONE")
    second = folder_digest(base)
    assert second == slow(base) != first
    shutil.move(base / "weights", base / "renamed")
    assert folder_digest(base) == slow(base) not in (first, second)
    (base / "more").write_bytes(b"")
    assert folder_digest(base) == slow(base)


def test_a_torn_digest_is_made_anew_and_without_a_place_nothing_is_kept(
    base: Path, tmp_path: Path
) -> None:
    expected = folder_digest(base)
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text(expected[:40])  # a process was killed while it wrote
    assert folder_digest(base) == expected == kept.read_text()
    with digests_kept_in(tmp_path / "other"):
        assert where_kept() == tmp_path / "other"
    assert where_kept() == tmp_path / "kept"


edits = st.lists(st.tuples(st.sampled_from("abc"), st.binary(min_size=2, max_size=2)), max_size=12)


@settings(max_examples=200)
@given(edits)
def test_a_change_within_the_tick_of_a_clock_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, bytes]]
) -> None:
    """Files of one size, written as fast as can be, against the digest of what lies there."""
    folder = tmp_path_factory.mktemp("racy")
    with digests_kept_in(folder / "kept"):
        for name, data in changes:
            (folder / "base").mkdir(exist_ok=True)
            (folder / "base" / name).write_bytes(data)
            os.utime(folder / "base" / name, (1, 1))
            assert folder_digest(folder / "base") == slow(folder / "base")


def test_a_step_reads_its_base_once_and_the_next_step_not_at_all(
    settings: Settings, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked_runs, "log_run", lambda *args, **more: "run")
    tiny = Installation(settings, tmp_path, steps=2, evaluate_every=2)
    monkeypatch.setattr(file_state, "SETTLED", -1.0)
    read.clear()
    first = tiny.train()
    assert read.count("tokenizer_config.json") == 1
    read.clear()
    tiny.run("train_llm", {"snapshot": tiny.snapshot}, arm="other")
    assert read.count("tokenizer_config.json") == 0
    overwrite(tmp_path / "base" / "tokenizer_config.json", b"{} \n")
    assert tiny.train().ref != first.ref
    assert read.count("tokenizer_config.json") == 1
