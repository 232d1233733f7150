"""Python source as top-level definitions, read without importing it and made canonical.

Canonical: what changes no result is gone. Comments, formatting and docstrings; lines that only log;
annotations (those of a class that is no dataclass stay: pydantic and pandera read them);
``if TYPE_CHECKING:`` blocks; the ``@step`` of a step, whose arguments the fingerprint has anyway.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """One name that an import statement binds."""

    local: str
    target: str  # dotted name of what it is bound to
    loaded: str  # dotted name of what is loaded: more than the target for ``import a.b``


@dataclass
class Module:
    """One source file: its top-level names, each with the statements that bind it."""

    name: str
    path: Path
    imports: list[Import]
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)  # run on import and do more than bind
    main: list[ast.stmt] = field(default_factory=list)  # run by ``python -m`` only

    @property
    def statements(self) -> list[ast.stmt]:
        """All statements but plain imports, each once."""
        bound = [s for statements in self.definitions.values() for s in statements]
        return list(dict.fromkeys([*bound, *self.effects, *self.main]))

    def targets(self, local: str) -> list[str]:
        """Dotted names of what a top-level name is bound to."""
        own = [f"{self.name}.{local}"] if local in self.definitions else []
        return own + [i.target for i in self.imports if i.local == local]


def read_module(name: str, path: Path) -> Module:
    """Parse the file at ``path`` as module ``name``."""
    tree = ast.parse(path.read_bytes(), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = _Canonical(tree, package).visit(tree)
    module = Module(name, path, _imports_at_top(tree))
    for statement in tree.body:
        _take_in(module, statement)
    return module


def imports_in(nodes: Iterable[ast.AST]) -> Iterator[Import]:
    """Yield what those of the nodes that are import statements bind."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for a in node.names:
                first = a.name.partition(".")[0]
                yield Import(a.asname or first, a.name if a.asname else first, a.name)
        elif isinstance(node, ast.ImportFrom):
            for a in node.names:
                target = f"{node.module}.{a.name}"
                yield Import(a.asname or a.name, target, target)


def _imports_at_top(tree: ast.Module) -> list[Import]:
    """What is imported when the module is, under ``if`` or ``try`` too."""
    top = [s for s in tree.body if not isinstance(s, Function | ast.ClassDef)]
    return [i for s in top for i in imports_in(ast.walk(s))]


def _take_in(module: Module, statement: ast.stmt) -> None:
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return
        case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
            module.definitions.setdefault(name, []).append(statement)
        case ast.If(ast.Compare(ast.Name("__name__"))):
            module.main.append(statement)
        case _:
            for name in _bound(statement):
                module.definitions.setdefault(name, []).append(statement)
            if not _only_binds(statement):
                module.effects.append(statement)


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a statement binds, those of definitions within ``if`` or ``try`` too."""
    names = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, Function | ast.ClassDef):
            names.append(node.name)
    return list(dict.fromkeys(names))


def _only_binds(statement: ast.stmt) -> bool:
    match statement:
        case ast.Assign(targets):
            return all(isinstance(t, ast.Name | ast.Tuple) for t in targets)
        case ast.AnnAssign(ast.Name()):
            return True
    return False


class _Canonical(ast.NodeTransformer):
    """Takes out of a parsed file what changes no result."""

    def __init__(self, tree: ast.Module, package: str) -> None:
        self.package = package.split(".")
        self.loggers = {
            s.targets[0].id
            for s in tree.body
            if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
            and ast.unparse(s.value).startswith("logging.getLogger(")
        }  # fmt: skip
        self.step = {
            i.local for i in _imports_at_top(tree)
            if i.target in ("csrm_tasks.steps.declaration.step", "csrm_tasks.steps.step")
        }  # fmt: skip
        self.scopes = [""]

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._block(node, "module")

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        plain = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        return self._block(node, "dataclass" if plain else "class")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        node.decorator_list = [d for d in node.decorator_list if _root(d) not in self.step]
        return self._block(node, "function")

    def _block(self, node: ast.Module | ast.ClassDef | Function, scope: str) -> ast.AST:
        """Visit what has a body and may begin with a docstring."""
        match node.body:
            case [ast.Expr(ast.Constant(str())), *_]:
                node.body[0] = ast.Pass()
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level:  # a relative import is made absolute
            parents = self.package[: len(self.package) - node.level + 1]
            node.module, node.level = ".".join([*parents, *filter(None, [node.module])]), 0
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        scope = self.scopes[-1]
        if scope == "dataclass":  # as text: the fields count, in their order, and ClassVar
            node.annotation = ast.Constant(ast.unparse(node.annotation))
        elif scope != "class":
            if node.value is None:
                return ast.Pass()
            node.annotation = None  # type: ignore[assignment]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if _root(node.test) in ("TYPE_CHECKING", "typing"):
            return node.orelse or ast.Pass()
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Call) and _root(node.value) in self.loggers:
            return ast.Pass()
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Pass()  # the docstring of an attribute
        return self.generic_visit(node)


def _root(node: ast.AST) -> str | None:
    """The name that a call or an attribute starts from."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def text_of(node: object) -> str:
    """Write a syntax tree as text, the same under every version of Python.

    ``ast.dump`` is not: newer versions add fields, and leave out others when they are empty.
    """
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={text_of(value)}"
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(text_of(n) for n in node if not isinstance(n, ast.Pass))}]"
    return repr(node)
