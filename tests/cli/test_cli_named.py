"""Every ``csrm`` command that a message, a docstring or a page names is one that there is.

What is named is read by the command line's own parser: the command, its options, the number of its
arguments and, where options are given, what it requires. "…" stands for what is left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from csrm_tasks.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?<![\w/.{-])(?:(?:\.venv/)?bin/)?csrm +(?=[a-z])")
QUOTED = re.compile(r"\"[^\"`]*\"|'[^'`]*'")
DOTS = ("…", "...")


def texts(path: Path) -> Iterator[str]:
    """Yield what a file says: strings of Python (values as VALUE), spans and lines of pages."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        inner: set[int] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.JoinedStr):
                inner |= {id(part) for part in node.values}
                parts = (p.value if isinstance(p, ast.Constant) else "VALUE" for p in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and id(node) not in inner:
                yield str(node.value).replace("%s", "VALUE").replace("%d", "VALUE")
        return
    yield text


def commands(text: str) -> Iterator[str]:
    """Yield each named command, up to where its line, its span of code or its clause ends."""
    flat = re.sub(r"\\\n\s*", " ", text)
    spans = [m for m in re.finditer(r"(`+)([^`]+)\1", flat)]
    for span in reversed(spans):
        yield from _after(span[2])
        flat = f"{flat[: span.start()]} ` {flat[span.end() :]}"
    for line in re.split(r"\n(?= {4}|\n|```)", flat):  # code; prose goes on in its next line
        yield from _after(re.sub(r" # .*", "", line))


def _after(text: str) -> Iterator[str]:
    text = " ".join(text.split())
    starts = [m.end() for m in NAMED.finditer(text)]
    for start, end in pairwise([*starts, len(text)]):
        yield re.split(r"[;)`,]|: |\. |\.$|:$", text[start:end])[0]


def fault(named: str) -> str | None:
    """Return what is wrong with a command as it is named, or None."""
    first, *others = QUOTED.sub("QUOTED", named).split(" | ")
    for other in others:  # of the same group
        why = fault(f"{first.split()[0]} {other} …")
        if why is not None:
            return why
    group: click.Command = cli
    words = first.split() + ["…"] * bool(others)
    while isinstance(group, click.Group) and words:
        if group.invoke_without_command and words[0].startswith("-"):
            return _fault_of(group, words)  # it is a command of its own as well
        choices = words[0].split("|")
        found = [group.get_command(click.Context(group), word) for word in choices]
        if None in found:
            return f"there is no {words[0]!r} in {group.name}"
        if len(choices) > 1:
            return None
        group, words = found[0] or group, words[1:]
    return None if isinstance(group, click.Group) else _fault_of(group, words)


def _fault_of(command: click.Command, words: list[str]) -> str | None:
    given = list(_its_own(command, words))
    open_end = bool({*DOTS, "--help"} & {*words})
    try:
        found, left, _ = command.make_parser(click.Context(command)).parse_args([*given])
    except click.UsageError as e:
        return e.format_message()
    if left:
        return f"it takes no {left}"
    needs = [p for p in command.params if p.required]  # a container has no $USER
    lacks = [p.name for p in needs if found.get(str(p.name)) is None]
    return f"it also needs {lacks}" if given and lacks and not open_end else None


def _its_own(command: click.Command, words: list[str]) -> Iterator[str]:
    """Yield options, their values and arguments, up to the first word of prose."""
    takes = {o for p in command.params for o in p.opts
             if isinstance(p, click.Option) and not p.is_flag}  # fmt: skip
    before = ""
    for word in words:
        is_value = "VALUE" in word or word.isupper()
        if word in DOTS:
            continue
        if not (before in takes or word.startswith("-") or is_value or "/" in word):
            return
        yield word
        before = word


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("release approve MARKET RELEASE", "it takes no"),
        ("release approve --market M RELEASE", "it also needs ['actor', 'reason']"),
        ("release approve --market M --reason WHY RELEASE", "it also needs ['actor']"),
        ("release abort --market M RELEASE", "there is no 'abort' in release"),
        ("release verify --repair", "No such option"),
        ("release history | undo | live --at TIME", "there is no 'undo' in release"),
        ("quarantine list|show|mend", "in quarantine"),
        ("train-gpt", "there is no 'train-gpt'"),
        ("rollout advance --market M --reason", "requires an argument"),
    ],
)
def test_a_wrong_command_is_found(named: str, why: str) -> None:
    assert why in str(fault(named))


@pytest.mark.parametrize(
    "named",
    [
        "release approve --market M --actor NAME --reason WHY R",
        "release approve --market VALUE --actor NAME --reason WHY VALUE brings it back",
        "release approve | reject --market M R …",
        'release rollback --market M --actor me --reason "it is slow"',
        "release reconcile mends it",
        "train-llm",
        "rqa sheet --help",
    ],
)
def test_a_right_command_is_not(named: str) -> None:
    assert fault(named) is None


def test_commands_are_found_where_they_are_named() -> None:
    text = """It waits; run `csrm release
    history`, or csrm release reconcile mends it.

        .venv/bin/csrm rollout status --market M \\
            --json  # whose
    """
    assert sorted(commands(text)) == [
        "release history", "release reconcile mends it", "rollout status --market M --json",
    ]  # fmt: skip


def pages() -> list[Path]:
    code = [p for folder in ("csrm_tasks", "dags", "plugins")
            for p in (ROOT / folder).rglob("*.py")]  # fmt: skip
    return sorted([*code, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_every_command_that_is_named_is_one_that_there_is() -> None:
    named = [(path, c) for path in pages() for text in texts(path) for c in commands(text)]
    wrong = [f"{path.relative_to(ROOT)}: csrm {c}: {why}" for path, c in named if (why := fault(c))]
    assert not wrong, "\n" + "\n".join(wrong)
    assert len(named) > 60  # it still finds them
