"""The step registry: what a fingerprint covers, what is refused, what a kill leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from csrm_tasks import presets
from csrm_tasks.artifacts import ArtifactStore
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.markets import MarketConfig, load_market, parse_market
from csrm_tasks.release import retention
from csrm_tasks.sections import Ebr, Llm, Towers
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.steps import declaration as registry
from csrm_tasks.steps import running
from csrm_tasks.steps.declaration import Context, Metadata, step
from csrm_tasks.steps.running import ChangedInputError, run_step

MARKET: dict[str, Any] = {
    "market": "tiny",
    "source_locale": "ko-KR",
    "target_locale": "zh-TW",
    "llm": {"base": "some/base"},
    "retrieval": {"ebr": {"encoder": "some/encoder"}},
    "towers": {"encoder": "some/encoder"},
}


def market(**changes: Any) -> MarketConfig:
    return MarketConfig.model_validate(MARKET | changes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Three steps of our own in an otherwise untouched registry."""
    seen: list[str] = []
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.all_steps()))

    @step("t_source", config=("release",), external_inputs=lambda m, s, p: "x")
    def source(ctx: Context, *, n: int = 1) -> Metadata:
        seen.append("source")
        (ctx.out / "n").write_text(str(n))
        return {"n": n, "other": None}

    @step("t_sum", inputs=("first",), optional=("second",), many=("rest",))
    def total(ctx: Context) -> Metadata:
        seen.append("sum")
        parts = [*ctx.inputs.values(), *ctx.lists["rest"]]
        return {"sum": sum(a.facts["n"] for a in parts), "first": ctx.input("first").ref}

    @step("t_effect", side_effect=True)
    def effect(ctx: Context) -> Metadata:
        seen.append("effect")
        return {}

    @step("t_nan")
    def bad(ctx: Context) -> Metadata:
        return {"loss": float("nan")}

    @step("t_dies", inputs=())
    def dies(ctx: Context) -> Metadata:
        (ctx.out / "half").write_text("half")
        if not (ctx.work / "checkpoint").exists():
            (ctx.work / "checkpoint").write_text("1")
            raise KeyboardInterrupt
        assert not list(ctx.out.glob("old*"))
        return {"resumed": True}

    yield seen


def test_the_same_fingerprint_is_a_no_op(calls: list[str], settings: Settings) -> None:
    ref = run_step("t_source", market(), settings=settings)
    assert run_step("t_source", market(), settings=settings) == ref
    assert calls == ["source"]


def test_fingerprint_follows_params_named_config_and_inputs(
    calls: list[str], settings: Settings
) -> None:
    base = run_step("t_source", market(), settings=settings)
    other = run_step("t_source", market(), params={"n": 2}, settings=settings)
    approval = market(release={"approval": "auto"})
    assert run_step("t_source", approval, settings=settings) == base != other  # the same came out
    assert calls == ["source"] * 3
    # a section that the step does not name changes nothing
    assert run_step("t_source", market(gate={}), settings=settings) == base
    sums = {
        run_step("t_sum", market(), {"first": a, "rest": [b]}, settings=settings)
        for a, b in [(base, base), (base, other), (other, base)]
    }
    assert len(sums) == 3


def test_an_edit_that_changes_no_output_keeps_the_reference_that_others_know(
    calls: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows is found as it was made, and names what it was made of."""
    store = ArtifactStore(settings.artifacts, settings.cache)
    base = run_step("t_source", market(), settings=settings)
    total = run_step("t_sum", market(), {"first": base}, settings=settings)
    true = running.code_digest
    monkeypatch.setattr(running, "code_digest", lambda f, kept: f"edited {true(f, kept)}")
    for _ in range(2):  # made, then found
        again = run_step("t_source", market(), settings=settings)
        assert again == base
        assert run_step("t_sum", market(), {"first": again}, settings=settings) == total
    assert calls == ["source", "sum"] * 2
    monkeypatch.undo()

    # Where the first one was pruned, the other is what is left of it.
    edited = next(ref for ref, _ in store.published("tiny/t_source") if ref != base)
    retention.prune(settings, [base])
    assert store.first_like(edited) == edited


def test_an_effect_always_runs(calls: list[str], settings: Settings) -> None:
    refs = {run_step("t_effect", market(), settings=settings) for _ in range(2)}
    assert calls == ["effect", "effect"]
    assert len(refs) == 1


def test_a_reference_may_name_a_fact(calls: list[str], settings: Settings) -> None:
    source = run_step("t_source", market(), params={"n": 5}, settings=settings)
    holder = run_step("t_sum", market(), {"first": source}, settings=settings)
    ref = run_step("t_sum", market(), {"first": f"{holder}#first"}, settings=settings)
    assert ArtifactStore(settings.artifacts, settings.cache).open(ref).facts["sum"] == 5
    with pytest.raises(ArtifactError, match="no fact 'nothing'"):
        run_step("t_sum", market(), {"first": f"{holder}#nothing"}, settings=settings)
    with pytest.raises(ConfigError, match="needs input 'first'"):
        run_step("t_sum", market(), {"first": f"{source}#other"}, settings=settings)


def test_a_killed_step_leaves_nothing_visible_and_finds_its_work_again(
    calls: list[str], settings: Settings
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_step("t_dies", market(), settings=settings)
    assert not list(Path(settings.artifacts).rglob("manifest.json"))
    ref = run_step("t_dies", market(), settings=settings)
    assert ArtifactStore(settings.artifacts, settings.cache).open(ref).facts == {"resumed": True}
    assert not (settings.work / ref).exists()


@pytest.mark.parametrize(
    ("name", "inputs", "params", "message"),
    [
        ("t_nothing", {}, {}, "there is no step"),
        ("t_sum", {}, {}, "needs input 'first'"),
        ("t_sum", {"third": "x"}, {}, "has no input 'third'"),
        ("t_sum", {"first": ["a", "b"]}, {}, "expected one reference"),
        ("t_source", {}, {"m": 1}, "has no parameter 'm'"),
        ("t_source", {}, {"n": "one"}, "takes int"),
        ("t_source", {}, {"n": True}, "takes int"),
    ],
)
def test_wrong_names_and_types_are_refused(
    calls: list[str], settings: Settings, name: str, inputs: Any, params: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_step(name, market(), inputs, params, settings)


def test_facts_must_be_finite(calls: list[str], settings: Settings) -> None:
    with pytest.raises(ArtifactError, match="not finite JSON"):
        run_step("t_nan", market(), settings=settings)


def test_two_attempts_of_one_fingerprint_take_turns(
    calls: list[str], settings: Settings, tmp_path: Path
) -> None:
    import threading

    inside: list[int] = []
    most: list[int] = []

    @step("t_slow")
    def slow(ctx: Context) -> Metadata:
        inside.append(1)
        most.append(len(inside))
        (ctx.out / "x").write_text("x")
        gate.wait(60)
        inside.pop()
        return {}

    gate = threading.Event()
    refs: list[str] = []
    run = lambda: refs.append(run_step("t_slow", market(), settings=settings))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(120)
    assert len(refs) == 2
    assert len(set(refs)) == 1
    assert most == [1]  # the second attempt found the first one's output


def test_what_changes_under_a_running_step_is_not_published(
    calls: list[str], settings: Settings
) -> None:
    seen = iter(["before", "after", "later", "later"])

    @step("t_moving", external_inputs=lambda m, s, p: next(seen))
    def moving(ctx: Context) -> Metadata:
        return {}

    with pytest.raises(ChangedInputError, match="run it again"):
        run_step("t_moving", market(), settings=settings)
    assert not list(Path(settings.artifacts).rglob("manifest.json"))
    run_step("t_moving", market(), settings=settings)


def write_market(folder: Path, text: str) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


GOOD = """
market: tiny
source_locale: ko-KR
target_locale: zh-TW
llm: {base: ./b, lora: {targets: [q_proj]}}
retrieval: {ebr: {encoder: ./e}}
towers: {encoder: ./e}
"""


def test_a_market_file_is_typed_and_frozen(tmp_path: Path) -> None:
    write_market(tmp_path, GOOD)
    found = load_market("tiny", tmp_path)
    assert found.llm.lora.targets == ("q_proj",)
    assert found.gate is None
    assert found.model_name == "csrm-tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{base: ./b", "{base: ./b, bass: 1"), r"tiny.yaml: llm.bass: .*did you mean base"),
        (("{base: ./b", "{base: ./b, batch: big"), r"tiny.yaml: llm.batch: Input should be"),
        (
            ("{base: ./b", "{base: ./b, preset: x"),
            r"tiny.yaml: llm.preset: .*'csrm-llm', 'data-centric' or",
        ),
        (("{base: ./b", "{base: ./b, batch: 0"), r"llm.batch: Input should be greater than 0"),
        (("ko-KR", "korean"), "source_locale"),
        (("market: tiny", "market: other"), "must equal the file's name"),
        (("market: tiny", "market: 2026-01-01"), r"market: String should match"),
        (("market: tiny", "market: !!set {a}"), "put it in quotes"),
        (("market: tiny", "- tiny"), "cannot be read as YAML"),
        ((GOOD, "[]"), "expected a mapping"),
    ],
)
def test_a_wrong_market_file_is_named_with_its_key(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    write_market(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_market("tiny", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_day_needs_no_quotes(tmp_path: Path) -> None:
    write_market(tmp_path, GOOD + "\nhealth: {accept: [2026-02-15]}\n")
    assert load_market("tiny", tmp_path).health.accept == ("2026-02-15",)


def test_a_preset_is_a_papers_values_and_the_file_overrides_them_one_by_one(tmp_path: Path) -> None:
    preset = "llm: {preset: data-centric, base: ./b, lr: 7.5e-5, lora: {r: 8}}"
    write_market(tmp_path, GOOD.replace("llm: {base: ./b, lora: {targets: [q_proj]}}", preset))
    llm = load_market("tiny", tmp_path).llm
    assert (llm.lora.r, llm.lora.alpha, llm.lora.dropout) == (8, 64, 0.1)
    assert (llm.lr, llm.schedule, llm.max_length, llm.gradient_checkpointing) == (
        7.5e-5, "cosine", 512, True,
    )  # fmt: skip
    write_market(tmp_path, GOOD.replace("{base: ./b", "{preset: csrm-llm, base: ./b"))
    llm = load_market("tiny", tmp_path).llm
    assert (llm.lora.r, llm.lora.alpha, llm.lora.dropout, llm.lr) == (128, 256, 0.01, 2e-5)
    assert (llm.weight_decay, llm.warmup, llm.batch, llm.max_length) == (0.01, 0.03, 64, 2048)
    assert llm.lora.targets == ("q_proj",)


def test_the_towers_presets_are_the_papers_values_and_ours(tmp_path: Path) -> None:
    def towers(keys: str) -> Towers:
        write_market(tmp_path, GOOD.replace("towers: {encoder: ./e}", f"towers: {keys}"))
        return load_market("tiny", tmp_path).towers

    paper = towers("{preset: paper}")
    assert paper.encoder.startswith("FacebookAI/xlm-roberta-base@")
    assert (paper.impressed, paper.retrieved, paper.random) == (20, 100, 0)
    assert (paper.dim, paper.batch_queries * paper.batch_products) == (128, 1024)
    assert (paper.lr, paper.lr_end) == (8e-5, 1e-6)
    assert (paper.scale, paper.learn_scale, paper.separate_trunks) == (8.0, False, True)
    ours = towers("{preset: recommended, encoder: ./b, random: 2}")
    assert (ours.learn_scale, ours.separate_trunks) == (True, False)
    assert (ours.encoder, ours.random, ours.dim) == ("./b", 2, 128)
    plain = towers("{encoder: ./b, random: 2}")
    assert ours.model_copy(update={"preset": None}) == plain  # what a market gets by default


def test_presets_of_real_bases_bring_the_base_and_lie_below_the_files_own_keys(
    tmp_path: Path,
) -> None:
    write_market(
        tmp_path,
        """
market: tiny
source_locale: ko-KR
target_locale: zh-TW
llm: {preset: gemma-270m, lora: {r: 16}}
retrieval: {bm25_k: 5, ebr: {preset: e5-small, steps: 7}}
towers: {preset: e5-small, encoder: base:e5-small-tiny}
""",
    )
    found = load_market("tiny", tmp_path)
    assert (found.llm.base, found.llm.lora.targets) == ("base:gemma-270m", "all-linear")
    preset = presets.LLM["gemma-270m"]
    assert (found.llm.lora.r, found.llm.lora.alpha) == (16, preset["lora"]["alpha"])
    assert (found.llm.lr, found.llm.mixture.mt) == (preset["lr"], preset["mixture"]["mt"])
    ebr = found.retrieval.ebr
    assert (ebr.encoder, ebr.steps, found.retrieval.bm25_k) == ("base:e5-small", 7, 5)
    assert ebr.max_length == presets.EBR["e5-small"]["max_length"]
    assert found.towers.encoder == "base:e5-small-tiny"
    assert found.towers.steps == presets.TOWERS["e5-small"]["steps"]


def test_presets_are_those_that_a_section_takes() -> None:
    sections = ((Llm, presets.LLM), (Ebr, presets.EBR), (Towers, presets.TOWERS))
    for section, known in sections:
        named = get_args(get_args(section.model_fields["preset"].annotation)[0])
        assert set(named) == set(known)
        assert all(set(keys) <= set(section.model_fields) for keys in known.values())


def test_an_unknown_market_lists_the_known(tmp_path: Path) -> None:
    write_market(tmp_path, GOOD)
    with pytest.raises(ConfigError, match="known: tiny"):
        load_market("nowhere", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_market(tmp_path / "none.yaml")


def test_settings_have_embedded_defaults(tmp_path: Path) -> None:
    found = load_settings({"CSRM_HOME": str(tmp_path), "CSRM_DB_URL": "sqlite:///x.db"})
    assert found.db_url == "sqlite:///x.db"
    assert found.artifacts == str(tmp_path / "artifacts")
    assert found.work == tmp_path / "work"
