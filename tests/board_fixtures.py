"""A real Airflow API server with this checkout's plugins, and a market with releases behind it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from csrm_tasks.board.actions import ACTIONS
from csrm_tasks.markets import MarketConfig
from csrm_tasks.settings import PROJECT_ROOT, Settings
from tests.ports import reserve_port
from tests.release_fixtures import MARKET
from tests.serving.test_serving_process import server

ROLES = {"vera": "viewer", "uli": "user", "olga": "op", "adam": "admin", "nemo": ""}
SECRET = "a secret of the tests, which no page may show"
PREFIX = "/air"  # Airflow's own base path, so that every test is one of it as well
# Airflow's own API server but for its process manager: schema, application, uvicorn.
SERVE = """
import sys
from airflow.utils.db import initdb
initdb()
import uvicorn
from airflow.api_fastapi.app import create_app
uvicorn.run(create_app("core"), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


def gets(market: str) -> tuple[str, ...]:
    """Return what may be asked for below the board's path: pages, and what is none."""
    return (
        "/", f"/markets/{market}", f"/markets/{market}/reports/x", "/markets/none",
        "/markets/..%2f..", "/static/board.css", "/static/", "/static/..%2f..%2fcsrm_board.py",
        "/docs", "/redoc", "/openapi.json", "/nothing/here", "/markets", f"/markets/{market}/",
    )  # fmt: skip


def routes(market: str) -> list[tuple[str, str]]:
    """Return every method and path that the board may be tried by."""
    posts = (*(f"/markets/{market}/{action}" for action in ACTIONS), "/markets/none/hold", "/")
    return [
        *(("GET", path) for path in gets(market)), *(("POST", path) for path in posts),
        ("HEAD", f"/markets/{market}"), ("PUT", f"/markets/{market}"), ("OPTIONS", "/"),
        ("DELETE", f"/markets/{market}/hold"), ("TRACE", "/static/board.css"),
    ]  # fmt: skip


@dataclass
class Airflow:
    """The server, and one logged-in browser for each name of :data:`ROLES`."""

    url: str  # with the base path
    log: Path
    markets: Path  # folder of market files, read at each request
    browsers: dict[str, httpx.Client] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return self.url.removesuffix(PREFIX)

    def browser(self, name: str) -> httpx.Client:
        """Return a browser in which ``name`` is logged in; "" nobody."""
        if name not in self.browsers:
            client = httpx.Client(base_url=f"{self.url}/csrm", timeout=60)
            if name:
                login = {"username": name, "password": f"{name}-pass"}
                found = httpx.post(f"{self.url}/auth/token", json=login, timeout=60)
                client.cookies.set("_token", found.json()["access_token"])
            self.browsers[name] = client
        return self.browsers[name]

    def page(self, name: str, market: str = MARKET) -> str:
        found = self.browser(name).get(f"/markets/{market}")
        assert found.status_code == 200, found.text
        return found.text

    def form(self, name: str, action: str, reason: str = "because of tests") -> dict[str, str]:
        """Return the fields of one form of the page as ``name`` sees it."""
        text = self.page(name)
        [form] = re.findall(rf'<form[^>]*/{action}">(.*?)</form>', text, re.DOTALL)
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))
        return fields | {"reason": reason}

    def send(
        self, name: str, action: str, form: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a form as a browser does."""
        own = {"Origin": self.origin} if headers is None else headers
        path = f"/markets/{MARKET}/{action}"
        return self.browser(name).post(path, data=form, headers=own)


@contextmanager
def airflow(settings: Settings, folder: Path, config: MarketConfig) -> Iterator[Airflow]:
    """Run the server on ``settings`` with one market."""
    port, home = reserve_port(), folder / "airflow"
    home.mkdir()
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({name: f"{name}-pass" for name in ROLES}))
    markets = folder / "markets"
    markets.mkdir()
    write_market(markets, config)
    url = f"http://127.0.0.1:{port}{PREFIX}"
    sections = {
        "CORE": {
            "DAGS_FOLDER": str(folder / "no-dags"), "LOAD_EXAMPLES": "false",
            "PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
            "SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{n}:{role}" for n, role in ROLES.items()),
            "SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        },
        "API": {"BASE_URL": url, "SECRET_KEY": "unused where there is a JWT secret"},
        "API_AUTH": {"JWT_SECRET": SECRET},
    }  # fmt: skip
    env = {
        f"AIRFLOW__{s}__{k}": v for s, values in sections.items() for k, v in values.items()
    } | {
        "AIRFLOW_HOME": str(home), "CSRM_HOME": str(settings.home), "CSRM_MARKETS": str(markets),
        "PYTHONPATH": str(PROJECT_ROOT), "CSRM_MLFLOW_UI": "", "NO_PROXY": "127.0.0.1",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{reserve_port()}",  # away, and said so at once
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    }  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "CSRM"))}
    log = folder / "airflow.log"
    command = [sys.executable, "-c", SERVE, str(port)]
    with server(command, f"{url}/api/v2/monitor/health", kept | env, log):
        found = Airflow(url, log, markets)
        yield found
        for client in found.browsers.values():
            client.close()


def write_market(folder: Path, config: MarketConfig) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True))
    (folder / f"{config.market}.yaml").write_text(text)
