"""docs/OPERATIONS.md by symptom: each is produced here or in a test it names, and its cure ends it.

The page itself is held, too: every symptom has its tests, every test is there, and what it quotes
is what the product says.
"""

from __future__ import annotations

import ast
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks import base_models
from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.base_models import base_digest
from csrm_tasks.errors import ArtifactError, ConfigError, DataError, DiskFullError
from csrm_tasks.settings import PROJECT_ROOT, Settings
from csrm_tasks.steps import declaration as registry
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.running import run_step
from tests.data_fixtures import DAY0, KO, ZH, ingest, label, land_lines, market, product, snapshot

PAGE = (PROJECT_ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
SYMPTOMS, TRIED = (PAGE.partition(f"## {title}")[2].partition("\n## ")[0]
                   for title in ("By symptom", "How the symptoms were tried"))  # fmt: skip
CONTEXT = multiprocessing.get_context("fork")


def rows(text: str) -> dict[int, str]:
    """Return number → the rest of a table's row."""
    found = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert len({n for n, _ in found}) == len(found)
    return {int(n): rest for n, rest in found}


@cache
def said_by_the_product() -> str:
    """Return every text of the product's source, the pieces of an f-string with … between them."""
    texts = []
    for path in (
        p for f in ("csrm_tasks", "dags", "plugins") for p in PROJECT_ROOT.glob(f"{f}/**/*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_symptom_has_its_tests_and_no_test_is_made_up() -> None:
    symptoms, tried = rows(SYMPTOMS), rows(TRIED)
    assert list(symptoms) == list(tried) == list(range(1, len(symptoms) + 1))
    for number, cell in tried.items():
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
        assert named and cell.count("`") == 2 * len(named), number
        for file, name in named:
            tree = ast.parse((PROJECT_ROOT / "tests" / file).read_text(encoding="utf-8"))
            assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name


def test_what_the_page_quotes_is_what_the_product_says() -> None:
    quoted = re.findall(r"“([^”]+)”", "\n".join(rows(SYMPTOMS).values()))
    assert len(quoted) > 15
    assert [words for words in quoted if words not in said_by_the_product()] == []


def catalogue(settings: Settings) -> None:
    for locale in (KO, ZH):
        rows = [product(n, f"title {n}") for n in range(4)]
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl", rows)


def test_a_file_that_cannot_be_taken_is_delivered_again(settings: Settings) -> None:
    catalogue(settings)
    path = settings.landing / "tiny" / DAY0 / KO / "label.csv"  # no kind of that name
    path.write_text("label_id,query\n1,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"label\.csv"):
        ingest(settings, DAY0)
    path.unlink()
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [label(1, "q", "p1", 2)])
    assert ingest(settings, DAY0)["publish_day"].facts
    assert snapshot(settings, 1, DAY0).facts


def test_a_day_with_too_much_in_quarantine_is_delivered_again(settings: Settings) -> None:
    catalogue(settings)
    wrong = [label(n, f"q{n}", "p1", "what") for n in range(40)]
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", wrong)
    with pytest.raises(DataError, match="mend the files or raise the tolerance"):
        ingest(settings, DAY0)
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [r | {"grade": 1} for r in wrong])
    assert ingest(settings, DAY0)["publish_day"].facts
    assert snapshot(settings, 1, DAY0).facts


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps of our own; the first of the list is what goes wrong, if anything."""
    fault: list[Any] = []
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.all_steps()))

    @step("t_made")
    def made(ctx: Context) -> Metadata:
        (ctx.out / "weights").write_text("trained")
        for what in fault:
            what(ctx)
        return {"made": 1}

    @step("t_after", inputs=["made"])
    def after(ctx: Context) -> Metadata:
        return {"read": ctx.input("made").file("weights").read_text()}

    return fault


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_a_full_quota_ends_when_there_is_room_again(
    settings: Settings, steps: list[Any], number: int
) -> None:
    def full(_: Context) -> None:
        raise OSError(number, os.strerror(number))

    steps.append(full)
    with pytest.raises(DiskFullError, match="no space left to write"):
        run_step("t_made", market(), settings=settings)
    steps.clear()  # room was made, and the task cleared
    ref = run_step("t_made", market(), settings=settings)
    assert run_step("t_after", market(), {"made": ref}, settings=settings)
    assert ArtifactStore(settings.artifacts, settings.cache).open(ref).file("weights").exists()


def test_a_worker_that_is_killed_leaves_no_lock_and_the_next_goes_on(
    settings: Settings, steps: list[Any]
) -> None:
    begun = CONTEXT.Event()
    seen: list[bool] = []

    def stays(ctx: Context) -> None:
        (ctx.work / "checkpoint").write_text("half")
        begun.set()
        signal.pause()

    def work() -> None:  # with the step's lock held, to its middle, and no further
        steps.append(stays)  # of the child's memory
        run_step("t_made", market(), settings=settings)

    worker = CONTEXT.Process(target=work)
    worker.start()
    assert begun.wait(60) and worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    steps.append(lambda ctx: seen.append((ctx.work / "checkpoint").exists()))
    ref = run_step("t_made", market(), settings=settings)
    assert seen == [True]  # its work was found
    assert run_step("t_made", market(), settings=settings) == ref


def test_a_damaged_artifact_is_made_again_as_it_was(settings: Settings, steps: list[Any]) -> None:
    ref = run_step("t_made", market(), settings=settings)
    read = run_step("t_after", market(), {"made": ref}, settings=settings)
    store = ArtifactStore(settings.artifacts, settings.cache)
    before = store.open(ref)
    before.file("weights").write_text("TRAINED")
    with pytest.raises(ArtifactError, match="was changed after it was published; delete the art"):
        run_step("t_made", market(), settings=settings)
    shutil.rmtree(Path(settings.artifacts, ref))
    assert run_step("t_made", market(), settings=settings) == ref
    assert ArtifactStore(settings.artifacts, settings.cache).open(ref).digest == before.digest
    assert run_step("t_after", market(), {"made": ref}, settings=settings) == read


def test_a_base_that_is_not_kept_here_is_added_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSRM_BASES", str(tmp_path))
    with pytest.raises(ConfigError, match=r"it is not kept on this machine .*csrm base add small"):
        base_digest("base:small")
    (tmp_path / "small").mkdir()  # as the command does, the record last
    (tmp_path / "small" / "config.json").write_text("{}")
    (tmp_path / "small" / base_models.RECORD).write_text(json.dumps({"kind": "causal"}))
    assert base_digest("base:small")
