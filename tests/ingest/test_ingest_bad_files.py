"""Broken deliveries: each ends as named reasons or as one line, with its good rows stored."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
import zstandard

from csrm_tasks.errors import DataError
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import run_step
from csrm_tasks.store.engine import open_store, reading
from csrm_tasks.store.tables import FILES, LABELS, QUARANTINE
from tests.conftest import drop_database, new_database
from tests.data_fixtures import DAY0, ZH, land_lines, market, product, search
from tests.fixtures.make_bad import BAD, DAY, MISPLACED, Bad, Misplaced
from tests.fixtures.make_bad import FILES as BAD_FILES

ONE_LINE = b'{"label_id":"g4","query":"q","product_id":"p3","grade":2,"grade":0}'
COUNTS = ("rows_in", "stored", "quarantined", "known", "ignored")


def take_in(settings: Settings, day: str) -> None:
    ref = run_step("land", market(), {}, {"day": day}, settings)
    ref = run_step("validate", market(), {"land": ref}, {}, settings)
    run_step("store", market(), {"validate": ref}, {}, settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation that knows four products and one search."""
    home = tmp_path_factory.mktemp("base") / "home"
    settings = load_settings({"CSRM_HOME": str(home)})
    goods = [product(i, f"牛奶 {i}") for i in range(1, 5)]
    land_lines(settings, DAY0, f"{ZH}/catalogue.jsonl", goods)
    land_lines(settings, DAY0, f"{ZH}/ubi_queries.jsonl", [search(1, "milk", DAY)])
    take_in(settings, DAY0)
    return home


@pytest.fixture
def shop(base: Path, tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    shutil.copytree(base, home)
    return load_settings({"CSRM_HOME": str(home)})


def land_bytes(settings: Settings, name: str, data: bytes) -> Path:
    path = settings.landing / "tiny" / DAY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def unpacked(bad: Bad) -> bytes:
    data = bad.bytes()
    if bad.name.endswith(".gz"):
        return gzip.decompress(data)
    if bad.name.endswith(".zst"):
        return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return data


def test_there_are_many_of_them_and_each_is_another() -> None:
    assert len({bad.name for bad in BAD_FILES}) == len(BAD_FILES)
    assert len(BAD_FILES) + len(MISPLACED) >= 40
    committed = {bad.name for bad in BAD_FILES if not bad.large}
    assert {p.name for p in BAD.iterdir()} == committed


@pytest.mark.parametrize("bad", BAD_FILES, ids=[b.name for b in BAD_FILES])
def test_a_broken_file(bad: Bad, shop: Settings) -> None:
    """Every row that came in is stored, known, or in quarantine under the reason it deserves."""
    data = bad.bytes() if bad.large else (BAD / bad.name).read_bytes()
    land_bytes(shop, f"{ZH}/{bad.name}", data)
    take_in(shop, DAY)
    with reading(open_store(shop.db_url)) as connection:
        file = connection.execute(sa.select(FILES).where(FILES.c.day == DAY)).mappings().one()
        rows = connection.execute(
            sa.select(QUARANTINE).where(QUARANTINE.c.file_id == file["id"])
        ).all()
    found: dict[str, int] = {}
    for row in rows:
        key = f"{row.reason}:{row.detail.split(' ')[0] if row.row else ''}"
        found[key] = found.get(key, 0) + 1
    assert found == bad.reasons
    wrong = sum(bad.reasons.values())
    rows_in = bad.stored + wrong + bad.known + bad.ignored
    expected = (rows_in, bad.stored, wrong, bad.known, bad.ignored)
    assert tuple(file[c] for c in COUNTS) == expected
    assert file["fault"] in (None, *(r.split(":")[0] for r in bad.reasons))
    if not bad.name.endswith("parquet"):  # whose rows have no bytes
        whole = data if file["fault"] == "unreadable_file" else unpacked(bad)
        assert all(row.raw in whole for row in rows)


def test_of_two_values_under_one_name_the_first_counts(shop: Settings) -> None:
    name = "labels-twice_a_key.jsonl"
    for part, data in (("a", (BAD / name).read_bytes()), ("b", ONE_LINE)):
        land_bytes(shop, f"{ZH}/labels-{part}.jsonl", data)
    take_in(shop, DAY)
    with reading(open_store(shop.db_url)) as connection:
        grades = connection.execute(
            sa.select(LABELS.c.label_id, LABELS.c.grade).where(LABELS.c.product_id == "p3")
        ).all()
    assert sorted(map(tuple, grades)) == [("g3", 2), ("g4", 2)]


@pytest.mark.postgres
def test_postgresql_keeps_the_same_of_all_of_them(
    base: Path, shop: Settings, server: str, template: str, tmp_path: Path
) -> None:
    """One night with every small file: no byte that was delivered is too much for it."""
    home = tmp_path / "there"
    shutil.copytree(base / "landing", home / "landing")
    url = new_database(server, template)
    there = load_settings({"CSRM_HOME": str(home), "CSRM_DB_URL": url})
    take_in(there, DAY0)
    for place in (shop, there):
        for path in BAD.iterdir():
            land_bytes(place, f"{ZH}/{path.name}", path.read_bytes())
        take_in(place, DAY)
    assert quarantined(there) == quarantined(shop)
    assert len(quarantined(there)) > 100
    drop_database(server, url)


def quarantined(settings: Settings) -> list[tuple[object, ...]]:
    """Every receipt and every row that was set aside."""
    about = (FILES.c.name, *(FILES.c[c] for c in COUNTS), FILES.c.header)
    rows = [QUARANTINE.c[c] for c in ("row", "reason", "detail", "raw")]
    joined = sa.select(*about, *rows).outerjoin(QUARANTINE, QUARANTINE.c.file_id == FILES.c.id)
    with reading(open_store(settings.db_url)) as connection:
        found = connection.execute(joined.order_by(FILES.c.name, QUARANTINE.c.row))
        return [tuple(bytes(v) if isinstance(v, memoryview) else v for v in r) for r in found]


@pytest.mark.parametrize("case", MISPLACED, ids=[m.path for m in MISPLACED])
def test_what_is_no_delivery_is_named_in_one_line(case: Misplaced, shop: Settings) -> None:
    path = shop.landing / "tiny" / DAY / case.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if case.link:
        path.symlink_to(case.link)
    else:
        path.write_bytes(b"label_id\n")
    with pytest.raises(DataError, match=case.error) as e:
        take_in(shop, DAY)
    assert "\n" not in str(e.value)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("bad", [b for b in BAD_FILES if not b.large], ids=lambda b: b.name)
def test_the_committed_file_is_what_its_recipe_makes(bad: Bad) -> None:
    """Compressed and columnar files may differ in bytes between versions of their libraries."""
    data = (BAD / bad.name).read_bytes()
    if bad.name.endswith((".csv", ".jsonl")) and bad.name != "labels-gzip.csv":
        assert data == bad.bytes()
    else:
        assert abs(len(data) - len(bad.bytes())) < 200
