"""Artifacts: put-if-absent, digests checked, the same over a folder and over S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csrm_tasks.artifacts import MANIFEST, ArtifactStore, json_digest
from csrm_tasks.blobs import LocalBlobs, open_blobs, text_digest
from csrm_tasks.errors import ArtifactError, ConfigError

REF = "demo/some_step/0123"


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        target = path / name.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return path


def store_at(root: Path) -> ArtifactStore:
    return ArtifactStore(str(root / "artifacts"), root / "cache")


def publish(store: ArtifactStore, source: Path, n: int = 1) -> str:
    return store.publish(REF, source, facts={"n": n}, inputs={}, about={}).digest


def test_published_files_and_facts_come_back(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    publish(store, folder(tmp_path / "src", a="1", sub__b="2"))
    found = store.open(REF)
    assert found.facts == {"n": 1}
    assert found.file("sub/b").read_text() == "2"
    with pytest.raises(ArtifactError, match="no file 'c'"):
        found.file("c")


def test_what_only_its_writer_could_read_is_published_as_the_umask_says(tmp_path: Path) -> None:
    """safetensors writes files of mode 600; a server may run as another user than training."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "model.safetensors").chmod(0o600)
    store = ArtifactStore(str(tmp_path / "root"), tmp_path / "cache")
    found = store.publish("m/s/f", source, facts={}, inputs={}, about={})
    (tmp_path / "plain").write_bytes(b"")
    expected = (tmp_path / "plain").stat().st_mode
    assert found.file("model.safetensors").stat().st_mode == expected


def test_no_manifest_means_it_does_not_exist(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    publish(store, folder(tmp_path / "src", a="1"))
    (tmp_path / "artifacts" / REF / MANIFEST).unlink()
    assert store.manifest(REF) is None
    with pytest.raises(ArtifactError, match="run the step that makes it"):
        store.open(REF)


def test_the_first_publisher_wins_and_the_loser_leaves_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    first = publish(store, folder(tmp_path / "one", a="1"))
    second = publish(store, folder(tmp_path / "two", a="2"))
    assert first == second
    assert store.open(REF).file("a").read_text() == "1"
    assert len(list((tmp_path / "artifacts" / REF).glob("data-*"))) == 1


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    publish(store_at(tmp_path), folder(tmp_path / "src", a="1"))
    target = next((tmp_path / "artifacts" / REF).glob("data-*/a"))
    target.write_text("2")
    with pytest.raises(ArtifactError, match="a was changed after it was published"):
        store_at(tmp_path).open(REF)
    target.unlink()
    with pytest.raises(ArtifactError, match="a is gone"):
        store_at(tmp_path).open(REF)


def test_a_manifest_that_is_not_json_is_named(tmp_path: Path) -> None:
    publish(store_at(tmp_path), folder(tmp_path / "src", a="1"))
    (tmp_path / "artifacts" / REF / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        store_at(tmp_path).open(REF)


def test_digest_covers_content_and_facts_but_not_time_or_place(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", a="1")
    one = publish(store_at(tmp_path / "x"), src)
    assert one == publish(store_at(tmp_path / "y"), src)
    assert one != publish(store_at(tmp_path / "z"), src, n=2)


def test_json_digest_ignores_key_order() -> None:
    assert json_digest({"a": 1, "b": [2]}) == json_digest(json.loads('{"b":[2],"a":1}'))


def test_text_digest_does_not_join_parts() -> None:
    assert text_digest("ab", "c") != text_digest("a", "bc")


def test_replace_is_compare_and_swap(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    assert blobs.replace("k", b"1", None)
    assert not blobs.replace("k", b"2", None)
    assert not blobs.replace("k", b"2", b"other")
    assert blobs.replace("k", b"2", b"1")
    assert blobs.read("k") == b"2"
    assert blobs.keys("") == ["k"]


@pytest.mark.parametrize("root", ["ftp://host/x", "s3://"])
def test_unknown_roots_are_refused(root: str) -> None:
    with pytest.raises(ConfigError):
        open_blobs(root)


def test_equal_content_has_one_first_reference_whoever_claims_it_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = store_at(tmp_path), folder(tmp_path / "src", a="1")
    one, two, other = (f"demo/some_step/{n}" for n in ("1", "2", "3"))
    for ref, made_of in ((one, "x"), (two, "x"), (other, "y")):
        store.publish(ref, source, facts={}, inputs={}, about={"inputs": {"i": made_of}})
    assert [store.first_like(ref) for ref in (two, one, two, other)] == [two, two, two, other]

    true, asked = LocalBlobs.read, []

    def read(blobs: LocalBlobs, key: str) -> bytes | None:
        """Nothing was there yet when this process looked: another one claimed it since."""
        asked.append(key)
        claims = [k for k in asked if "/same-" in k]
        return None if key in claims and len(claims) == 1 else true(blobs, key)

    monkeypatch.setattr(LocalBlobs, "read", read)
    assert store.first_like(one) == two


def test_a_manifest_whose_answer_was_lost_is_known_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client tries again by itself, and the store says that something is there: it is ours."""
    stored = LocalBlobs.put_if_absent

    def lost(self: LocalBlobs, key: str, data: bytes) -> bool:
        stored(self, key, data)
        return False

    monkeypatch.setattr(LocalBlobs, "put_if_absent", lost)
    source = tmp_path / "made"
    source.mkdir()
    (source / "x").write_text("content")
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    made = store.publish("m/s/f", source, facts={}, inputs={}, about={})
    assert made.file("x").read_text() == "content"


def test_a_file_that_is_gone_from_a_remote_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "made"
    source.mkdir()
    (source / "x").write_text("content")
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    made = store.publish("m/s/f", source, facts={}, inputs={}, about={})
    (made.path / "x").unlink()
    monkeypatch.setattr(LocalBlobs, "local_path", lambda self, key: None)
    fresh = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    with pytest.raises(ArtifactError, match="m/s/f: file x is gone; delete"):
        fresh.open("m/s/f")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["csrm#1", "what?", "a b", "ü%20"])
def test_a_folder_is_the_folder_that_was_named(tmp_path: Path, name: str) -> None:
    for root in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
        blobs = open_blobs(root)
        assert blobs.local_path("k") == tmp_path / name / "k"
    assert open_blobs("relative/x").local_path("k") == Path("relative/x/k")
    for wrong in ("s3://", "gs://bucket/x"):
        with pytest.raises(ConfigError, match="s3://bucket/prefix"):
            open_blobs(wrong)
