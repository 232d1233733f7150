"""The names market: real names in the same files, the event sample as it is, clear refusals."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from csrm_tasks.demo.market.generate import generate, generate_names
from csrm_tasks.demo.market.names import ATTRIBUTES, CATEGORIES, EVENTS, VALUES, names_lexicon
from csrm_tasks.errors import CsrmError
from csrm_tasks.settings import PROJECT_ROOT, Settings, load_settings

KO, ZH = "가나다라마바사아자차카타파하거너", "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"


def named(identifier: str, ko: str, zh: str, en: str) -> dict[str, str]:
    return {"id": identifier, "name_ko": ko, "name_zh_tw": zh, "name_en": en}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the same layout as the real ones: 30 groups of four leaves, three attributes."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        named("aa", "전체", "全部", "All")
        | {"path_ko": "전체", "path_zh_tw": "全部", "path_en": "All"}
    ]
    for g in range(30):
        ko, zh = f"{KO[g % 16]}{KO[g // 16]}류", f"{ZH[g % 16]}{ZH[g // 16]}類"
        path = {"path_ko": f"전체 > {ko}", "path_zh_tw": f"全部 > {zh}", "path_en": f"All > g{g}"}
        rows.append(named(f"aa-{g}", ko, zh, f"g{g}") | path)
        for t in range(4):
            leaf = named(f"aa-{g}-{t}", f"{KO[t]}{ko}품", f"{ZH[t]}{zh}品", f"t{g} {t}")
            rows.append(leaf | path)
    pl.DataFrame(rows).write_parquet(folder / CATEGORIES)
    general = [("Color", "색상", "顏色"), ("Material", "소재", "材質"), ("Shape", "모양", "形狀")]
    pl.DataFrame([named(en, ko, zh, en) for en, ko, zh in general]).write_parquet(
        folder / ATTRIBUTES
    )
    values = [
        named(f"{en}__{i}", f"{ko[0]}{KO[i]}", f"{zh[0]}{ZH[i]}", f"{en} {i}")
        | {"attribute_en": en}
        for en, ko, zh in general
        for i in range(6)
    ]
    pl.DataFrame(values).write_parquet(folder / VALUES)
    event = {"action": "impression", "query_id": "q", "asin": "B0", "position": 0}
    pl.DataFrame([event]).write_parquet(folder / EVENTS)
    return folder


def test_words_are_the_files(data: Path) -> None:
    lexicon = names_lexicon(data, seed=0)
    table = pl.read_parquet(data / CATEGORIES)
    assert {t.words.zh for t in lexicon.types} <= set(table["name_zh_tw"])
    assert {t.words.ko for t in lexicon.types} <= set(table["name_ko"])
    assert {v.words.ko for v in lexicon.values} <= set(pl.read_parquet(data / VALUES)["name_ko"])
    assert len(lexicon.groups) == 30 and len(lexicon.types) == 120
    assert all(len(group.attributes) == 2 for group in lexicon.groups)
    assert all(lexicon.brands_of())


def test_same_files_and_the_sample_as_it_is(data: Path, tmp_path: Path) -> None:
    assert generate_names(tmp_path, "names", data, products=600, seed=0)
    assert not generate_names(tmp_path, "names", data, products=600, seed=0)
    night = tmp_path / "names/2026-01-07/zh-TW"
    sample = night / "ubi_events-sample.parquet"
    assert sample.read_bytes() == (data / EVENTS).read_bytes()
    assert {p.name for p in night.iterdir()} >= {"labels.csv", "ubi_events.jsonl.gz", sample.name}
    titles = pl.read_csv(tmp_path / "names/2026-01-04/zh-TW/catalogue.csv")["title"]
    words = [t.words.zh for t in names_lexicon(data, seed=0).types]
    assert all(any(word in title for word in words) for title in titles.head(50))


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CsrmError, match=r"ubi_events_esci_synthetic.parquet is absent.*--data"):
        generate_names(tmp_path, "names", tmp_path / "nowhere", products=600)
    assert not list(tmp_path.rglob("*.generated.json"))


def test_a_market_that_is_not_generated_says_so(settings: Settings) -> None:
    markets = str(PROJECT_ROOT / "tests" / "markets")
    here = load_settings({"CSRM_HOME": str(settings.home), "CSRM_MARKETS": markets})
    with pytest.raises(CsrmError, match="not a generated one"):
        generate("mini", here, None)
