"""The rooms stand on each other in one direction, and the drawing of them is true."""

from __future__ import annotations

from pathlib import Path

from tests import layers


def test_every_room_has_one_line_and_imports_lower_lines_only() -> None:
    graph = layers.room_graph(layers.ROOT)
    listed = [room for rooms in layers.LAYERS for room in rooms]
    assert sorted(listed) == sorted(graph)
    assert layers.upward(graph) == []


def test_no_two_modules_or_rooms_import_each_other_in_a_circle() -> None:
    assert layers.circles(layers.room_graph(layers.ROOT)) == []
    assert layers.circles(layers.module_graph(layers.ROOT)) == []


def test_the_page_draws_these_layers() -> None:
    text = layers.DRAWING.read_text(encoding="utf-8")
    assert layers.drawn(text) == text


def test_arrows_are_found_wherever_a_file_imports(tmp_path: Path) -> None:
    package = tmp_path / "csrm_tasks"
    for name, text in {
        "low/__init__.py": "",
        "low/a.py": "from csrm_tasks import top\n",
        "top.py": "def f():\n    import csrm_tasks.low.a\n    from csrm_tasks.other.b import c\n",
        "other/__init__.py": "",
        "other/b.py": "c = 1\n",
    }.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    graph = layers.room_graph(tmp_path)
    assert graph == {"low": {"top"}, "top": {"low", "other"}, "other": set()}
    assert layers.circles(graph) == [["low", "top"]]
    order = (("top",), ("low",), ("other",))
    assert layers.upward(graph, order) == [("low", "top")]
