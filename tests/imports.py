"""Which distributions every file of the project imports, and which extra its room may lean on."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name

from tests.installs import CORE, ROOT

OWN = ("csrm_tasks", "dags", "plugins", "benchmarks", "tests")
ON_PATH = ("dags", "plugins", "tests")  # their files import each other by their bare names

Extras = tuple[str, ...]
# Pattern of files (the last that fits counts): the extras in each of which they are imported, and
# those from which they import inside functions, when a step or a setting asks for it.
ROOMS: dict[str, tuple[Extras, Extras]] = {
    "csrm_tasks/*": ((CORE,), ()),
    "csrm_tasks/blobs/s3.py": ((CORE,), ("s3",)),
    "csrm_tasks/base_models.py": ((CORE,), ("train",)),
    "csrm_tasks/tracking.py": ((CORE,), ("mlflow",)),
    "csrm_tasks/cli*": ((CORE,), ("train",)),
    "csrm_tasks/steps/*": ((CORE,), ("train",)),
    "csrm_tasks/ingest/*": ((CORE,), ("data", "spark")),
    "csrm_tasks/layouts/*": (("data",), ()),
    "csrm_tasks/judgements/*": (("data",), ()),
    "csrm_tasks/engines/*": (("serve", "train"), ()),
    "csrm_tasks/dataset/*": ((CORE,), ("data",)),
    "csrm_tasks/store/*": ((CORE,), ("data",)),
    "csrm_tasks/store/lake_engines.py": ((CORE,), ("data", "spark")),
    "csrm_tasks/store/migrations/*": (("data",), ()),
    "csrm_tasks/release/*": ((CORE,), ("mlflow",)),
    "csrm_tasks/release/online/*": ((CORE,), ("mlflow", "data")),
    "csrm_tasks/release/*pyfunc.py": (("mlflow",), ()),
    "csrm_tasks/curation/*": ((CORE,), ("train",)),
    "csrm_tasks/curation/ablation*.py": (("train",), ()),
    "csrm_tasks/curation/dev_answers.py": (("train",), ()),
    "csrm_tasks/curation/folds.py": (("train",), ()),
    "csrm_tasks/curation/translation/generation.py": (("train",), ()),
    "csrm_tasks/bases/*": (("train",), ()),
    "csrm_tasks/board/*": (("airflow",), ()),
    "csrm_tasks/lexical/*": (("serve", "train"), ()),
    "csrm_tasks/doctor/*": ((CORE,), ("train", "mlflow", "s3", "data")),
    "csrm_tasks/training/*": (("train",), ()),
    "csrm_tasks/llm/*": (("train",), ()),
    "csrm_tasks/retrieval/*": (("train",), ()),
    "csrm_tasks/towers/*": (("train",), ()),
    "csrm_tasks/towers/serving/*": (("serve", "train"), ()),
    "csrm_tasks/evaluation/*": (("train",), ()),
    "csrm_tasks/teacher/*": (("train",), ()),
    "csrm_tasks/serving/*": (("serve",), ()),
    "csrm_tasks/demo/*": (("demo",), ()),
    "dags/*": (("airflow",), ()),
    "dags/csrm_workers.py": (("airflow",), ("kubernetes",)),
    "plugins/*": (("airflow",), ()),
    "plugins/csrm_lineage.py": (("airflow",), ("lineage",)),
    "tests/*": (("dev",), ()),
    "benchmarks/*": (("bench",), ()),
}


class Import(NamedTuple):
    """One import statement of something that is not ours, nor the standard library's."""

    where: str  # file:line
    module: str  # its first name
    names: frozenset[str]  # of the distributions that have that module
    at_top: bool  # imported with the file; else inside a function


class File(NamedTuple):
    """A source file with its extras and what it imports."""

    path: Path
    extras: Extras
    on_call: Extras
    imports: tuple[Import, ...]

    @property
    def module(self) -> str:
        """Name to import it by; DAGs and plugins lie on the path themselves."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        parts = parts[1:] if parts[0] in ("dags", "plugins") else parts
        return ".".join(parts).removesuffix(".__init__")


@cache
def files() -> tuple[File, ...]:
    """Read every source file of the project."""
    modules = {
        module: frozenset(map(canonicalize_name, of))
        for module, of in metadata.packages_distributions().items()
    }
    found = []
    for folder in OWN:
        paths = sorted((ROOT / folder).rglob("*.py"))
        own = {*OWN, *sys.stdlib_module_names}
        own |= {p.stem for p in paths if folder in ON_PATH}
        if folder == "tests":  # a DAG file of theirs is wired as the product's
            own |= {p.stem for p in (ROOT / "dags").glob("*.py")}
        for path in paths:
            room = _room(path)
            imports = [
                Import(
                    f"{path.relative_to(ROOT)}:{line}", name, modules.get(name, frozenset()), top
                )
                for name, line, top in _imports(path)
                if name not in own
            ]
            found.append(File(path, *room, tuple(imports)))
    return tuple(found)


def _room(path: Path) -> tuple[Extras, Extras]:
    name = path.relative_to(ROOT).as_posix()
    return next(room for p, room in reversed(ROOMS.items()) if fnmatch(name, p))


def _imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        for name in names:
            yield name.split(".", 1)[0], node.lineno, id(node) in top
