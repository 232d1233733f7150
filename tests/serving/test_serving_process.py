"""Real servers: both score alike; however `csrm serve` ends, what it answered is logged once."""

from __future__ import annotations

import json
import os
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

from csrm_tasks.release.bundle import model
from csrm_tasks.settings import Settings
from tests.ports import reserve_port
from tests.release_fixtures import MARKET, market, store_of
from tests.serving_fixtures import HEAD, TOKEN, document, release, route
from tests.watch import running

BIN = Path(sys.executable).parent


@contextmanager
def server(
    command: list[str], url: str, env: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own until ``url`` answers 200; ends it by SIGTERM."""
    with (
        log.open("wb") as out,
        running(command, env=os.environ | env, stdout=out, stderr=out) as child,
    ):
        deadline = time.monotonic() + 120
        while not _answers(url):
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield child


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def scoring(port: int) -> list[str]:
    """Return the command of a scoring service."""
    return [str(BIN / "csrm"), "serve", "--market", MARKET, "--port", str(port)]


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
    query, ids = " 紅色\u3000\u200b物品 １", ["p0", "p1", "p2"]  # no server gets it normalised
    titles = ["紅色 3", "０ 1\t物品"]
    env = environment(settings, tmp_path / "markets")

    port = reserve_port()
    url = f"http://127.0.0.1:{port}"
    with server(scoring(port), f"{url}/readyz", env, tmp_path / "csrm.log"):
        products: list[Any] = [*ids, *({"title": t} for t in titles)]
        asked = {"query": query, "products": products}
        ours = httpx.post(f"{url}/score", json=asked, headers=HEAD, timeout=60).json()["products"]
        assert httpx.post(f"{url}/score", json=asked, timeout=60).status_code == 401
        assert httpx.post(f"{url}/rank", json=asked, headers=HEAD, timeout=60).status_code == 200
    assert TOKEN not in (tmp_path / "csrm.log").read_text()
    [log] = settings.landing.rglob("ubi_queries-*.jsonl")  # SIGTERM: all is published
    assert query in [json.loads(line)["user_query"] for line in log.open()]

    port = reserve_port()
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
    names = ("em", "defect", "rank_score", "is_defect")
    assert [[p[n] for n in names] for p in ours] == [
        [pytest.approx(p[n], abs=1e-6) for n in names] for p in theirs
    ]


def head_of_a_search(port: int, size: int) -> socket.socket:
    """Send all but the body of a search; returns once the service asks for the body."""
    asker = socket.create_connection(("127.0.0.1", port), timeout=30)
    lines = [
        "POST /rank HTTP/1.1", "Host: service", f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/json", f"Content-Length: {size}", "Expect: 100-continue",
    ]  # fmt: skip
    asker.sendall("\r\n".join([*lines, "", ""]).encode())
    assert asker.recv(1000).startswith(b"HTTP/1.1 100")
    return asker


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.slow
def test_neither_a_kill_nor_an_end_amid_a_request_loses_or_doubles_a_record(
    settings: Settings, tmp_path: Path
) -> None:
    route(settings, document(release(settings, "a")))
    env = environment(settings, tmp_path / "markets")
    asked = {"query": "紅色", "products": ["p0"]}
    port = reserve_port()
    url = f"http://127.0.0.1:{port}"
    with server(scoring(port), f"{url}/readyz", env, tmp_path / "killed.log") as child:
        seen = [
            httpx.post(f"{url}/rank", json=asked, headers=HEAD, timeout=60).json()["query_id"]
            for _ in "123"
        ]
        child.kill()
    with server(scoring(port), f"{url}/readyz", env, tmp_path / "ended.log") as child:
        body = json.dumps(asked).encode()
        with head_of_a_search(port, len(body)) as asker:
            child.terminate()
            while not refuses(port):  # nobody new is let in, who is in is waited for
                time.sleep(0.01)
            asker.sendall(body)
            got = b""
            while more := asker.recv(65_536):
                got += more
        child.wait(30)
    assert got.startswith(b"HTTP/1.1 200")
    seen.append(json.loads(got.split(b"\r\n\r\n", 1)[1])["query_id"])
    landed = [p for p in settings.landing.rglob("*.jsonl") if not p.name.startswith(".")]
    logged = [json.loads(line)["query_id"] for p in landed for line in p.open()]
    assert sorted(logged) == sorted(seen)


def test_without_a_token_it_does_not_start(settings: Settings, tmp_path: Path) -> None:
    env = environment(settings, tmp_path / "markets") | {"CSRM_SERVING_TOKEN": ""}
    done = subprocess.run(
        [str(BIN / "csrm"), "serve", "--market", MARKET], env=os.environ | env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("csrm: give a token of at least")
