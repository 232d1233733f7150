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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from csrm_tasks.steps.source import Module, imports_in, read_module, text_of

PACKAGE = Path(__file__).resolve().parent.parent
WHOLE, ON_IMPORT = "*", "<import>"

# Modules, or packages with all below them, that change no step's output; what else is in the
# fingerprint for them. Nothing is reached through them.
EXCLUDED: Mapping[str, str] = {
    "csrm_tasks.steps.registry": "declares steps",
    "csrm_tasks.steps.running": "runs steps",
    "csrm_tasks.artifacts": "keeps artifacts: their digests are in the fingerprint, and checked",
    "csrm_tasks.markets": "reads market files: the values are in the fingerprint",
    "csrm_tasks.sections": "declares a market's keys: the values are in the fingerprint",
    "csrm_tasks.settings": "says where things are kept",
    "csrm_tasks.errors": "words what went wrong; a step that fails has no output",
    "csrm_tasks.tracking": "logs runs to MLflow",
    "csrm_tasks.store.engine": "opens the database: what is read from it is in the fingerprint",
}


class Item(NamedTuple):
    """A definition, or WHOLE or ON_IMPORT of a module."""

    module: str
    name: str


@dataclass
class Closure:
    """What a function reaches: the text of each item, in canonical form with what its names mean."""

    items: dict[Item, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # data files by path below the package

    @property
    def modules(self) -> set[str]:
        """Modules of which something is reached."""
        return {item.module for item in self.items}

    def covers(self, module: str, name: str) -> bool:
        """Whether the definition ``name`` of ``module`` is reached, by itself or with the whole."""
        return bool({Item(module, name), Item(module, WHOLE)} & self.items.keys())

    def digest(self) -> str:
        """SHA-256 over items and files, in an order of their own."""
        digest = hashlib.sha256()
        for item, text in sorted(self.items.items()):
            digest.update(f"{item.module}:{item.name}\0{text}\0".encode())
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()


class SourceTree:
    """A package's source as it lies in the folder ``package``; a module is read at most once."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """Return a module of the package; None where there is none of that name."""
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = None if path is None else read_module(name, path)
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        first, *rest = name.split(".")
        base = self.package.joinpath(*rest)
        found = [p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()]
        return found[0] if found and first == self.package.name else None

    def add(self, name: str, path: Path) -> None:
        """Take in a module from outside the package."""
        self._modules[name] = read_module(name, path)

    def locate(self, dotted: str) -> Item | None:
        """Find what a dotted name of the package means; None for other packages' names."""
        parts = dotted.split(".")
        if self.module(parts[0]) is None:
            return None
        size = 1
        while size < len(parts) and self.module(".".join(parts[: size + 1])) is not None:
            size += 1
        name, rest = ".".join(parts[:size]), parts[size:]
        module = self.module(name)
        targets = module.targets(rest[0]) if module and rest else []
        if not targets:
            return Item(name, WHOLE)
        if targets == [f"{name}.{rest[0]}"]:
            return Item(name, rest[0])
        return self.locate(".".join([targets[-1], *rest[1:]]))  # handed on by this module

    def closure(self, start: Item) -> Closure:
        """Return everything that ``start`` reaches."""
        walk = _Walk(self)
        walk.reach(start)
        return walk.closure


class _Walk:
    """One traversal from a function to all that it reaches."""

    def __init__(self, tree: SourceTree) -> None:
        self.tree = tree
        self.closure = Closure()
        self._todo: list[Item] = []
        self._seen: set[Item] = set()

    def reach(self, start: Item) -> None:
        self._want(start)
        while self._todo:
            item = self._todo.pop()
            module = self.tree.module(item.module)
            assert module is not None, item
            self._load(module)
            self._take(item, module)

    def _want(self, item: Item) -> None:
        if item not in self._seen and not excluded(item.module):
            self._seen.add(item)
            self._todo.append(item)

    def _load(self, module: Module) -> None:
        """Reach what happens when the module is imported, its packages and imports with it."""
        first, *rest = module.name.split(".")
        packages = [".".join([first, *rest[:size]]) for size in range(len(rest))]
        for dotted in (*packages, *(i.loaded for i in module.imports)):
            self._imported(dotted)
        self._want(Item(module.name, ON_IMPORT))

    def _imported(self, dotted: str) -> None:
        parts = dotted.split(".")
        for size in range(len(parts), 0, -1):
            name = ".".join(parts[:size])
            if self.tree.module(name) is not None:
                self._want(Item(name, ON_IMPORT))
                return

    def _take(self, item: Item, module: Module) -> None:
        statements = {WHOLE: module.statements, ON_IMPORT: module.effects}.get(
            item.name, module.definitions.get(item.name, [])
        )
        if not statements and item.name == ON_IMPORT:
            return
        meanings = set()
        for statement in statements:
            for local, dotted in _names(statement, module, self.tree):
                meanings.add(f"{local}={dotted}")
                target = self.tree.locate(dotted)
                if target is not None:
                    self._want(target)
            for imported in imports_in(statement):
                self._imported(imported.loaded)
            self._take_files(statement, module)
        text = [*map(text_of, statements), *sorted(meanings)]
        self.closure.items[item] = "\n".join(text)

    def _take_files(self, statement: ast.stmt, module: Module) -> None:
        """Take in the data files that a statement names, or all beside the module if it names none.

        Only of statements that ask where their module lies.
        """
        names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
        resources = {i.local for i in (*module.imports, *imports_in(statement))
                     if i.target.startswith("importlib.resources")}  # fmt: skip
        if not names & {"__file__", *resources}:
            return
        folder = module.path.parent
        words = [n.value for n in ast.walk(statement)
                 if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value]  # fmt: skip
        named = [folder / word for word in words if (folder / word).exists()]
        for path in named or [p for p in folder.rglob("*") if p.suffix != ".py"]:
            for file in [path] if path.is_file() else path.rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    self.closure.files[file.relative_to(folder).as_posix()] = file.read_bytes()


def _names(statement: ast.stmt, module: Module, tree: SourceTree) -> Iterator[tuple[str, str]]:
    """Yield the names that a statement uses, each with the dotted name of what it means."""
    local: dict[str, list[str]] = {}
    for i in imports_in(statement):
        local.setdefault(i.local, []).append(i.target)
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        match node:
            case ast.Attribute() | ast.Name():
                root, attributes = _chain(node)
                if not isinstance(root, ast.Name):
                    todo.append(root)
                elif isinstance(root.ctx, ast.Load):
                    for target in (*local.get(root.id, []), *module.targets(root.id)):
                        yield ".".join([root.id, *attributes]), ".".join([target, *attributes])
            case ast.Constant(str(text)) if tree.module(text.partition(":")[0]) is not None:
                yield repr(text), text.partition(":")[0]
            case _:
                todo += ast.iter_child_nodes(node)


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
def code_digest(function: Callable[..., Any]) -> str:
    """Return the digest of a step function's code."""
    return closure_of(function).digest()
