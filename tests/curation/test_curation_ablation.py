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
from csrm_tasks.curation.ablation import Decision, decide
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.evaluation.paired import RESAMPLES, Interval, resample
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


def answers(right: float, seed: int, queries: int = 60, each: int = 6) -> pl.DataFrame:
    """A made-up training's answers on dev, of which about a share ``right`` is right."""
    rng = np.random.default_rng(seed)
    n = queries * each
    grade = np.random.default_rng(7).integers(0, 3, n)
    said = np.where(rng.random(n) < right, grade, (grade + rng.integers(1, 3, n)) % 3)
    p = np.eye(3)[said] * 0.8 + 0.1
    query = [f"q{i % queries}" for i in range(n)]
    return pl.DataFrame(
        {"pair_id": [f"{i:04d}" for i in range(n)], "query_id": query, "grade": grade,
         "p0": p[:, 0], "p1": p[:, 1], "p2": p[:, 2]},
        schema_overrides={"grade": pl.Int8} | dict.fromkeys(("p0", "p1", "p2"), pl.Float32),
    )  # fmt: skip


def share_right(frame: pl.DataFrame) -> float:
    return float(np.mean([max((p, -k) for k, p in enumerate(row[1:]))[1] == -row[0]
                          for row in frame.select("grade", "p0", "p1", "p2").rows()]))  # fmt: skip


def slowly(ours: list[pl.DataFrame], theirs: list[pl.DataFrame]) -> Interval:
    """The paired interval by copying the rows of the queries that were drawn, draw by draw."""
    one, other = pl.concat(ours), pl.concat(theirs)  # of all seeds
    names = ours[0]["query_id"].unique(maintain_order=True).to_list()
    hits = [
        {q: [bool(r) for r in right] for q, right in (
            frame.with_columns(r=pl.concat_list("p0", "p1", "p2").list.arg_max() == pl.col("grade"))
            .group_by("query_id").agg("r").iter_rows()
        )} for frame in (one, other)
    ]  # fmt: skip
    draws = []
    for row in resample(len(names)):
        picked = [name for name, n in zip(names, row, strict=True) for _ in range(int(n))]
        a, b = (np.mean([r for q in picked for r in side[q]]) for side in hits)
        draws.append(a - b)
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return Interval(share_right(one) - share_right(other), float(lo), float(hi))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_is_that_of_resampled_queries_copied_row_by_row(seeds: int) -> None:
    ours = [answers(0.75, k, queries=33, each=3) for k in range(seeds)]
    theirs = [answers(0.7, 10 + k, queries=33, each=3) for k in range(seeds)]
    (found,) = decide(ours, {"llm.negatives": theirs}, 0.01)
    slow = slowly(ours, theirs)
    for name in ("value", "lo", "hi"):
        assert getattr(found.delta, name) == pytest.approx(getattr(slow, name), abs=1e-9), name
    each = [share_right(a) - share_right(b) for a, b in zip(ours, theirs, strict=True)]
    assert found.by_seed == pytest.approx(each)
    assert found.kept == (slow.lo > -0.01) and RESAMPLES == 2000


def test_what_helps_is_kept_and_what_hurts_or_is_not_known_is_not() -> None:
    ours = answers(0.8, 0, queries=300)
    others = {
        "helps": [answers(0.6, 1, queries=300)],
        "hurts": [answers(0.95, 2, queries=300)],
        "nothing": [ours],
        "unclear": [answers(0.8, 3, queries=300)],
    }
    found = {d.option: d for d in decide([ours], others, 0.005)}
    assert {name: d.kept for name, d in found.items()} == {
        "helps": True, "hurts": False, "nothing": True, "unclear": False,
    }  # fmt: skip
    assert found["hurts"].reason == "dev is worse with it than without it"
    assert "does not rule out that it is worse by 0.005" in found["unclear"].reason
    wide = decide([ours], {"unclear": others["unclear"]}, 0.2)
    assert wide[0].kept and "no worse by 0.2" in wide[0].reason
    few = answers(0.8, 0, queries=ablation.ENOUGH - 1)
    (one,) = decide([few], {"helps": [answers(0.1, 1, queries=ablation.ENOUGH - 1)]}, 0.01)
    assert not one.kept and "29 dev queries show nothing" in one.reason


def test_the_order_of_pairs_and_of_queries_changes_no_decision() -> None:
    ours, theirs = answers(0.8, 0), answers(0.78, 1)
    apart = [f.with_columns(query_id=pl.lit("x") + pl.col("query_id")) for f in (ours, theirs)]
    assert decide([apart[0]], {"a": [apart[1]]}, 0.02) == decide([ours], {"a": [theirs]}, 0.02)
    with pytest.raises(DataError, match="not judged on the same dev pairs"):
        decide([ours], {"a": [theirs.head(-1)]}, 0.02)


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
    assert [a["without"] for a in ablation_arms(tiny.market)] == ["", *on]
    assert ablation_steps(tiny.market) == 2  # a quarter of 8
    off = without(tiny.market, on)
    reviewed = off.model_copy(update={"filter": Filter(action="review")})
    assert options_on(reviewed) == () and ablation_arms(reviewed) == []
    two = tiny.market.model_copy(update={"ablation": Ablation(enabled=True, seeds=2, steps=3)})
    assert [a["repeat"] for a in ablation_arms(two)] == [0] * 5 + [1] * 5
    assert ablation_steps(two) == 3
    asleep = tiny.market.model_copy(update={"ablation": Ablation()})
    assert ablation_arms(asleep) == []
    assert inputs_of(on) == {"negatives", "filtered"}


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
    everything = (True, 1.0, 0.1, True, 2)
    off = [False, 0.0, 0.0, False]
    assert counted[0] == everything
    for k, found in enumerate(counted[1:]):
        assert found == (*everything[:k], off[k], *everything[k + 1 :])
    decided = tiny.decided(runs)
    facts = decided.facts
    assert [o["option"] for o in facts["options"]] == list(options_on(tiny.market))
    assert sorted(facts["kept"] + facts["dropped"]) == sorted(options_on(tiny.market))
    f1 = {r.facts["without"]: r.facts["dev_micro_f1"] for r in map(tiny.store.open, runs)}
    for one in facts["options"]:
        assert one["delta"]["value"] == pytest.approx(f1[""] - f1[one["option"]])
    assert facts["dev_queries"] == 2 and facts["dev_locale"] == "zh-TW"


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
    resumed = tiny.one(without="filter").file("dev_scores.parquet").read_bytes()
    given = FinetuneInputs(
        tiny.store.open(tiny.snapshot).path, tiny.store.open(tiny.rqa).path, None, "x", 0,
        negatives=tiny.folder / "negatives",
    )  # fmt: skip
    whole, _ = ablation.short_training(tiny.market, given, 0, tiny.folder / "whole")
    assert whole.read_bytes() == resumed
    other, _ = ablation.short_training(tiny.market, given, 1, tiny.folder / "other")
    assert other.read_bytes() != resumed


def test_what_does_not_fit_is_refused_in_one_line(
    tiny: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"without 'llm\.lr', repeat 0; known options"):
        tiny.one(without="llm.lr")
    runs = tiny.runs()
    for wrong in (runs[1:], [*reversed(runs)], [*runs, runs[0]], []):
        with pytest.raises(DataError, match="needs all 5 runs of this snapshot"):
            tiny.decided(wrong)
    given = dict(tiny.given)
    del tiny.given["negatives"]
    bare = tiny.runs()
    with pytest.raises(DataError, match="needs all 5 runs"):
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
    Decision("llm.negatives", Interval(0.0123, -0.004, 0.03), (0.0123,), True, "fine"),
    Decision("filter", Interval(-0.05, -0.08, -0.02), (-0.05,), False, "<worse>"),
)
FACTS: dict[str, Any] = {
    "options": [one.as_json() for one in DECIDED],
    "margin": 0.01, "seeds": 1, "steps": 250, "dev_queries": 1234, "dev_locale": "zh-TW",
}  # fmt: skip


def test_report_and_model_card_say_what_was_kept_and_why() -> None:
    shown = ablation_part(FACTS)
    assert ablation_part(None) == ""
    for text in ("llm.negatives", "+0.012", "[−0.004, +0.030]", "kept", "dropped", "1,234 queries",
                 "&lt;worse&gt;", "250 steps", "a loss of 0.01"):  # fmt: skip
        assert text in shown, text
    about = {"generated": False, "locale": "zh-TW", "parts": {}, "source_dev_micro_f1": None}
    verdict = {"release": "r", "outcome": "PASS", "digest": "d", "reasons": []}
    card = model_card.render(about | {"ablation": FACTS}, verdict, None)
    assert "- `llm.negatives` kept: 0.012 [-0.004, 0.030]; fine" in card
    assert "- `filter` dropped: -0.050 [-0.080, -0.020]; <worse>" in card
    assert "ablation" not in model_card.render(about | {"ablation": None}, verdict, None)
