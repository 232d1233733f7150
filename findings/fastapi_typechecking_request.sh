#!/usr/bin/env bash
# What: FastAPI takes an annotation that it cannot resolve for a query parameter, without a word.
# Where `Request` is imported under TYPE_CHECKING only, the application starts, the route is there,
# and every request to it is answered 422, "query.request: Field required". Routes of Starlette's
# kind (add_route) call the function with the request and look at no annotation.
# Version: fastapi 0.136.3.
# Why it matters: files that many processes load and that therefore import nothing heavy at their
# top, such as Airflow's plugins, write exactly that; nothing fails before the first request.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fastapi==0.136.3 httpx==0.28.1
cat > "$folder/routes.py" <<'PY'
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import Request, Response


def page(request: Request) -> Response:
    from fastapi.responses import PlainTextResponse

    return PlainTextResponse(f"asked for {request.url.path}")
PY
cat > "$folder/try.py" <<'PY'
import asyncio

import httpx
from fastapi import FastAPI
from routes import page

app = FastAPI()
app.add_api_route("/api-route", page, methods=["GET"], response_model=None)
app.add_route("/route", page, methods=["GET"])


async def main() -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        found = {path: await client.get(path) for path in ("/api-route", "/route")}
    for path, answer in found.items():
        print(path, answer.status_code, answer.text)
    assert found["/api-route"].status_code == 422
    assert found["/api-route"].json()["detail"][0]["loc"] == ["query", "request"]
    assert found["/route"].text == "asked for /route"


asyncio.run(main())
PY
cd "$folder"
"$folder/venv/bin/python" try.py
