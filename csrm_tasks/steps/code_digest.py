"""The digest of a step's code: of every definition that its function reaches, and of nothing else.

A function reaches what it names: definitions of its module, what it imports there or itself, the
attributes that it takes of an imported module, and what those reach in turn. Also:

- A class is reached as a whole, with its bases and all its methods.
- A module whose name stands in a string (``python -m``), or that is used other than by an attribute
  (``getattr(module, name)``), is reached as a whole.
- What a loaded module does on import beside binding names (registering, say) is reached.
- Data files beside a module are, where a definition names ``__file__`` or ``importlib.resources``.

:data:`EXCLUDED` is where it ends. What cannot be seen is in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from csrm_tasks.file_state import DIGEST, file_state
from csrm_tasks.steps.source import Import, Module, imports_in, read_module, text_of

PACKAGE = Path(__file__).resolve().parent.parent
WHOLE, ON_IMPORT = "*", "<import>"

# Modules, or packages with all below them, that change no step's output; what else is in the
# fingerprint for them. Nothing is reached through them.
EXCLUDED: Mapping[str, str] = {
    "csrm_tasks.steps.declaration": "declares steps",
    "csrm_tasks.steps.running": "runs steps",
    "csrm_tasks.artifacts": "keeps artifacts: their digests are in the fingerprint, and checked",
    "csrm_tasks.markets": "reads market files: the values are in the fingerprint",
    "csrm_tasks.sections": "declares a market's keys: the values are in the fingerprint",
    "csrm_tasks.settings": "says where things are kept",
    "csrm_tasks.errors": "words what went wrong; a step that fails has no output",
    "csrm_tasks.tracking": "logs runs to MLflow",
    "csrm_tasks.evaluation.report": "draws pages: whatever is decided is decided by the figures",
    "csrm_tasks.store.engine": "opens the database: what is read from it is in the fingerprint",
}


class Item(NamedTuple):
    """A definition, or WHOLE or ON_IMPORT of a module."""

    module: str
    name: str


@dataclass(frozen=True)
class Node:
    """One item as it is read: its canonical text with what its names mean, and what it reaches."""

    text: str  # empty for a module that only binds names on import
    reaches: frozenset[Item]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Closure:
    """What a function reaches, data files by their path behind the module that reads them."""

    items: Mapping[Item, str]
    files: Mapping[str, bytes]

    @property
    def modules(self) -> set[str]:
        """Modules of which something is reached."""
        return {item.module for item in self.items}

    def covers(self, module: str, name: str) -> bool:
        """Whether the definition ``name`` of ``module`` is reached, by itself or with the whole."""
        return bool({Item(module, name), Item(module, WHOLE)} & self.items.keys())

    def digest(self) -> str:
        """SHA-256 over items and files, whatever their order."""
        digest = hashlib.sha256()
        for item, text in sorted(self.items.items()):
            digest.update(f"{item.module}:{item.name}\0{text}\0".encode())
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()


class SourceTree:
    """A package's source as it lies in the folder ``package``; a file is read at most once."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self._paths: dict[str, Path | None] = {}
        self._modules: dict[str, Module] = {}
        self._nodes: dict[Item, Node] = {}

    def path(self, name: str) -> Path | None:
        """Return the file of a module of the package; None where there is none of that name."""
        if name not in self._paths:
            self._paths[name] = self._find(name)
        return self._paths[name]

    def _find(self, name: str) -> Path | None:
        first, *rest = name.split(".")
        if first != self.package.name or not all(part.isidentifier() for part in rest):
            return None
        base = self.package.joinpath(*rest)
        return next(
            (p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None
        )

    def module(self, name: str) -> Module:
        """Return a module that is there, parsed."""
        if name not in self._modules:
            path = self.path(name)
            assert path is not None, name
            self._modules[name] = read_module(name, path)
        return self._modules[name]

    def add(self, name: str, path: Path) -> None:
        """Take in a module from outside the package."""
        self._paths[name] = path

    def split(self, dotted: str) -> tuple[str, list[str]] | None:
        """Split a dotted name into a module of the package and attributes; None for others."""
        parts = dotted.split(".")
        if self.path(parts[0]) is None:
            return None
        size = 1
        while size < len(parts) and self.path(".".join(parts[: size + 1])) is not None:
            size += 1
        return ".".join(parts[:size]), parts[size:]

    def locate(self, dotted: str) -> Item | None:
        """Find the definition that a dotted name means; None for what is not counted."""
        found = self.split(dotted)
        if found is None or excluded(found[0]):
            return None
        name, attributes = found
        targets = self.module(name).targets(attributes[0]) if attributes else []
        if not targets:
            return Item(name, WHOLE)
        if targets[0] == f"{name}.{attributes[0]}":
            return Item(name, attributes[0])
        return self.locate(".".join([targets[-1], *attributes[1:]]))  # handed on by this module

    def node(self, item: Item) -> Node:
        """Read an item that :meth:`locate` has found."""
        if item not in self._nodes:
            self._nodes[item] = _Reader(self, self.module(item.module)).read(item.name)
        return self._nodes[item]

    def closure(self, start: Item) -> Closure:
        """Return everything that ``start`` reaches."""
        seen, todo = {start}, [start]
        while todo:
            new = {i for i in self.node(todo.pop()).reaches if not excluded(i.module)} - seen
            seen |= new
            todo += new
        nodes = {item: self.node(item) for item in seen}
        return Closure(
            {item: node.text for item, node in nodes.items() if node.text},
            {name: data for node in nodes.values() for name, data in node.files.items()},
        )


class _Reader:
    """Reads one item of a module."""

    def __init__(self, tree: SourceTree, module: Module) -> None:
        self.tree = tree
        self.module = module
        self.reaches: set[Item] = set()
        self.meanings: set[str] = set()
        self.files: dict[str, bytes] = {}

    def read(self, name: str) -> Node:
        module = self.module
        if name == ON_IMPORT:
            statements = module.effects
            self._load(module.name.rpartition(".")[0])  # the package that it is in
            for imported in module.imports:
                self._load(imported.loaded)
        else:
            statements = module.statements if name == WHOLE else module.definitions[name]
            self.reaches.add(Item(module.name, ON_IMPORT))
        for statement in statements:
            self._read_statement(statement)
        text = "\n".join([*map(text_of, statements), *sorted(self.meanings)])
        return Node(text, frozenset(self.reaches), self.files)

    def _load(self, dotted: str) -> None:
        found = self.tree.split(dotted)
        if found is not None:
            self.reaches.add(Item(found[0], ON_IMPORT))

    def _read_statement(self, statement: ast.stmt) -> None:
        nodes = list(ast.walk(statement))
        imports = list(imports_in(nodes))
        for imported in imports:
            self._load(imported.loaded)
        for name, dotted in _names(statement, imports, self.module):
            self.meanings.add(f"{name}={dotted}")
            item = self.tree.locate(dotted)
            if item is not None:
                self.reaches.add(item)
        words = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        for word in words:  # "package.module" or "package.module:function"
            if self.tree.path(word.partition(":")[0]) is not None:
                self.reaches.add(Item(word.partition(":")[0], WHOLE))
        asks = {"__file__"} | {
            i.local
            for i in (*imports, *self.module.imports)
            if i.target.startswith("importlib.resources")
        }
        if any(isinstance(n, ast.Name) and n.id in asks for n in nodes):
            folder = self.module.path.parent
            for path in _data_files(folder, [word for word in words if word]):
                name = f"{self.module.name}/{path.relative_to(folder).as_posix()}"
                self.files[name] = path.read_bytes()


def _data_files(folder: Path, words: Sequence[str]) -> list[Path]:
    """What of a module's folder its definition may read: what it names, else all but Python."""
    named = [folder / word for word in words if (folder / word).exists()]
    paths = [f for p in named for f in ([p] if p.is_file() else p.rglob("*"))]
    if not named:
        paths = [p for p in folder.rglob("*") if p.suffix != ".py"]
    return [p for p in paths if p.is_file() and "__pycache__" not in p.parts]


def _names(
    statement: ast.stmt, imports: Sequence[Import], module: Module
) -> Iterator[tuple[str, str]]:
    """Yield the names that a statement uses, each with the dotted name of what it means."""
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.Attribute | ast.Name):
            todo += ast.iter_child_nodes(node)
            continue
        root, attributes = _chain(node)
        if not isinstance(root, ast.Name):
            todo.append(root)
        elif isinstance(root.ctx, ast.Load):
            local = [i.target for i in imports if i.local == root.id]
            for target in (*local, *module.targets(root.id)):
                yield ".".join([root.id, *attributes]), ".".join([target, *attributes])


def _chain(node: ast.AST) -> tuple[ast.AST, list[str]]:
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return node, attributes


def excluded(module: str) -> bool:
    """Whether a module is in :data:`EXCLUDED`, by itself or below a package there."""
    return any(module == name or module.startswith(f"{name}.") for name in EXCLUDED)


@cache
def _own_tree() -> SourceTree:
    return SourceTree(PACKAGE)


def closure_of(function: Callable[..., Any], tree: SourceTree | None = None) -> Closure:
    """Return what a step function reaches; of one outside the package, its module does."""
    tree = tree or _own_tree()
    module, name = function.__module__, function.__qualname__.partition(".")[0]
    if module.partition(".")[0] == PACKAGE.name:
        return tree.closure(Item(module, name))
    tree.add(module, Path(inspect.getfile(function)))
    return tree.closure(Item(module, WHOLE))


@cache
def code_digest(function: Callable[..., Any], kept: Path) -> str:
    """Return the digest of a step function's code.

    Every task is a process of its own, and to read the source anew takes it a tenth of a second. So
    what was found is kept in the folder ``kept``, under the state of all files of the package: an
    edit of any of them has it found anew.
    """
    if not function.__module__.startswith(f"{PACKAGE.name}."):
        return closure_of(function).digest()
    path = kept / f"{function.__module__}.{function.__qualname__}-{stamp(PACKAGE)}"
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    if len(found) != DIGEST:  # a killed process may have left a part of it
        found = closure_of(function).digest()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    return found


def stamp(package: Path) -> str:
    """Return the state of every file of a package."""
    paths = (p for p in sorted(package.rglob("*")) if p.suffix != ".pyc" and p.is_file())
    return file_state(paths)
