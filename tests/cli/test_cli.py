"""The command line: commands from the registry, and one line and exit code 2 for bad input."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from csrm_tasks.cli.main import command_name, main
from csrm_tasks.steps.declaration import all_steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own with the miniature market."""
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(ROOT / "tests" / "markets"))
    return tmp_path / "home"


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run ``args``; return the one line on stderr, having checked that it is one, and the code."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1, err
    return lines[0]


def test_help_lists_every_step_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    words = capsys.readouterr().out.split()
    assert {command_name(n) for n in all_steps()} <= set(words)
    assert {"demo", "ingest", "quarantine", "release", "show", "steps"} <= set(words)


def test_a_step_command_offers_what_the_step_declares(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-llm", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(o in out for o in ("--market", "--snapshot REF", "--rqa REF", "--arm", "--round"))
    assert main(["train-ebr", "--help"]) == 0
    assert "--local / --no-local" in capsys.readouterr().out


def test_a_step_prints_its_reference_and_show_prints_its_manifest(
    own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["champion", "--market", "mini"]) == 0
    ref = capsys.readouterr().out.strip()
    assert ref.startswith("mini/champion/")
    assert main(["show", ref]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["release"] is None
    assert main(["release", "live", "--market", "mini"]) == 0
    assert capsys.readouterr().out == ""


def test_a_list_input_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def fake(name: str, market: str, inputs: dict, params: dict, settings: object) -> str:
        seen.update(inputs=inputs, params=params)
        return "mini/select_llm/0"

    monkeypatch.setattr("csrm_tasks.cli.main.run_step", fake)
    args = [
        "select-llm",
        "--market",
        "mini",
        "--snapshot",
        "mini/snapshot/0",
        "--llms",
        "mini/train_llm/b",
        "--llms",
        "mini/train_llm/a",
    ]
    assert main(args) == 0
    assert list(seen["inputs"]["llms"]) == ["mini/train_llm/b", "mini/train_llm/a"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fly"], "fly"),
        (["train-llm", "--market", "mini"], "--snapshot"),
        (["snapshot", "--market", "mini", "--stage", "one", "--until", "2026-01-04"], "one"),
        (["snapshot", "--market", "nowhere", "--stage", "1", "--until", "2026-01-04"], "nowhere"),
        (["release", "history", "--market", "nowhere"], "there is no market 'nowhere'"),
        (["quarantine", "list", "--market", "nowhere"], "known: "),
        (["digest", "--market", "nowhere"], "there is no market 'nowhere'"),
        (["market", "check", "nowhere"], "there is no market 'nowhere'"),
        (["market", "check", "no/where.yaml"], "no/where.yaml does not exist"),
        (["show", "mini/snapshot/0"], "does not exist"),
        (["build-bm25", "--market", "mini", "--snapshot", "mini/snapshot/0"], "does not exist"),
        (["ingest", "--market", "mini", "--day", "2026-01-04"], "2026-01-04"),
        (["release", "approve", "r", "--market=mini", "--actor=a", "--reason=b"], "no registered"),
        (["demo", "run", "--market", "nowhere"], "nowhere"),
        (["demo", "generate", "--market", "mini"], "mini"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *args)


def test_what_a_command_lacks_is_asked_of_that_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USER", raising=False)  # as in a container
    line = refused(capsys, "release", "approve", "x", "--market", "mini", "--reason", "good")
    assert "'--actor'" in line
    assert line.endswith("(see csrm release approve --help)")
    assert refused(capsys, "undo").endswith("(see csrm --help)")


def test_an_unknown_key_names_file_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "tests" / "markets" / "mini.yaml").read_text(encoding="utf-8")
    (tmp_path / "mini.yaml").write_text(text.replace("seed: 0", "seed: 0\nseeds: 1"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path))
    line = refused(capsys, "champion", "--market", "mini")
    assert f"{tmp_path / 'mini.yaml'}: seeds:" in line
    (tmp_path / "mini.yaml").write_text(text.replace("seed: 0", "seed: many"))
    assert "seed: Input should be a valid integer" in refused(
        capsys, "champion", "--market", "mini"
    )


def test_too_little_disk_says_how_much(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    line = refused(capsys, "demo", "run", "--market", "mini")
    assert "0.0 GB free" in line
    assert "CSRM_HOME" in line


def test_a_taken_port_says_which_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = str(s.getsockname()[1])
        line = refused(capsys, "demo", "ui", "--market", "mini", "--mlflow-port", port)
        assert f"port {port}, wanted for MLflow, is taken" in line
        line = refused(capsys, "demo", "ui", "--market", "mini", "--port", port)
        assert f"port {port}, wanted for Airflow, is taken" in line


def test_stop_says_that_nothing_was_running(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "stop", "--market", "mini"]) == 0
    assert capsys.readouterr().out == "nothing was running\n"


def test_the_exit_code_reaches_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "csrm_tasks", "champion", "--market", "nowhere"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_rollouts_are_simulated_by_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "simulate", "--number", "2"]) == 0
    said = capsys.readouterr().out
    assert "| 2 × defects |" in said and "| 20% | sequential, every day |" in said
