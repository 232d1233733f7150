"""A full disk, a newer store, an unpinned base, a gate that cannot be met: one line each."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from csrm_tasks import base_models
from csrm_tasks.base_models import pretrained
from csrm_tasks.errors import ConfigError, DiskFullError, disk_full_as_one_line
from csrm_tasks.evaluation.measures import LOWER, MEASURES
from csrm_tasks.markets import MarketConfig, load_market
from csrm_tasks.sections import Gate
from csrm_tasks.sections.release import SLICES, Floored
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import declaration as registry
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.running import run_step
from csrm_tasks.store.engine import HEAD, VERSION_TABLE, open_store

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = """
market: tiny
source_locale: ko-KR
target_locale: zh-TW
llm: {base: ./b}
retrieval: {ebr: {encoder: ./e}}
towers: {encoder: ./e}
"""


def load(folder: Path, text: str) -> MarketConfig:
    (folder / "tiny.yaml").write_text(text)
    return load_market("tiny", folder)


def test_a_store_of_a_newer_version_is_refused_and_left_alone(database: str) -> None:
    engine = open_store(database)
    newer = f"{int(HEAD) + 1:04}"
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '{newer}'"))  # noqa: S608
    with pytest.raises(ConfigError, match=rf"schema is {newer}, newer than {HEAD}.*newer version"):
        open_store(database)
    with engine.begin() as connection:
        found = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
        assert found == newer
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'"))  # noqa: S608


def full_device() -> None:
    """What Linux says of a file system without room."""
    with Path("/dev/full").open("w") as f:
        f.write("x" * 100_000)


def full_sqlite() -> None:
    """What SQLite says when its file cannot grow."""
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 4")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


def full_behind_a_library() -> None:
    """What a library makes of it: another error, with the first as its cause."""
    try:
        full_device()
    except OSError as e:
        raise ValueError("the table could not be written") from e


@pytest.mark.parametrize("fail", [full_device, full_sqlite, full_behind_a_library])
def test_a_full_disk_in_a_step_is_one_line_and_nothing_half_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fail: Any
) -> None:
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.all_steps()))

    @step("t_full")
    def writes(ctx: Context) -> Metadata:
        (ctx.out / "half").write_text("half")
        fail()
        return {}

    config = MarketConfig.model_validate(
        {
            "market": "tiny", "source_locale": "ko-KR", "target_locale": "zh-TW",
            "llm": {"base": "./b"}, "retrieval": {"ebr": {"encoder": "./e"}},
            "towers": {"encoder": "./e"},
        }
    )  # fmt: skip
    with pytest.raises(DiskFullError, match=r"step t_full: no space left .*run it again") as e:
        run_step("t_full", config, settings=settings)
    assert "\n" not in str(e.value)
    assert not list(Path(settings.artifacts).rglob("manifest.json"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_full_as_one_line("this", tmp_path):
        (tmp_path / "nothing").read_text()
    with pytest.raises(ConfigError, match="No space left"), disk_full_as_one_line("this", tmp_path):
        raise ConfigError("already one line: No space left on device")


@pytest.mark.parametrize("threads", ["", "0", "-1", "two", "1.5"])
def test_threads_that_are_no_number_are_named(threads: str) -> None:
    with pytest.raises(ConfigError, match=r"CSRM_THREADS is .*whole number"):
        load_settings({"CSRM_THREADS": threads})


@pytest.mark.parametrize("at", ["ann:secret@h:5000", "ann:sec/secret@h/x", ":secret@h"])
def test_a_login_in_mlflows_address_is_refused_and_not_shown(at: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_USERNAME and") as caught:
            load_settings({"MLFLOW_TRACKING_URI": f"{scheme}://{at}"})
        assert "secret" not in str(caught.value)
    database = "postgresql://ann:secret@h/mlflow"  # a database's is no server's
    assert load_settings({"MLFLOW_TRACKING_URI": database}).mlflow_uri == database


@pytest.mark.parametrize(
    "name", ["org/model", "org/model@main", f"org/model@{COMMIT[:12]}", "model", "model@", "a/b@v1"]
)
@pytest.mark.parametrize(
    ("key", "old"),
    [("llm.base", "base: ./b"), ("retrieval.ebr.encoder", "encoder: ./e}}"),
     ("towers.encoder", "encoder: ./e}\n")],
)  # fmt: skip
def test_a_hub_name_without_its_commit_is_refused_at_load(
    tmp_path: Path, name: str, key: str, old: str
) -> None:
    new = old.replace("./b", f"'{name}'").replace("./e", f"'{name}'")
    with pytest.raises(ConfigError, match=rf"tiny.yaml: {key}: .*40 hexadecimal digits"):
        load(tmp_path, FILE.replace(old, new, 1))
    with pytest.raises(ConfigError, match="40 hexadecimal digits"):
        pretrained(name)


def test_controls_are_pinned_too_but_not_the_model_of_an_endpoint(tmp_path: Path) -> None:
    for control in ("encoder", "prompt"):
        with pytest.raises(ConfigError, match=rf"controls.{control}: .*pinned"):
            load(tmp_path, FILE + f"controls: {{{control}: org/model}}\n")
    load(tmp_path, FILE + "controls: {prompt: gpt-x, prompt_connection: shop}\n")


def test_paths_and_pinned_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.setattr(base_models, "PROJECT_ROOT", tmp_path)
    for name in ("./b", "/srv/models/b", "a/deep/path", "models/small", f"org/model@{COMMIT}"):
        load(tmp_path, FILE.replace("./b", f"'{name}'"))
    found = pretrained("models/small")["pretrained_model_name_or_path"]
    assert found == str(tmp_path / "models" / "small")
    assert pretrained(f"org/model@{COMMIT}") == {
        "pretrained_model_name_or_path": "org/model", "revision": COMMIT,
    }  # fmt: skip


def test_that_commit_is_what_is_loaded(tmp_path: Path) -> None:
    """From a cache that holds two revisions of one name, without network."""
    other = "f" * 40
    for commit, layers in ((COMMIT, 3), (other, 7)):
        folder = tmp_path / "hub" / "models--org--model" / "snapshots" / commit
        folder.mkdir(parents=True)
        about = {"model_type": "bert", "num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(about))
    refs = tmp_path / "hub" / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(other)
    script = (
        "from transformers import AutoConfig; from csrm_tasks.base_models import pretrained;"
        f"print(AutoConfig.from_pretrained(**pretrained('org/model@{COMMIT}')).num_hidden_layers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "3"


def test_what_can_have_a_floor_is_what_is_measured() -> None:
    assert set(get_args(Floored)) == set(MEASURES) - set(LOWER)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("floors: {micro_f2: 0.4}", r"gate.floors.*micro_f2"),
        ("floors: {ece: 0.1}", r"gate.floors.*ece"),
        ("floors: {micro_f1: .nan}", r"gate.floors.micro_f1"),
        ("floors: {micro_f1: 40}", r"gate.floors.micro_f1.*less than or equal to 1"),
        ("not_below: [tfid]", r"gate.not_below.0: .*'majority', 'tfidf'"),
        ("not_below: {tfid: [em_f1]}", r"gate.not_below.tfid.*'majority', 'tfidf'"),
        ("not_below: {tfidf: [em]}", r"gate.not_below.tfidf.0: .*'micro_f1', 'em_f1'"),
        ("not_below: {tfidf: []}", r"gate.not_below.tfidf: .*at least 1 item"),
        ("not_below: tfidf", r"gate.not_below: Input should be a valid array"),
        ("not_below: {encoder: [em_f1]}", r"gate.not_below: encoder is not measured without"),
        ("not_below: [encoder]", r"gate.not_below: encoder is not measured without controls"),
        ("slices: [tails]", r"no slice 'tails'; known: head, torso, tail"),
        ("slices: [language]", r"no slice 'language'"),
        ("slices: ['language xx-YY']", r"gate.slices: 'xx-YY' is none of the market's"),
        ("slices: ['category ']", r"no slice 'category '"),
    ],
)
def test_a_gate_that_names_what_is_not_measured_is_refused_at_load(
    tmp_path: Path, gate: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, FILE + f"gate: {{{gate}}}\n")


def test_a_gate_may_name_all_that_is_measured(tmp_path: Path) -> None:
    slices = [*SLICES, "language zh-TW", "language ko-KR", "category 가전"]
    text = f"gate: {{slices: {json.dumps(slices)}, not_below: [majority, tfidf, encoder]}}\n"
    config = load(tmp_path, FILE + text + "controls: {encoder: ./e}\n")
    assert config.gate == Gate(slices=tuple(slices), not_below=("majority", "tfidf", "encoder"))
