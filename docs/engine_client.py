"""A search by vector, ranked by CSRM: the query's vector, the engine's nearest products, /rank."""

import json
import os
import urllib.request
from typing import Any

CSRM, ENGINE = os.environ["CSRM_URL"], os.environ["ENGINE_URL"]
TOKEN = {"Authorization": f"Bearer {os.environ['CSRM_SERVING_TOKEN']}"}


def post(url: str, body: Any, headers: dict[str, str] | None = None) -> Any:  # noqa: ANN401
    """Send JSON, return the JSON that is answered."""
    kind = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request, timeout=2) as answer:
        return json.load(answer)


def search(query: str, size: int = 100, session_id: str = "") -> dict[str, Any]:
    """Return products best first, and the query_id by which clicks on them go to /events."""
    asked = post(f"{CSRM}/embed", {"query": query}, TOKEN)
    knn = {"csrm_vector": {"vector": asked["vector"], "k": size}}
    body = {"size": size, "query": {"knn": knn}, "_source": {"excludes": ["csrm_vector"]}}
    index = f"products-{asked['release']}"  # a vector means nothing among another release's
    hits = post(f"{ENGINE}/{index}/_search", body)["hits"]["hits"]
    found = {"query": query, "products": [hit["_id"] for hit in hits], "session_id": session_id}
    ranked: dict[str, Any] = post(f"{CSRM}/rank", found, TOKEN) if hits else {"products": []}
    return ranked
