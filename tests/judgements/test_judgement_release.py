"""What a live release has to give: soft grades and audits; of another release nothing leaves."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.records import PAIRS, PRODUCTS, QUERIES, SCORED, write_table
from csrm_tasks.release import ledger
from csrm_tasks.settings import Settings
from csrm_tasks.text import pair_id, query_id
from tests.evaluation_fixtures import LOCALE
from tests.release_fixtures import MARKET, publish
from tests.release_world import AUTO, World

MILK, TEA = query_id(LOCALE, "milk"), query_id(LOCALE, "tea")


def snapshot(folder: Path) -> None:
    rows = [(MILK, "p1", 2, "train"), (MILK, "p2", 0, "train"), (TEA, "p1", 1, "gold")]
    pairs = [(pair_id(q, p), q, p, LOCALE, g, s, 1, 1) for q, p, g, s in rows]
    asked = ((MILK, "milk"), (TEA, "tea"))
    queries = [(q, LOCALE, text, text, "", "label", 1) for q, text in asked]
    goods = [(p, LOCALE, f"title {p}", "b", "c", "") for p in ("p1", "p2")]
    for name, schema, made in (
        ("pairs", PAIRS, pairs), ("queries", QUERIES, queries), ("products", PRODUCTS, goods)
    ):  # fmt: skip
        write_table(pl.DataFrame(made, schema, orient="row"), schema, folder / f"{name}.parquet")


def scored(folder: Path) -> None:
    rows = [(MILK, "p1", LOCALE, 0.1, 0.2, 0.7), (MILK, "p2", LOCALE, 0.8, 0.1, 0.1)]
    write_table(pl.DataFrame(rows, SCORED, orient="row"), SCORED, folder / "scored.parquet")


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two releases of one snapshot; the second is live."""
    world = World(settings)
    world.at_the_command_line(AUTO, monkeypatch)
    frozen = publish(settings, "snapshot", "s", snapshot, {"until": "2026-01-05"})
    teacher = publish(settings, "score_pairs", "t", scored)
    towers = publish(settings, "train_towers", "t", lambda _: None, inputs={"scored": teacher.ref})
    export = publish(settings, "export_towers", "t", lambda _: None, inputs={"towers": towers.ref})
    for key in ("one", "two"):
        made = world.release(key, snapshot=frozen.ref, export=export.ref)
        world.promote(made)
    return world


def audited(world: World, key: str, *said: tuple[str, str, int, str]) -> None:
    """Publish an audit of the live release with answers of (query, product, grade, rater)."""
    items = pl.DataFrame(
        [(q, p, f"r{q}{p}") for q, p in dict.fromkeys((q, p) for q, p, _, _ in said)],
        ["query_id", "product_id", "item"], orient="row",
    )  # fmt: skip
    answers = pl.DataFrame(
        [(f"r{q}{p}", g, who) for q, p, g, who in said],
        {"item": pl.String, "grade": pl.Int8, "rater_id": pl.String}, orient="row",
    )  # fmt: skip
    release = str(world.live())
    facts = {"open": release, "control": "old", "snapshot": f"{MARKET}/snapshot/s"}
    audit = publish(world.settings, "audit_tasks", key,
                    lambda f: items.write_parquet(f / "items.parquet"), facts)  # fmt: skip
    given = publish(world.settings, "audit_answers", key,
                    lambda f: answers.write_parquet(f / "answers.parquet"))  # fmt: skip
    payload = {"by": "rater", "audit": audit.ref, "grades": given.ref}
    ledger.append(world.settings, MARKET, "audited", release, actor="t", reason="", payload=payload)


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    capsys.readouterr()
    asked = ("export", "judgements", "--market", MARKET, *map(str, args))
    assert main(asked) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    return err if code else out


def test_soft_grades_are_the_live_teachers(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, "--what", "soft", "--to", "opensearch", "--out", out)
    body = json.loads((out / "judgments.json").read_text())
    assert body["judgmentRatings"] == [{"query": "milk", "ratings": [
        {"docId": "p1", "rating": 1.6}, {"docId": "p2", "rating": 0.3}]}]  # fmt: skip


def test_a_release_that_is_not_live_is_refused_by_name(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = str(world.live())
    (other,) = {e.release_id for e in ledger.verified(world.settings, MARKET)} - {live}
    for what in ("consensus", "gold", "soft", "audits"):
        told = run(capsys, "--what", what, "--allow-gold", "--to", "label-studio", "--out",
                   tmp_path / "out", "--release", other, code=2)  # fmt: skip
        assert f"{other} is not live in {MARKET}, {live} is" in told
    assert not (tmp_path / "out").exists()
    told = run(capsys, "--to", "rre", "--out", tmp_path / "out", "--release", live)
    assert f"2 judgements of 1 queries, consensus of {MARKET}/snapshot/s" in told
    assert "tea" not in (tmp_path / "out" / "ratings.json").read_text()  # it is gold


def test_audits_leave_with_their_raters(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--what", "audits", "--out", tmp_path / "out", "--to")
    assert "have not answered" in run(capsys, *asked, "quepid", code=2)
    audited(world, "a", (MILK, "p1", 2, "anna"), (MILK, "p1", 0, "ben"), (TEA, "p1", 1, "anna"))
    assert "3 judgements of 2 queries" in run(capsys, *asked, "quepid-csv")
    rows = (tmp_path / "out" / "book.csv").read_text().splitlines()
    assert rows == ["query,docid,anna,ben", "milk,p1,2,0", "tea,p1,1,"]
    assert "raters differ on 1 pairs" in run(capsys, *asked, "rre", code=2)
