"""What a function reaches, on a made-up package with every way to depend on something."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from csrm_tasks.steps.closure import Item, SourceTree

# Each line that ends in "#!" is reached, each that ends in "#-" is not.
MADE_UP = {
    "__init__.py": "",
    "steps.py": """
        from __future__ import annotations
        import json
        from typing import TYPE_CHECKING
        from made import helpers, loaded, renamed as alias
        from made.package import handed_on
        from made.constants import USED as LIMIT, UNUSED
        if TYPE_CHECKING:
            from made.only_typed import Thing
        OWN = 1  #!
        OTHER = 1  #-
        TABLE = {"key": helpers.in_table}
        def step_function(ctx: Thing, *, by: int = OWN) -> Thing:
            from made.local import Base, func as renamed_func
            class Inner(Base):
                pass
            def nested():
                return alias.in_nested(LIMIT)
            run("-m", "made.worker")
            return nested, renamed_func, handed_on(), own(), TABLE, [helpers.f(x) for x in by]
        def own():
            value = getattr(dynamic, "name")  #!
            return json.loads("1") + open_file()
        def other():
            return helpers.unused  #-
        from made import dynamic
        from made.data import open_file
        """,
    "helpers.py": """
        from made.deep import deeper
        SCALE = 2  #!
        def f(x):
            return deeper(x) * SCALE  #!
        def in_table():
            return 1  #!
        def unused():
            return 1  #-
        """,
    "deep.py": """
        try:
            import fast as maths  #!
        except ImportError:
            maths = None  #!
        @decorated
        def deeper(x, *, most=3):  #!
            return maths, x  #!
        def decorated(f):
            return f  #!
        """,
    "renamed.py": """
        def in_nested(x):
            return 1  #!
        class Unused:
            x = 1  #-
        """,
    "package/__init__.py": """
        from made.package.inside import handed_on, not_used
        def in_init():
            return 1  #-
        """,
    "package/inside.py": """
        def handed_on():
            return 1  #!
        def not_used():
            return 1  #-
        """,
    "constants.py": "USED = (1, 2)  #!\nUNUSED = 1  #-\n",
    "only_typed.py": "class Thing:\n    x = 1  #-\n",
    "local.py": """
        class Root:
            def method(self):
                return 1  #!
        class Base(Root):
            part: Field = None  #!
            def method(self):
                return self.other()
            def other(self):
                return Made.constant
        class Field:
            x = 1  #!
        class Made:
            constant = 1  #!
        def func():
            return 1  #!
        """,
    "worker.py": """
        import sys
        from made.by_worker import work
        def main(argument):
            return work()
        if __name__ == "__main__":
            main(sys.argv[1])  #!
        """,
    "by_worker.py": "def work():\n    return 1  #!\n",
    "loaded.py": """
        from made import registered
        UNUSED = 1  #-
        registered.NAMES["loaded"] = 1  #!
        """,
    "registered.py": "NAMES = {}  #!\n",
    "dynamic.py": "name = 1  #!\nother = 1  #!\n",
    "data.py": """
        from pathlib import Path
        def open_file():
            return Path(__file__).with_name("words.txt").read_text()
        def other():
            return Path(__file__).with_name("more.txt").read_text()  #-
        """,
    "words.txt": "word  #!\n",
    "more.txt": "word  #-\n",
    "never.py": "x = 1  #-\n",
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for name, text in MADE_UP.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text).strip() + "\n")
    return tmp_path / "made"


def made_digest(package: Path) -> str:
    return SourceTree(package).closure(Item("made.steps", "step_function")).digest()


def other_code(line: str) -> str:
    """The line with its last number, name or word changed."""
    code, mark = line.rsplit("  #", 1)
    return re.sub(r"(\w+)(\W*)$", r"\1_1\2", code) + "  #" + mark


def test_whatever_a_function_can_reach_changes_its_digest_and_nothing_else_does(
    made: Path,
) -> None:
    before, tried = made_digest(made), {"!": 0, "-": 0}
    for path in [p for p in made.rglob("*") if p.is_file()]:
        lines = path.read_text().splitlines()
        for i, line in enumerate(lines):
            mark = line[-1:] if line.endswith(("#!", "#-")) else ""
            if mark:
                path.write_text("\n".join([*lines[:i], other_code(line), *lines[i + 1 :]]) + "\n")
                assert (made_digest(made) != before) == (mark == "!"), f"{path.name}: {line}"
                tried[mark] += 1
        path.write_text("\n".join(lines) + "\n")
    assert made_digest(made) == before
    assert tried["!"] >= 25
    assert tried["-"] >= 10


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # what is reached stays the same, but a name means another thing
        ("steps.py", "import USED as LIMIT, UNUSED", "import UNUSED as LIMIT, USED"),
        ("deep.py", "import fast", "import slow"),
        ("steps.py", "import json", "import simplejson as json"),
        ("steps.py", "import helpers, loaded", "import helpers"),  # no longer registered
    ],
)
def test_another_import_under_the_same_name_is_another_digest(
    made: Path, file: str, old: str, new: str
) -> None:
    before = made_digest(made)
    text = (made / file).read_text()
    assert old in text
    (made / file).write_text(text.replace(old, new))
    assert made_digest(made) != before


def test_relative_imports_are_followed(made: Path) -> None:
    before = made_digest(made)
    (made / "steps.py").write_text(
        (made / "steps.py")
        .read_text()
        .replace("from made.", "from .")
        .replace("from made", "from .")
    )
    assert made_digest(made) == before


def test_the_digest_is_the_same_under_every_version_of_python(made: Path) -> None:
    assert made_digest(made)[:16] == "8457b3f161811ada"
