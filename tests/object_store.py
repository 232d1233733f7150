"""Object stores that tests start.

SeaweedFS, as compose runs it, honours If-None-Match and If-Match and checks signatures; without
keys it lets anyone in. rclone checks signatures and ignores conditions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import yaml

from csrm_tasks.blobs import S3Blobs
from tests.ports import reserve_port
from tests.watch import running

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
KEY, SECRET = "key", "secret-of-the-test"
SERVERS = ("master", "volume", "filer", "s3")


@cache
def compose_flags() -> tuple[str, ...]:
    """Return the command that compose runs SeaweedFS by."""
    services = yaml.safe_load((ROOT / "docker/compose.cluster.yaml").read_text())["services"]
    return tuple(services["s3"]["command"])


@contextmanager
def serve(command: Sequence[str], port: int, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server until it answers, and give its URL; what it holds is not worth a farewell."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    quiet = subprocess.DEVNULL
    with running(command, stdout=quiet, stderr=quiet, env=env) as server:
        while True:
            try:
                urllib.request.urlopen(url, timeout=10).close()
                break
            except urllib.error.HTTPError:
                break  # it answers, if only to refuse
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.05)
        yield url
        os.killpg(server.pid, signal.SIGKILL)  # SeaweedFS takes 15 seconds to end in order


@contextmanager
def run_seaweed(folder: Path, keys: bool = True) -> Iterator[str]:
    """Run SeaweedFS by compose's flags on ports and a folder of its own."""
    ports = {name: reserve_port() for name in SERVERS}
    own = [f"-{name}.port={port}" for name, port in ports.items()]
    own += [f"-{name}.port.grpc={reserve_port()}" for name in SERVERS]
    own += [f"-dir={folder}", "-s3.ip.bind=127.0.0.1", "-volume.max=1000"]
    own += ["-master.volumeSizeLimitMB=64"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    if keys:
        env |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with serve([str(BIN / "weed"), *compose_flags(), *own], ports["s3"], env) as url:
        yield url


@contextmanager
def run_rclone(folder: Path) -> Iterator[str]:
    """Run rclone's server of a folder, which checks signatures and ignores conditions."""
    port = reserve_port()
    command = [str(BIN / "rclone"), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    with serve([*command, "--auth-key", f"{KEY},{SECRET}"], port) as url:
        yield url


def credentials(patch: pytest.MonkeyPatch, url: str) -> None:
    """Name a store and its keys in the environment."""
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def new_bucket(patch: pytest.MonkeyPatch) -> str:
    """Make a bucket in a store that this process has not tried yet; return a place in it."""
    import boto3

    patch.setattr(S3Blobs, "honoured", set())
    bucket = f"b{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"
