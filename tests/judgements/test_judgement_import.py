"""Judgements of other tools on their way through the market: labels, gold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.cli.main import main
from csrm_tasks.json_files import write_json
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from tests.data_fixtures import DAY0, DAY1, DAY2, KO, ZH, label, land_lines, product

ROOT = Path(__file__).resolve().parents[2]
GOODS = [product(n, title) for n, title in enumerate(("우유 1L", "두유", "라면 5개", "생수"))]
TRAIN, NEW = "우유", ("라면", "생수")  # a query that is learnt from, and two that are not yet
FOUR = "0=irrelevant,1=irrelevant,2=substitute,3=exact"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The miniature market; one query of the target is judged, and a first snapshot is made."""
    keys = yaml.safe_load((ROOT / "tests/markets/mini.yaml").read_text(encoding="utf-8"))
    keys["snapshot"] = {"dev_share": 0.0}
    keys["ingest"] = {"tolerance": 0.5}
    (tmp_path / "markets").mkdir()
    write_json(tmp_path / "markets" / "mini.yaml", keys)
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path / "markets"))
    settings = load_settings()
    for locale in (KO, ZH):
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl", GOODS, "mini")
    rows = [label(n, TRAIN, f"p{n}", n % 3) for n in range(3)]
    rows += [label(f"k{n}", f"{q} 검색", f"p{n}", n % 3) for n in range(3) for q in ("a", "b")]
    rows = [r | {"label_id": f"{r['label_id']}-{n}"} for n, r in enumerate(rows)]
    land_lines(settings, DAY0, f"{ZH}/labels.jsonl", rows, "mini")
    assert main(["ingest", "--market", "mini", "--day", DAY0]) == 0
    frozen(DAY0)
    return settings


def frozen(until: str) -> dict[str, pl.DataFrame]:
    settings = load_settings()
    ref = run_step("snapshot", "mini", {}, {"stage": 2, "until": until}, settings)
    made = ArtifactStore(settings.artifacts, settings.cache).open(ref)
    return {n: pl.read_parquet(made.file(f"{n}.parquet")) for n in ("pairs", "queries", "votes")}


def book(tmp_path: Path, name: str, *said: tuple[str, str, int | None, str, str]) -> Path:
    """Write a Quepid book of (query, product, rating or None, rater, reason)."""
    pairs = [
        {"query_text": q, "doc_id": p, "judgements": [
            {"rating": None if r is None else float(r), "unrateable": r is None,
             "user_email": who, "explanation": why}]}
        for q, p, r, who, why in said
    ]  # fmt: skip
    path = tmp_path / name
    path.write_text(json.dumps({"name": name, "query_doc_pairs": pairs}), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main([str(a) for a in args]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    return err if code else out


def imported(
    capsys: pytest.CaptureFixture[str], *files: object, form: str = "quepid", code: int = 0,
    day: str = DAY1, grades: str | None = FOUR,
) -> str:  # fmt: skip
    scale = [] if grades is None else ["--grades", grades]
    return run(capsys, "import", "judgements", "--market", "mini", "--from", form, "--day", day,
               *scale, *files, code=code)  # fmt: skip


def ingested(day: str = DAY1) -> None:
    assert main(["ingest", "--market", "mini", "--day", day]) == 0


def split(tables: dict[str, pl.DataFrame], query: str) -> dict[str, tuple[str, int, int]]:
    """Return product → split, grade and raters of a query's pairs."""
    pairs = tables["pairs"].join(tables["queries"], on="query_id").filter(pl.col("query") == query)
    wanted = pairs.select("product_id", "split", "grade", "raters").iter_rows()
    return {p: (s, g, n) for p, s, g, n in wanted}


def test_labels_land_as_a_delivery_with_their_reasons_and_what_does_not_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Settings
) -> None:
    path = book(tmp_path, "b.json", (NEW[0], "p2", 3, "anna", "the very ramen"),
                (NEW[0], "p1", None, "anna", "no title"), (NEW[0], "p99", 0, "anna", ""),
                (NEW[0], "p2", 0, "ben", ""))  # fmt: skip
    told = imported(capsys, path)
    assert "left out, unknown_product: 1" in told
    assert "raters differ on 1 pairs" in told
    assert "landed: 2 labels of 1 queries" in told
    landed = home.landing / "mini" / DAY1 / ZH / "labels-quepid_labels0001.jsonl"
    before = landed.read_bytes()
    assert "landed before: 2 labels" in imported(capsys, path)
    assert landed.read_bytes() == before
    assert [p.name for p in landed.parent.iterdir()] == [landed.name]
    kept = home.home / "imports" / "mini" / "judgements" / "labels-quepid_labels0001"
    (one,) = (kept / "left_out-unrateable.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(one) == {
        "file": "b.json", "row": 2, "query": NEW[0], "product_id": "p1", "grade": None,
        "rater_id": "anna", "explanation": "no title",
    }  # fmt: skip
    ingested()
    tables = frozen(DAY1)
    assert split(tables, NEW[0]) == {"p2": ("train", 0, 2)}  # a tie goes to the lower
    pair = tables["pairs"].filter(pl.col("raters") == 2)["pair_id"][0]
    assert "because 'the very ramen'" in run(capsys, "data", "trace", "--market", "mini", pair)


def test_gold_is_held_out_and_nothing_of_its_query_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = book(tmp_path, "gold.json", (NEW[0], "p2", 3, "anna", ""), (NEW[0], "p1", 0, "anna", ""),
                (TRAIN, "p3", 3, "anna", ""))  # fmt: skip
    told = imported(capsys, "--as", "gold", gold)
    assert "left out, learnt_from: 1" in told
    assert "landed: 2 gold judgements of 1 queries" in told
    assert "the gate decides differences from about 52.0%" in told
    others = book(tmp_path, "more.json", (NEW[0], "p0", 3, "ben", ""), (NEW[0], "p2", 0, "ben", ""),
                  (NEW[1], "p3", 3, "ben", ""))  # fmt: skip
    imported(capsys, others)
    ingested()
    tables = frozen(DAY1)
    assert split(tables, NEW[0]) == {"p1": ("gold", 0, 1), "p2": ("gold", 2, 1)}
    assert split(tables, NEW[1]) == {"p3": ("train", 2, 1)}
    golden = tables["pairs"].filter(split="gold")["pair_id"]
    assert not set(golden) & set(tables["votes"]["pair_id"])
    late = book(tmp_path, "late.json", *((NEW[0], "p2", 0, f"r{n}", "") for n in range(9)))
    imported(capsys, late, day=DAY2)
    ingested(DAY2)
    assert split(frozen(DAY2), NEW[0]) == {"p1": ("gold", 0, 1), "p2": ("gold", 2, 1)}


def test_two_raters_of_gold_who_differ_are_settled_by_an_adjudicator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [book(tmp_path, f"{who}.json", (NEW[0], "p2", 3, who, ""), (NEW[0], "p1", n, who, ""))
             for n, who in ((0, "anna"), (3, "ben"))]  # fmt: skip
    told = imported(capsys, "--as", "gold", *files)
    assert "left out, disputed: 2" in told
    assert "--adjudicator NAME" in told
    assert "landed: 2 gold judgements" in told
    last = book(tmp_path, "cho.json", (NEW[0], "p1", 2, "cho", "like it, smaller"))
    told = imported(capsys, "--as", "gold", "--adjudicator", "cho", *files, last)
    assert "left out, overruled: 2" in told
    ingested()
    assert split(frozen(DAY1), NEW[0]) == {"p2": ("gold", 2, 2), "p1": ("gold", 1, 1)}


def test_gold_leaves_by_leave_only_and_comes_back_as_gold_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = book(tmp_path, "gold.json", (NEW[0], "p2", 3, "anna", ""))
    imported(capsys, "--as", "gold", gold)
    ingested()
    frozen(DAY1)
    asked = ("export", "judgements", "--market", "mini", "--what", "gold", "--to", "trec",
             "--out", tmp_path / "out")  # fmt: skip
    assert "--allow-gold" in run(capsys, *asked, code=2)
    assert not (tmp_path / "out").exists()
    told = run(capsys, *asked, "--allow-gold")
    files = (tmp_path / "out" / "qrels.txt", "--queries", tmp_path / "out" / "queries.tsv")
    own = "0=irrelevant,1=substitute,2=exact"
    refused = imported(capsys, *files, form="trec", day=DAY2, grades=own, code=2)
    assert "is the gold of mini zh-TW" in refused
    back = imported(capsys, "--as", "gold", *files, form="trec", day=DAY2, grades=own)
    digest = [line for line in told.splitlines() if line.startswith("digest")]
    assert digest == [line for line in back.splitlines() if line.startswith("digest")]


@pytest.mark.parametrize("to", ["opensearch", "quepid", "label-studio", "rre", "argilla"])
def test_consensus_leaves_whole_and_is_no_vote_more_when_it_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    out = tmp_path / "out"
    told = run(capsys, "export", "judgements", "--market", "mini", "--to", to, "--out", out)
    assert "9 judgements of 3 queries, consensus of mini/snapshot/" in told
    (path,) = [p for p in out.glob("*.json") if p.name != "query_set.json"]
    assert "count twice" in imported(capsys, path, form=to, grades=None, code=2)


NONE_LIVE = "no release of mini is live"
REFUSED: list[tuple[list[Any], str]] = [
    (["export", "judgements", "--to", "rre", "--what", "soft"], "no place for a model's soft"),
    (["export", "judgements", "--to", "opensearch", "--what", "soft"], NONE_LIVE),
    (["export", "judgements", "--to", "quepid", "--what", "audits"], NONE_LIVE),
    (["export", "judgements", "--to", "rre", "--release", "r1"], NONE_LIVE),
    (["export", "judgements", "--to", "rre", "--snapshot", "other/snapshot/x"], "is no snapshot"),
    (["export", "judgements", "--to", "rre", "--what", "gold", "--allow-gold"], "has no gold pair"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_an_export_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    out = tmp_path / "out"
    told = run(capsys, *args, "--market", "mini", "--out", out, code=2)
    assert message in told
    assert len(told.splitlines()) == 1
    assert not out.exists()


def test_an_import_at_fault_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Settings
) -> None:
    path = book(tmp_path, "b.json", (NEW[0], "p2", 3, "anna", ""), (NEW[0], "p2", 0, "anna", ""))
    assert "rater 'anna' says exact" in imported(capsys, path, code=2)
    path = book(tmp_path, "b.json", (NEW[0], "q1", 3, "anna", ""))
    assert "ingest it first" in imported(capsys, path, code=2)
    assert "scale that the file does not say" in imported(capsys, path, grades=None, code=2)
    assert "b.jsn: is no file" in imported(capsys, tmp_path / "b.jsn", code=2)
    assert "--as gold: gold judges zh-TW" in imported(
        capsys, "--as", "gold", "--locale", KO, path, code=2
    )
    assert not (home.landing / "mini" / DAY1).exists()


def test_times_of_judgements_are_kept_and_none_is_after_its_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Settings
) -> None:
    def tasks(at: str) -> Path:
        said = [
            {"type": "choices", "from_name": "grade", "value": {"choices": ["exact"]}},
            {"type": "textarea", "from_name": "why", "value": {"text": ["half \ud83e", "\0"]}},
        ]
        path = tmp_path / "tasks.json"
        path.write_text(json.dumps([{"data": {"query": NEW[0], "product_id": "p2"}, "annotations": [
            {"result": said, "completed_by": 1, "updated_at": at}]}]))  # fmt: skip
        return path

    late = tasks("2026-01-07T03:00:00Z")
    told = imported(capsys, late, form="label-studio", grades=None, code=2)
    assert f"after --day {DAY1} has ended" in told
    for at, kept in (("2026-01-05T03:00:00Z", True), ("once", False)):
        imported(capsys, tasks(at), form="label-studio", grades=None)
        newest = max((home.landing / "mini" / DAY1 / ZH).iterdir())
        assert ("rated_at" in json.loads(newest.read_text(encoding="utf-8"))) is kept
    ingested()
    assert split(frozen(DAY1), NEW[0]) == {"p2": ("train", 2, 1)}


def test_a_market_with_its_own_scale_and_names_gets_labels_that_it_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "markets" / "mini.yaml"
    keys = json.loads(file.read_text(encoding="utf-8"))
    keys["ingest"] |= {"grades": {"good": "exact", "bad": "irrelevant", "so": "substitute"},
                       "columns": {"confirmed": True, "labels": {"product_id": "sku"}}}  # fmt: skip
    write_json(file, keys)
    imported(capsys, book(tmp_path, "b.json", (NEW[0], "p2", 3, "anna", "")))
    ingested()
    assert split(frozen(DAY1), NEW[0]) == {"p2": ("train", 2, 1)}


def test_a_product_that_a_later_day_brought_is_unknown_by_the_deliverys_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Settings
) -> None:
    land_lines(home, DAY2, f"{ZH}/catalogue.jsonl", [product(9, "豆漿")], "mini")
    ingested(DAY2)
    path = book(tmp_path, "b.json", (NEW[0], "p9", 3, "anna", ""), (NEW[0], "p2", 3, "anna", ""))
    told = imported(capsys, path)
    assert "left out, unknown_product: 1" in told and "landed: 1 labels" in told
    ingested()  # none of what landed is refused
    assert "landed: 2 labels" in imported(capsys, path, day=DAY2)
