"""Real servers: `csrm serve` and `mlflow models serve` of one release say the same of a pair."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from release_fixtures import MARKET, market, store_of
from serving_fixtures import HEAD, TOKEN, document, release, route

from csrm_tasks.release import model
from csrm_tasks.settings import Settings

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def server(command: list[str], url: str, env: dict[str, str], log: Path) -> Iterator[int]:
    """Run a server in a session of its own until ``url`` answers 200; ends it by SIGTERM."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, env=os.environ | env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(url):
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield child.pid
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Return the environment of a command that works on ``settings`` and the tiny market."""
    folder.mkdir(exist_ok=True)
    (folder / f"{MARKET}.yaml").write_text(
        yaml.safe_dump(market().model_dump(mode="json", exclude_defaults=True))
    )
    return {
        "CSRM_HOME": str(settings.home), "CSRM_MARKETS": str(folder), "CSRM_SERVING_TOKEN": TOKEN,
    }  # fmt: skip


@pytest.mark.slow
def test_both_servers_say_the_same(settings: Settings, tmp_path: Path) -> None:
    one = release(settings, "a")
    route(settings, document(one))
    saved = model.save(store_of(settings).open(one[1]).path, tmp_path / "work")
    query, ids = "紅色 物品", ["p0", "p1", "p2"]
    titles = ["紅色 3", "0 1 物品"]
    env = environment(settings, tmp_path / "markets")

    port = free_port()
    command = [str(BIN / "csrm"), "serve", "--market", MARKET, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with server(command, f"{url}/readyz", env, tmp_path / "csrm.log"):
        products: list[Any] = [*ids, *({"title": t} for t in titles)]
        asked = {"query": query, "products": products}
        ours = httpx.post(f"{url}/score", json=asked, headers=HEAD).json()["products"]
        assert httpx.post(f"{url}/score", json=asked).status_code == 401
        assert httpx.post(f"{url}/rank", json=asked, headers=HEAD).status_code == 200
    assert TOKEN not in (tmp_path / "csrm.log").read_text()
    [log] = settings.landing.rglob("ubi_queries-*.jsonl")  # SIGTERM: all is published
    assert query in log.read_text()

    port = free_port()
    command = [
        str(BIN / "mlflow"), "models", "serve", "-m", str(saved), "--env-manager", "local",
        "--port", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    rows = [{"query": query, "product_id": i, "title": None} for i in ids]
    rows += [{"query": query, "product_id": None, "title": t} for t in titles]
    env = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with server(command, f"{url}/ping", env, tmp_path / "mlflow.log"):
        got = httpx.post(f"{url}/invocations", json={"dataframe_records": rows}, timeout=60)
        theirs = got.json()["predictions"]
        empty = [{"query": "", "product_id": "p0", "title": None}]
        refused = httpx.post(f"{url}/invocations", json={"dataframe_records": empty}, timeout=60)
        assert (refused.status_code, "row 0: the query is empty" in refused.text) == (400, True)
    names = ("em", "defect", "promotion", "is_defect")
    assert [[p[n] for n in names] for p in ours] == [
        [pytest.approx(p[n], abs=1e-6) for n in names] for p in theirs
    ]


def test_without_a_token_it_does_not_start(settings: Settings, tmp_path: Path) -> None:
    env = environment(settings, tmp_path / "markets") | {"CSRM_SERVING_TOKEN": ""}
    done = subprocess.run(
        [str(BIN / "csrm"), "serve", "--market", MARKET], env=os.environ | env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("csrm: give a token of at least")
