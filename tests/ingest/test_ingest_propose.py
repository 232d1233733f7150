"""Columns of files with a known right answer: what is sure is right, what is unsure says so."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import get_args

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.cli.main import main
from csrm_tasks.errors import ConfigError
from csrm_tasks.ingest.contract.contracts import CONTRACTS, contract_of
from csrm_tasks.ingest.proposal.match import match
from csrm_tasks.ingest.proposal.propose import propose, written
from csrm_tasks.ingest.proposal.sample import ROWS, Sample, read_sample
from csrm_tasks.ingest.validation.files import Source, sort_file
from csrm_tasks.sections import Ingest
from csrm_tasks.sections.data import Columns

WORDS = ("red", "teapot", "lamp", "desk", "blue", "chair", "oak", "cup")


def value(column: str, n: int, draw: random.Random) -> str:
    words = " ".join(draw.sample(WORDS, 2))
    return {
        "query": f"{WORDS[n % 5]} {WORDS[n % 7]}", "user_query": words, "title": f"{words} no {n}",
        "product_id": f"p{n % 9}", "object_id": f"p{n % 9}", "label_id": f"l{n}",
        "grade": str(n % 3), "rater_id": f"anna.secret{n % 4}", "rated_at": "2026-01-05T10:00:00Z",
        "brand": WORDS[n % 4], "category": "Home > Kitchen", "description": words * 4,
        "timestamp": "2026-01-05 10:00:00", "query_id": f"q{n}", "client_id": f"c{n % 5}",
        "session_id": f"s{n % 6}", "action_name": ("click", "purchase")[n % 2],
        "position": str(n % 20), "query_response_hit_ids": '["p1","p2"]',
        "translation_id": str(n), "kind": ("brand", "query")[n % 2], "source_text": words,
        "target_text": words, "extra": f"{n * 7 % 11}.5", "deleted": "false",
        "label": ("no", "yes")[n % 2],
    }[column]  # fmt: skip


def layout(kind: str, names: str) -> tuple[str, dict[str, str]]:
    return kind, dict(pair.split("=") for pair in names.split(","))


# The contract's column = what the file calls it.
LAYOUTS = [
    layout("catalogue", "product_id=sku,title=product_title,brand=brand"),
    layout("catalogue", "product_id=상품번호,title=상품명,brand=브랜드,category=카테고리"),
    layout("catalogue", "product_id=商品编号,title=商品名称,brand=品牌,category=类目"),
    layout("catalogue", "product_id=商品番号,title=商品名,brand=ブランド,description=説明"),
    layout("catalogue", "product_id=ASIN,title=itemName,brand=Manufacturer"),
    layout("catalogue", "product_id=id,title=name,extra=price"),
    layout("catalogue", "product_id=goods_no,title=goods_name,category=cat"),
    layout("catalogue", "product_id=docid,title=title,description=desc,deleted=is_deleted"),
    layout("labels", "label_id=id,query=search_term,product_id=sku,grade=relevance"),
    layout("labels", "label_id=example_id,query=query,product_id=product_id,grade=esci_label"),
    layout("labels", "label_id=라벨ID,query=검색어,product_id=상품번호,grade=등급,rater_id=평가자"),
    layout("labels", "label_id=标注ID,query=查询词,product_id=商品编号,grade=相关性"),
    layout("labels", "label_id=ラベルID,query=検索語,product_id=商品番号,grade=評価"),
    layout("labels", "label_id=row_id,query=q,product_id=pid,grade=rel,rater_id=annotator"),
    layout("labels", "label_id=annotationId,query=searchTerm,product_id=itemId,grade=rating"),
    layout("labels", "label_id=rating_id,query=kw,product_id=sku,grade=score,rated_at=date"),
    layout("labels", "label_id=id,query=query,title=product_title,product_id=pid,grade=label"),
    layout("labels", "label_id=id,query=keyword,product_id=goods_id,grade=grade,extra=price"),
    layout("labels", "label_id=id,query=query,product_id=sku,category=category,grade=label"),
    layout("query_categories", "label_id=id,query=origin_query,category=category_path,label=label"),
    layout("query_categories", "label_id=라벨ID,query=검색어,category=카테고리,label=정답"),
    layout("query_categories", "label_id=标注ID,query=查询词,category=类目,label=是否相关"),
    layout("query_categories", "label_id=rowId,query=kw,category=path,label=is_relevant"),
    layout("ubi_queries", "query_id=qid,user_query=검색어,timestamp=시간,session_id=세션"),
    layout("ubi_queries", "query_id=request_id,user_query=search_term,timestamp=ts,client_id=uid"),
    layout("ubi_queries", "query_id=查询ID,user_query=搜索词,timestamp=时间"),
    layout("ubi_queries", "query_id=query_id,user_query=q,timestamp=created_at,"
           "query_response_hit_ids=results"),
    layout("ubi_events", "action_name=event_type,query_id=qid,object_id=sku,timestamp=ts"),
    layout("ubi_events", "action_name=事件,query_id=查询ID,object_id=商品编号,timestamp=时间"),
    layout("ubi_events", "action_name=イベント,query_id=検索ID,object_id=商品番号,timestamp=日時,"
           "position=順位"),
    layout("ubi_events", "action_name=행동,query_id=검색ID,object_id=상품번호,timestamp=일시"),
    layout("translations", "translation_id=id,kind=type,source_text=src,target_text=tgt"),
    layout("translations", "translation_id=id,kind=種類,source_text=原文,target_text=訳文"),
]  # fmt: skip
# Names that say little: nothing of them may be taken for granted.
VAGUE = [
    layout("labels", "label_id=a,query=b,product_id=c,grade=d"),
    layout("labels", "label_id=id,query=text1,product_id=x,grade=value"),
    layout("catalogue", "product_id=k1,title=k2"),
    layout("ubi_events", "action_name=f1,query_id=f2,object_id=f3,timestamp=f4"),
]


def table(kind: str, names: dict[str, str], rows: int = 60) -> list[dict[str, str]]:
    draw = random.Random(7)
    found = [{name: value(c, n, draw) for c, name in names.items()} for n in range(rows)]
    if kind == "catalogue":
        for n, row in enumerate(found):
            row[names["product_id"]] = f"p{n}"
    if "title" in names and kind == "labels":
        for n, row in enumerate(found):
            row[names["title"]] = f"title of {n % 9}"
    return found


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        with path.open("w", encoding="utf-8", newline="") as f:
            mark = "\t" if path.suffix == ".tsv" else ","
            out = csv.DictWriter(f, list(rows[0]), delimiter=mark)
            out.writeheader()
            out.writerows(rows)
    return path


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_what_is_sure_is_right_and_known_names_are_found(tmp_path: Path, number: int) -> None:
    kind, names = LAYOUTS[number]
    suffix = ("csv", "tsv", "jsonl", "parquet")[number % 4]
    found = propose(write(tmp_path / f"f.{suffix}", table(kind, names)), kind)
    ours = {c.name for c in CONTRACTS[kind].columns}
    assert found.sure == {c: n for c, n in names.items() if c in ours}


@pytest.mark.parametrize(("kind", "names"), VAGUE)
def test_vague_names_are_unsure_not_wrong(tmp_path: Path, kind: str, names: dict[str, str]) -> None:
    found = propose(write(tmp_path / "f.csv", table(kind, names)), kind)
    assert all(names.get(column) == name for column, name in found.sure.items())
    assert len(found.missing) >= 2
    keys = yaml.safe_load(written(found))["ingest"]["columns"]
    assert keys[kind] == found.sure and keys["confirmed"] is False


def test_two_columns_that_could_be_it_are_unsure(tmp_path: Path) -> None:
    kind, names = layout("labels", "label_id=id,query=query,product_id=sku,grade=label")
    rows = [{**r, "keyword": f"other {n % 4}"} for n, r in enumerate(table(kind, names))]
    found = propose(write(tmp_path / "f.csv", rows), kind)
    assert "query" in found.missing and found.sure["grade"] == "label"


@pytest.mark.parametrize(
    "kind", ["catalogue", "labels", "query_categories", "ubi_events", "ubi_queries"]
)
def test_the_kind_is_told_by_the_names(tmp_path: Path, kind: str) -> None:
    names = next(n for k, n in LAYOUTS if k == kind)
    assert propose(write(tmp_path / "f.csv", table(kind, names))).kind == kind


def test_answers_about_categories_are_told_from_labels_of_products_with_a_category(
    tmp_path: Path,
) -> None:
    for kind, names in (x for x in LAYOUTS if "category" in x[1] and "query" in x[1]):
        assert propose(write(tmp_path / f"{kind}.csv", table(kind, names))).kind == kind


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAYOUTS + VAGUE), st.randoms(use_true_random=False))
def test_order_of_columns_and_rows_does_not_matter(
    given_: tuple[str, dict[str, str]], draw: random.Random
) -> None:
    kind, names = given_
    rows = pl.DataFrame(table(kind, names))
    order, columns = list(range(rows.height)), list(rows.columns)
    draw.shuffle(order)
    draw.shuffle(columns)
    one = match(Sample(Path("f"), "csv", rows.select(sorted(rows.columns))), kind)
    other = match(Sample(Path("f"), "csv", rows[order].select(columns)), kind)
    assert one == other


@pytest.mark.parametrize(("words", "meant"), [
    (("E", "S", "C", "I"), {}),
    (("0", "1", "2"), {}),
    (("0", "1", "2", "3", "4"), {"0": "irrelevant", "1": "irrelevant", "2": "substitute",
                                 "3": "exact", "4": "exact"}),
    (("yes", "no"), {"yes": "exact", "no": "irrelevant"}),
    (("1", "0"), {"1": "exact", "0": "irrelevant"}),
    (("相关", "不相关"), {"相关": "exact", "不相关": "irrelevant"}),
    (("일치", "대체", "무관"), {"일치": "exact", "대체": "substitute", "무관": "irrelevant"}),
])  # fmt: skip
def test_grades_of_another_scale_are_proposed(
    tmp_path: Path, words: tuple[str, ...], meant: dict[str, str]
) -> None:
    kind, names = LAYOUTS[8]
    rows = table(kind, names)
    for n, row in enumerate(rows):
        row["relevance"] = words[n % len(words)]
    found = propose(write(tmp_path / "f.csv", rows), kind)
    assert found.grades == meant
    assert (yaml.safe_load(written(found))["ingest"].get("grades") or {}) == meant


def test_ingest_refuses_a_proposal_and_reads_it_once_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, names = LAYOUTS[13]
    path = write(tmp_path / "f.csv", table(kind, names))
    assert main(["import", "propose", str(path)]) == 0
    out = tmp_path / "f.csv.columns.yaml"
    assert "secret" not in capsys.readouterr().out + out.read_text("utf-8")
    keys = yaml.safe_load(out.read_text("utf-8"))["ingest"]
    source = Source(path, kind, "csv", "")
    clean = tmp_path / "clean.parquet"
    with pytest.raises(ConfigError, match=r"^ingest\.columns .*confirmed: true[^\n]*$"):
        sort_file(source, "2026-01-05", Ingest.model_validate(keys), clean)
    keys["columns"]["confirmed"] = True
    judged = sort_file(source, "2026-01-05", Ingest.model_validate(keys), clean)
    assert (judged.rows, judged.rejected.height) == (60, 0)
    assert pl.read_parquet(clean)["rater_id"][1] == "anna.secret1"
    # what a person may have written into it is not written over
    assert main(["import", "propose", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "text", "says"), [
    ("f.csv", "red teapot,p1,2\nblue cup,p2,2\n", "not a header"),
    ("f.csv", "query,query,id\na,b,c\n", "occurs twice"),
    ("f.jsonl", '{"a": 1, "a": 2}\n', "occurs twice"),
    ("f.jsonl", "[1, 2]\n", "no JSON object"),
    ("f.csv", "", "no rows"),
    ("f.csv", "query,sku\n", "no rows"),
    ("f.xlsx", "PK", "save it as one"),
    ("f.parquet", "PAR1", "cannot be read"),
    ("f.csv.gz", "no gzip", "cannot be read"),
    ("f.csv", "a,b\nx y,z w\n", "--kind"),
])  # fmt: skip
def test_bad_files_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert main(["import", "propose", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and says in err and name in err, err
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_of_a_large_file_a_sample_from_all_of_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    with path.open("w", encoding="utf-8") as f:
        f.write("sku,title\n")
        f.writelines(f"p{n},{'red teapot ' * 6}{n}\n" for n in range(120_000))
    rows = read_sample(path).rows
    numbers = rows["sku"].str.slice(1).cast(pl.Int64)
    assert rows.height == ROWS and numbers.min() == 0 and numbers.max() > 115_000  # type: ignore[operator]


def test_the_market_file_knows_the_contracts_columns() -> None:
    for kind, contract in CONTRACTS.items():
        keys = get_args(get_args(Columns.model_fields[kind].annotation)[0])
        assert set(keys) == {c.name for c in contract.columns}
        assert contract_of(kind, Columns()) is contract
