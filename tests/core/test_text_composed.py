"""One form of a text (Unicode NFC), whichever form it comes in and whichever way."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from polars.testing import assert_frame_equal

from csrm_tasks import text as text_module
from csrm_tasks.ingest.contract.contracts import CONTRACTS
from csrm_tasks.ingest.reading.readers import read_batches
from csrm_tasks.ingest.validation import validate
from csrm_tasks.ingest.validation.validate import validate_batch
from csrm_tasks.lexical.analyser import truncate_title
from csrm_tasks.llm.prompt.prompts import RELEVANCE as SPACE
from csrm_tasks.llm.prompt.prompts import (
    ProductFields,
    QueryFields,
    product_segments,
    query_segments,
)
from csrm_tasks.release.bundle.scorer import ProductVectors
from csrm_tasks.sections import Ingest
from csrm_tasks.serving.requests import Event, Search
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.store import lake, tables
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.tables import FILES
from csrm_tasks.text import compose, composed, composed_frame, language_of, spellings
from tests.data_fixtures import DAY0, DAY1, KO, ZH, event, ingest, label, land_lines, product
from tests.data_fixtures import search as searched

TEXTS = ["농심 안성탕면 500ml", "ガンダム プラモデル", 'café 27"', "Ω 5 Å", "plain", "牛奶", ""]


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_every_character_is_composed_as_the_standard_library_does() -> None:
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # alone, behind a base that takes marks, and behind a syllable that takes a final consonant
    for before in ("", "a", "가"):
        texts = [before + p for p in points]
        changed = [t for t in texts if not unicodedata.is_normalized("NFC", t)]
        expected = [unicodedata.normalize("NFC", t) for t in changed]
        assert len(changed) > 1_000
        assert composed(pl.Series(changed)).to_list() == expected == [*map(compose, changed)]
        # each is seen by itself, not only beside others
        assert pl.Series(changed).str.contains(text_module.COMPOSABLE).all()


def test_frames_and_lists_are_composed_and_other_columns_stay() -> None:
    frame = pl.DataFrame({"t": TEXTS, "n": range(len(TEXTS)), "l": [TEXTS] * len(TEXTS)})
    other = frame.with_columns(
        pl.Series("t", map(decomposed, TEXTS)),
        pl.Series("l", [list(map(decomposed, TEXTS))] * len(TEXTS)),
    )
    assert_frame_equal(composed_frame(other), composed_frame(frame))
    assert composed_frame(frame)["t"].to_list() == [compose(t) for t in TEXTS]
    assert set(spellings(pl.Series(["가", "a"]))) == {"가", decomposed("가"), "a"}


ROWS: dict[str, list[dict[str, Any]]] = {
    "catalogue": [product(1, "안성탕면", "농심", "식품 > 라면") | {"product_id": "상품1"}],
    "labels": [label("라벨", "안성탕면", "상품1", 2, "평가자")],
    "translations": [{"translation_id": "번역1", "kind": "title", "source_text": "라면",
                      "target_text": "ガム"}],
    "ubi_queries": [searched("검색", "안성탕면")],
    "ubi_events": [event("검색", "click", "상품1", 1)],
}  # fmt: skip


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    flat = [{k: v for k, v in r.items() if not isinstance(v, dict)} for r in rows]
    return pl.DataFrame(flat).write_csv().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    pl.DataFrame(rows).write_parquet(target)
    return target.getvalue()


CARRIERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("written", CARRIERS)
def test_a_delivery_in_either_form_is_the_same(kind: str, written: str, tmp_path: Path) -> None:
    def clean(rows: list[dict[str, Any]]) -> pl.DataFrame:
        path = tmp_path / "delivery"
        path.write_bytes(CARRIERS[written](rows))
        batches = read_batches(path, written, "", CONTRACTS[kind])
        return pl.concat(validate_batch(b, CONTRACTS[kind], DAY0, Ingest()).clean for b in batches)

    rows = ROWS[kind]
    if kind == "ubi_events" and written == "csv":
        rows = [{k: v for k, v in rows[0].items() if k != "event_attributes"}
                | {"object_id": "상품1"}]  # fmt: skip
    other = json.loads(decomposed(json.dumps(rows, ensure_ascii=False)))
    assert other != rows
    found = clean(other)
    assert found.height == 1
    assert_frame_equal(found, clean(rows))


def test_what_earlier_code_stored_decomposed_is_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings({"CSRM_HOME": str(tmp_path)})
    with monkeypatch.context() as earlier:
        for module in (validate, tables, lake):
            earlier.setattr(module, "composed_frame", lambda frame: frame)
        deliver(settings, DAY0, decomposed)
    deliver(settings, DAY1, str)
    with reading(open_store(settings.db_url)) as connection:
        found = connection.execute(
            sa.select(FILES.c.kind, FILES.c.rows_in, FILES.c.known)
            .where(FILES.c.day == DAY1, FILES.c.locale == KO).order_by(FILES.c.kind)
        ).all()  # fmt: skip
    assert [tuple(row) for row in found] == [
        ("catalogue", 1, 1), ("labels", 1, 1), ("ubi_events", 1, 1), ("ubi_queries", 1, 1),
    ]  # fmt: skip


def deliver(settings: Settings, day: str, form: Any) -> None:
    """Land the same rows in some form of their texts, and take them in."""
    for kind in ("catalogue", "labels", "ubi_queries", "ubi_events"):
        rows = json.loads(form(json.dumps(ROWS[kind], ensure_ascii=False)))
        land_lines(settings, day, f"{KO}/{kind}.jsonl", rows)
    land_lines(settings, day, f"{ZH}/catalogue.jsonl", [product(1, "商品")])
    ingest(settings, day)


def test_prompts_and_cuts_do_not_see_the_form() -> None:
    for text in TEXTS:
        other = decomposed(text)
        assert product_segments(ProductFields(other, other, other, other)) == product_segments(
            ProductFields(text, text, text, text)
        )
        queries = [query_segments(SPACE, QueryFields(t, t, (t, t))) for t in (text, other)]
        assert queries[0] == queries[1]
        assert [truncate_title(other, n) for n in range(12)] == [
            truncate_title(text, n) for n in range(12)
        ]
    frame = pl.DataFrame({"a": TEXTS, "b": [*map(decomposed, TEXTS)]})
    told = frame.select(language_of(pl.col("a")), language_of(pl.col("b")))
    assert told["a"].to_list() == told["b"].to_list()


def test_requests_in_either_form_are_the_same() -> None:
    item = {"id": "상품2", "title": "라면" * 900, "brand": "농심"}
    asked = {"query": "안성탕면" * 100, "session_id": "세션", "client_id": "손님",
             "products": ["상품1", item]}  # fmt: skip
    other = json.loads(decomposed(json.dumps(asked, ensure_ascii=False)))
    assert Search.model_validate(other) == Search.model_validate(asked)
    did = {"query_id": "검색", "action_name": "click", "object_id": "상품1", "release": "판1",
           "bucket": "stable"}  # fmt: skip
    other = json.loads(decomposed(json.dumps(did, ensure_ascii=False)))
    assert Event.model_validate(other) == Event.model_validate(did)


@pytest.mark.parametrize("stored", ["상품1", decomposed("상품1")])
def test_a_release_knows_its_products_in_either_form(stored: str, tmp_path: Path) -> None:
    from csrm_tasks.release.bundle.manifest import EMBEDDINGS

    vectors, ids = (tmp_path / name for name in EMBEDDINGS)
    vectors.parent.mkdir(parents=True, exist_ok=True)
    np.save(vectors, np.zeros((1, 2, 4), np.float32))
    pl.DataFrame({"product_id": [stored]}).write_parquet(ids)
    found = ProductVectors(tmp_path, 4)
    assert found.rows(["상품1", decomposed("상품1"), "상품2", None]) == [0, 0, None, None]
