"""Small stand-ins of OpenSearch and Elasticsearch: they refuse bodies of another shape than the
engines document, and do what the bodies say.

No such engine runs here. Shapes are those of ML Commons' and neural-search's sources and of
OpenSearch's and Elasticsearch's references and specifications; what a pipeline does to a text
(gathering by hit, escaping, substitution, reading by path) follows ML Commons' code step by step.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from pydantic import ValidationError

from tests.engines_shapes import (
    ByField,
    Connector,
    Inference,
    InferenceSettings,
    MlInference,
    Model,
    Pipeline,
    Processor,
    Search,
    TextSimilarityReranker,
)


class RefusedByEngineError(Exception):
    """What the engine answers with an error."""


def read_path(value: Any, path: str) -> Any:
    """Read a JSON path of names and ``[*]``; raises :class:`RefusedByEngineError` where it leads
    nowhere.

    With ``[*]`` it is a list of what is found, as JsonPath's indefinite paths are.
    """
    found, many = [value], False
    for name, star in re.findall(r"([A-Za-z_]\w*)(\[\*\])?", path.removeprefix("$.")):
        found = [one[name] for one in found if isinstance(one, dict) and name in one]
        if star:
            many, found = True, [x for one in found for x in one]
    if many:
        return found
    if not found:
        raise RefusedByEngineError(f"no {path}")
    return found[0]


def substituted(text: str, values: Mapping[str, str], prefix: str) -> str:
    """Fill in ``${prefix.name}``; what is not known stays."""
    pattern = rf"\$\{{{re.escape(prefix)}\.(\w+)\}}"
    return re.sub(pattern, lambda m: values.get(m[1], m[0]), text)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _as_parameter(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def model_parameters(
    inference: MlInference, sources: list[dict[str, Any]], request: Mapping[str, Any]
) -> dict[str, str]:
    """Return what the processor hands to the model: of all hits, as many-to-one inference does.

    A field of the request is taken once; of the hits' fields a list is made, which is then text.
    """
    assert not inference.one_to_one
    gathered: dict[str, Any] = {}
    for name, path in inference.input_map[0].items():
        if path.removeprefix("$.").startswith("_request."):
            gathered[name] = read_path(request, path.removeprefix("$.").removeprefix("_request."))
        else:
            gathered[name] = [read_path(source, path) for source in sources]
    parameters = {name: _as_parameter(value) for name, value in gathered.items()}
    body = substituted(inference.model_input, {"parameters": json.dumps(parameters)},
                       "ml_inference")  # fmt: skip
    sent: dict[str, Any] = json.loads(body)["parameters"]
    return {name: _as_parameter(value) for name, value in sent.items()}


def payload(connector: Connector, parameters: Mapping[str, str]) -> str:
    """Return the body of the connector's request: texts are escaped, what is JSON is not."""
    escaped = {
        name: value if _is_json(value) else json.dumps(value)[1:-1]
        for name, value in {**connector.parameters, **parameters}.items()
    }
    body = substituted(connector.actions[0].request_body, escaped, "parameters")
    if not _is_json(body):
        raise RefusedByEngineError(f"Invalid payload: {body}")
    return body


def send(method: str, url: str, body: str | None, headers: Mapping[str, str]) -> tuple[int, Any]:
    """Make a request; returns status and what was answered."""
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


class Engine:
    """Indexes by name, each documents by id in the order of their arrival, and their mapping."""

    def __init__(self) -> None:
        self.indexes: dict[str, dict[str, dict[str, Any]]] = {}
        self.mappings: dict[str, Any] = {}
        self.sent: list[str] = []  # bodies that went to the scoring service

    def handle(self, method: str, path: str, asked: Mapping[str, list[str]], text: str) -> Any:
        """Answer one request."""
        parts = path.strip("/").split("/")
        if parts[-1] == "_bulk":
            return self.bulk(parts[0], text)
        return self.answer(method, parts, asked, json.loads(text))

    def answer(
        self, method: str, parts: list[str], asked: Mapping[str, list[str]], body: Any
    ) -> Any:
        """Answer one request but bulk bodies."""
        raise NotImplementedError

    def put_index(self, name: str, body: Any) -> Any:
        assert name == name.lower()
        self.indexes[name], self.mappings[name] = {}, body["mappings"]["properties"]
        return {"acknowledged": True}

    def bulk(self, name: str, text: str) -> Any:
        """Do a bulk body's actions, as _core.bulk.yaml describes them."""
        assert text.endswith("\n")
        index = self.indexes[name]
        lines = iter(text[:-1].split("\n"))
        for line in lines:
            ((action, about),) = json.loads(line).items()
            if action == "delete":
                index.pop(about["_id"], None)
                continue
            assert action == "update"
            body = json.loads(next(lines))
            assert body.pop("doc_as_upsert") is True
            for field, value in body["doc"].items():
                kind = self.mappings[name][field]
                if kind["type"] in ("knn_vector", "dense_vector"):
                    assert len(value) == kind.get("dimension", kind.get("dims"))
            index.setdefault(about["_id"], {}).update(body["doc"])
        return {"errors": False}

    def first_pass(self, name: str, query: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
        """Return hits: by cosine to a vector, else in the order of arrival."""
        scores = {p: 1.0 / (i + 1) for i, p in enumerate(self.indexes[name])}
        knn = query.get("knn")
        if knn:
            ((field, asked),) = knn.items()
            wanted = np.array(asked["vector"])
            for product, document in self.indexes[name].items():
                vector = np.array(document[field])
                cosine = wanted @ vector / np.linalg.norm(wanted) / np.linalg.norm(vector)
                scores[product] = float(1 + cosine) / 2
        ranked = sorted(scores, key=lambda p: -scores[p])[:size]
        return [
            {"_id": p, "_score": scores[p], "_source": dict(self.indexes[name][p])} for p in ranked
        ]

    def ask(self, url: str, headers: Mapping[str, str], body: str) -> Any:
        """Ask the scoring service; raises :class:`RefusedByEngineError` where it refuses."""
        self.sent.append(body)
        status, answer = send("POST", url, body, headers)
        if status != 200:
            raise RefusedByEngineError(f"Error from remote service: {answer}")
        return answer


class OpenSearch(Engine):
    """Connectors, models, search pipelines."""

    def __init__(self) -> None:
        super().__init__()
        self.trusted: list[str] = []
        self.connectors: dict[str, Connector] = {}
        self.models: dict[str, str] = {}
        self.pipelines: dict[str, Pipeline] = {}

    def answer(
        self, method: str, parts: list[str], asked: Mapping[str, list[str]], body: Any
    ) -> Any:
        """Answer one request but bulk bodies."""
        match method, *parts:
            case "PUT", "_cluster", "settings":
                name = "plugins.ml_commons.trusted_connector_endpoints_regex"
                self.trusted = body["persistent"][name]
                return {"acknowledged": True}
            case "POST", "_plugins", "_ml", "connectors", "_create":
                return {"connector_id": self._connector(body)}
            case "POST", "_plugins", "_ml", "models", "_register":
                made = Model.model_validate(body)
                assert made.connector_id in self.connectors
                self.models["m1"] = made.connector_id
                return {"task_id": "t1", "status": "CREATED", "model_id": "m1"}
            case "PUT", "_search", "pipeline", name:
                self.pipelines[name] = Pipeline.model_validate(body)
                return {"acknowledged": True}
            case "PUT", name:
                assert body["settings"] == {"index": {"knn": True}}
                return self.put_index(name, body)
            case "POST", name, "_search":
                used = asked.get("search_pipeline", [None])[0]
                return self._search(name, Search.model_validate(body), used)
        raise RefusedByEngineError(f"{method} /{'/'.join(parts)}")

    def _connector(self, body: Any) -> str:
        made = Connector.model_validate(body)
        if not any(re.fullmatch(regex, made.actions[0].url) for regex in self.trusted):
            raise RefusedByEngineError("connector URL is not matching the trusted endpoint regex")
        self.connectors["c1"] = made
        return "c1"

    def _search(self, name: str, search: Search, pipeline: str | None) -> Any:
        hits = self.first_pass(name, search.query, search.size)
        for hit in hits:
            for field in search.source.get("excludes", []):
                hit["_source"].pop(field, None)
        # The extension's builder writes what it holds without its own name
        seen = {"query": search.query, "ext": search.ext.rerank.model_dump() if search.ext else {}}
        for processor in self.pipelines[pipeline].response_processors if pipeline else []:
            hits = self._processed(processor, hits, seen)
        return {"hits": {"total": {"value": len(hits)}, "hits": hits}}

    def _processed(
        self, processor: Processor, hits: list[dict[str, Any]], request: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        step = processor.ml_inference or processor.rerank
        assert step is not None
        try:
            if isinstance(step, MlInference):
                return self._inferred(step, hits, request)
            return _reranked(step.by_field, hits)
        except RefusedByEngineError:
            if step.ignore_failure:
                return hits
            raise

    def _inferred(
        self, step: MlInference, hits: list[dict[str, Any]], request: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        connector = self.connectors[self.models[step.model_id]]
        parameters = model_parameters(step, [hit["_source"] for hit in hits], request)
        action = connector.actions[0]
        headers = {
            k: substituted(v, connector.credential, "credential") for k, v in action.headers.items()
        }
        answer = self.ask(action.url, headers, payload(connector, parameters))
        for field, path in step.output_map[0].items():
            found = read_path(answer, path)
            assert isinstance(found, list) and len(found) == len(hits)
            for hit, value in zip(hits, found, strict=True):
                if step.override or field not in hit["_source"]:
                    hit["_source"][field] = value
        return hits


def _reranked(by: ByField, hits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = [read_path(hit["_source"], by.target_field) for hit in hits]
    if not all(isinstance(score, int | float) for score in scores):
        raise RefusedByEngineError("The field mapping to rerank by is not Numerical")
    for hit, score in zip(hits, scores, strict=True):
        hit["_score"] = score
        if by.remove_target_field:
            del hit["_source"][by.target_field]
    return sorted(hits, key=lambda hit: -hit["_score"])


class Elasticsearch(Engine):
    """Inference endpoints of the service custom, and the retriever that uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoints: dict[str, InferenceSettings] = {}

    def answer(
        self, method: str, parts: list[str], asked: Mapping[str, list[str]], body: Any
    ) -> Any:
        """Answer one request but bulk bodies."""
        match method, *parts:
            case "PUT", "_inference", "rerank", name:
                self.endpoints[name] = Inference.model_validate(body).service_settings
                return {"inference_id": name, "task_type": "rerank", **body}
            case "PUT", name:
                assert set(body) == {"mappings"}
                return self.put_index(name, body)
            case "POST", name, "_search":
                assert set(body) <= {"retriever", "size"}
                ((kind, inner),) = body["retriever"].items()
                assert kind == "text_similarity_reranker"
                return self._search(name, TextSimilarityReranker.model_validate(inner))
        raise RefusedByEngineError(f"{method} /{'/'.join(parts)}")

    def _search(self, name: str, reranker: TextSimilarityReranker) -> Any:
        query = reranker.retriever["standard"]["query"]
        hits = self.first_pass(name, query, reranker.rank_window_size)
        settings = self.endpoints[reranker.inference_id]
        values = {
            **settings.secret_parameters,
            "query": json.dumps(reranker.inference_text),
            "input": json.dumps([hit["_source"][reranker.field] for hit in hits]),
        }
        headers = {k: _template(v, values) for k, v in settings.headers.items()}
        answer = self.ask(settings.url, headers, _template(settings.request, values))
        scores = read_path(answer, settings.response["json_parser"]["relevance_score"])
        assert scores and len(scores) == len(hits)
        for hit, score in zip(hits, scores, strict=True):
            hit["_score"] = score
        return {"hits": {"hits": sorted(hits, key=lambda hit: -hit["_score"])}}


def _template(text: str, values: Mapping[str, str]) -> str:
    """Fill in ``${name}``; one that is not known is an error."""
    return re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], text)


@contextmanager
def listening(engine: OpenSearch | Elasticsearch) -> Iterator[str]:
    """Serve an engine on a real socket; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            url = urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            status = 200
            try:
                found = engine.handle(self.command, url.path, parse_qs(url.query), text)
            except (RefusedByEngineError, ValidationError, AssertionError) as e:
                status, found = 400, {"error": {"reason": f"{type(e).__name__}: {e}"}}
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
