"""The study of AnalytiCup's files: figures on public rows, and the submission that comes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.cli.main import main
from csrm_tasks.demo.public.published import CIKM_FIGURES, ESCI_FIGURES, PUBLISHED
from tests.layouts_fixtures import judged, write_cikm

WORDS = ("lamp", "vase", "bowl", "cup", "fork", "sofa")


def rows(task: str, first: int, n: int, languages: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for i in range(first, first + n):
        word, other = WORDS[i % 6], WORDS[(i + 1 + i // 6) % 6]
        for yes in (0, 1):
            named = word if yes else other if other != word else "rope"
            item = f"Home, Garden,{named}, red,{i % 9}" if task == "QC" else f"{named} no. {i % 9}"
            language = languages[i % len(languages)]
            found.append(judged(2 * i + yes, language, f"{word} {i}", item, yes, task))
    return found


def files(flipped: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Both tasks, three splits; of the test files some rows have no label, and one no title."""
    made = {}
    for task in ("QC", "QI"):
        made[f"train_{task}.txt"] = rows(task, 0, 200, ("en", "ko"))
        made[f"dev_{task}.txt"] = rows(task, 200, 8, ("en", "ko", "de"))
        test = rows(task, 208, 12, ("ko", "en", "pl"))
        for i, row in enumerate(test):
            row["label"] = str(row["label"] ^ flipped)
            if i % 4 == 3:
                del row["label"]
        made[f"test_{task}.txt"] = test
    del made["test_QI.txt"][0]["item_title"]
    made["test_QI.txt"][1]["origin_query"] = "half \ud83d a cup"
    made["test_QI.txt"][2]["id"] = "a-2"
    made["test_QC.txt"][2]["origin_query"] = ""
    return made


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path / "markets"))
    return tmp_path / "home"


def submitted(home: Path) -> dict[str, list[dict[str, Any]]]:
    found = sorted((home / "study" / "cikm2025").glob("submit_*.txt"))
    return {p.name: [json.loads(x) for x in p.read_text().splitlines()] for p in found}


def test_figures_are_of_the_public_rows_and_their_labels_choose_nothing(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cikm(tmp_path / "data", files())
    asked = ["study", "cikm2025", "--data-dir", str(data), "--steps", "4"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "dev: 32 rows, 32 labelled\ntest: 48 rows, 36 labelled" in out.replace("; ", "\n")
    for split, absent in (("dev", "de"), ("test", "pl")):
        for task in ("QC", "QI"):
            assert f"public {split}: F1 of yes, {task}" in out
        assert f"| {absent}, held out |" in out
    for one in PUBLISHED:
        assert (one.source in out) == (one.data == "cikm2025")
    # Every row of the test files is answered, in their order, whatever is wrong with it.
    first = submitted(own_home)
    assert list(first) == ["submit_QC.txt", "submit_QI.txt"]
    for name, answers in first.items():
        test = files()[name.replace("submit", "test")]
        assert [a["id"] for a in answers] == [row["id"] for row in test]
        assert all(set(a) == {"id", "prediction"} and a["prediction"] in (0, 1) for a in answers)
    best = re.search(r"submit_QC.txt: by (.+), the best on our own dev", out)
    assert best is not None
    for task in ("QC", "QI"):
        assert shown_f1(out, task, best[1]) == pytest.approx(f1(first, task), abs=0.06)
    # The day of dev and test was not taken in: no snapshot can hold them.
    published = {p.parent.name for p in own_home.glob("artifacts/cikm2025/publish_day/*")}
    assert published == {"publish_day"}
    assert len(list(own_home.glob("artifacts/cikm2025/publish_day/*"))) == 1
    write_cikm(data, files(flipped=True))
    assert main(asked) == 0
    again = capsys.readouterr().out
    assert submitted(own_home) == first and again != out
    assert f"submit_QC.txt: by {best[1]}" in again


def f1(found: dict[str, list[dict[str, Any]]], task: str) -> float:
    """F1 of the positive class of the labelled rows, counted one by one, in points."""
    test = files()[f"test_{task}.txt"]
    both = [
        (row["label"] == "1", answer["prediction"] == 1)
        for row, answer in zip(test, found[f"submit_{task}.txt"], strict=True)
        if "label" in row
    ]
    hits = sum(t and s for t, s in both)
    return 200 * hits / (sum(t for t, _ in both) + sum(s for _, s in both))


def shown_f1(out: str, task: str, model: str) -> float:
    table = out.split(f"public test: F1 of yes, {task}\n\n")[1]
    header = [cell.strip() for cell in table.splitlines()[0].split("|")]
    whole = next(line for line in table.splitlines() if line.startswith("| all |"))
    return float(whole.split("|")[header.index(model)].split("[")[0])


def test_every_kind_of_fault_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = files()
    train = {name: own for name, own in whole.items() if name.startswith("train")}
    test = {name: own for name, own in whole.items() if name.startswith("test")}
    odd = whole | {"test_QC.txt": [*whole["test_QC.txt"], judged(1, "en", "a", "b", "2", "QC")]}
    for i, (given, expected) in enumerate((
        (train, "has neither dev nor test files of qc, qi"),
        (test, "has no training file of qc, qi"),
        (odd, "test_QC.txt: row 25: label: is '2'"),
    )):  # fmt: skip
        data = write_cikm(tmp_path / f"data{i}", given)
        assert main(["study", "cikm2025", "--data-dir", str(data), "--market", f"m{i}"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("csrm: ") and expected in error


def test_a_market_that_names_a_task_is_asked_in_it_alone(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_cikm(tmp_path / "data", files())
    asked = ["--data-dir", str(data)]
    assert main(["import", "cikm2025", *asked]) == 0
    file = tmp_path / "markets" / "cikm2025.yaml"
    text = file.read_text(encoding="utf-8").replace("llm:\n", "llm:\n  label_smoothing: 0.1\n")
    file.write_text(text + "tasks: [qi]\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["study", "cikm2025", *asked, "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "F1 of yes, QI" in out and "F1 of yes, QC" not in out
    assert "| LLM SFT | LLM, market's options |" in out
    assert list(submitted(own_home)) == ["submit_QI.txt"]


def test_published_figures_name_their_source() -> None:
    for one in PUBLISHED:
        assert 0.0 < one.value < 1.0 and one.source and one.of
        assert one.what in (CIKM_FIGURES if one.data == "cikm2025" else ESCI_FIGURES)
