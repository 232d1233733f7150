"""Public data sets in miniature, in their own layouts, with the oddities that they have."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from csrm_tasks.cli.main import main
from csrm_tasks.settings import Settings, load_settings

Row = dict[str, Any]


def judged(n: int, language: str, query: str, item: Any, label: Any, task: str = "QI") -> Row:
    """A row of AnalytiCup; ``...`` for item or label: the row does not have the field."""
    row = {"id": n, "task": task, "language": language, "origin_query": query}
    row |= {} if item is ... else {"item_title" if task == "QI" else "category_path": item}
    return row | ({} if label is ... else {"label": label})


CIKM: dict[str, list[dict[str, Any]]] = {
    "train_QI.txt": [
        judged(1, "en", "red teapot", "Orla red teapot, 1 l", 1),
        judged(2, "en", "red teapot", "Blue kettle", "0"),
        judged(3, "en", "kettle", "Blue kettle", "1"),  # a title again: one product
        judged(4, "en", "kettle", ..., 1),  # no title
        judged(5, "en", "kettle", "  ", 0),
        judged(6, "ko", "빨간 주전자", "Orla red teapot, 1 l", 1),
        judged(7, "ko", "냄비", "Iron pot", 0),
        judged(8, "fr", "théière", "Orla red teapot, 1 l", 1),
        judged(9, "en", "ấm trà đỏ", "Orla red teapot, 1 l", 1),  # Latin letters: cannot be told
        judged(10, "en", "گلدان", "Glass vase", 1),  # no English
        judged(11, "en", "kettle", "Blue kettle", "1"),  # the same judgement again
        judged(11, "en", "kettle", "Blue kettle", "1"),  # an identifier again
        judged(12, "en", "pot", "half \ud83d a character", 1),
        judged(13, "en", "k" * 501, "Blue kettle", 1),
    ],
    "dev_QI.txt": [
        judged(1, "en", "vase", "Glass vase", 1),
        judged(2, "ko", "꽃병", "Glass vase", "1"),
        judged(3, "de", "Vase", "Glass vase", 1),
    ],
    "test_QI.txt": [
        judged(1, "ko", "접시", "Flat plate", 1),
        judged(2, "ko", "접시", "Iron pot", 0),
        judged(3, "ko", "컵", "Tall cup", ...),  # no label
        judged(4, "ko", "컵", "Tall cup", None),
        judged(5, "en", "cup", "Tall cup", ""),
    ],
    "train_QC.txt": [
        judged(1, "en", "teapot", "Home, Kitchen & Dining,Teapots, Kettles", 1, "QC"),
        judged(2, "ko", "냄비", "Home, Kitchen & Dining,Pots", "0", "QC"),
        judged(3, "fr", "théière", "Home, Kitchen & Dining,Teapots, Kettles", 1, "QC"),
        judged(1, "en", "teapot", "Home, Kitchen & Dining,Pots", 0, "QC"),  # an identifier again
        judged(5, "en", "teapot", " ", 0, "QC"),
        judged(6, "en", "گلدان", "Home,Vases", 1, "QC"),
    ],
    "dev_QC.txt": [
        judged(1, "ko", "꽃병", "Home,Vases > Tall", "1", "QC"),
        judged(2, "ko", "꽃병", "Home,Vases", ..., "QC"),
    ],
}


def write_cikm(folder: Path, files: Mapping[str, Iterable[Any]] = CIKM) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def example(
    n: int, locale: str, query: str, product: str, label: Any, small: int = 1, split: str = "train"
) -> Row:
    return {
        "example_id": n, "query": query, "query_id": n, "product_id": product,
        "product_locale": locale, "esci_label": label, "small_version": small, "large_version": 1,
        "split": split,
    }  # fmt: skip


def item(product: str, locale: str, title: Any, **others: Any) -> dict[str, Any]:
    return {
        "product_id": product, "product_title": title, "product_description": None,
        "product_bullet_point": None, "product_brand": None, "product_color": None,
        "product_locale": locale,
    } | others  # fmt: skip


ITEMS = [
    item("B01", "us", "Orla phone 12", product_brand="Orla", product_bullet_point="- 5G",
         product_description="A phone."),
    item("B02", "us", "Case for Orla 12", product_brand="B" * 300),
    item("B03", "us", "Orla phone 11", product_description="x" * 30_000),
    item("B04", "us", None),
    item("0123456789", "us", "A book"),
    item("B01", "jp", "オルラ フォン 12"),
    item("B09", "es", "Teléfono"),
]  # fmt: skip
EXAMPLES = [
    example(0, "us", "orla 12", "B01", "E"),
    example(1, "us", "orla 12", "B02", "C"),
    example(2, "us", "orla 12", "B03", "S", small=0),
    example(3, "us", "orla 12", "0123456789", "I", split="test"),
    example(4, "us", "orla 12", "B04", "I"),  # a product without a title
    example(5, "us", "orla 12", "B77", "I"),  # a product that is not there
    example(6, "jp", "オルラ", "B01", "E"),
    example(7, "es", "telefono", "B09", "E"),
    example(8, "jp", "オルラ 12", "B01", None, split="test"),
]


def write_esci(folder: Path, examples: Any = EXAMPLES, items: Any = ITEMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {"examples": examples, "products": items}.items():
        path = folder / f"shopping_queries_dataset_{name}.parquet"
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return folder


WANDS = {
    "query.csv": "query_id\tquery\tquery_class\n0\tsalon chair\tMassage Chairs\n1\t12\" shelf\t\n",
    "product.csv": (
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\t"
        "product_features\n"
        "0\tsolid wood bed\tBeds\tFurniture / Bedroom / Beds & Headboards\ta bed,\t a | b\n"
        "1\t\"the \"\"salon\"\" chair\"\tChairs\tFurniture / Chairs\t\"two\nlines\"\t\n"
        "2\t\tChairs\t\t\t\n"
    ),
    "label.csv": (
        "id\tquery_id\tproduct_id\tlabel\n0\t0\t1\tExact\n1\t0\t0\tIrrelevant\n2\t1\t0\tPartial\n"
        "3\t1\t2\tPartial\n4\t7\t0\tExact\n"
    ),
}  # fmt: skip
TREC = {
    "product-search-train.qrels": "q1 0 d1 3\nq1 0 d2 2\nq1 0 d3 1\nq2 0 d1 0\nq9 0 d1 0\n",
    "2023test.qrels.txt": "q2\t0\td2\t3\nq2\t0\td8\t0\n",
    "qid2query.queries.tsv": "qid\tquery\nq1\torla 12\nq2\tcase\n",
}
DOCUMENTS = [("d1", "Orla phone 12", "5G"), ("d2", "Case for Orla 12", ""), ("d3", "Cable", "1 m")]


def write_texts(folder: Path, files: Mapping[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_trec(folder: Path, form: str = "jsonl") -> Path:
    write_texts(folder, TREC)
    texts = {
        "jsonl": "".join(
            json.dumps({"docid": d, "title": t, "text": x}) + "\n" for d, t, x in DOCUMENTS
        ),
        "tsv": "docid\ttitle\ttext\n" + "".join("\t".join(d) + "\n" for d in DOCUMENTS),
        "trec": "".join(
            f"<DOC>\n<DOCNO>{d}</DOCNO>\n<TITLE>{t}</TITLE>\n<TEXT>\n{x}\n</TEXT>\n</DOC>\n"
            for d, t, x in DOCUMENTS
        ),
    }
    (folder / f"collection.{form}.gz").write_bytes(gzip.compress(texts[form].encode(), mtime=0))
    return folder


def run_import(layout: str, folder: Path, *more: str) -> Settings:
    """Import a folder by command; returns the settings of the market."""
    assert main(["import", layout, "--data-dir", str(folder), *more]) == 0
    market = more[more.index("--market") + 1] if "--market" in more else layout
    return load_settings(market=market)


def landed(settings: Settings, market: str) -> dict[str, list[dict[str, Any]]]:
    """Every landed file by its name below the market's folder, as rows."""
    root = settings.landing / market
    return {
        p.relative_to(root).as_posix(): pl.read_parquet(p).to_dicts()
        for p in sorted(root.rglob("*.parquet"))
        if not p.name.startswith(".")
    }


def left_out(settings: Settings, market: str) -> dict[str, list[tuple[str, int]]]:
    """Reason → file and row of what was left out."""
    found = {}
    for path in sorted((settings.home / "imports" / market).glob("left_out-*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        found[path.stem.removeprefix("left_out-")] = [(r["file"], r["row"]) for r in rows]
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones as well."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
