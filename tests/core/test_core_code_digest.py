"""A step's digest follows its code: edits tried on a copy of the package, and on a made-up one."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csrm_tasks.evaluation import baselines, metrics, reliability
from csrm_tasks.evaluation.report import model_card
from csrm_tasks.evaluation.report import page as report
from csrm_tasks.llm.baselines import encoder as baseline_encoder
from csrm_tasks.llm.baselines import prompt as baseline_prompt
from csrm_tasks.llm.cost import formula as cost
from csrm_tasks.llm.network import identity
from csrm_tasks.llm.scoring import calibration
from csrm_tasks.llm.training import train, worker
from csrm_tasks.release.bundle import probe
from csrm_tasks.steps import all_steps, closure, code_digest
from csrm_tasks.steps.closure import EXCLUDED, WHOLE, SourceTree
from csrm_tasks.steps.code_digest import PACKAGE, closure_of, stamp
from csrm_tasks.steps.source import Module, imports_in, read_module
from csrm_tasks.towers.serving import tokens

LLM = {"train_llm", "score_pairs", "score_shard", "join_shards", "export_llm", "select_llm"}
CROSS_FITS = {  # train, or may have to
    "pretrain_llm", "train_llm", "score_pairs", "join_shards", "filter_fold", "ablation_run",
}  # fmt: skip
TOKENISES_FOR_TOWERS = {
    "train_towers", "shorten_query_tower", "train_cross_encoder", "export_towers",
    "embed_products", "score_towers", "servability", "refresh", "audit_tasks", "drill",
    "second_stage", "score_second_stage",
    "register", "repair_views",  # write the model that MLflow keeps, which carries its code
}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    binaries = shutil.ignore_patterns("__pycache__", "*.safetensors", "tokenizer.json")
    return Path(shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=binaries))


@pytest.fixture(scope="module", autouse=True)
def files_are_parsed_once() -> Iterator[None]:
    """A copy of a file under the same name reads as the first one did: most tests edit one."""
    known: dict[tuple[str, bytes], Module] = {}

    def read_once(name: str, path: Path) -> Module:
        key = name, path.read_bytes()
        if key not in known:
            known[key] = read_module(name, path)
        return replace(known[key], path=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closure, "read_module", read_once)
        yield


@pytest.fixture(scope="module")
def tree(files_are_parsed_once: None) -> SourceTree:
    """The package as it is."""
    return SourceTree(PACKAGE)


def digests(package: Path) -> dict[str, str]:
    return digests_in(SourceTree(package))


def digests_in(tree: SourceTree) -> dict[str, str]:
    return {name: closure_of(s.function, tree).digest() for name, s in all_steps().items()}


@pytest.fixture(scope="module")
def before(tree: SourceTree) -> dict[str, str]:
    return digests_in(tree)


def edit(package: Path, *definitions: Any) -> None:
    """Put one more statement at the end of the functions, or of the classes' first methods."""
    for definition in definitions:
        path = package / Path(inspect.getfile(definition)).relative_to(PACKAGE)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        node = next(n for n in tree.body if getattr(n, "name", "") == definition.__name__)
        if isinstance(node, ast.ClassDef):
            node = next(n for n in node.body if isinstance(n, ast.FunctionDef))
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        node.body.insert(0, ast.parse("edited = 1").body[0])
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")


def functions_of(*modules: Any) -> list[Any]:
    return [
        found
        for module in modules
        for _, found in inspect.getmembers(module, inspect.isfunction)
        if found.__module__ == module.__name__
    ]


@pytest.mark.parametrize(
    ("definitions", "steps"),
    [
        (lambda: functions_of(cost, report, model_card), set()),
        (lambda: [tokens.TokenTable], TOKENISES_FOR_TOWERS),
        (
            lambda: [baseline_encoder.train_encoder, baseline_prompt.question, baselines.majority],
            {"baseline_encoder", "baseline_prompt", "baselines", "choose_teacher"},
        ),
        (lambda: [train.train], CROSS_FITS),
        (lambda: [worker._inputs, probe.main], {*CROSS_FITS, "servability"}),  # started by name
        (lambda: [reliability.plot], {"select_llm"}),
    ],
)
def test_an_edit_makes_those_steps_run_again_that_use_what_was_edited(
    package: Path,
    before: dict[str, str],
    definitions: Callable[[], Iterable[Any]],
    steps: set[str],
) -> None:
    edit(package, *definitions())
    after = digests(package)
    assert {name for name in before if before[name] != after[name]} == steps


def test_the_towers_tokenizer_is_nothing_to_the_llm_and_its_card_is(tree: SourceTree) -> None:
    assert not TOKENISES_FOR_TOWERS & LLM
    reached = {n: closure_of(s.function, tree) for n, s in all_steps().items()}
    card = identity.__name__
    assert {n for n in LLM if reached[n].covers(card, "LlmCard")} == LLM
    assert reached["select_llm"].covers(calibration.__name__, "calibrate")
    assert reached["select_llm"].covers(metrics.__name__, "calibration_by_query")
    assert not reached["select_llm"].covers(metrics.__name__, "micro_f1")


class _Reworded(ast.NodeTransformer):
    """Another docstring, another log line, no annotation: nothing that changes an output."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Expr(ast.Constant("Reworded."))
        if ast.unparse(node).startswith("log."):
            return ast.parse("log.info('reworded')").body[0]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = ast.Constant("int")
        for argument in node.args.args:
            argument.annotation = None
        self.generic_visit(node)
        return node


def test_comments_docstrings_formatting_logs_and_type_hints_leave_every_step_alone(
    package: Path, before: dict[str, str]
) -> None:
    commented = reworded = 0
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tree = _Reworded().visit(ast.parse(text))  # unparsed: no comment, one quote, own spacing
        commented += "#" in text
        reworded += "'reworded'" in ast.unparse(ast.fix_missing_locations(tree))
        path.write_text(ast.unparse(tree) + "\n# a comment\n", encoding="utf-8")
    assert commented > 100
    assert reworded > 20
    assert digests(package) == before


def test_what_is_excluded_exists_and_is_loaded_by_what_is_reached(tree: SourceTree) -> None:
    reached = {m for s in all_steps().values() for m in closure_of(s.function, tree).modules}
    modules = [tree.module(name) for name in reached]
    inside = [node for m in modules for s in m.statements for node in ast.walk(s)]
    loaded = {i.loaded for m in modules for i in m.imports} | {i.loaded for i in imports_in(inside)}
    for name in EXCLUDED:
        assert tree.path(name) is not None, name
        assert any(dotted == name or dotted.startswith(f"{name}.") for dotted in loaded), name


def test_a_step_from_outside_the_package_counts_with_its_module(tmp_path: Path) -> None:
    path = tmp_path / "theirs.py"
    sources = ["def f(ctx):\n    return g()\ndef g():\n    return {}\n"]
    sources += [sources[0].replace("{}", "{'a': 1}"), sources[0] + "# a comment\n"]
    found = []
    for text in sources:
        path.write_text(text)
        names: dict[str, Any] = {"__name__": "theirs"}
        exec(compile(text, str(path), "exec"), names)
        found.append(closure_of(names["f"], SourceTree(PACKAGE)).digest())
    assert found[0] == found[2] != found[1]
    assert closure_of(names["f"], SourceTree(PACKAGE)).covers("theirs", WHOLE)


def test_a_digest_is_kept_for_other_processes_until_a_file_changes(
    package: Path, before: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, kept = all_steps()["land"].function, tmp_path / "kept"
    monkeypatch.setattr(code_digest, "stamp", lambda _: stamp(package))

    def another_process() -> str:
        forget()
        return code_digest.code_digest(function, kept)

    assert another_process() == before["land"]
    (file,) = kept.iterdir()
    file.write_text("0" * 64)
    assert another_process() == "0" * 64
    file.write_text("0" * 20)  # killed while it was written
    assert another_process() == before["land"] == file.read_text()
    file.write_text("0" * 64)
    os.utime(package / "errors.py", (1, 1))
    assert another_process() == before["land"]
    forget()


def forget() -> None:
    """Forget what this process has found."""
    code_digest.code_digest.cache_clear()
    code_digest.own_stamp.cache_clear()
