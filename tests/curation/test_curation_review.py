"""From a doubtful label to a rater and back: sheet, ordinary ingest, snapshot; and every row's way
told by ``csrm data trace``."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.cli.main import main
from csrm_tasks.curation.review import write_sheets
from csrm_tasks.curation.translation.run import DECIDED
from csrm_tasks.json_files import write_json
from csrm_tasks.records import DECISIONS, NEGATIVES, TRANSLATED, write_table
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.text import pair_id, query_id
from tests.data_fixtures import (
    DAY0,
    DAY1,
    DAY2,
    KO,
    ZH,
    label,
    land_lines,
    product,
    session,
)

ROOT = Path(__file__).resolve().parents[2]
QUERIES = ("우유", "라면", "두유", "생수", "커피", "녹차")
FIRST = ("우유", "p1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The miniature market with one day of source labels, all of which are train."""
    markets = tmp_path / "markets"
    markets.mkdir()
    keys = yaml.safe_load((ROOT / "tests/markets/mini.yaml").read_text(encoding="utf-8"))
    keys["snapshot"] = {"dev_share": 0.0}
    keys["ingest"] = {"tolerance": 0.5}
    keys["filter"] = {"action": "review", "scorer": "linear"}
    write_json(markets / "mini.yaml", keys)
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(markets))
    settings = load_settings()
    goods = [product(n, f"{q} =1+1", category="식품") for n, q in enumerate(QUERIES)]
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", goods, "mini")
    rows = [label(f"{q}{n}", q, f"p{n}", (n + i) % 3)
            for i, q in enumerate(QUERIES) for n in range(3)]  # fmt: skip
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", rows, "mini")
    folder = land_lines(settings, DAY0, f"{ZH}/translations.jsonl", [
        {"translation_id": "t1", "kind": "title", "source_text": "우유", "target_text": "牛奶"},
    ], "mini")  # fmt: skip
    assert folder.is_file()
    return settings


def said(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(args) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    return (err if code else out).splitlines()


def sessions(settings: Settings) -> None:
    searched = [session(f"{n}", "우유", ["p3", "p4"], click="p4", purchase="p4") for n in range(3)]
    for name, rows in (("ubi_queries", [s for s, _ in searched]),
                       ("ubi_events", [e for _, es in searched for e in es])):  # fmt: skip
        land_lines(settings, DAY0, f"{KO}/{name}.jsonl", rows, "mini")


def frozen(settings: Settings, until: str) -> str:
    return run_step("snapshot", "mini", {}, {"stage": 1, "until": until}, settings)


def reviewed(settings: Settings, snapshot: str, action: str = "review") -> str:
    """Run the filter on folds made by hand, in which the model is sure that FIRST is a 2."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    frozen_pairs = pl.read_parquet(store.open(snapshot).file("pairs.parquet"))
    first = pair_id(query_id(KO, FIRST[0]), FIRST[1])
    doubtful = pl.col("pair_id") == first
    decided = frozen_pairs.filter(split="train").sort("pair_id").with_columns(
        fold=pl.lit(0), p0=pl.lit(0.1), p1=pl.lit(0.0), p2=pl.lit(0.9), p_label=pl.lit(0.1),
        predicted=pl.lit(2),
        weight=pl.when(doubtful & (pl.lit(action) == "remove")).then(0.0).otherwise(1.0),
        action=pl.when(doubtful).then(pl.lit(action)).otherwise(pl.lit("keep")),
        reason=pl.when(doubtful).then(pl.lit("sure of 2")).otherwise(pl.lit("")),
    )  # fmt: skip
    folder = settings.home / "made" / action
    write_table(decided, DECISIONS, folder / "decisions.parquet")
    if action == "review":
        write_sheets(store.open(snapshot).path, decided.filter(doubtful), folder)
    return store.publish(
        f"mini/filter_noise/{action}", folder, facts={"action": action, "flagged": 1},
        inputs={"snapshot": snapshot}, about={},
    ).ref  # fmt: skip


def test_a_review_comes_back_as_labels_of_the_rater_once(
    home: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "ingest", "--market", "mini", "--day", DAY0)
    ref = reviewed(home, frozen(home, DAY0))
    sheet = tmp_path / "sheet.csv"
    about = ("--market", "mini", "--filter", ref, "--locale", KO)
    said(capsys, "data", "review", *about, "--out", str(sheet))
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "item,query,title,brand,category,grade,rater_id"
    assert len(lines) == 2 and lines[1].endswith(",우유,라면 =1+1,,식품,,")  # blind: no grade

    def fill(*graded: str) -> None:
        item = lines[1].split(",")[0]
        rows = [f"{item},우유,라면 =1+1,,식품,{g}" for g in graded]
        sheet.write_text("\n".join([lines[0], *rows]), encoding="utf-8-sig")

    accept = ("data", "accept", *about, "--day", DAY1, str(sheet))
    assert "has no grade yet" in said(capsys, *accept, code=2)[0]
    fill("2,")
    assert "field 'rater_id' is empty" in said(capsys, *accept, code=2)[0]
    fill("2,kim", "1,kim")
    assert "has two grades by 'kim'" in said(capsys, *accept, code=2)[0]
    fill("7,kim")
    assert "row 2: grade '7'; write 0, 1 or 2" in said(capsys, *accept, code=2)[0]
    assert not (home.landing / "mini" / DAY1).exists()  # nothing of a refused sheet has landed

    fill("2,kim", "2,lee")
    assert said(capsys, *accept)[0].startswith("2 labels landed: ")
    assert said(capsys, *accept)[0].startswith("2 labels were landed before: ")
    fill("1,kim", "2,lee")  # kim thinks again, on the same day
    assert said(capsys, *accept)[0].startswith("2 labels landed: ")
    landed = sorted(p.name for p in (home.landing / "mini" / DAY1 / KO).iterdir())
    assert landed == ["labels-review0001.jsonl", "labels-review0002.jsonl"]
    assert said(capsys, "ingest", "--market", "mini", "--day", DAY1)[1].startswith(
        "4 rows: 0 in quarantine"
    )
    pairs = pl.read_parquet(
        ArtifactStore(home.artifacts, home.cache).open(frozen(home, DAY1)).file("pairs.parquet")
    )
    pair = pairs.filter(pair_id=pair_id(query_id(KO, FIRST[0]), FIRST[1]))
    # r1 said 1, kim says 1 in the end, lee 2
    assert pair.select("grade", "raters", "agree").row(0) == (1, 3, 2)


def test_every_row_tells_where_it_came_from_and_what_was_done_to_it(
    home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions(home)
    said(capsys, "ingest", "--market", "mini", "--day", DAY0)
    snapshot = frozen(home, DAY0)
    asked, other = query_id(KO, "우유"), query_id(KO, "라면")
    pair = pair_id(asked, "p1")
    trace = ("data", "trace", "--market", "mini")
    lines = said(capsys, *trace, pair)
    assert lines == [
        f"judged pair {pair}, {KO}: '우유' with p1",
        "label l우유1: 1 by r1 at 2026-01-03T10:00:00+00:00, guideline 1; delivered "
        f"{DAY0} {KO}/labels.jsonl row 2",
        f"snapshot {snapshot}: label 1, said by 1 of 1 raters; split train",
        "filter: none has judged this snapshot",
    ]
    removed = reviewed(home, snapshot, "remove")
    store, empty = ArtifactStore(home.artifacts, home.cache), home.home / "empty"
    empty.mkdir()
    for name, filtered in (("a", {"filtered": removed}), ("b", {})):
        given = {"snapshot": snapshot} | filtered
        store.publish(f"mini/train_llm/{name}", empty, facts={}, inputs=given, about={})
    assert said(capsys, *trace, pair)[3:] == [
        f"filter {removed}: remove, weight 0: sure of 2",
        "training mini/train_llm/a: left out",
        "training mini/train_llm/b: learnt with weight 1",
    ]
    decided = store.publish(
        "mini/ablate/d", empty, facts={"dropped": ["filter", "llm.negatives"]},
        inputs={"snapshot": snapshot}, about={},
    ).ref  # fmt: skip
    given = {"snapshot": snapshot, "filtered": removed, "ablation": decided}
    store.publish("mini/train_llm/d", empty, facts={}, inputs=given, about={})
    assert said(capsys, *trace, pair)[6:] == ["training mini/train_llm/d: learnt with weight 1"]
    assert said(capsys, *trace, "--snapshot", snapshot, pair_id(other, "p1"))[3:][0] == (
        f"filter {removed}: keep, weight 1"
    )
    nobody = pair_id(other, "p9")
    rows = [(nobody, other, "p9", KO, "mined", "bm25", 3, 0.75)]
    folder = home.home / "mined"
    folder.mkdir()
    table = pl.DataFrame(rows, NEGATIVES, orient="row")
    write_table(table, NEGATIVES, folder / "negatives.parquet")
    given, mined = {"snapshot": snapshot}, "mini/mine_negatives/n"
    store.publish(mined, folder, facts={}, inputs=given, about={})
    given |= {"negatives": mined}
    for name, more in (("c", {}), ("e", {"ablation": decided})):  # which learnt none
        store.publish(f"mini/train_llm/{name}", empty, facts={}, inputs=given | more, about={})
    assert said(capsys, *trace, nobody) == [
        f"negative {nobody}, {KO}: query {other} with p9, which nobody judged",
        f"{mined}: mined, by bm25 at rank 3, from 0; the LLM calls it irrelevant by 0.750",
        "training mini/train_llm/c: learnt as irrelevant",
    ]
    assert said(capsys, *trace, f"{asked}/p4") == [
        f"conversion example {asked}/p4, {KO}: converted",
        f"log of {DAY0}: impressions 3, clicks 3, carts 0, purchases 3",
        f"snapshot {snapshot}",
    ]
    assert said(capsys, *trace, "title:우유") == [
        "translation of title '우유': '牛奶'; split train",
        f"delivered {DAY0} {ZH}/translations.jsonl row 1",
        f"snapshot {snapshot}",
    ]


def test_a_row_tells_how_its_query_was_translated_and_who_learnt_it(
    home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "ingest", "--market", "mini", "--day", DAY0)
    snapshot = frozen(home, DAY0)
    removed = reviewed(home, snapshot, "remove")
    store, folder = ArtifactStore(home.artifacts, home.cache), home.home / "made"
    asked, other = query_id(KO, "우유"), query_id(KO, "라면")
    pair, dropped = pair_id(asked, "p1"), pair_id(other, "p1")
    row = (pair, asked, "p1", KO, 1, "우유", ZH, "牛奶", "", "table:1", "2", "우유", 1.0)
    decided = [
        (asked, KO, "우유", ZH, "牛奶", "", "table:1", "2", "", "우유", 1.0),
        (other, KO, "라면", ZH, "", "nothing", "table:1", "", "", "", 0.0),
    ]
    for rows, schema, name in (([row], TRANSLATED, "translated"), (decided, DECIDED, "decisions")):
        table = pl.DataFrame(rows, schema, orient="row")
        write_table(table, schema, folder / f"{name}.parquet")
    given, made = {"snapshot": snapshot}, "mini/translate_queries/t"
    store.publish(made, folder, facts={}, inputs=given, about={})
    for name, more in (("a", {"translated": made}), ("b", {}),
                       ("c", {"translated": made, "filtered": removed})):  # fmt: skip
        store.publish(f"mini/train_llm/{name}", folder, facts={}, inputs=given | more, about={})
    trace = ("data", "trace", "--market", "mini", "--snapshot", snapshot)
    lines = said(capsys, *trace, pair)
    assert lines[-3:] == [
        f"translated {made}: '우유' as '牛奶' in {ZH} by table:1; numbers 2 kept, back '우유', "
        "likeness 1.00; label 1 and product text stay",
        "training mini/train_llm/a: translated pair learnt",
        "training mini/train_llm/c: translated pair left out, too",
    ]
    assert said(capsys, *trace, dropped)[-1] == f"translated {made}: into {ZH}, dropped: nothing"


def test_what_cannot_be_traced_or_reviewed_is_one_line(
    home: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = ("data", "trace", "--market", "mini")
    assert "has no snapshot yet" in said(capsys, *trace, "x", code=2)[0]
    said(capsys, "ingest", "--market", "mini", "--day", DAY0)
    snapshot = frozen(home, DAY0)
    removed = reviewed(home, snapshot, "remove")
    for args, line in (
        ((*trace, "x"), "has no row 'x': give a pair_id"),
        ((*trace, "--snapshot", removed, "x"), "is no snapshot of market mini"),
        (("data", "review", "--market", "mini", "--filter", removed, "--locale", KO,
          "--out", str(tmp_path / "s.csv")), "has no sheet of ko-KR: its action is 'remove'"),
        (("data", "review", "--market", "mini", "--filter", snapshot, "--locale", KO,
          "--out", str(tmp_path / "s.csv")), "is no filter_noise artifact of market mini"),
        (("data", "accept", "--market", "mini", "--filter", removed, "--locale", KO,
          "--day", DAY2, str(tmp_path / "none.csv")), "none.csv is no file"),
    ):  # fmt: skip
        found = said(capsys, *args, code=2)
        assert len(found) == 1 and line in found[0]
    assert not (tmp_path / "s.csv").exists()


def test_a_queue_of_unsure_pairs_comes_back_as_labels_once(
    home: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "ingest", "--market", "mini", "--day", DAY0)
    give = ("data", "review-queue", "--market", "mini", "--out", str(tmp_path / "sheet.csv"))
    assert "mini has no review queue yet" in said(capsys, *give, code=2)[0]
    snapshot = frozen(home, DAY0)
    store, folder = ArtifactStore(home.artifacts, home.cache), home.home / "made" / "queue"
    asked = pl.DataFrame({
        "query_id": [query_id(KO, "우유"), query_id(KO, "라면")], "product_id": ["p5", "p3"],
        "locale": [KO] * 2, "action": ["review"] * 2,
    })  # fmt: skip
    folder.mkdir(parents=True)
    asked.write_parquet(folder / "queue.parquet")
    write_sheets(store.open(snapshot).path, asked, folder, ordered=True)
    ref = store.publish(
        "mini/review_queue/q", folder, facts={"locale": KO, "queue": 2},
        inputs={"snapshot": snapshot}, about={},
    ).ref  # fmt: skip
    lines = said(capsys, *give)
    sheet = tmp_path / "sheet.csv"
    accept = f"csrm data accept --market mini --locale {KO} --day DAY --queue {ref} {sheet}"
    assert lines[1] == accept
    head, *rows = sheet.read_text(encoding="utf-8-sig").splitlines()
    assert [r.split(",")[1] for r in rows] == ["우유", "라면"]  # worth most first
    sheet.write_text("\n".join([head, f"{rows[0][:-1]}2,kim", rows[1]]), encoding="utf-8-sig")
    about = ("data", "accept", "--market", "mini", "--queue", ref, "--locale", KO, "--day", DAY1)
    assert said(capsys, *about, str(sheet))[0].startswith("1 labels landed: ")
    assert said(capsys, *about, str(sheet))[0].startswith("1 labels were landed before: ")
    said(capsys, "ingest", "--market", "mini", "--day", DAY1)
    pairs = pl.read_parquet(store.open(frozen(home, DAY1)).file("pairs.parquet"))
    pair = pairs.filter(pair_id=pair_id(query_id(KO, "우유"), "p5"))
    assert pair.select("grade", "raters", "agree").row(0) == (2, 1, 1)
    other = (*about[:-3], ZH, *about[-2:])
    assert (
        "has no sheet of zh-TW: its queue has 2 pairs of ko-KR"
        in said(capsys, *other, str(sheet), code=2)[0]
    )
