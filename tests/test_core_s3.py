"""The blob store over HTTP: moto answers conditional writes, rclone checks signatures."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.blobs import BlobStore, open_blobs
from csrm_tasks.release import ledger, routing
from csrm_tasks.settings import Settings

pytestmark = pytest.mark.s3


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def serve(command: list[str], port: int) -> Iterator[str]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except urllib.error.HTTPError:
                break  # it answers, if only to refuse
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def credentials(patch: pytest.MonkeyPatch, url: str) -> None:
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    port = free_port()
    script = str(Path(sys.executable).with_name("moto_server"))
    yield from serve([script, "-H", "127.0.0.1", "-p", str(port)], port)


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    root = tmp_path_factory.mktemp("rclone")
    script = str(Path(sys.executable).with_name("rclone"))
    yield from serve(
        [script, "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}",
         "--auth-key", "key,secret-of-the-test"], port,
    )  # fmt: skip


@pytest.fixture(params=["moto", "rclone"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    credentials(monkeypatch, request.getfixturevalue(request.param))
    import boto3

    bucket = f"b{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


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


def test_artifacts_over_s3(root: str, tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "x").write_text("hello")
    store = ArtifactStore(root, tmp_path / "cache")
    store.publish("m/s/f", tmp_path / "src", facts={}, inputs={}, about={})
    fresh = ArtifactStore(root, tmp_path / "other-cache")
    assert fresh.open("m/s/f").file("sub/x").read_text() == "hello"


def test_conditional_writes(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials(monkeypatch, moto)
    import boto3

    boto3.client("s3").create_bucket(Bucket="conditional")
    blobs = open_blobs("s3://conditional")
    assert blobs.put_if_absent("k", b"1")
    assert not blobs.put_if_absent("k", b"2")
    assert not blobs.replace("k", b"2", b"other")
    assert blobs.replace("k", b"2", b"1")
    assert blobs.read("k") == b"2"


def test_a_wrong_secret_is_refused_and_never_told(
    rclone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, rclone)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as caught:
        open_blobs("s3://bucket").read("k")
    assert "wrong-secret" not in str(caught.value)


def test_two_publishers_of_routing_on_s3_agree_and_the_newer_row_stays(
    moto: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    credentials(monkeypatch, moto)
    import boto3

    boto3.client("s3").create_bucket(Bucket="routing")
    there = replace(settings, routing="s3://routing/documents")
    for n, release in enumerate(("r1", "r2"), start=1):
        payload = {"bundle": f"b/{release}", "embeddings": f"e/{release}"}
        ledger.append(there, "m", "promoted", release, actor="t", reason="", payload=payload)
        published = [routing.publish(there, "m") for _ in range(2)]
        assert published[0] == published[1] == routing.read(there, "m")
        assert published[0] is not None and published[0]["ledger_seq"] == n
    stale = routing.document("m", ledger.verified(there, "m")[:1])
    assert stale is not None
    assert routing._replace(open_blobs(there.routing), "m", stale) is False
    # Somebody else's write between reading and replacing: the condition refuses ours.
    blobs = open_blobs(there.routing)
    before = blobs.read("m.json")
    assert before is not None
    assert blobs.replace("m.json", before + b" ", before)
    assert not blobs.replace("m.json", b"{}", before)
