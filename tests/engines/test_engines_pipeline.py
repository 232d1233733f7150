"""Search pipelines against stand-ins of the engines and the real scoring service.

The stand-ins check every body's shape and do what it says: so a templated request is one that
``/score`` takes, and its answer is read by the path that the pipeline names.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as rounds
from hypothesis import strategies as st

from csrm_tasks.engines.pipeline import Scoring, opensearch
from csrm_tasks.serving.app import Service
from csrm_tasks.serving.requests import Listing
from csrm_tasks.settings import PROJECT_ROOT, Settings
from csrm_tasks.text import compose, normalise
from tests.engines_fixtures import drawn, refresh, run, scoring
from tests.engines_servers import (
    Elasticsearch,
    OpenSearch,
    RefusedByEngineError,
    listening,
    model_parameters,
    payload,
    send,
)
from tests.engines_shapes import Connector, MlInference
from tests.release_fixtures import MARKET, market
from tests.release_world import World
from tests.serving_fixtures import HEAD, TOKEN, document, release, route

JSON = {"Content-Type": "application/json"}
CATALOGUE = drawn(*(f"p{i}" for i in range(8)))
QUERY = '紅色 27" \\ 物品 / 500g 👍'


class Running(NamedTuple):
    """A live release, its service and both engines, on real sockets."""

    live: tuple[str, str]
    url: str
    service: Service
    opensearch: OpenSearch
    elasticsearch: Elasticsearch
    at: dict[str, str]  # address by engine


@pytest.fixture
def running(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    World(settings).at_the_command_line(market(), monkeypatch)
    live = release(settings, "a")
    route(settings, document(live))
    refresh(settings, "one", live, CATALOGUE)
    one, other = OpenSearch(), Elasticsearch()
    with (
        scoring(settings) as (url, service),
        listening(one) as first,
        listening(other) as second,
    ):
        at = {"opensearch": first, "elasticsearch": second}
        yield Running(live, url, service, one, other, at)


def call(method: str, url: str, body: str | None) -> Any:
    status, answer = send(method, url, body, JSON)
    assert status == 200, answer
    return answer


def indexed(running: Running, engine: str, out: Path, capsys: Any) -> str:
    """Export the vectors and put them into an index of the engine; returns its address."""
    run(capsys, "vectors", "--to", engine, "--out", out)
    address = f"{running.at[engine]}/products-{running.live[0]}"
    call("PUT", address, (out / "index.json").read_text())
    for part in sorted(out.glob("*.ndjson")):
        assert not call("POST", f"{address}/_bulk", part.read_text())["errors"]
    return address


def installed(running: Running, out: Path, capsys: Any, *more: str, token: str = TOKEN) -> None:
    """Export OpenSearch's pipeline and send it, as docs/ENGINES.md does."""
    told = run(capsys, "search-pipeline", "--to", "opensearch", "--out", out,
               "--url", f"{running.url}/", *more)  # fmt: skip
    regex = re.search(r"trusted_connector_endpoints_regex: (.+)", told)
    assert regex is not None and TOKEN not in "".join(p.read_text() for p in out.iterdir())
    address = running.at["opensearch"]
    name = "plugins.ml_commons.trusted_connector_endpoints_regex"
    call("PUT", f"{address}/_cluster/settings", json.dumps({"persistent": {name: [regex[1]]}}))

    def filled(file: str, placeholder: str, value: str) -> str:
        text = (out / file).read_text()
        assert text.count(placeholder) == 1
        return text.replace(placeholder, value)

    made = call("POST", f"{address}/_plugins/_ml/connectors/_create",
                filled("connector.json", "<CSRM_SERVING_TOKEN>", token))  # fmt: skip
    model = call("POST", f"{address}/_plugins/_ml/models/_register?deploy=true",
                 filled("model.json", "<connector_id>", made["connector_id"]))  # fmt: skip
    call("PUT", f"{address}/_search/pipeline/csrm-{MARKET}",
         filled("search_pipeline.json", "<model_id>", model["model_id"]))  # fmt: skip


def searched(address: str, out: Path, query: str = QUERY, session: str = "") -> list[Any]:
    """Do the search that the export has as its example; returns hits."""
    body = json.loads((out / "search.json").read_text())
    assert json.dumps(body).count("QUERY") == 2
    body["query"]["match"]["title"] = query
    body["ext"]["rerank"]["query_context"] = {"query_text": query, "session_id": session}
    url = f"{address}/_search?search_pipeline=csrm-{MARKET}"
    found = call("POST", url, json.dumps(body))
    return list(found["hits"]["hits"])


def scored(running: Running, query: str, products: list[Any], session: str = "") -> dict[str, Any]:
    """Ask /score directly; returns the score to rank by of each product."""
    body = {"query": query, "products": products, "session_id": session}
    status, answer = send("POST", f"{running.url}/score", json.dumps(body), HEAD | JSON)
    assert status == 200, answer
    return {one["id"]: one["rank_score"] for one in answer["products"]}


def test_opensearch_ranks_its_hits_by_score(running: Running, tmp_path: Path, capsys: Any) -> None:
    address = indexed(running, "opensearch", tmp_path / "vectors", capsys)
    installed(running, tmp_path / "pipeline", capsys)
    wanted = scored(running, QUERY, list(CATALOGUE))
    hits = searched(address, tmp_path / "pipeline")
    assert [hit["_id"] for hit in hits] == sorted(wanted, key=lambda p: -wanted[p])
    assert [hit["_id"] for hit in hits] != list(CATALOGUE)
    assert {hit["_id"]: hit["_score"] for hit in hits} == wanted
    assert {frozenset(hit["_source"]) for hit in hits} == {frozenset({"product_id"})}
    (sent,) = running.opensearch.sent  # one request for all hits
    assert json.loads(sent)["query"] == QUERY


def test_a_search_is_answered_by_its_sessions_release(
    settings: Settings, running: Running, tmp_path: Path, capsys: Any
) -> None:
    new = release(settings, "b")
    refresh(settings, "two", new, drawn(*CATALOGUE, seed=5))
    weights = {"stable": 50, "next": 50, "holdout": 0}
    route(settings, document(running.live, next=new[0], weights=weights, seq=2,
                             bundles=dict([running.live, new])))  # fmt: skip
    running.service.follower.poll()
    address = indexed(running, "opensearch", tmp_path / "vectors", capsys)
    installed(running, tmp_path / "pipeline", capsys)
    seen = set()
    for session in ("", "s1", "s2", "s3", "s4", '7"'):
        wanted = scored(running, QUERY, list(CATALOGUE), session)
        hits = searched(address, tmp_path / "pipeline", session=session)
        assert {hit["_id"]: hit["_score"] for hit in hits} == wanted
        seen.add(tuple(hit["_id"] for hit in hits))
    assert len(seen) == 2


def test_what_cannot_be_scored_keeps_the_engines_order(
    settings: Settings, running: Running, tmp_path: Path, capsys: Any
) -> None:
    address = indexed(running, "opensearch", tmp_path / "vectors", capsys)
    installed(running, tmp_path / "pipeline", capsys)
    index = running.opensearch.indexes[address.rsplit("/", 1)[1]]

    def order() -> list[str]:
        return [hit["_id"] for hit in searched(address, tmp_path / "pipeline")]

    ranked = order()
    index["odd"] = {"title": "no product_id"}
    assert order() == list(index)
    index["odd"] = {"product_id": "not embedded yet"}
    assert order() == list(index)
    del index["odd"]
    assert order() == ranked
    body = {"query": {"match": {"title": QUERY}}}  # a search that says nothing for the pipeline
    url = f"{address}/_search?search_pipeline=csrm-{MARKET}"
    found = call("POST", url, json.dumps(body))["hits"]["hits"]
    assert [hit["_id"] for hit in found] == list(index)
    installed(running, tmp_path / "pipeline", capsys, token="not-the-services-token")
    assert order() == list(index)


def test_a_field_with_titles_lets_products_be_scored_that_are_not_embedded_yet(
    running: Running, tmp_path: Path, capsys: Any
) -> None:
    address = indexed(running, "opensearch", tmp_path / "vectors", capsys)
    installed(running, tmp_path / "pipeline", capsys, "--id-field", "csrm.product")
    index = running.opensearch.indexes[address.rsplit("/", 1)[1]]
    index["new"] = {}
    items = {p: {"id": p, "title": f'物品 "{p}"', "category": "1"} for p in index}
    for product, item in items.items():
        index[product] = {"csrm": {"product": item}}
    hits = searched(address, tmp_path / "pipeline")
    wanted = scored(running, QUERY, list(items.values()))
    assert {hit["_id"]: hit["_score"] for hit in hits} == wanted and "new" in wanted


def test_elasticsearch_ranks_its_hits_by_score(
    running: Running, tmp_path: Path, capsys: Any
) -> None:
    address = indexed(running, "elasticsearch", tmp_path / "vectors", capsys)
    out = tmp_path / "pipeline"
    run(capsys, "search-pipeline", "--to", "elasticsearch", "--out", out, "--url", running.url)
    text = (out / "inference.json").read_text()
    assert TOKEN not in text and text.count("<CSRM_SERVING_TOKEN>") == 1
    endpoint = f"{running.at['elasticsearch']}/_inference/rerank/csrm-{MARKET}"
    call("PUT", endpoint, text.replace("<CSRM_SERVING_TOKEN>", TOKEN))
    body = json.loads((out / "search.json").read_text())
    body["retriever"]["text_similarity_reranker"]["inference_text"] = QUERY
    hits = call("POST", f"{address}/_search", json.dumps(body))["hits"]["hits"]
    wanted = scored(running, QUERY, list(CATALOGUE))
    assert [hit["_id"] for hit in hits] == sorted(wanted, key=lambda p: -wanted[p])
    assert {hit["_id"]: hit["_score"] for hit in hits} == wanted


TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40).filter(
    lambda text: bool(normalise(text)) and "${" not in text
)
IDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)


def is_container(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


@rounds(max_examples=200)
@given(TEXTS, st.lists(IDS, min_size=1, max_size=5), IDS | st.just(""))
def test_whatever_is_searched_for_the_templated_request_is_one_that_score_takes(
    query: str, products: list[str], session: str
) -> None:
    files = opensearch(Scoring(MARKET, "https://s/score", "product_id"))
    connector = Connector.model_validate(files["connector.json"])
    step = files["search_pipeline.json"]["response_processors"][0]["ml_inference"]
    sources = [{"product_id": p, "title": "x"} for p in products]
    context = {"query_context": {"query_text": query, "session_id": session}}
    parameters = model_parameters(MlInference.model_validate(step), sources, {"ext": context})
    try:
        body = payload(connector, parameters)
    except RefusedByEngineError:  # ML Commons escapes no text that is JSON
        assert is_container(query) or is_container(session)
        return
    listing = Listing.model_validate_json(body)
    assert listing.query == compose(query) and listing.session_id == compose(session)
    assert listing.ids() == [compose(p) for p in products]


def test_a_text_that_is_json_itself_is_refused_by_the_engine_and_not_sent_wrongly(
    running: Running, tmp_path: Path, capsys: Any
) -> None:
    address = indexed(running, "opensearch", tmp_path / "vectors", capsys)
    installed(running, tmp_path / "pipeline", capsys)
    hits = searched(address, tmp_path / "pipeline", query='["led"]')
    assert [hit["_id"] for hit in hits] == list(CATALOGUE) and running.opensearch.sent == []


def test_an_address_that_is_none_or_holds_a_secret_is_refused(
    running: Running, tmp_path: Path, capsys: Any
) -> None:
    asked = ("search-pipeline", "--to", "opensearch", "--out", tmp_path / "out", "--url")
    for url in (
        "",
        "shop.com",
        "ftp://shop.com",
        "https://",
        "https://a b",
        "https://[1",
        "https://x${y}",
    ):
        assert "--url: give the scoring service's address" in run(capsys, *asked, url, code=2)
    for url in ("https://me:s3cret@shop.com", "https://shop.com/?token=s3cret", "https://x#s3cret"):
        told = run(capsys, *asked, url, code=2)
        assert "no place for a name or a secret" in told and "s3cret" not in told
    for name in ("", "a b", "a..b", "$._request.x"):
        assert "--id-field" in run(capsys, *asked, running.url, "--id-field", name, code=2)
    assert not (tmp_path / "out").exists()


def test_the_same_pipeline_again_is_the_same_bytes_and_replaces_no_vectors(
    running: Running, tmp_path: Path, capsys: Any
) -> None:
    asked = ("search-pipeline", "--to", "opensearch", "--url", "https://s.shop.com/x", "--out")
    run(capsys, *asked, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    run(capsys, *asked, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    run(capsys, "vectors", "--to", "opensearch", "--out", tmp_path / "vectors")
    assert "no earlier search-pipeline" in run(capsys, *asked, tmp_path / "vectors", code=2)


def test_the_client_of_the_docs_finds_by_vector_and_ranks(
    running: Running, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(running, "opensearch", tmp_path / "vectors", capsys)
    monkeypatch.setenv("CSRM_URL", running.url)
    monkeypatch.setenv("ENGINE_URL", running.at["opensearch"])
    monkeypatch.setenv("CSRM_SERVING_TOKEN", TOKEN)
    path = PROJECT_ROOT / "docs" / "engine_client.py"
    spec = importlib.util.spec_from_file_location("engine_client", path)
    assert spec is not None and spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    answer = client.search(QUERY, size=5, session_id="s1")
    asked = send("POST", f"{running.url}/embed", json.dumps({"query": QUERY}), HEAD | JSON)[1]
    cosine = {p: float(np.dot(asked["vector"], v[0])) for p, v in CATALOGUE.items()}
    nearest = sorted(cosine, key=lambda p: -cosine[p])[:5]
    body = {"query": QUERY, "products": nearest, "session_id": "s1"}
    ranked = send("POST", f"{running.url}/rank", json.dumps(body), HEAD | JSON)[1]
    assert answer["products"] == ranked["products"] and answer["release"] == running.live[0]
    assert {*answer["products"], *answer["defects"]} == set(nearest)
    lines = [line for line in path.read_text().split("\n")[8:] if line.strip()]
    assert len(lines) <= 22
