"""Product vectors in the files of four engines: whole, as deltas, and never of another release."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrm_tasks.engines import changes, vectors
from csrm_tasks.engines.live import Catalogue
from csrm_tasks.settings import Settings
from tests.engines_fixtures import Vectors, drawn, refresh, run
from tests.release_fixtures import DIM, MARKET, market, store_of
from tests.release_world import World
from tests.serving_fixtures import document, release, route

ENGINES = ("opensearch", "elasticsearch", "solr", "vespa")
IDS = ["p0", "p1", 'q"uote\\', "空 白\n", "濕", "a:b/c?d#e%20", "\u2028sep"]


@pytest.fixture
def live(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A release that answers everybody; its bundle has three products."""
    World(settings).at_the_command_line(market(), monkeypatch)
    made = release(settings, "a")
    route(settings, document(made))
    return made


def applied(engine: str, folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Do to an index, slowly, what the files of an export say; returns vectors by product."""
    for path in sorted([*folder.glob("vectors-*"), *folder.glob("deletes-*")]):
        for product, vector in operations(engine, path.read_text(encoding="utf-8")):
            if vector is None:
                index.pop(product, None)
            else:
                index[product] = vector
    return index


def operations(engine: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield product and vector, None to delete it, as the engine's documentation reads a body."""
    if engine == "solr":
        body = json.loads(text)
        if isinstance(body, dict):
            assert list(body) == ["delete"]
            yield from ((product, None) for product in body["delete"])
        else:
            for found in body:
                assert set(found) == {"id", "csrm_vector"}
                yield found["id"], found["csrm_vector"]
        return
    assert text.endswith("\n")
    lines = iter([json.loads(line) for line in text[:-1].split("\n")])
    for line in lines:
        if engine == "vespa":
            prefix = f"id:{MARKET}:product::"
            if "remove" in line:
                assert set(line) == {"remove"}
                yield line["remove"].removeprefix(prefix), None
                continue
            assert set(line) == {"update", "create", "fields"} and line["create"] is True
            product = line["update"].removeprefix(prefix)
            assert line["fields"]["product_id"] == {"assign": product}
            yield product, line["fields"]["csrm_vector"]["assign"]["values"]
            continue
        ((action, about),) = line.items()
        assert set(about) == {"_id"}
        if action == "delete":
            yield about["_id"], None
            continue
        assert action == "update"
        body = next(lines)
        assert set(body) == {"doc", "doc_as_upsert"} and body["doc_as_upsert"] is True
        assert body["doc"]["product_id"] == about["_id"]
        yield about["_id"], body["doc"]["csrm_vector"]


def same(index: dict[str, Any], wanted: Vectors) -> bool:
    """Whether an index has the exact-match vector of every product, to the last bit."""
    return set(index) == set(wanted) and all(
        np.array_equal(np.array(index[p], np.float32), v[0]) for p, v in wanted.items()
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_export_is_the_live_vectors_and_deltas_bring_an_index_up_to_date(
    engine: str, settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    first = drawn(*IDS)
    ref = refresh(settings, "one", live, first)
    told = run(capsys, "vectors", "--to", engine, "--out", tmp_path / "whole")
    assert f"7 of 7 products to write, 0 to delete\nvectors of {live[0]}, dimension {DIM}" in told
    about = json.loads((tmp_path / "whole" / "export.json").read_text())
    assert (about["snapshot"], about["release"], about["since"]) == (ref, live[0], None)
    index = applied(engine, tmp_path / "whole", {})
    assert same(index, first)

    second = {p: v for p, v in first.items() if p not in ("p0", "空 白\n")} | drawn(
        "p1", "new", seed=3
    )
    later = refresh(settings, "two", live, second)
    run(capsys, "vectors", "--to", engine, "--out", tmp_path / "delta", "--since", ref)
    about = json.loads((tmp_path / "delta" / "export.json").read_text())
    assert (about["snapshot"], about["since"]) == (later, ref)
    assert (about["products"], about["upserts"], about["deletes"]) == (6, 2, 2)
    assert same(applied(engine, tmp_path / "delta", index), second)

    told = run(capsys, "vectors", "--to", engine, "--out", tmp_path / "none", "--since", later)
    assert "0 of 6 products to write, 0 to delete" in told
    assert len(list((tmp_path / "none").iterdir())) == 2  # the schema, and what it is


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_export_again_is_the_same_bytes_and_mends_what_was_lost(
    settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    refresh(settings, "one", live, drawn(*(f"p{i:04}" for i in range(200))))
    asked = ("vectors", "--to", "opensearch", "--out", tmp_path / "out")
    run(capsys, *asked)
    before = files(tmp_path / "out")
    (tmp_path / "out" / "vectors-00001.ndjson").unlink()
    run(capsys, *asked)
    assert files(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name and p.is_dir()] == ["out"]


def test_files_are_cut_to_a_bounded_size_and_memory_to_chunks(
    settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wanted = drawn(*(f"p{i:04}" for i in range(100)))
    ref = refresh(settings, "one", live, wanted)
    refresh(settings, "two", live, drawn("x"))
    held: list[int] = []
    seen = vectors.vectors_of

    def watched(*given: Any) -> Iterator[Any]:
        for ids, found in seen(*given):
            held.append(len(ids))
            yield ids, found

    monkeypatch.setattr(vectors, "FILE_BYTES", 400)
    monkeypatch.setattr(vectors, "vectors_of", watched)
    for module in (changes, vectors):
        monkeypatch.setattr(module, "CHUNK", 7)
    for engine in ENGINES:
        run(capsys, "vectors", "--to", engine, "--out", tmp_path / engine, "--since", ref)
        assert set(applied(engine, tmp_path / engine, dict(wanted))) == {"x"}
        cut = [p.stat().st_size for p in (tmp_path / engine).glob("deletes-*")]
        assert len(cut) > 1 and max(cut) < 500
    snapshot = refresh(settings, "three", live, wanted)
    assert snapshot != ref
    for engine in ENGINES:
        out = tmp_path / f"{engine}-whole"
        run(capsys, "vectors", "--to", engine, "--out", out)
        assert same(applied(engine, out, {}), wanted)
        assert len(list(out.glob("vectors-*"))) > 5
    assert max(held) == 7


def test_a_bundle_whose_catalogue_was_never_refreshed_gives_its_own_vectors(
    settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    told = run(capsys, "vectors", "--to", "vespa", "--out", tmp_path / "out")
    assert f"snapshot: {live[1]}" in told
    own = np.load(store_of(settings).open(live[1]).file("embeddings.npy"))
    index = applied("vespa", tmp_path / "out", {})
    assert same(index, dict(zip(("p0", "p1", "p2"), own, strict=True)))
    refresh(settings, "one", live, drawn("p0", "p1"))
    run(capsys, "vectors", "--to", "vespa", "--out", tmp_path / "d", "--since", live[1])
    assert same(applied("vespa", tmp_path / "d", index), drawn("p0", "p1"))


def test_only_the_live_release_leaves(
    settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    other = release(settings, "b")
    asked = ("vectors", "--to", "opensearch", "--out", tmp_path / "out")
    told = run(capsys, *asked, "--release", other[0], code=2)
    assert f"{other[0]} is not live in {MARKET}, {live[0]} is" in told
    theirs = refresh(settings, "b", other, drawn("p0"))
    told = run(capsys, *asked, "--since", theirs, code=2)
    assert f"{theirs} has no vectors of {live[0]}'s towers" in told and "new index" in told
    told = run(capsys, *asked, "--since", f"{MARKET}/refresh/gone", code=2)
    assert "there is no snapshot tiny/refresh/gone" in told
    assert "there is no snapshot other/refresh/one" in run(
        capsys, *asked, "--since", "other/refresh/one", code=2
    )
    route(settings, document(other, live, seq=2))  # promoted
    told = run(capsys, *asked, "--release", live[0], code=2)
    assert f"{live[0]} is not live in {MARKET}, {other[0]} is" in told
    assert not (tmp_path / "out").exists()
    run(capsys, *asked, "--release", other[0])
    assert same(applied("opensearch", tmp_path / "out", {}), drawn("p0"))


def test_without_a_live_release_there_is_nothing_to_export(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    World(settings).at_the_command_line(market(), monkeypatch)
    told = run(capsys, "vectors", "--to", "solr", "--out", tmp_path / "out", code=2)
    assert f"no release of {MARKET} is live" in told


def test_a_folder_that_holds_something_else_is_left_alone(
    live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    asked = ("vectors", "--to", "opensearch", "--out")
    (tmp_path / "file").write_text("mine")
    assert "is a file" in run(capsys, *asked, tmp_path / "file", code=2)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    run(capsys, *asked, theirs)  # an empty one is free
    for held in ("{}", "[]", "no JSON", '{"what": "search-pipeline"}'):
        (theirs / "export.json").write_text(held)
        assert "holds no earlier vectors" in run(capsys, *asked, theirs, code=2)
        assert (theirs / "export.json").read_text() == held


@pytest.mark.parametrize("before", [False, True])
def test_a_process_that_dies_leaves_what_was_there(
    before: bool, settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = ("vectors", "--to", "opensearch", "--out", tmp_path / "out")
    if before:
        run(capsys, *asked)
    was = files(tmp_path / "out") if before else None
    refresh(settings, "one", live, drawn(*IDS))

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    moved = Path.rename

    def die_in_place(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):  # the export before stands aside by now
            raise Killed
        return moved(self, target)

    for owner, name, deadly in ((vectors, "describe", die), (Path, "rename", die_in_place)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, deadly)
            with pytest.raises(Killed):
                run(capsys, *asked)
        assert (files(tmp_path / "out") if before else (tmp_path / "out").exists()) == (
            was or False
        )
    if before:  # killed so that nothing could be put back
        moved(tmp_path / "out", tmp_path / ".out.old")
        (tmp_path / ".out.part").mkdir()
    run(capsys, *asked)
    assert same(applied("opensearch", tmp_path / "out", {}), drawn(*IDS))
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name and p.is_dir()] == ["out"]


def test_vectors_and_identifiers_that_an_engine_would_refuse_are_named(
    settings: Settings, live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    for key, bad in (("nan", np.nan), ("long", 3.0)):
        found = drawn("p0", "odd")
        found["odd"][0, 1] = bad
        ref = refresh(settings, key, live, found)
        for engine in ENGINES:
            told = run(capsys, "vectors", "--to", engine, "--out", tmp_path / "out", code=2)
            assert f"{ref}: the vector of product 'odd' has length" in told
    refresh(settings, "ids", live, drawn("p0", "空" * 171))  # 513 bytes
    for engine in ("opensearch", "elasticsearch"):
        told = run(capsys, "vectors", "--to", engine, "--out", tmp_path / "out", code=2)
        assert "has more than 512 bytes" in told
    assert not (tmp_path / "out").exists()
    run(capsys, "vectors", "--to", "vespa", "--out", tmp_path / "out")


def test_names_that_no_engine_takes_are_refused(
    live: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    asked = ("vectors", "--to", "vespa", "--out", tmp_path / "out")
    for name in ("", "a b", "1a", "a.b", "product_id"):
        assert "--field" in run(capsys, *asked, "--field", name, code=2)
    for prefix in ("shop", "id:shop:item:", "id::item::", "id:shop:it-em::"):
        assert "--documents" in run(capsys, *asked, "--documents", prefix, code=2)
    elsewhere = ("vectors", "--to", "solr", "--out", tmp_path / "out", "--documents", "id:a:b::")
    told = run(capsys, *elsewhere, code=2)
    assert "it is for vespa" in told
    run(capsys, *asked, "--field", "em", "--documents", "id:shop:item::")
    line = json.loads((tmp_path / "out" / "vectors-00001.ndjson").read_text().split("\n")[0])
    assert line["update"] == "id:shop:item::p0" and set(line["fields"]) == {"em", "product_id"}
    assert re.search(r"schema item \{\s+document item \{", (tmp_path / "out/item.sd").read_text())


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[Catalogue, Catalogue]:
    """Two catalogues of a few products with vectors of a few kinds, in any order."""
    made = []
    for ref in ("before", "now"):
        kinds = draw(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 2), max_size=8))
        ids = draw(st.permutations(sorted(kinds)))
        found = np.zeros((len(ids), 2, 3), np.float32)
        for row, product in enumerate(ids):
            found[row, 0, kinds[product]] = 1
            found[row, 1, draw(st.integers(0, 2))] = 1  # the other head is not exported
        made.append(Catalogue(ref, pl.Series(ids, dtype=pl.String), found))
    return made[0], made[1]


@given(snapshots(), st.integers(1, 4))
def test_changes_are_those_of_two_dictionaries(
    found: tuple[Catalogue, Catalogue], chunk: int
) -> None:
    before, now = found
    had, has = (
        {p: v[0].tolist() for p, v in zip(c.ids.to_list(), c.vectors, strict=True)} for c in found
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(changes, "CHUNK", chunk)
        made = changes.changes(now, before)
        upserts = [now.ids[int(row)] for row in made.upserts]
        assert upserts == [p for p in now.ids.to_list() if has[p] != had.get(p)]
        assert made.deletes.to_list() == [p for p in before.ids.to_list() if p not in has]
        whole = changes.changes(now, None)
        assert (len(whole.upserts), len(whole.deletes)) == (len(has), 0)
        written = [p for ids, _ in changes.vectors_of(now, whole.upserts) for p in ids.to_list()]
        assert written == now.ids.to_list()
