"""What the product tower reads: one form for tables and for single products."""

from __future__ import annotations

import polars as pl
import pytest

from csrm_tasks.towers.serving.texts import product_text, with_product_text

ROWS = [
    ("茶壺", "Acme", "廚房"),
    ("雨傘", "", "戶外"),
    ("毛巾", "Acme", ""),
    ("枕頭", "", ""),
    ("雨傘", "Acme", "戶外 > 雨具 > 雨傘"),
    ("茶 > 壺", "", "廚房 > "),
]


@pytest.mark.parametrize(
    "fields", [(), ("category",), ("brand", "category"), ("leaf_category", "brand")]
)
def test_a_table_reads_as_its_products_do(fields: tuple[str, ...]) -> None:
    table = pl.DataFrame(ROWS, ["title", "brand", "category"], orient="row")
    want = [product_text(t, fields, brand=b, category=c) for t, b, c in ROWS]
    assert with_product_text(table, fields)["title"].to_list() == want


def test_empty_fields_leave_no_trace() -> None:
    assert product_text("枕頭", ("brand", "category")) == "枕頭"
    assert product_text("雨傘", ("category",), brand="Acme", category="戶外") == "雨傘 | 戶外"
    assert product_text("雨傘", ("leaf_category",), category="戶外 > 雨具") == "雨傘 | 雨具"
    assert product_text("雨傘", ("leaf_category",), category="戶外") == "雨傘 | 戶外"
