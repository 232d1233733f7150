"""The study of both papers: what its arms are trained on and judged by, without a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks.demo.curation.arms import Arms
from csrm_tasks.demo.curation.market import CurationMarket
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.grades import true_grade
from csrm_tasks.demo.paper.curated import curated
from csrm_tasks.demo.paper.labels import labels
from csrm_tasks.demo.paper.ladder import ladder
from csrm_tasks.demo.paper.market import StudyMarket, Truth
from csrm_tasks.demo.paper.plan import CELLS, CLAIMS
from csrm_tasks.demo.paper.recipe import Recipe
from csrm_tasks.demo.paper.results import Found
from csrm_tasks.demo.paper.searches import candidates, carted
from csrm_tasks.demo.paper.titles import right_titles
from csrm_tasks.demo.study.data import SeedMarket
from csrm_tasks.markets import load_market
from csrm_tasks.records import PAIRS
from csrm_tasks.settings import load_settings
from tests.demo.test_demo_study import Recorder

RECIPE = Recipe()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Stand in for every step, and for what is read of its artifacts."""
    made = Recorder()
    monkeypatch.setattr("csrm_tasks.demo.study.arms.run_step", made)
    about = {"train_fit": 0.7, "transfer_gap": 1.0}
    monkeypatch.setattr("csrm_tasks.demo.study.arms.facts", lambda *_: about)
    for part in ("ladder", "labels"):
        monkeypatch.setattr(f"csrm_tasks.demo.paper.{part}.judge", lambda *_: lambda *_: None)
    return made


@pytest.fixture
def market(tmp_path: Path) -> StudyMarket:
    settings = load_settings({"CSRM_HOME": str(tmp_path)})
    seed = SeedMarket(load_market("demo", settings.markets), settings, "stage1", "stage2")
    return StudyMarket(seed, None)


def test_every_rung_keeps_what_is_below_it_and_adds_one_thing(
    recorder: Recorder, market: StudyMarket
) -> None:
    found = Found()
    ladder(market, RECIPE, found)
    rungs = [c.arm for c in CELLS if c.part == "ladder" and c.measure == "micro_f1"]
    assert list(recorder.trained) == rungs
    adds = ["", "mt", "rqa", "snapshot", "rqa", "soft", "soft", "soft"]
    for below, above, added in zip(rungs, rungs[1:], adds[1:], strict=False):
        (one, given), (other, more) = recorder.trained[below], recorder.trained[above]
        assert one.llm.steps == other.llm.steps == RECIPE.steps
        differs = {k for k in given if given[k] != more[k]}
        assert differs == ({added} if added != "mt" else set()), above
        assert (one.llm.mixture.mt != other.llm.mixture.mt) == (added == "mt")
        assert [m.llm.batch / (1 + m.llm.mixture.mt) for m in (one, other)] == [48, 48]
    stage1 = {arm for arm, (_, given) in recorder.trained.items() if given["snapshot"] == "stage1"}
    assert stage1 == {"sft", "mt", "mt_rqa"}
    gaps = pl.concat(found.counts).filter(measure="gap")["arm"].unique()
    assert {c.arm for c in CELLS if c.measure == "gap"} <= set(gaps)


def test_the_arms_of_a_share_learn_the_same_labels(
    recorder: Recorder, market: StudyMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 4000
    rng = np.random.default_rng(0)
    pairs = pl.DataFrame({
        "pair_id": [f"p{i}" for i in range(n)], "query_id": [f"q{i // 10}" for i in range(n)],
        "product_id": [f"x{i}" for i in range(n)],
        "locale": ["ko-KR" if i % 20 < 10 else "zh-TW" for i in range(n)],
        "grade": rng.integers(0, 3, n), "split": "train", "raters": 1, "agree": 1,
    })  # fmt: skip
    pairs = pairs.select(pl.col(c).cast(kind) for c, kind in PAIRS.items())
    kept: dict[str, pl.DataFrame] = {}

    votes: dict[float, pl.DataFrame] = {}

    def derived(
        _: SeedMarket, __: str, frame: pl.DataFrame, about: dict[str, Any],
        others: dict[str, pl.DataFrame],
    ) -> str:  # fmt: skip
        votes[about["target"]] = others["votes"]
        kept[f"few {about['target']}"] = frame
        return f"few {about['target']}"

    monkeypatch.setattr("csrm_tasks.demo.paper.labels.load_pairs", lambda *_: pairs)
    monkeypatch.setattr("csrm_tasks.demo.paper.labels.derive", derived)
    labels(market, RECIPE, Found())
    for claim in (c for c in CLAIMS if c.part == "labels"):
        one, other = (recorder.trained[arm][1] for arm in (claim.arm, claim.control))
        learnt = claim.arm.startswith("nc_")  # by another loss, of what the control reads
        assert {k for k in one if one[k] != other[k]} == (set() if learnt else {"soft"})
    counts = {name: frame["locale"].value_counts() for name, frame in kept.items()}
    sizes = {name: dict(own.iter_rows()) for name, own in counts.items()}
    assert {own["ko-KR"] for own in sizes.values()} == {200}  # a tenth of the source's
    assert [own["zh-TW"] for own in sizes.values()] == [200, 600, 2000]
    whole = kept["few 1.0"].join(pairs, on="pair_id")
    assert 0.15 < float((whole["grade"] != whole["grade_right"]).mean()) < 0.25
    own = votes[1.0].join(kept["few 1.0"], on="pair_id", suffix="_given")
    assert len(own) == len(whole) and (own["grade"] == own["grade_given"]).all()


def test_curated_arms_are_those_of_the_plan_and_read_what_they_name(
    monkeypatch: pytest.MonkeyPatch, market: StudyMarket
) -> None:
    trained: dict[str, set[str]] = {}

    def train(_: Arms, name: str, own: SeedMarket | None = None, **given: str) -> str:
        trained[name] = set(given)
        if own is not None:
            llm = own.market.llm
            assert (llm.augmentation.translator is not None) == ("translated" in given)
            assert bool(llm.negatives.per_query) == ("negatives" in given)
            assert (own.market.filter.action is not None) == ("filtered" in given)
        return name

    answers = pl.DataFrame({
        "pair_id": ["a", "b", "c", "d"], "query_id": ["x", "x", "y", "y"],
        "locale": "zh-TW", "grade": [1, 0, 1, 0], "task": ["qc", "qc", "qi", "qi"],
        "p": [0.4, 0.1, 0.9, 0.6], "threshold": 0.3,
    })  # fmt: skip
    monkeypatch.setattr(Arms, "train", train)
    monkeypatch.setattr(Arms, "said", lambda *_: answers)
    for name in ("translated", "negatives", "filtered"):
        monkeypatch.setattr(Arms, name, lambda *_: "ref")
    found = Found()
    curated(CurationMarket(market.seed, pl.DataFrame()), RECIPE, found)
    assert trained == {
        "base": set(), "ta": {"translated"}, "ta_sns": {"translated", "negatives"},
        "ta_sns_svf": {"translated", "negatives", "filtered"},
        "ta_svf": {"translated", "filtered"},
    }  # fmt: skip
    whole = pl.concat(found.counts)
    has = set(whole.select("arm", "measure").unique().iter_rows())
    assert {(c.arm, c.measure) for c in CELLS if c.part == "curation"} <= has
    said = dict(whole.filter(measure="qc_f1").select("arm", "counts").iter_rows())
    assert list(said["ta_sns"]) == [1, 0, 1, 0]  # at one half nothing is said yes to
    assert list(said["ta_sns_thr"]) == [1, 0, 0, 1]
    curve = pl.concat(found.curves).filter(measure="qi_f1")
    assert dict(curve.select("x", "y").iter_rows())[0.75] == 1.0


def test_titles_are_right_by_the_generators_rule() -> None:
    truth = Truth(demo_world(500, 0))
    query = truth.asked.queries[0]
    shop = truth.world.target.products
    identifier = next(q for q, i in truth.places.items() if i == 0)
    same = [p.product_id for p in shop if p.spec.type == query.type][:2]
    groups = truth.world.lexicon.types
    own = groups[query.type or 0].group
    other = next(p.product_id for p in shop if groups[p.spec.type].group != own)
    assert list(right_titles([(identifier, [*same, other]), (identifier, [])], truth)) == [
        (len(same), len(same) + 1), (0, 0),
    ]  # fmt: skip


def test_candidates_of_a_search_carry_the_truth_and_are_sold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = Truth(demo_world(500, 0))
    shop = {p.product_id: p.spec for p in truth.world.target.products}
    sold = pl.DataFrame({"product_id": list(shop)[::2]})
    monkeypatch.setattr("csrm_tasks.demo.paper.searches.table", lambda *_: sold)
    queries = tuple(sorted(truth.places)[:60])
    store = SimpleNamespace(open=lambda _: SimpleNamespace(path=None))
    market: Any = SimpleNamespace(
        gold=SimpleNamespace(query_ids=queries), seed=SimpleNamespace(store=store, stage2="")
    )
    found = candidates(market, truth)
    assert set(found.products) <= set(sold["product_id"]) and len(found.products) > 60
    for q, text, product, grade in zip(
        found.query.tolist(), found.texts, found.products, found.grade.tolist(), strict=True
    ):
        query = truth.query(queries[q])
        assert text == query.text
        assert grade == true_grade(truth.world.lexicon, query, shop[product])
    better, worse = (carted(found.query, s * found.grade, found.cart, 60).mean() for s in (1, -1))
    assert better > worse  # shoppers take what is right
    assert found.weight.mean() == pytest.approx(1.0)
