"""Bodies of requests: a list of plain identifiers is taken at once, and as if one by one."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError
from starlette.testclient import TestClient

from csrm_tasks.release.bundle.scorer import Catalogue
from csrm_tasks.serving.requests import MAX_ID, MAX_PRODUCTS, Listing, Product, plain_ids
from csrm_tasks.settings import Settings
from tests.serving_fixtures import document, release, route, serving

EACH: TypeAdapter[list[Any]] = TypeAdapter(
    Annotated[list[Product], Field(min_length=1, max_length=MAX_PRODUCTS)]
)  # every product by itself: slow, and what the rules say
ODD = ["", "\0", "a\0b", "é", "e\u0301", "가", "x" * MAX_ID, "x" * (MAX_ID + 1), "é" * MAX_ID,
       "e\u0301" * MAX_ID, 3, None, True, 1.5, ["a"], {}, {"title": "茶"}, {"id": "a"},
       {"id": "é" * 300, "title": "t"}]  # fmt: skip
PRODUCTS = st.lists(st.text(max_size=12) | st.sampled_from(ODD), max_size=6)


@given(products=PRODUCTS)
@settings(max_examples=400)
def test_products_are_read_as_if_each_were_looked_at_by_itself(products: list[Any]) -> None:
    body = {"query": "tea", "products": products}
    try:
        raw = json.dumps(body).encode()
        raw.decode().encode()
        want = EACH.validate_python(products)
    except ValidationError as e:
        with pytest.raises(ValidationError) as refused:
            Listing.model_validate_json(raw)
        ours = refused.value.errors(include_url=False, include_input=False, include_context=False)
        theirs = e.errors(include_url=False, include_input=False, include_context=False)
        if ours[0]["type"] != "json_invalid":  # half a UTF-16 pair is no JSON already
            assert ours == [{**one, "loc": ("products", *one["loc"])} for one in theirs]
        return
    assert Listing.model_validate_json(raw).products == want


def test_a_list_is_plain_only_where_nothing_in_it_needs_a_look() -> None:
    assert plain_ids(["a"] * MAX_PRODUCTS)
    assert plain_ids(["p 1", "x" * MAX_ID])
    for odd in ODD:
        good = isinstance(odd, str) and odd == "x" * MAX_ID
        assert plain_ids(["a", odd]) is good, odd
    for no_list in ([], ["a"] * (MAX_PRODUCTS + 1), ("a",), "ab", {"a": 1}, None):
        assert not plain_ids(no_list)


BODIES = [
    (b"", "body: Invalid JSON"),
    (b"[" * 100_000, "body: Invalid JSON: recursion limit exceeded"),
    (b'{"query": "1"}', "body.products: Field required"),
    (
        b'{"query": "1", "products": ["p0", 3]}',
        "body.products.1.id: Input should be",
    ),
    (
        b'{"query": "1", "products": ["p0", ""]}',
        "body.products.1.id: ",
    ),
    (b'{"query": "1", "products": [{"title": " "}]}', "body.products.0.item.title: Value error"),
]


def test_what_is_wrong_is_named_by_its_place(settings: Settings) -> None:
    route(settings, document(release(settings, "a")))
    with serving(settings) as (client, _):
        for raw, why in BODIES:
            for kind in ("application/json", "text/plain", ""):
                got = client.post("/score", content=raw, headers={"content-type": kind})
                assert got.status_code == 422
                assert got.json()["error"].startswith(why), (raw[:50], got.json())
        asked = {"query": "1", "products": ["p0"]}
        assert answers(client, asked, "explain=true")
        assert answers(client, asked, "explain=1&other=2")
        for said in ("", "explain=0", "explain=false", "other=1"):
            assert not answers(client, asked, said)
        wrong = client.post("/score?explain=perhaps", json=asked)
        assert (wrong.status_code, wrong.json()["error"][:14]) == (422, "query.explain:")


def answers(client: TestClient, asked: dict[str, Any], said: str) -> bool:
    """Whether the answer to ``asked`` explains itself."""
    got = client.post(f"/score?{said}", json=asked)
    assert got.status_code == 200
    return "explain" in got.json()["products"][0]


def test_snapshots_of_one_catalogue_share_their_identifiers() -> None:
    one, again = Catalogue.of(["a", "e\u0301", "b"]), Catalogue.of(["a", "e\u0301", "b"])
    assert again is one
    assert one == {"a": 0, "é": 1, "b": 2}
    assert Catalogue.of(["a", "b", "e\u0301"]) == {"a": 0, "b": 1, "é": 2}
    assert Catalogue.of(["ab"]) == {"ab": 0}
    assert Catalogue.of(["a", "b"]) == {"a": 0, "b": 1}
