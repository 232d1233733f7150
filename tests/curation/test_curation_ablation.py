"""The ablation: dev decides by paired intervals what is kept, and every training of a run obeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.curation import ablation
from csrm_tasks.curation.ablation import Scope, decide
from csrm_tasks.curation.ablation_rule import (
    ERROR,
    Claim,
    Decision,
    judged,
    limits,
    training_noise,
)
from csrm_tasks.curation.dev_answers import ANSWERS, answers_of
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.evaluation.paired import Interval, resample
from csrm_tasks.evaluation.report import model_card
from csrm_tasks.evaluation.report.ablation import ablation_part
from csrm_tasks.llm.data import load_pairs
from csrm_tasks.llm.training import launch, rounds
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.learnt import UnlearntError
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import (
    OPTIONS,
    ablation_arms,
    ablation_steps,
    honoured,
    inputs_of,
    options_on,
    without,
)
from csrm_tasks.records import NEGATIVES, WEIGHTS, write_table
from csrm_tasks.sections import Ablation, Filter, Negatives
from csrm_tasks.settings import Settings
from csrm_tasks.text import pair_id
from tests.llm_fixtures import SOURCE
from tests.steps.test_steps_llm import Installation

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


BY = {name: Scope({"relevance": 1.0}) for name in ("llm.negatives", "helps", "nothing", "unclear",
                                                  "hurts", "a")}  # fmt: skip
RULES = Ablation(enabled=True)


def answers(right: float, seed: int, queries: int = 60, each: int = 6, task: str = "relevance",
            locale: str = "zh-TW") -> pl.DataFrame:  # fmt: skip
    """A made-up training's answers on dev, of which about a share ``right`` is right."""
    rng = np.random.default_rng(seed)
    n, labels = queries * each, 3 if task == "relevance" else 2
    grade = np.random.default_rng(7).integers(0, labels, n)
    said = np.where(rng.random(n) < right, grade, (grade + rng.integers(1, labels, n)) % labels)
    return pl.DataFrame(
        {"task": [task] * n, "pair_id": [f"{i:04d}" for i in range(n)],
         "query_id": [f"q{i % queries}" for i in range(n)], "locale": [locale] * n,
         "grade": grade, "said": said, "hard": (grade == 0) & (np.arange(n) % 2 == 0)},
        schema_overrides={"grade": pl.Int8, "said": pl.Int8},
    )  # fmt: skip


def slow_figure(frame: pl.DataFrame, weights: dict[str, float]) -> float:
    """The weighted mean of share right (relevance) and F1 of yes, counted pair by pair."""
    found = 0.0
    for task, weight in weights.items():
        rows = frame.filter(pl.col("task") == task).select("grade", "said").rows()
        hits = sum(g == s == 1 for g, s in rows)
        if task == "relevance":
            value = sum(g == s for g, s in rows) / len(rows)
        else:
            value = 2 * hits / (sum(g == 1 for g, _ in rows) + sum(s == 1 for _, s in rows))
        found += weight * value / sum(weights.values())
    return found


def copied(frame: pl.DataFrame, names: list[str], row: np.ndarray) -> pl.DataFrame:
    """Return the rows of the queries that were drawn, as often as each was."""
    parts = frame.partition_by("query_id", as_dict=True)
    return pl.concat([parts[(q,)] for q, n in zip(names, row, strict=True) for _ in range(int(n))])


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_claims_error_is_that_of_resampled_queries_copied_row_by_row(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = resample(33, 150)
    monkeypatch.setattr(ablation, "resample", lambda queries: draws)
    weights = {"qc": 2.0, "relevance": 1.0}
    ours, theirs = (
        [pl.concat([answers(r, k + 50 * (t == "qc") + at, 33, 3, t) for t in weights])
         for k in range(seeds)] for r, at in ((0.75, 0), (0.7, 10))
    )  # fmt: skip
    seen: list[list[Claim]] = []
    real = ablation.training_noise

    def noted(claims: list[Claim]) -> tuple[float, int]:
        seen.append(claims)
        return real(claims)

    monkeypatch.setattr(ablation, "training_noise", noted)
    ((found,), noise) = decide(ours, {"x": theirs}, {"x": Scope(weights)}, RULES)
    ((claim,),) = seen
    names = sorted(ours[0]["query_id"].unique())
    one, other = (pl.concat(runs) for runs in (ours, theirs))
    slow = [
        slow_figure(copied(one, names, row), weights)
        - slow_figure(copied(other, names, row), weights)
        for row in draws
    ]
    assert claim.error == pytest.approx(float(np.std(slow)), abs=1e-9)
    whole = slow_figure(one, weights) - slow_figure(other, weights)
    assert found.delta.value == claim.value == pytest.approx(whole)
    each = [slow_figure(a, weights) - slow_figure(b, weights)
            for a, b in zip(ours, theirs, strict=True)]  # fmt: skip
    assert found.by_seed == pytest.approx(each)
    assert noise == pytest.approx(float(np.std(each, ddof=1)))
    assert found.delta == limits(claim, noise, seeds - 1)


def test_limits_are_those_of_student_and_of_a_normal_where_seeds_agree() -> None:
    only_seeds = limits(Claim("F1", 0.01, 1e-9, (0.0, 0.02)), 0.01414, 1)
    wide = 3.0777 * 0.01414 / 2**0.5  # 90 % of Student's t with one degree of freedom
    assert only_seeds.hi == pytest.approx(0.01 + wide, rel=1e-4)
    assert only_seeds.lo == pytest.approx(0.01 - wide, rel=1e-4)
    only_queries = limits(Claim("F1", 0.01, 0.02, (0.0, 0.02)), 0.0, 5)
    assert only_queries.hi == pytest.approx(0.01 + 1.2816 * 0.02, rel=1e-4)
    same = Claim("F1", 0.0, 0.0, (0.0, 0.0))
    assert limits(same, 0.01, 4) == Interval(0.0, 0.0, 0.0)
    assert training_noise([same, same]) == (0.0, 0)
    told = [Claim("F1", 0.0, 0.1, (0.0, 0.02)), Claim("F1", 1.0, 0.1, (1.0, 1.04)), same]
    found, freedom = training_noise(told)
    assert (found, freedom) == (pytest.approx(((0.0002 + 0.0008) / 2) ** 0.5), 2)


@pytest.mark.parametrize(
    ("delta", "aim", "expected", "kept", "reason"),
    [
        ((0.01, 0.03), (0.01, 0.03), False, True, "no worse by 0.01"),
        ((-0.03, -0.01), (0.0, 0.04), True, False, "worse with it than without"),
        ((-0.004, 0.004), (-0.004, 0.004), True, False, "rules out that it brings 0.005 of F1"),
        ((-0.02, 0.02), (-0.03, 0.004), True, False, "rules out that it brings"),
        ((-0.02, 0.02), (-0.02, 0.02), True, True, "others have measured that it helps"),
        ((-0.02, 0.02), (-0.02, 0.02), False, False, "does not rule out that it is worse by 0.01"),
        ((-0.004, 0.004), None, True, True, "no worse by 0.01"),  # dev has none of its languages
        ((float("nan"),) * 2, (float("nan"),) * 2, True, True, "others have measured"),
        ((float("nan"),) * 2, (float("nan"),) * 2, False, False, "does not rule out"),
    ],
)  # fmt: skip
def test_the_rule(
    delta: tuple[float, float], aim: tuple[float, float] | None, expected: bool, kept: bool,
    reason: str,
) -> None:  # fmt: skip
    mid, own = Interval(sum(delta) / 2, *delta), None
    if aim is not None:
        own = Interval(sum(aim) / 2, *aim)
    found = judged(mid, own, "F1", expected, RULES)
    assert found[0] == kept and reason in found[1]


RUNS, TRIED = 1500, 3  # simulated ablations; options tried at once, which share the noise


def simulated(
    effect: float, expected: bool, seeds: int, by_query: float = 0.006, by_seed: float = 0.011
) -> float:
    """Return how often an option of true ``effect`` is kept.

    ``by_query``, ``by_seed``: the standard error that dev's queries leave, and the standard
    deviation of one seed's difference. By default a market such as those of docs/STUDY.md.
    """
    rng = np.random.default_rng(5)
    kept = 0
    for _ in range(RUNS):
        shared = effect + by_query * rng.standard_normal(TRIED)
        told = [s + by_seed * rng.standard_normal(seeds) for s in shared]
        claims = [Claim("F1", float(x.mean()), by_query, tuple(x)) for x in told]
        noise = training_noise(claims)
        found = limits(claims[0], *noise)
        kept += judged(found, found, "F1", expected, RULES)[0]
    return kept / RUNS


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("power", [(0.006, 0.011), (0.002, 0.003), (0.02, 0.03)])
def test_what_brings_the_gain_is_rarely_dropped_whatever_the_power(
    seeds: int, power: tuple[float, float]
) -> None:
    for effect in (RULES.gain, 2 * RULES.gain, 4 * RULES.gain):
        assert simulated(effect, True, seeds, *power) > 1 - 1.3 * ERROR


@pytest.mark.parametrize("power", [(0.006, 0.011), (0.002, 0.003), (0.02, 0.03)])
def test_what_loses_the_margin_and_nobody_knows_is_rarely_kept(power: tuple[float, float]) -> None:
    assert simulated(-RULES.margin, False, 2, *power) < 1.3 * ERROR


def test_what_hurts_is_dropped_and_what_brings_nothing_the_surer_the_more_dev_tells() -> None:
    assert simulated(-0.02, True, 2) < 0.2 and simulated(-0.02, True, 3) < 0.1
    small, large, huge = (
        simulated(0.0, True, n, *power)
        for n, power in ((2, (0.006, 0.011)), (5, (0.002, 0.005)), (10, (0.0005, 0.002)))
    )
    assert 0.85 > small > large > huge and huge < 0.02


def test_what_helps_is_kept_and_what_hurts_or_is_not_known_is_not() -> None:
    ours = [answers(0.8, k, queries=300) for k in (0, 20)]
    others = {
        "helps": [answers(0.6, k, queries=300) for k in (1, 21)],
        "hurts": [answers(0.95, k, queries=300) for k in (2, 22)],
        "nothing": ours,
    }
    found = {d.option: d for d in decide(ours, others, BY, RULES)[0]}
    assert {name: d.kept for name, d in found.items()} == {
        "helps": True, "hurts": False, "nothing": False,
    }  # fmt: skip
    assert found["hurts"].reason == "dev is worse with it than without it"
    assert "the same without it" in found["nothing"].reason
    small, alike = ([answers(0.8, k) for k in seeds] for seeds in ((0, 20), (3, 23)))
    ((one,), _) = decide(small, {"unclear": alike}, BY, RULES)
    assert not one.kept and "does not rule out that it is worse by 0.01" in one.reason
    ((one,), _) = decide(
        small, {"x": alike}, {"x": Scope({"relevance": 1.0}, expected=True)}, RULES
    )
    assert one.kept and "others have measured that it helps" in one.reason
    wide = RULES.model_copy(update={"margin": 0.2})
    ((one,), _) = decide(small, {"unclear": alike}, BY, wide)
    assert one.kept and "no worse by 0.2" in one.reason
    few = [answers(0.8, k, queries=ablation.ENOUGH - 1) for k in (0, 1)]
    bad = [answers(0.1, k, queries=ablation.ENOUGH - 1) for k in (0, 1)]
    ((one,), _) = decide(few, {"helps": bad}, BY, RULES)
    assert not one.kept and "29 dev queries show nothing" in one.reason


def test_an_option_is_judged_by_its_own_tasks_and_languages_alone() -> None:
    """What is worse elsewhere changes nothing; in languages that dev lacks it must do no harm."""

    def both(right: float, wrong: float, k: int) -> pl.DataFrame:
        there = answers(right, k, 80, 4, "qi", "id-ID")
        here = answers(wrong, k + 7, 80, 4, "qi", "ko-KR").with_columns(
            pair_id="k" + pl.col("pair_id"), query_id="k" + pl.col("query_id")
        )
        return pl.concat([answers(wrong, k + 9, 80, 4, "qc"), there, here]).sort("task", "pair_id")

    ours, theirs = ([both(*r, k) for k in (0, 30)] for r in ((0.9, 0.6), (0.6, 0.9)))
    by = {"x": Scope({"qi": 1.0}, frozenset({"id-ID"}), expected=True)}
    ((found,), _) = decide(ours, {"x": theirs}, by, RULES)
    assert found.kept and found.delta.lo > 0.1
    ((found,), _) = decide(theirs, {"x": ours}, by, RULES)
    assert not found.kept and found.delta.hi < -0.1
    absent = {"x": Scope({"qi": 1.0}, frozenset({"fr-FR"}), expected=True)}
    ((found,), _) = decide(ours, {"x": ours}, absent, RULES)
    assert found.kept and "no worse by 0.01" in found.reason
    ((found,), _) = decide(theirs, {"x": ours}, {"x": Scope({"qc": 1.0})}, RULES)
    assert found.kept and found.delta.lo > 0.1


def test_negatives_are_judged_by_the_precision_on_near_wrong_pairs_too() -> None:
    ours = [answers(0.9, k, 300, 6, "qi") for k in (0, 20)]
    near = pl.col("hard")
    theirs = [f.with_columns(said=pl.when(near).then(1).otherwise("said").cast(pl.Int8))
              for f in ours]  # fmt: skip
    by = {"n": Scope({"qi": 1.0}, hard=True, expected=True)}
    ((found,), _) = decide(ours, {"n": theirs}, by, RULES)
    rows = [f.filter(near | (pl.col("grade") == 1), pl.col("said") == 1) for f in (*ours, *theirs)]
    hits = [int((f["grade"] == 1).sum()) for f in rows]
    a, b = ((hits[k] + hits[k + 1]) / (rows[k].height + rows[k + 1].height) for k in (0, 2))
    assert found.hard is not None and found.hard.value == pytest.approx(a - b)
    assert found.kept and found.hard.lo > 0.1
    ((found,), _) = decide(theirs, {"n": ours}, by, RULES)
    assert not found.kept


def test_the_order_of_pairs_and_of_queries_changes_no_decision() -> None:
    ours, theirs = ([answers(r, k) for k in (s, s + 20)] for r, s in ((0.8, 0), (0.78, 1)))
    apart = [
        [f.with_columns(query_id=pl.lit("x") + pl.col("query_id")) for f in runs]
        for runs in (ours, theirs)
    ]
    assert decide(apart[0], {"a": apart[1]}, BY, RULES) == decide(ours, {"a": theirs}, BY, RULES)
    with pytest.raises(DataError, match="not judged on the same dev pairs"):
        decide(ours, {"a": [theirs[0], theirs[1].head(-1)]}, BY, RULES)


class Tried(Installation):
    """A tiny market with every option on, and what brings them: negatives, a filter's weights."""

    def __init__(self, settings: Settings, folder: Path, **rules: Any) -> None:
        super().__init__(settings, folder, steps=8, evaluate_every=4, label_smoothing=0.1,
                         misspelt_share=1.0, negatives=Negatives(per_query=2))  # fmt: skip
        more = {"filter": Filter(action="down_weight"), "ablation": Ablation(enabled=True, **rules)}
        self.market = self.market.model_copy(update=more)
        snapshot = self.store.open(self.snapshot).path
        train = load_pairs(snapshot, "train")
        light = train.with_columns(weight=(pl.int_range(pl.len()) % 3 > 0).cast(pl.Float32))
        write_table(light, WEIGHTS, folder / "filter" / "decisions.parquet")
        judged = set(load_pairs(snapshot, "train").select("query_id", "product_id").rows())
        queries = pl.read_parquet(snapshot / "queries.parquet")
        out = pl.read_parquet(snapshot / "pairs.parquet").filter(pl.col("split") != "train")
        texts = set(queries.join(out, on="query_id", how="semi")["norm"])
        own = train.filter(locale=SOURCE).join(queries, on="query_id").unique("query_id")
        rows = [
            (pair_id(q, p), q, p, SOURCE, "easy", "random", None, None)
            for q, norm in own.sort("query_id").select("query_id", "norm").rows()
            for p in ("p0", "p5") if (q, p) not in judged and norm not in texts
        ]  # fmt: skip
        frame = pl.DataFrame(rows, NEGATIVES, orient="row")
        write_table(frame, NEGATIVES, folder / "negatives" / "negatives.parquet")
        self.given: dict[str, object] = {
            "snapshot": self.snapshot, "rqa": self.rqa,
            "negatives": self.publish("mine_negatives", folder / "negatives"),
            "filtered": self.publish("filter_noise", folder / "filter"),
        }  # fmt: skip

    def one(self, **params: object) -> Artifact:
        return self.run("ablation_run", self.given, **params)

    def runs(self) -> list[str]:
        return [self.one(**arm).ref for arm in ablation_arms(self.market)]

    def decided(self, runs: list[str]) -> Artifact:
        return self.run("ablate", {"snapshot": self.snapshot, "runs": runs})

    def dropping(self, *dropped: str) -> str:
        """Publish a decision made by hand."""
        folder = self.folder / "decided"
        folder.mkdir(exist_ok=True)
        (folder / "ablation.json").write_text("{}")
        return self.store.publish(
            f"tiny/ablate/{len(dropped)}", folder, facts={"dropped": list(dropped)},
            inputs={"snapshot": self.snapshot}, about={},
        ).ref  # fmt: skip


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tried:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    return Tried(settings, tmp_path)


def adapter(made: Artifact) -> bytes:
    return made.file("adapter/adapter_model.safetensors").read_bytes()


def test_options_that_are_off_are_not_tried(tiny: Tried) -> None:
    on = ("llm.negatives", "llm.misspelt_share", "llm.label_smoothing", "filter")
    assert options_on(tiny.market) == on
    assert set(on) < {o.key for o in OPTIONS}
    assert [a["without"] for a in ablation_arms(tiny.market)] == ["", *on] * 2
    assert ablation_steps(tiny.market) == 4  # half of 8
    off = without(tiny.market, on)
    reviewed = off.model_copy(update={"filter": Filter(action="review")})
    assert options_on(reviewed) == () and ablation_arms(reviewed) == []
    many = tiny.market.model_copy(update={"ablation": Ablation(enabled=True, seeds=3, steps=3)})
    assert [a["repeat"] for a in ablation_arms(many)] == [0] * 5 + [1] * 5 + [2] * 5
    assert ablation_steps(many) == 3
    asleep = tiny.market.model_copy(update={"ablation": Ablation()})
    assert ablation_arms(asleep) == []
    assert inputs_of(on) == {"negatives", "filtered"}


def right(run: Artifact) -> float:
    answers = pl.read_parquet(run.file("dev_answers.parquet"))
    return float((answers["grade"] == answers["said"]).mean())  # type: ignore[arg-type]


def test_every_run_is_the_training_of_a_market_without_that_option(
    tiny: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a training of a market file in which it is off, given no input of it."""
    seen: list[tuple[MarketConfig, FinetuneInputs]] = []
    real = launch.run_training

    def noted(market: MarketConfig, given: FinetuneInputs, out: Path, work: Path) -> Any:
        seen.append((market, given))
        return real(market, given, out, work)

    monkeypatch.setattr(launch, "run_training", noted)
    monkeypatch.setattr(ablation, "ENOUGH", 1)
    runs = tiny.runs()
    assert {g.warm for _, g in seen} == {None} and all(g.rqa is not None for _, g in seen)
    counted = [(g.negatives is not None, m.llm.misspelt_share, m.llm.label_smoothing,
                g.filtered is not None, m.llm.steps) for m, g in seen]  # fmt: skip
    everything = (True, 1.0, 0.1, True, 4)
    off = [False, 0.0, 0.0, False]
    assert len(counted) == 10 and len({m.seed for m, _ in seen[:5]}) == 1
    assert seen[0][0].seed != seen[5][0].seed
    assert {m.llm.evaluate_every for m, _ in seen} == {4}  # the last state alone
    for seed in (counted[:5], counted[5:]):
        assert seed[0] == everything
        for k, found in enumerate(seed[1:]):
            assert found == (*everything[:k], off[k], *everything[k + 1 :])
    decided = tiny.decided(runs)
    facts = decided.facts
    assert [o["option"] for o in facts["options"]] == list(options_on(tiny.market))
    assert sorted(facts["kept"] + facts["dropped"]) == sorted(options_on(tiny.market))
    made = [tiny.store.open(run) for run in runs]
    f1 = [{r.facts["without"]: right(r) for r in made[k : k + 5]} for k in (0, 5)]
    for one in facts["options"]:
        each = [by[""] - by[one["option"]] for by in f1]
        assert one["by_seed"] == pytest.approx(each)
        assert one["delta"]["value"] == pytest.approx(sum(each) / 2)
    assert facts["dev_queries"] == 2 and facts["dev_locale"] == "zh-TW"
    assert (facts["seeds"], facts["tasks"]) == (2, ["relevance"])


def test_a_dropped_option_is_off_in_the_runs_trainings(tiny: Tried) -> None:
    """To the last bit, whatever brings it is given."""
    with_all = tiny.run("train_llm", tiny.given, arm="stage2")
    kept = tiny.run("train_llm", tiny.given | {"ablation": tiny.dropping()}, arm="stage2")
    assert adapter(kept) == adapter(with_all)
    on = options_on(tiny.market)
    obeys = tiny.run("train_llm", tiny.given | {"ablation": tiny.dropping(*on)}, arm="stage2")
    tiny.market = without(tiny.market, on)
    plain = tiny.run("train_llm", {"snapshot": tiny.snapshot, "rqa": tiny.rqa}, arm="stage2")
    assert adapter(obeys) == adapter(plain) != adapter(with_all)
    assert obeys.facts["negatives"] == obeys.facts["misspelt_pairs"] == 0


def test_halves_that_label_each_other_obey_as_their_teacher_did(
    tiny: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny.market.llm
    distillation = llm.distillation.model_copy(update={"memorised": 0.0})
    llm = llm.model_copy(update={"distillation": distillation})
    tiny.market = tiny.market.model_copy(update={"llm": llm})
    dropped = ("llm.negatives", "llm.misspelt_share")
    teacher = tiny.run("train_llm", tiny.given | {"ablation": tiny.dropping(*dropped)}, arm="a")
    seen: list[tuple[MarketConfig, FinetuneInputs]] = []
    real = rounds.cross_fit

    def noted(market: MarketConfig, given: FinetuneInputs, work: Path) -> Any:
        seen.append((market, given))
        return real(market, given, work)

    monkeypatch.setattr(rounds, "cross_fit", noted)
    asked: dict[str, object] = {"snapshot": tiny.snapshot, "llm": teacher.ref, "rqa": tiny.rqa}
    assert tiny.run("score_pairs", asked, split="train").facts["cross_fitted"]
    ((market, given),) = seen
    assert market.llm.misspelt_share == 0 and given.negatives is None
    assert market.llm.label_smoothing == 0.1 and given.filtered is not None


def test_a_run_that_is_killed_answers_the_same(
    tiny: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = launch.unlearnt

    def dies(facts: dict[str, Any]) -> str | None:
        monkeypatch.setattr(launch, "unlearnt", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "unlearnt", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny.one(without="filter")
    resumed = tiny.one(without="filter").file("dev_answers.parquet").read_bytes()
    given = FinetuneInputs(
        tiny.store.open(tiny.snapshot).path, tiny.store.open(tiny.rqa).path, None, "x", 0,
        negatives=tiny.folder / "negatives",
    )  # fmt: skip
    found = []
    for repeat, name in enumerate(("whole", "other")):
        model, _ = ablation.short_training(tiny.market, given, repeat, tiny.folder / name)
        write_table(answers_of(model, given.snapshot), ANSWERS, tiny.folder / name / "answers")
        found.append((tiny.folder / name / "answers").read_bytes())
        scores = pl.read_parquet(model / "dev_scores.parquet")["p0"].to_list()
        found.append(scores)
    assert found[0] == resumed and found[1] != found[3]


def test_what_does_not_fit_is_refused_in_one_line(
    tiny: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"without 'llm\.lr', repeat 0; known options"):
        tiny.one(without="llm.lr")
    runs = tiny.runs()
    for wrong in (runs[1:], [*reversed(runs)], [*runs, runs[0]], []):
        with pytest.raises(DataError, match="needs all 10 runs of this snapshot"):
            tiny.decided(wrong)
    given = dict(tiny.given)
    del tiny.given["negatives"]
    bare = tiny.runs()
    with pytest.raises(DataError, match="needs all 10 runs"):
        tiny.decided([bare[0], *runs[1:]])
    with pytest.raises(DataError, match="lack their input 'negatives'"):
        tiny.decided(bare)
    other = tiny.store.publish(
        "tiny/ablate/x", tiny.folder / "filter", facts={"dropped": []},
        inputs={"snapshot": "tiny/snapshot/other"}, about={},
    ).ref  # fmt: skip
    with pytest.raises(DataError, match="decided on another snapshot's dev"):
        tiny.run("train_llm", given | {"ablation": other}, arm="stage2")
    llm = tiny.market.llm.model_copy(update={"must_learn": True})
    strict = tiny.market.model_copy(update={"llm": llm})
    monkeypatch.setattr(launch, "unlearnt", lambda facts: "it has learnt nothing")
    recipe = FinetuneInputs(tiny.store.open(tiny.snapshot).path, None, None, "x", 0)
    with pytest.raises(UnlearntError, match="it has learnt nothing; raise"):
        ablation.short_training(strict, recipe, 0, tiny.folder / "unlearnt")
    tiny.market = tiny.market.model_copy(update={"ablation": Ablation()})
    with pytest.raises(ConfigError, match=r"ablation.enabled is false, or no option"):
        tiny.decided(runs)
    assert honoured(tiny.market, None, tiny.store.open(tiny.snapshot)) == (tiny.market, frozenset())


DECIDED = (
    Decision(
        "llm.negatives",
        Interval(0.0123, -0.004, 0.03),
        (0.0123,),
        True,
        "fine",
        Interval(0.021, 0.01, 0.03),
    ),
    Decision("filter", Interval(-0.05, -0.08, -0.02), (-0.05,), False, "<worse>"),
)
FACTS: dict[str, Any] = {
    "options": [one.as_json() for one in DECIDED],
    "gain": 0.005, "margin": 0.01, "noise": 0.011, "seeds": 2, "steps": 250, "tasks": ["qi"],
    "dev_queries": 1234, "dev_locale": "zh-TW",
}  # fmt: skip


def test_report_and_model_card_say_what_was_kept_and_why() -> None:
    shown = ablation_part(FACTS)
    assert ablation_part(None) == ""
    for text in ("llm.negatives", "+0.012", "[−0.004, +0.030]", "kept", "dropped", "1,234 queries",
                 "&lt;worse&gt;", "250 steps", "a loss of 0.01", "0.005", "+0.021",
                 "by 0.011 from seed to seed"):  # fmt: skip
        assert text in shown, text
    about = {"generated": False, "locale": "zh-TW", "parts": {}, "source_dev_micro_f1": None}
    verdict = {"release": "r", "outcome": "PASS", "digest": "d", "reasons": []}
    card = model_card.render(about | {"ablation": FACTS}, verdict, None)
    assert "- `llm.negatives` kept: 0.012 [-0.004, 0.030]; fine" in card
    assert "- `filter` dropped: -0.050 [-0.080, -0.020]; <worse>" in card
    assert "ablation" not in model_card.render(about | {"ablation": None}, verdict, None)
