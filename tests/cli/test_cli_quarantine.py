"""``csrm quarantine``: what was set aside is counted, shown safely, written out, and replayed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.settings import Settings, load_settings
from tests.data_fixtures import DAY0, DAY1, KO, label, land_lines, product

ROOT = Path(__file__).resolve().parents[2]
ODD = "우유\u202e\x1b[2J\u2028"


@pytest.fixture(autouse=True)
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature market after a night of which four rows were set aside."""
    home = tmp_path / "home"
    monkeypatch.setenv("CSRM_HOME", str(home))
    monkeypatch.setenv("CSRM_MARKETS", str(ROOT / "tests" / "markets"))
    settings = load_settings({"CSRM_HOME": str(home)})
    land_lines(settings, DAY0, f"{KO}/catalogue.jsonl", [product(1, "상품")], "mini")
    rows = [label(1, "우유", "p1", 2), label(2, ODD, "p2", 2), label(3, "우유", "p1", "=1+1")]
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", rows, "mini")
    csv = land_lines(settings, DAY0, f"{KO}/labels-b.csv.zst", [], "mini")
    csv.write_bytes(b"not zstd")
    return home


def without_labels(night: Path) -> tuple[Settings, Path]:
    """Take the night's labels away; returns where others land."""
    day = night / "landing" / "mini" / DAY0 / KO
    for name in ("labels-b.csv.zst", "labels.jsonl"):
        (day / name).unlink()
    return load_settings({"CSRM_HOME": str(night)}), day


def said(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(args) == code
    out, err = capsys.readouterr()
    return (err if code else out).splitlines()


def ingest(capsys: pytest.CaptureFixture[str], code: int, day: str = DAY0) -> str:
    return said(capsys, "ingest", "--market", "mini", "--day", day, code=code)[-1]


def test_a_refused_day_says_how_to_look_at_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    line = ingest(capsys, 2)
    assert line.endswith(f"(see csrm quarantine show --market mini --day {DAY0})")


def test_list_counts_by_day_kind_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    ingest(capsys, 2)
    lines = [line.split() for line in said(capsys, "quarantine", "list", "--market", "mini")]
    assert lines == [
        [DAY0, "1", "labels", "unknown_product"], [DAY0, "1", "labels", "unknown_value"],
        [DAY0, "1", "labels", "unreadable_file"],
    ]  # fmt: skip
    one = ("--day", DAY0, "--reason", "unknown_value")
    assert len(said(capsys, "quarantine", "list", "--market", "mini", *one)) == 1
    assert said(capsys, "quarantine", "list", "--market", "mini", "--day", "2026-02-01") == []


def test_show_prints_rows_that_can_do_a_terminal_no_harm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ingest(capsys, 2)
    lines = said(capsys, "quarantine", "show", "--market", "mini", "--day", DAY0)
    assert f"{DAY0} {KO}/labels.jsonl row 2: unknown_product product_id" in lines
    assert any('"query": "우유\\u202e\\u001b[2J\\u2028"' in line for line in lines)
    assert all(line.isprintable() for line in lines)
    whole = lines.index(
        f"{DAY0} {KO}/labels-b.csv.zst: unreadable_file cannot be decompressed (zst)"
    )
    assert lines[whole + 1] == "    not zstd"
    assert len(said(capsys, "quarantine", "show", "--market", "mini", "--limit", "1")) == 2


def test_raw_rows_are_written_under_names_that_supersede_nothing(
    night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(capsys, 2)
    folder = tmp_path / "mend"
    said(capsys, "quarantine", "show", "--market", "mini", "--raw", str(folder))
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    landed = (night / "landing" / "mini" / DAY0 / KO / "labels.jsonl").read_bytes()
    name = f"{DAY0}/{KO}/labels-jsonl.mended.jsonl"
    assert files == {name: b"\n".join(landed.splitlines()[1:3]) + b"\n"}


def test_mended_rows_of_csv_are_a_delivery(
    night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, day = without_labels(night)
    land_lines(settings, DAY0, f"{KO}/labels-a.csv", [], "mini").write_bytes(
        b"\xef\xbb\xbflabel_id,query,product_id,grade\r\nl1,q,p1,2\r\nl2,q,p1,9\r\n"
    )
    ingest(capsys, 2)
    said(capsys, "quarantine", "show", "--market", "mini", "--raw", str(tmp_path / "mend"))
    mended = tmp_path / "mend" / DAY0 / KO / "labels-a.csv.mended.csv"
    expected = b"\xef\xbb\xbflabel_id,query,product_id,grade\r\nl2,q,p1,9\n"
    assert mended.read_bytes() == expected  # with a byte order mark, for spreadsheets
    (day / mended.name).write_bytes(mended.read_bytes().replace(b"9", b"1"))
    ingest(capsys, 2)  # the old row is still there
    assert len(said(capsys, "quarantine", "list", "--market", "mini")) == 1


def test_rows_of_csv_that_a_correction_refused_are_written_as_the_json_they_are(
    night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, day = without_labels(night)
    header, bad = b"label_id,query,product_id,grade\n", b"l2,q,p1,9\n"
    for name in ("labels-a.csv", "labels-b.csv"):
        land_lines(settings, DAY0, f"{KO}/{name}", [], "mini").write_bytes(
            header + b"l1,q,p1,2\n" + (bad if "b" in name[6:-4] else b"")
        )
    ingest(capsys, 2)
    (day / "labels-a.csv").write_bytes(header + b"l1,q,p1,0\n")  # now the other one contradicts it
    ingest(capsys, 2)
    said(capsys, "quarantine", "show", "--market", "mini", "--raw", str(tmp_path / "mend"))
    folder = tmp_path / "mend" / DAY0 / KO
    assert sorted(p.name for p in folder.iterdir()) == [
        "labels-b.csv.mended.csv", "labels-b.csv.mended.jsonl"
    ]  # fmt: skip
    mended = folder / "labels-b.csv.mended"
    assert mended.with_suffix(".mended.csv").read_bytes() == b"\xef\xbb\xbf" + header + bad
    row = json.loads(mended.with_suffix(".mended.jsonl").read_text(encoding="utf-8"))
    assert (row["label_id"], row["grade"]) == ("l1", 2)


def test_replay_is_dry_until_told_then_stores_and_publishes(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings({"CSRM_HOME": str(night)})
    (night / "landing" / "mini" / DAY0 / KO / "labels-b.csv.zst").unlink()
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [label(2, "우유", "p2", 2)], "mini")
    ingest(capsys, 2)
    land_lines(settings, DAY1, f"{KO}/catalogue.jsonl", [product(2, "상품")], "mini")
    night_after = said(capsys, "ingest", "--market", "mini", "--day", DAY1)
    assert night_after[1] == "1 rows: 0 in quarantine, 0 ignored"
    # the label came before: it stays until somebody replays it
    args = ("quarantine", "replay", "--market", "mini", "--day", DAY0)
    told = f"{KO}/labels.jsonl: 1 rows, 1 stored, 0 known, left: none"
    assert said(capsys, *args) == [told, "nothing was changed; --apply does it"]
    done = said(capsys, *args, "--apply")
    assert done[0] == told
    assert done[1].startswith("mini/publish_day/")
    assert said(capsys, "quarantine", "list", "--market", "mini") == []
    assert said(capsys, *args) == ["nothing was changed; --apply does it"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("list", "--market", "mini", "--day", "../x"), "write it as YYYY-MM-DD"),
        (("show", "--market", "mini", "--reason", "bad"), "'bad' is no reason; there are "),
        (("replay", "--market", "mini", "--day", DAY0, "--reason", "bad"), "is no reason"),
        (("replay", "--market", "mini"), "--day"),
    ],
)
def test_bad_input_is_one_line(
    args: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [x for x in said(capsys, "quarantine", *args, code=2) if not x.startswith("INFO")]
    assert len(lines) == 1
    assert error in lines[0]
