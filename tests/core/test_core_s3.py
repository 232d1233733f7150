"""The blob store over HTTP: SeaweedFS honours conditional writes, rclone ignores them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.blobs import BlobStore, S3Blobs, open_blobs
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.notify import once
from csrm_tasks.notify.messages import Message
from csrm_tasks.release import ledger, routing, snapshots
from csrm_tasks.settings import Settings
from tests.object_store import credentials, new_bucket
from tests.release_fixtures import MARKET
from tests.serving_fixtures import document, refreshed, release, route, serving

pytestmark = pytest.mark.s3


@pytest.fixture(params=["seaweed", "rclone"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    credentials(monkeypatch, request.getfixturevalue(request.param))
    return new_bucket(monkeypatch)


def test_bytes_files_and_listing(root: str, tmp_path: Path) -> None:
    blobs: BlobStore = open_blobs(root)
    assert blobs.read("a/none") is None
    (tmp_path / "f").write_bytes(b"file")
    blobs.upload("a/f", tmp_path / "f")
    blobs.download("a/f", tmp_path / "back" / "f")
    assert (tmp_path / "back" / "f").read_bytes() == b"file"
    assert blobs.keys("a") == ["a/f"]
    assert blobs.local_path("a/f") is None
    blobs.delete("a/f")
    blobs.delete("a/f")  # gone already: nothing to say
    assert blobs.read("a/f") is None
    blobs.upload("a/f", tmp_path / "f")
    blobs.delete_tree("a")
    assert blobs.keys("a") == []


@pytest.fixture
def honest(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in a store that honours conditional writes, not tried yet."""
    credentials(monkeypatch, seaweed)
    return new_bucket(monkeypatch)


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(
    rclone: str, monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    credentials(monkeypatch, rclone)
    root = new_bucket(monkeypatch)
    blobs = open_blobs(root)
    (tmp_path / "f").write_bytes(b"kept")
    blobs.upload("a/k", tmp_path / "f")
    for _ in range(2):  # it is not forgotten, nor taken for granted the second time
        for write in (
            lambda: blobs.put_if_absent("a/k", b"lost"),
            lambda: blobs.replace("a/k", b"lost", b"kept"),
            lambda: blobs.replace("a/k", b"lost", None),
        ):
            with pytest.raises(ConfigError, match="ignores conditional writes") as caught:
                write()
            assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert blobs.read("a/k") == b"kept"
    client = blobs._client  # type: ignore[attr-defined]
    listed = client.list_objects_v2(Bucket=root.split("/")[2])["Contents"]
    assert [o["Key"] for o in listed] == ["some/prefix/a/k"]  # no probe is left

    (tmp_path / "src").mkdir()
    with pytest.raises(ConfigError, match="ignores conditional writes"):
        ArtifactStore(root, tmp_path / "cache").publish(
            "m/s/f", tmp_path / "src", facts={}, inputs={}, about={}
        )


def test_a_store_is_tried_once(honest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(honest)
    assert isinstance(blobs, S3Blobs)
    written: list[str] = []
    put = blobs._client.put_object
    monkeypatch.setattr(
        blobs._client, "put_object", lambda **k: (written.append(k["Key"]), put(**k))[1]
    )
    assert blobs.put_if_absent("a/k", b"1")
    assert len(written) == 4 and written[-1] == "some/prefix/a/k"
    assert all(key.startswith("some/prefix/a/.probe-") for key in written[:3])
    assert blobs.replace("a/k", b"2", b"1") and not blobs.put_if_absent("a/k", b"1")
    assert len(written) == 6
    put(Bucket=blobs._bucket, Key="some/prefix/a/.probe-0", Body=b"a killed process left this")
    assert blobs.keys("") == ["a/k"]
    assert open_blobs(honest).put_if_absent("b", b"1")
    blobs.delete_tree("a")
    assert list(blobs.entries("")) == ["b"]
    assert isinstance(blobs, S3Blobs) and len(blobs.honoured) == 1


@pytest.mark.parametrize("ignores", ["IfNoneMatch", "IfMatch"])
def test_a_store_that_ignores_one_condition_is_refused(
    honest: str, monkeypatch: pytest.MonkeyPatch, ignores: str
) -> None:
    blobs = open_blobs(honest)
    assert isinstance(blobs, S3Blobs)
    put = blobs._client.put_object

    def deaf(**given: Any) -> Any:
        given.pop(ignores, None)
        return put(**given)

    monkeypatch.setattr(blobs._client, "put_object", deaf)
    with pytest.raises(ConfigError, match="ignores conditional writes"):
        blobs.put_if_absent("k", b"1")
    assert blobs.keys("") == []


def test_a_store_that_refuses_conditions_as_unknown_is_refused(
    honest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    blobs = open_blobs(honest)
    assert isinstance(blobs, S3Blobs)

    def unknown(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")

    monkeypatch.setattr(blobs._client, "put_object", unknown)
    with pytest.raises(ConfigError, match="ignores conditional writes"):
        blobs.replace("k", b"1", b"0")


def test_artifacts_over_s3(honest: str, tmp_path: Path) -> None:
    root = honest
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "x").write_text("hello")
    store = ArtifactStore(root, tmp_path / "cache")
    store.publish("m/s/f", tmp_path / "src", facts={}, inputs={}, about={})
    fresh = ArtifactStore(root, tmp_path / "other-cache")
    assert fresh.open("m/s/f").file("sub/x").read_text() == "hello"


def test_a_local_copy_that_was_changed_is_fetched_again_and_one_unused_is_deleted(
    honest: str, tmp_path: Path
) -> None:
    root = honest
    for text in ("a", "b", "c"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "x").write_text(text)
    store = ArtifactStore(root, tmp_path / "cache")
    first = store.publish("m/s/a", tmp_path / "a", facts={}, inputs={}, about={})
    first.file("x").write_text("z")
    fresh = ArtifactStore(root, tmp_path / "cache")
    assert fresh.open("m/s/a").file("x").read_text() == "a"

    kept = store.publish("m/s/b", tmp_path / "b", facts={}, inputs={}, about={})
    for path in (first.path, kept.path):
        os.utime(path, (0, 0))
    fresh.open("m/s/b")  # used again
    store.publish("m/s/c", tmp_path / "c", facts={}, inputs={}, about={})
    assert kept.path.exists() and not first.path.exists()
    assert fresh.open("m/s/a").file("x").read_text() == "a"
    blobs = open_blobs(root)
    [data] = [key for key in blobs.keys("m/s/a") if key.endswith("/x")]
    (tmp_path / "z").write_text("z")
    blobs.upload(data, tmp_path / "z")
    with pytest.raises(ArtifactError, match="x was changed"):  # not a copy: the thing itself
        ArtifactStore(root, tmp_path / "third").open("m/s/a")


def test_a_service_lives_on_s3(
    seaweed: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    credentials(monkeypatch, seaweed)
    root = new_bucket(monkeypatch)
    there = replace(settings, artifacts=f"{root}/made", routing=f"{root}/documents")
    one, two = release(there, "a"), release(there, "b")
    route(there, document(one))
    with serving(there) as (client, service):

        def answer() -> tuple[str, list[float]]:
            asked = {"query": "紅色 1", "products": ["p0", "p1", "p2"]}
            found = client.post("/score", json=asked).json()
            return found["release"], [p["em"] for p in found["products"]]

        first = answer()
        assert first[0] == one[0]
        route(there, document(two, one, seq=2))
        service.follower.poll()
        second = answer()
        assert second[0] == two[0] and second[1] != first[1]
        snapshots.publish(there, MARKET, {two[0]: refreshed(there, "r", *two)}, [one[0]])
        service.follower.poll()
        assert answer()[1] != second[1]
        assert client.get("/readyz").json()["alarms"] == {}
        with monkeypatch.context() as patched:
            patched.setattr(service.follower._blobs, "_bucket", "gone")
            last = answer()
            service.follower.poll()
            assert answer() == last
            assert "routing" in client.get("/readyz").json()["alarms"]
        route(there, document(one, seq=3))
        service.follower.poll()
        assert answer() == first
        assert client.get("/readyz").json()["alarms"] == {}
    blobs = open_blobs(there.routing)
    [day] = blobs.keys(f"{MARKET}/serving")
    requests = {r: f["requests"] for r, f in json.loads(blobs.read(day) or b"").items()}
    assert requests == {one[0]: 2, two[0]: 4}


def test_conditional_writes(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials(monkeypatch, seaweed)
    root = new_bucket(monkeypatch)
    blobs = open_blobs(root)
    assert blobs.put_if_absent("k", b"1")
    assert not blobs.put_if_absent("k", b"2")
    assert not blobs.replace("k", b"2", b"other")
    assert blobs.replace("k", b"2", b"1")
    assert blobs.read("k") == b"2"


def test_a_wrong_secret_is_refused_and_never_told(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from botocore.exceptions import ClientError

    assert open_blobs(root).read("k") is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the first keys that it found
    with pytest.raises(ClientError, match="SignatureDoesNotMatch") as caught:
        open_blobs(root).read("k")
    assert "wrong-secret" not in str(caught.value)


def test_two_publishers_of_routing_on_s3_agree_and_the_newer_row_stays(
    seaweed: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    credentials(monkeypatch, seaweed)
    root = new_bucket(monkeypatch)
    there = replace(settings, routing=f"{root}/documents")
    for n, name in enumerate(("r1", "r2"), start=1):
        payload = {"bundle": f"b/{name}", "embeddings": f"e/{name}"}
        ledger.append(there, "m", "promoted", name, actor="t", reason="", payload=payload)
        published = [routing.publish(there, "m") for _ in range(2)]
        assert published[0] == published[1] == routing.read(there, "m")
        assert published[0] is not None and published[0]["ledger_seq"] == n
    older = ledger.verified(there, "m")[:1]
    again = routing.publish(there, "m", older)  # as one does who read the ledger before row 2
    assert again is not None
    assert again["ledger_seq"] == 2
    stale = routing.document("m", older)
    assert stale is not None
    # Somebody else's write between reading and replacing: the condition refuses ours.
    blobs = open_blobs(there.routing)
    before = blobs.read("m.json")
    assert before is not None
    assert routing._replace(blobs, "m", stale, before + b"older") is False
    assert blobs.read("m.json") == before
    assert blobs.replace("m.json", before + b" ", before)
    assert not blobs.replace("m.json", b"{}", before)


def sent_twice(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each write sent again, as a client does whose first answer was lost."""
    assert isinstance(blobs, S3Blobs)
    put = blobs._client.put_object

    def again(**given: Any) -> Any:
        found = put(**given)
        return put(**given) if given.keys() & {"IfMatch", "IfNoneMatch"} else found

    monkeypatch.setattr(blobs._client, "put_object", again)


def test_a_write_that_was_sent_again_is_known_as_ours(
    honest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_blobs(honest)
    sent_twice(blobs, monkeypatch)
    assert blobs.put_if_absent("k", b"1")
    assert blobs.replace("k", b"2", b"1") and blobs.read("k") == b"2"
    assert not blobs.put_if_absent("k", b"2")  # the same bytes, and somebody else's
    assert not blobs.replace("k", b"3", b"1")


def test_a_write_that_meets_another_is_sent_again_and_known_whatever_case_names_have(
    honest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    blobs, trouble = open_blobs(honest), ["ConditionalRequestConflict"]
    assert isinstance(blobs, S3Blobs)
    assert blobs.put_if_absent("other", b"-")  # the store has been tried
    put, head = blobs._client.put_object, blobs._client.head_object

    def busy(**given: Any) -> Any:
        if trouble:
            raise ClientError({"Error": {"Code": trouble.pop()}}, "PutObject")
        return put(**given)

    def proxied(**given: Any) -> Any:
        found = head(**given)
        return found | {"Metadata": {k.title(): v for k, v in found["Metadata"].items()}}

    monkeypatch.setattr(blobs._client, "put_object", busy)
    monkeypatch.setattr(blobs._client, "head_object", proxied)
    assert blobs.put_if_absent("k", b"1") and blobs.read("k") == b"1"
    monkeypatch.setattr(blobs._client, "put_object", lambda **k: (put(**k), put(**k))[1])
    assert blobs.put_if_absent("m", b"1")


def test_an_artifact_that_was_published_by_a_write_sent_again_keeps_its_files(
    honest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "x").write_text("hello")
    store = ArtifactStore(honest, tmp_path / "cache")
    sent_twice(store._blobs, monkeypatch)
    store.publish("m/s/f", tmp_path / "src", facts={}, inputs={}, about={})
    fresh = ArtifactStore(honest, tmp_path / "other-cache")
    assert fresh.open("m/s/f").file("x").read_text() == "hello"


def test_a_message_whose_claim_was_sent_again_is_told_once(
    honest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_blobs(honest)
    told: list[Message] = []
    sent_twice(blobs, monkeypatch)
    message = Message("failed", "m", "key", "a task failed", "it did", "")
    assert [once.deliver(blobs, message, told.append) for _ in range(2)] == [True, False]
    assert told == [message]
