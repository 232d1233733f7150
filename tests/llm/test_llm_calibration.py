"""A temperature fitted through the raters' confusion, in a world where truth and raters are known.

What is right: T is that by which the model is too sure of the *true* grades (A49), whatever the
raters got wrong. Fitted on the labels as they are it is too large.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from csrm_tasks.dataset.opinions import LIKELIHOOD, MIN_RATED, opinions, several_rated
from csrm_tasks.errors import DataError
from csrm_tasks.llm.scoring import calibration
from csrm_tasks.llm.scoring.calibration import (
    apply_temperature,
    calibrate,
    fit_temperature,
    log_loss,
    votes_log_loss,
)
from csrm_tasks.llm.soft_targets import one_hot

# The raters' errors by true grade, as the demo's target crowd makes them, twice as often.
SLIPS = np.array([[0.0, 0.8, 0.2], [0.5, 0.0, 0.5], [0.15, 0.85, 0.0]])
ERRORS = np.array([0.1, 0.2, 0.3, 0.4, 0.25])
REAL = np.eye(3) * (1 - ERRORS[:, None, None]) + SLIPS * ERRORS[:, None, None]  # (R, 3, 3)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def draw(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a class by row of ``p`` (N, 3)."""
    return np.asarray((p.cumsum(1) > rng.random((len(p), 1))).argmax(1))


class World:
    """Judged pairs of one locale: ``n`` of dev, every eighth of them with three raters."""

    def __init__(self, n: int, seed: int = 0, every: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.logits = rng.normal(size=(n, 3)) * 2.0
        self.truth = draw(softmax(self.logits), rng)
        rows = []
        for i, g in enumerate(self.truth):
            several = i % every == 0
            for r in rng.choice(len(ERRORS), 3 if several else 1, replace=False):
                said = rng.choice(3, p=REAL[r, g])
                rows.append((f"p{i:05d}", "zh-TW", f"r{r}", said))
        self.votes = pl.DataFrame(
            rows, schema=["pair_id", "locale", "rater", "grade"], orient="row"
        ).cast({"grade": pl.Int8})

    @property
    def single(self) -> np.ndarray:
        """The label of each pair's first rater."""
        first = self.votes.unique("pair_id", keep="first", maintain_order=True)
        return first["grade"].cast(pl.Int64).to_numpy()

    def write(self, folder: Path, sharpness: float) -> Path:
        """Write the dev scores of a model that is too sure by ``sharpness``."""
        p = softmax(sharpness * self.logits)
        pl.DataFrame(
            {"pair_id": [f"p{i:05d}" for i in range(len(p))], "grade": self.single}
            | {f"p{k}": p[:, k].astype(np.float32) for k in range(3)}
        ).write_parquet(folder / "dev.parquet")
        return folder / "dev.parquet"


@pytest.fixture(scope="module")
def world() -> World:
    return World(8000)


@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_the_true_temperature_is_found_where_a_plain_one_is_too_modest(
    world: World, sharpness: float
) -> None:
    p = softmax(sharpness * world.logits)
    plain = fit_temperature(p, one_hot(world.single, 3).astype(np.float64))
    of_truth = fit_temperature(p, one_hot(world.truth, 3).astype(np.float64))
    known = opinions(world.votes).sort("pair_id")
    through = fit_temperature(p, known.select(LIKELIHOOD).to_numpy())
    assert of_truth == pytest.approx(sharpness, rel=0.04)
    assert plain > 2.0 * sharpness
    assert through == pytest.approx(sharpness, rel=0.15)


def test_it_is_served_where_it_helps_on_pairs_with_a_consensus(
    world: World, tmp_path: Path
) -> None:
    found = calibrate(world.write(tmp_path, 2.5), world.votes, tmp_path / "out.parquet")
    assert found.temperature == found.temperature_fitted == pytest.approx(2.5, rel=0.15)
    assert found.multi_rated_pairs == 1000 and 400 < found.consensus_pairs < 1000
    assert found.ece_after is not None and found.ece_before is not None
    assert found.ece_after < found.ece_before / 2
    after = pl.read_parquet(tmp_path / "out.parquet")
    served = after.select("p0", "p1", "p2").to_numpy()
    assert np.abs(served - softmax(world.logits)).max() < 0.06
    judged = after.with_row_index().drop_nulls("consensus")
    assert judged.height == found.consensus_pairs
    right = judged["consensus"].to_numpy() == world.truth[judged["index"].to_numpy()]
    assert right.mean() > 0.93


def test_it_is_dropped_where_it_does_not_help(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "fit_temperature", lambda p, likelihood: 3.0)
    scores = world.write(tmp_path, 1.0)
    found = calibrate(scores, world.votes, tmp_path / "out.parquet")
    assert (found.temperature, found.temperature_fitted) == (1.0, 3.0)
    assert found.calibration.startswith("T 3.000 is dropped, it does not help: ECE 0.0")
    assert found.ece_after == found.ece_before and found.log_loss_after == found.log_loss_before
    kept, given = pl.read_parquet(tmp_path / "out.parquet"), pl.read_parquet(scores)
    columns = ["p0", "p1", "p2"]
    assert np.allclose(kept.select(columns).to_numpy(), given.select(columns).to_numpy(), atol=1e-6)


def test_without_enough_raters_or_judges_it_stays_one_and_says_why(tmp_path: Path) -> None:
    alone = World(300, every=4)  # 75 pairs with three raters
    found = calibrate(alone.write(tmp_path, 2.5), alone.votes, tmp_path / "out.parquet")
    assert (found.temperature, found.temperature_fitted) == (1.0, None)
    assert f"75 pairs of train and dev have two raters or more, {MIN_RATED} are" in (
        found.calibration
    )
    assert found.ece_before is found.ece_after is None
    # Raters are known from train, but dev has one rater a pair
    more = World(500, every=4)
    dev = pl.read_parquet(more.write(tmp_path, 2.5)).gather([i for i in range(500) if i % 4])
    dev.write_parquet(tmp_path / "dev.parquet")
    found = calibrate(tmp_path / "dev.parquet", more.votes, tmp_path / "out.parquet")
    assert found.temperature == 1.0 and found.temperature_fitted is not None
    assert found.calibration.startswith("no judge: 0 dev pairs have a consensus")
    with pytest.raises(DataError, match="give select_llm its models' snapshot"):
        calibrate(tmp_path / "dev.parquet", more.votes.head(100), tmp_path / "out.parquet")


def test_another_locales_raters_say_nothing_of_this_ones(world: World) -> None:
    other = World(400, seed=1, every=4).votes.with_columns(
        pl.lit("ko-KR").alias("locale"), pl.format("k{}", "pair_id").alias("pair_id")
    )
    few = World(40, seed=2, every=4).votes.with_columns(
        pl.lit("ja-JP").alias("locale"), pl.format("j{}", "pair_id").alias("pair_id")
    )
    both = pl.concat([world.votes, other, few])
    assert several_rated(both) == {"ja-JP": 10, "ko-KR": 100, "zh-TW": 1000}
    found = opinions(both)
    assert found["pair_id"].str.slice(0, 1).unique().sort().to_list() == ["k", "p"]
    own = found.filter(pl.col("pair_id").str.starts_with("p")).sort("pair_id")
    assert own.equals(opinions(world.votes).sort("pair_id"))


def test_the_likelihood_of_votes_is_that_of_a_loop(world: World) -> None:
    """With the loss: −log Σ_k p(k) Π C_r(k, what r said), one pair after the other."""
    from csrm_tasks.dataset.dawid_skene import fit_votes

    several = world.votes.filter(pl.len().over("pair_id") > 1)
    confusion = fit_votes(several, ["pair_id"])
    found = {row[0]: row[1:4] for row in opinions(world.votes).iter_rows()}
    p = apply_temperature(softmax(world.logits), 1.3)[:200]
    total, table = 0.0, []
    for i in range(200):
        own = world.votes.filter(pair_id=f"p{i:05d}")
        likely = [
            math.prod(
                confusion.confusion_of(pl.Series([r]))[0, k, g]
                for r, g in own.select("rater", "grade").iter_rows()
            )
            for k in range(3)
        ]
        assert found[f"p{i:05d}"] == pytest.approx(likely, rel=1e-9)
        total -= math.log(sum(p[i, k] * likely[k] for k in range(3))) / 200
        table.append(likely)
    assert votes_log_loss(p, np.array(table)) == pytest.approx(total, rel=1e-12)


def test_limits_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    p, labels = softmax(rng.normal(size=(50, 3))), rng.integers(0, 3, 50)
    # Raters who never err: the plain log loss, and the plain temperature.
    assert votes_log_loss(p, np.eye(3)[labels]) == pytest.approx(log_loss(p, labels), rel=1e-12)
    # Raters who guess say nothing of p: the loss is flat in T.
    guess = np.full((50, 3), 1 / 3)
    losses = [votes_log_loss(apply_temperature(p, t), guess) for t in (0.1, 1.0, 10.0)]
    assert losses == pytest.approx([math.log(3)] * 3, rel=1e-12)
    # A model that is always right, and sure of it, gives finite figures.
    sure = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    t = fit_temperature(sure, np.eye(3)[[0, 1]])
    assert np.isfinite(apply_temperature(sure, t)).all() and log_loss(sure, np.array([0, 1])) == 0.0
    # The fitted T is a minimum: the derivative by log T vanishes there.
    p = softmax(2.0 * rng.normal(size=(500, 3)))
    likely = np.eye(3)[draw(p @ REAL[4], rng)] @ REAL[4].T  # C[:, g] of each given grade
    t = fit_temperature(p, likely)
    up, down = (
        votes_log_loss(apply_temperature(p, t * math.exp(h)), likely) for h in (1e-3, -1e-3)
    )
    assert 0.06 < t < 19 and abs(up - down) / 2e-3 < 1e-4
