"""Rooms of ``csrm_tasks``, what they import, and the layers that they stand on.

``python -m tests.layers`` prints rooms, arrows and circles of this checkout, or of the one that is
given; ``--write`` draws the layers into ``docs/ARCHITECTURE.md``. A room is a folder of modules, or
a module that lies directly under ``csrm_tasks``. Imports inside functions and those for type
checkers count as well. Nothing is imported to find out: it is read from the code.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "csrm_tasks"
Graph = dict[str, set[str]]

# From the top down. A room may import rooms of lower lines only: not of its own, not of a higher.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("demo.paper",),
    ("demo.curation", "demo.public"),
    ("demo.study",),
    ("demo.runner", "demo.bases"),
    ("demo.market",),
    ("demo.market.lexicon",),
    ("steps", "serving", "doctor", "board"),
    ("bases", "curation", "judgements", "engines"),
    (
        "evaluation.report",
        "release.online",
        "llm.training",
        "llm.baselines",
        "teacher",
        "towers.cross",
        "curation.translation",
    ),
    ("release", "llm.scoring", "towers"),
    ("release.bundle", "llm", "llm.network", "retrieval", "judgements.formats", "engines.formats"),
    ("evaluation", "llm.prompt", "llm.cost", "towers.serving", "training"),
    ("layouts",),
    ("lexical",),
    ("dataset", "ingest", "market_files"),
    ("ingest.aggregates", "ingest.proposal"),
    ("ingest.storage",),
    ("ingest.validation",),
    ("ingest.reading",),
    ("ingest.contract", "store.migrations", "options", "tracking"),
    ("store", "markets", "spreadsheets"),
    ("base_models", "text"),
    ("file_state",),
    ("artifacts", "notify"),
    ("airflow_api", "blobs", "connections", "json_files", "records", "settings", "yaml_files"),
    (
        "errors",
        "ragged",
        "ranking",
        "sections",
        "presets",
        "clocks",
        "preload",
        "threads",
        "store.migrations.versions",
    ),
)
DRAWING = ROOT / "docs" / "ARCHITECTURE.md"
BEGIN, END = "<!-- layers: python -m tests.layers --write -->\n", "<!-- end of layers -->\n"


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the package by its dotted name without ``csrm_tasks.``."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == PACKAGE:
                yield rest if rest in known else rest.rpartition(".")[0]


def module_graph(root: Path) -> Graph:
    """Return which modules each module imports."""
    known = modules(root)
    return {name: set(imported(path, known)) - {name} for name, path in known.items()}


def room_of(module: str, folders: set[str]) -> str:
    """Return the folder of a module, or the module itself directly under the package."""
    return module if module in folders else module.rpartition(".")[0] or module


def room_graph(root: Path) -> Graph:
    """Return which other rooms each room imports; folders that hold no code are left out."""
    graph = module_graph(root)
    folders = {name for name, path in modules(root).items() if path.name == "__init__.py"}
    rooms: Graph = defaultdict(set)
    for module, needs in graph.items():
        room = room_of(module, folders)
        if module not in folders or needs:
            rooms[room] |= {room_of(n, folders) for n in needs} - {room}
    return dict(rooms)


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def upward(graph: Graph, layers: tuple[tuple[str, ...], ...] = LAYERS) -> list[tuple[str, str]]:
    """Return the arrows that do not run to a lower line; rooms without a line are an error."""
    line = {room: i for i, rooms in enumerate(layers) for room in rooms}
    return [(a, b) for a in sorted(graph) for b in sorted(graph[a]) if line[b] <= line[a]]


def drawing() -> str:
    """Return the layers as they stand in ``docs/ARCHITECTURE.md``: a line each, the top first."""
    lines = ["   ".join(room.replace(".", "/") for room in rooms) for rooms in LAYERS]
    return "\n".join(["```", *lines, "```", ""])


def drawn(text: str) -> str:
    """Return the page with the layers of today between its two marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + drawing() + END + tail


def main() -> None:
    """Print rooms, arrows and circles; or draw the layers into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.layers", description=main.__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a checkout; this one")
    parser.add_argument("--write", action="store_true", help="draw them into ARCHITECTURE.md")
    given = parser.parse_args()
    if given.write:
        DRAWING.write_text(drawn(DRAWING.read_text(encoding="utf-8")), encoding="utf-8")
    graph = room_graph(given.root)
    files = Counter(path.parent for path in modules(given.root).values())
    for room in sorted(graph):
        print(f"{room} → {' '.join(sorted(graph[room])) or 'nothing'}")
    print(f"rooms {len(graph)}, arrows {sum(map(len, graph.values()))}, circles {circles(graph)}")
    print(f"circles of modules {circles(module_graph(given.root))}")
    print(f"modules in the largest folder {max(files.values())}")


if __name__ == "__main__":
    main()
