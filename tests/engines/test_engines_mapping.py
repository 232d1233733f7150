"""An index that is there: vectors of another width, kind or comparison are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.engines.formats.records import Field
from csrm_tasks.engines.formats.registry import ENGINES
from csrm_tasks.engines.mapping import check_mapping
from csrm_tasks.errors import DataError
from csrm_tasks.settings import Settings
from tests.engines_fixtures import run
from tests.release_fixtures import DIM, MARKET, market
from tests.release_world import World
from tests.serving_fixtures import document, release, route

FIELD = Field("csrm_vector", DIM, MARKET, "tiny-1", f"id:{MARKET}:product::")


def opensearch(dim: Any, similarity: str, **more: Any) -> str:
    vector = {"type": "knn_vector", "dimension": dim, "method": {"space_type": similarity}} | more
    return answered(vector)


def elasticsearch(dim: Any, similarity: str, **more: Any) -> str:
    return answered({"type": "dense_vector", "dims": dim, "similarity": similarity} | more)


def answered(vector: dict[str, Any]) -> str:
    """What GET INDEX/_mapping answers of a shop's index."""
    properties = {"title": {"type": "text"}, "csrm_vector": vector, "parts": {"properties": {}}}
    return json.dumps({"shop-1": {"mappings": {"dynamic": "false", "properties": properties}}})


def solr(dim: Any, similarity: str, **more: Any) -> str:
    kind = {"name": "v", "class": "solr.DenseVectorField", "vectorDimension": str(dim),
            "similarityFunction": similarity} | more  # fmt: skip
    fields = [{"name": "id", "type": "string"}, {"name": "csrm_vector", "type": "v"}]
    kinds = [{"name": "string", "class": "solr.StrField"}, kind]
    return json.dumps({"schema": {"uniqueKey": "id", "fieldTypes": kinds, "fields": fields}})


def vespa(dim: Any, similarity: str, element: str = "float") -> str:
    return f"""schema item {{ document item {{
        field title type string {{ indexing: index }}
        field csrm_vector type tensor<{element}>(d[{dim}]) {{
            indexing: attribute | index
            attribute {{ distance-metric: {similarity} }}
            index {{ hnsw {{ max-links-per-node: 16 }} }}
        }} }} }}"""


SCHEMAS: dict[str, Any] = {
    "opensearch": opensearch, "elasticsearch": elasticsearch, "solr": solr, "vespa": vespa,
}  # fmt: skip
OTHER = {"opensearch": "l1", "elasticsearch": "hamming", "solr": "none", "vespa": "hamming"}
NARROW: dict[str, dict[str, Any]] = {
    "opensearch": {"data_type": "byte"}, "elasticsearch": {"element_type": "bit"},
    "solr": {"vectorEncoding": "BYTE"}, "vespa": {"element": "int8"},
}  # fmt: skip


def checked(engine: str, text: str, tmp_path: Path) -> str:
    """Return what is said of a schema; "" where it fits."""
    path = tmp_path / "schema"
    path.write_text(text, encoding="utf-8")
    try:
        check_mapping(ENGINES[engine], FIELD, path)
    except DataError as e:
        assert str(path) in str(e) and "\n" not in str(e)
        return str(e)
    return ""


@pytest.mark.parametrize("engine", ENGINES)
def test_an_index_that_ranks_as_the_towers_do_is_taken_and_no_other(
    engine: str, tmp_path: Path
) -> None:
    schema = SCHEMAS[engine]
    for similarity in ENGINES[engine].similarities:
        assert checked(engine, schema(DIM, similarity), tmp_path) == ""
    usual = ENGINES[engine].similarities[0]
    told = checked(engine, schema(DIM + 1, usual), tmp_path)
    assert f"csrm_vector has dimension {DIM + 1}, the vectors of tiny-1 have {DIM}" in told
    told = checked(engine, schema(DIM, OTHER[engine]), tmp_path)
    assert f"compares by {OTHER[engine]}" in told
    assert "of float" in checked(engine, schema(DIM, usual, **NARROW[engine]), tmp_path)
    renamed = schema(DIM, usual).replace("csrm_vector", "other_vector")
    assert "has no field csrm_vector" in checked(engine, renamed, tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_schema_that_is_written_is_one_that_is_taken(engine: str, tmp_path: Path) -> None:
    name, text = ENGINES[engine].schema(FIELD)
    assert checked(engine, text, tmp_path) == ""
    assert str(DIM) in text and ENGINES[engine].similarities[0] in text
    if name.endswith(".json"):
        json.loads(text)


def test_schemas_have_the_fields_that_engines_document(tmp_path: Path) -> None:
    """As of OpenSearch's and Elasticsearch's mapping references, Solr's and Vespa's schemas."""
    about = {"csrm": {"market": MARKET, "release": "tiny-1"}}
    made = {name: engine.schema(FIELD)[1] for name, engine in ENGINES.items()}
    assert json.loads(made["opensearch"]) == {
        "settings": {"index": {"knn": True}},
        "mappings": {"_meta": about, "properties": {
            "product_id": {"type": "keyword"},
            "csrm_vector": {"type": "knn_vector", "dimension": DIM, "method": {
                "name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}}}},
    }  # fmt: skip
    assert json.loads(made["elasticsearch"]) == {
        "mappings": {"_meta": about, "properties": {
            "product_id": {"type": "keyword"},
            "csrm_vector": {"type": "dense_vector", "dims": DIM, "index": True,
                            "similarity": "cosine"}}},
    }  # fmt: skip
    assert json.loads(made["solr"]) == {
        "add-field-type": {"name": "csrm_vector", "class": "solr.DenseVectorField",
                           "vectorDimension": DIM, "similarityFunction": "cosine"},
        "add-field": {"name": "csrm_vector", "type": "csrm_vector", "indexed": True,
                      "stored": True},
    }  # fmt: skip
    plain = re.sub(r"\s+", " ", made["vespa"])
    assert f"field csrm_vector type tensor<float>(x[{DIM}]) {{ indexing: attribute | index" in plain
    assert made["vespa"].count("{") == made["vespa"].count("}")


def test_files_that_are_no_schema_are_told_by_name(tmp_path: Path) -> None:
    for engine in ("opensearch", "elasticsearch", "solr"):
        assert "is not JSON (line 2)" in checked(engine, "{\n", tmp_path)
        for text in ("[]", "{}", "3", '{"mappings": []}', '{"schema": {"fields": [1]}}'):
            assert "has no field csrm_vector" in checked(engine, text, tmp_path)
    assert "has no field" in checked("vespa", "schema x {}", tmp_path)
    no_type = {"schema": {"fields": [{"name": "csrm_vector", "type": "gone"}], "fieldTypes": []}}
    assert "is a None of float" in checked("solr", json.dumps(no_type), tmp_path)
    with pytest.raises(DataError, match="cannot be read as text"):
        check_mapping(ENGINES["solr"], FIELD, tmp_path)


def test_an_export_into_an_index_of_another_width_writes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    World(settings).at_the_command_line(market(), monkeypatch)
    live = release(settings, "a")
    route(settings, document(live))
    (tmp_path / "map.json").write_text(opensearch(768, "cosinesimil"))
    asked = ("vectors", "--to", "opensearch", "--out", tmp_path / "out", "--mapping")
    told = run(capsys, *asked, tmp_path / "map.json", code=2)
    assert f"shop-1: csrm_vector has dimension 768, the vectors of {live[0]} have {DIM}" in told
    assert not (tmp_path / "out").exists()
    (tmp_path / "map.json").write_text(opensearch(DIM, "innerproduct"))
    run(capsys, *asked, tmp_path / "map.json")
