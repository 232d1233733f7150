"""MLflow's webhook: what is signed is dealt with at once, what is not changes nothing."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as configured
from hypothesis import strategies as st
from mlflow.webhooks import delivery

from csrm_tasks import tracking
from csrm_tasks.cli.main import main
from csrm_tasks.errors import ConfigError, DataError, DeniedError
from csrm_tasks.release import alias_webhook, ledger
from csrm_tasks.release import mlflow_aliases as registry
from csrm_tasks.settings import Settings, load_settings
from tests.ports import reserve_port
from tests.release_fixtures import MARKET
from tests.release_world import AUTO, MODEL, World
from tests.watch import running

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-of-the-tests"
NOW = 1_800_000_000


def event(model: str = MODEL, entity: str = "model_version_alias", **data: str) -> bytes:
    body = {"entity": entity, "action": "created", "data": {"name": model, **data}}
    return json.dumps(body).encode()


def signed(body: bytes, secret: str = SECRET, at: int | None = None) -> dict[str, str]:
    """Sign as MLflow does, by its own function."""
    stamp = str(int(time.time()) if at is None else at)
    made = delivery._generate_hmac_signature(secret, "d1", stamp, body.decode())
    return {"x-mlflow-delivery-id": "d1", "x-mlflow-timestamp": stamp, "x-mlflow-signature": made}


@given(secret=st.text(min_size=1), body=st.text(), late=st.integers(-300, 300))
@configured(max_examples=200)
def test_what_mlflow_signs_is_taken_and_one_bit_more_is_not(
    secret: str, body: str, late: int
) -> None:
    try:
        raw, _ = body.encode(), secret.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate: MLflow cannot send it either
    headers = signed(raw, secret, NOW)
    alias_webhook.require_signature(secret, headers, raw, NOW + late)
    for other in (
        (secret + "x", headers, raw, NOW),
        (secret, headers, raw + b" ", NOW),
        (secret, headers | {"x-mlflow-delivery-id": "d2"}, raw, NOW),
        (secret, headers | {"x-mlflow-timestamp": str(NOW + 1)}, raw, NOW),
        (secret, headers | {"x-mlflow-signature": headers["x-mlflow-signature"][3:]}, raw, NOW),
        (secret, headers | {"x-mlflow-signature": "é"}, raw, NOW),
        (secret, {}, raw, NOW),
        (secret, headers, raw, NOW + 301),  # kept by somebody and sent again
        (secret, headers, raw, NOW - 301),
    ):
        with pytest.raises(DeniedError):
            alias_webhook.require_signature(*other)


def test_an_event_is_about_the_market_whose_model_it_names() -> None:
    assert alias_webhook.moved(event(), [AUTO]) == [MARKET]
    assert alias_webhook.moved(event("another"), [AUTO]) == []
    assert alias_webhook.moved(event(entity="prompt_alias"), [AUTO]) == []
    for body in (b"", b"{", b"[]", b"null", b'{"entity": "x"}', b'{"entity": "x", "data": []}',
                 b"[" * 100_000, b"\xff"):  # fmt: skip
        with pytest.raises(DataError, match="no event of MLflow"):
            alias_webhook.moved(body, [AUTO])


def test_a_secret_is_asked_for() -> None:
    for env in ({}, {alias_webhook.SECRET: "short"}):
        with pytest.raises(ConfigError, match=alias_webhook.SECRET):
            alias_webhook.read_secret(env)


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    path = ROOT / "plugins/csrm_webhook.py"
    spec = importlib.util.spec_from_file_location("csrm_webhook", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The markets that are reconciled."""
    seen: list[str] = []

    def reconcile(_: Settings, market: str) -> list[str]:
        seen.append(market)
        return []

    monkeypatch.setattr("csrm_tasks.release.manage.reconcile", reconcile)
    monkeypatch.setenv(alias_webhook.SECRET, SECRET)
    return seen


def test_the_route_takes_what_is_signed_and_nothing_else(
    plugin: ModuleType, asked: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(settings).at_the_command_line(AUTO, monkeypatch)
    (settings.home / "markets/broken.yaml").write_text("market: [")  # holds up no other market
    client = TestClient(plugin.application())
    body = event()

    def answer(content: bytes, headers: dict[str, str]) -> int:
        return client.post("/aliases", content=content, headers=headers).status_code

    assert answer(body, signed(body)) == 200 and asked == [MARKET]
    assert answer(body, signed(body, "another-secret")) == 401
    assert answer(body, {}) == 401
    assert answer(body, signed(body, at=1)) == 401
    long = b"x" * (alias_webhook.MAX_BYTES + 1)
    assert answer(long, signed(long)) == 413
    assert answer(b"{}", signed(b"{}")) == 422
    assert answer(event("another"), signed(event("another"))) == 200
    assert client.get("/aliases").status_code == 405
    assert client.get("/").status_code == 404
    assert asked == [MARKET]
    monkeypatch.delenv(alias_webhook.SECRET)
    assert answer(body, signed(body, "")) == 401 and asked == [MARKET]


def test_a_repair_that_fails_is_asked_for_again_and_tells_nothing(
    plugin: ModuleType, asked: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(settings).at_the_command_line(AUTO, monkeypatch)

    def lost(*_: object) -> None:
        raise OSError("postgresql://user:secret@host")

    monkeypatch.setattr("csrm_tasks.release.manage.reconcile", lost)
    got = TestClient(plugin.application()).post(
        "/aliases", content=event(), headers=signed(event())
    )
    assert (got.status_code, got.text) == (503, "not repaired")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real server of MLflow that may send to this machine."""
    port = reserve_port()
    store = load_settings({"CSRM_HOME": str(folder)}).mlflow_uri
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", store,
        "--default-artifact-root", (folder / "made").as_uri(),
    ]  # fmt: skip
    env = os.environ | {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
    }  # fmt: skip
    quiet = subprocess.DEVNULL
    with running(command, stdout=quiet, stderr=quiet, env=env) as server:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: server.poll() is None and answers(f"{url}/health"))
        yield url


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(holds: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    port = reserve_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_a_champion_moved_in_a_real_mlflow_is_put_back_at_once(
    plugin: ModuleType, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with mlflow_server(tmp_path / "mlflow") as uri, listening(plugin.application()) as hook:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv(alias_webhook.SECRET, SECRET)
        world = World(settings, tracking.client(load_settings()))
        world.at_the_command_line(AUTO, monkeypatch)
        # Before any alias moves: the server remembers for a while whom it has to tell of that.
        for _ in range(2):  # the second time it is the same one
            assert main(["release", "webhook", "--url", f"{hook}/aliases"]) == 0
        assert len(world.api.list_webhooks()) == 1
        assert main(["release", "webhook", "--url", "ftp://somewhere"]) == 2
        said = capsys.readouterr()
        assert "MLflow does not take ftp://somewhere" in said.err
        assert SECRET not in said.out + said.err
        live, other = world.release("live"), world.release("other")
        world.promote(live)
        versions = registry.versions(world.api, MODEL)

        def reverted() -> list[ledger.Entry]:
            rows = ledger.verified(settings, MARKET)
            return [r for r in rows if r.action == "reverted"]

        def champion() -> str | None:
            return registry.read_aliases(world.api, MODEL).aliases.get("champion")

        world.api.set_registered_model_alias(MODEL, "champion", versions[other.id])
        wait_until(lambda: len(reverted()) == 1 and champion() == versions[live.id])
        world.api.delete_registered_model_alias(MODEL, "champion")
        wait_until(lambda: len(reverted()) == 2 and champion() == versions[live.id])
        assert main(["release", "copy", "--market", MARKET, "--to", "prod.tiny"]) == 0
        copied = world.api.get_model_version_by_alias("prod.tiny", "champion")
        assert copied.source == f"models:/{MODEL}/{versions[live.id]}"
