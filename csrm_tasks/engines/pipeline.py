"""``csrm export search-pipeline``: an engine's own re-ranking, which asks ``/score``.

OpenSearch: a connector of ML Commons, the model that stands for it, and a search pipeline of
``ml_inference`` and ``rerank`` by field. All hits of a search are scored by one request; where that
fails, the engine's order stays. Elasticsearch: an inference endpoint of the service ``custom``,
which a ``text_similarity_reranker`` names.

The token stands nowhere: whoever sends the files puts it in the place of :data:`TOKEN`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from csrm_tasks.engines.folders import describe, replaced
from csrm_tasks.engines.formats.records import PRODUCT_ID
from csrm_tasks.errors import ConfigError
from csrm_tasks.json_files import write_json

WHAT = "search-pipeline"
TOKEN, CONNECTOR, MODEL = "<CSRM_SERVING_TOKEN>", "<connector_id>", "<model_id>"
SCORES = "$.products[*].rank_score"  # of an answer of /score, in the order of the request
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
SCORE = "csrm_score"  # field that carries a hit's score from one processor to the next
WINDOW = 100  # hits that are ranked again, in the searches that are written as examples
# What a search gives as ext.rerank.query_context: processors see it without "rerank"
CONTEXT = "_request.ext.query_context"

Files = dict[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Scoring:
    """Where ``/score`` is, and which field of a hit names the product."""

    market: str
    url: str
    products: str

    @property
    def name(self) -> str:
        """Name of what is made in the engine."""
        return f"csrm-{self.market}"


def export_pipeline(
    market: str, to: str, out: Path, url: str, products: str = PRODUCT_ID
) -> list[str]:
    """Write the bodies of an engine's requests into a folder; returns what to tell, in lines.

    ``url`` is the scoring service's, without ``/score``; ``products`` the field of a hit that names
    its product. Raises :class:`ConfigError` for another address than that of a service.
    """
    if not FIELD.fullmatch(products):
        raise ConfigError(f"--id-field {products!r}: name a field of the hits, as {PRODUCT_ID}")
    scoring = Scoring(market, _score_url(url), products)
    files = PIPELINES[to](scoring)
    with replaced(out, WHAT) as folder:
        for name, body in files.items():
            write_json(folder / name, body, sort_keys=False)
        describe(folder, WHAT, {"to": to, "market": market, "url": scoring.url})
    lines = [str(out / name) for name in files]
    if to == "opensearch":
        lines.append(
            "add to plugins.ml_commons.trusted_connector_endpoints_regex: "
            f"^{re.escape(scoring.url)}$"
        )
    return [*lines, f"put the service's token in the place of {TOKEN} when you send it"]


def _score_url(url: str) -> str:
    """Return the address of ``/score``; an address that holds a secret is refused unread."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or not re.fullmatch(r"[\x21-\x7e]+", url) or "$" in url:
        raise ConfigError("--url: give the scoring service's address, as https://scoring.shop.com")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "--url: holds more than an address; the files are no place for a name or a secret"
        )
    return f"{url.rstrip('/')}/score"


def opensearch(scoring: Scoring) -> Files:
    """Return connector, model, search pipeline and a search that uses it."""
    about = f"CSRM's /score of market {scoring.market}"
    connector = {
        "name": scoring.name, "description": about, "version": "1", "protocol": "http",
        "parameters": {}, "credential": {"csrm_token": TOKEN},
        "actions": [{
            "action_type": "predict", "method": "POST", "url": scoring.url,
            "headers": {
                "Authorization": "Bearer ${credential.csrm_token}",
                "Content-Type": "application/json",
            },
            # ML Commons escapes the texts; the products are a list in JSON already
            "request_body": '{"query": "${parameters.query}", "products": ${parameters.products}, '
                            '"session_id": "${parameters.session_id}"}',
        }],
    }  # fmt: skip
    model = {
        "name": scoring.name, "function_name": "remote", "description": about,
        "connector_id": CONNECTOR,
    }  # fmt: skip
    inference = {
        "model_id": MODEL, "function_name": "remote",
        "input_map": [{
            "query": f"{CONTEXT}.query_text", "session_id": f"{CONTEXT}.session_id",
            "products": scoring.products,
        }],
        "output_map": [{SCORE: SCORES}],
        "full_response_path": False, "one_to_one": False, "override": True,
        "ignore_missing": False, "ignore_failure": True,
    }  # fmt: skip
    rerank = {
        "by_field": {"target_field": SCORE, "remove_target_field": True}, "ignore_failure": True,
    }  # fmt: skip
    pipeline = {
        "description": f"Ranks hits by {about}",
        "response_processors": [{"ml_inference": inference}, {"rerank": rerank}],
    }
    context = {"query_text": "QUERY", "session_id": ""}
    search = {
        "query": {"match": {"title": "QUERY"}}, "size": WINDOW,
        "_source": {"excludes": ["csrm_vector"]}, "ext": {"rerank": {"query_context": context}},
    }  # fmt: skip
    return {
        "connector.json": connector, "model.json": model, "search_pipeline.json": pipeline,
        "search.json": search,
    }  # fmt: skip


def elasticsearch(scoring: Scoring) -> Files:
    """Return an inference endpoint and a search that uses it."""
    settings = {
        "secret_parameters": {"csrm_token": TOKEN}, "url": scoring.url,
        "headers": {"Authorization": "Bearer ${csrm_token}", "Content-Type": "application/json"},
        "request": '{"query": ${query}, "products": ${input}}',
        "response": {"json_parser": {"relevance_score": SCORES}},
    }  # fmt: skip
    first = {"standard": {"query": {"match": {"title": "QUERY"}}}}
    reranker = {
        "retriever": first, "field": scoring.products, "inference_id": scoring.name,
        "inference_text": "QUERY", "rank_window_size": WINDOW,
    }  # fmt: skip
    return {
        "inference.json": {"service": "custom", "service_settings": settings},
        "search.json": {"retriever": {"text_similarity_reranker": reranker}, "size": WINDOW},
    }


PIPELINES: Mapping[str, Callable[[Scoring], Files]] = {
    "opensearch": opensearch,
    "elasticsearch": elasticsearch,
}
