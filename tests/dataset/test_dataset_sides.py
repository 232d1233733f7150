"""A query's side is decided once, whatever comes in later and however often snapshots are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from csrm_tasks.artifacts import Artifact, ArtifactStore
from csrm_tasks.dataset.consensus import PAIR, consensus
from csrm_tasks.dataset.sides import add_sides, keep_sides, known_sides, sides_of, text_ids
from csrm_tasks.dataset.splits import assign_splits, frozen_gold
from csrm_tasks.sections import Snapshot
from csrm_tasks.settings import Settings
from csrm_tasks.steps import data
from csrm_tasks.steps.running import ChangedInputError
from csrm_tasks.store.engine import open_store, reading, writing
from csrm_tasks.store.tables import SIDES
from tests.data_fixtures import KO, ZH, ingest, label, land_lines, market, product, snapshot

RULES = Snapshot(gold_raters=3, gold_agree=2, dev_share=0.3)
MON, TUE, FRI, SUN, NEXT = (f"2026-01-{d:02d}" for d in (5, 6, 9, 11, 18))
QUERIES = ("牛奶", "麵", "茶", "米")

vote = st.tuples(
    st.sampled_from([MON, TUE, FRI, SUN, NEXT]),
    st.sampled_from([KO, ZH]),
    st.sampled_from([f"q{i}" for i in range(8)]),
    st.sampled_from(["p0", "p1"]),
    st.integers(0, 2),
    st.sampled_from("abcd"),
)
Votes = list[tuple[Any, ...]]


def judged(votes: Votes, held: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs of a snapshot of ``votes``, when earlier ones held ``held``."""
    rows = [
        (x, f"{x} {q}", p, q, day, g, r, None, f"{i:04d}")
        for i, (day, x, q, p, g, r) in enumerate(votes)
    ]
    texts = dict.fromkeys((*PAIR, "norm", "day"), pl.String)
    schema = texts | {"grade": pl.Int8, "rater_id": pl.String}
    schema |= {"rated_at": pl.Datetime("us", "UTC"), "label_id": pl.String}
    ratings = pl.DataFrame(rows, schema, orient="row")
    gold = frozen_gold(ratings, RULES, [ZH], held)
    norms = ratings.select("query_id", "norm").unique()
    pairs = consensus(ratings, RULES.consensus).join(norms, on="query_id")
    return assign_splits(pairs, gold.pairs, RULES.dev_share, 7, held)


@examples(max_examples=200, deadline=None)
@given(st.lists(st.lists(vote, max_size=25), min_size=2, max_size=4))
def test_no_query_changes_its_side_over_any_deliveries(deliveries: list[Votes]) -> None:
    """Deliveries bring labels of any day, late ones too; after each a snapshot is taken twice."""
    held = pl.DataFrame(schema={"norm": pl.String, "side": pl.String})
    for n in range(len(deliveries)):
        votes = [v for delivered in deliveries[: n + 1] for v in delivered]
        pairs = judged(votes, held)
        now = pairs.select("norm", side="split").unique()
        assert now["norm"].is_unique().all()
        both = now.join(held, on="norm", suffix="_before")
        assert (both["side"] == both["side_before"]).all()
        unheld = judged(votes, held.clear()).filter(split="gold").select("norm").unique()
        fresh = unheld.join(held.filter(pl.col("side") != "gold"), on="norm", how="anti")
        assert set(fresh["norm"]) == set(now.filter(side="gold")["norm"])  # none is lost either
        held = pl.concat([held, now.join(held, on="norm", how="anti")])
        assert judged(votes, held).sort(PAIR).equals(pairs.sort(PAIR))


def test_new_queries_move_no_other_and_dev_has_its_share() -> None:
    """Without a register as well: the draw is of the query alone."""
    votes = [(MON, ZH, f"q{i}", "p0", i % 3, "a") for i in range(1100)]
    nothing = pl.DataFrame(schema={"norm": pl.String, "side": pl.String})
    before, after = (judged(votes[:n], nothing) for n in (1000, 1100))
    both = before.join(after, on="norm", suffix="_after")
    assert both.height == 1000
    assert (both["split"] == both["split_after"]).all()
    for grade in range(3):
        own = after.filter(grade=grade)
        assert own.filter(split="dev").height / own.height == pytest.approx(0.3, abs=0.07)


def test_a_locale_of_two_queries_has_one_in_dev() -> None:
    nothing = pl.DataFrame(schema={"norm": pl.String, "side": pl.String})
    for n in range(40):
        votes = [(MON, x, f"{x} {n} {i}", "p0", 1, "a") for x in (KO, ZH) for i in range(2)]
        pairs = judged(votes, nothing)
        assert set(pairs.filter(split="dev")["locale"]) == {KO, ZH}
        # What is in dev already stays the locale's, however few of the new ones are drawn.
        held = pairs.select("norm", side="split").unique()
        more = [(MON, ZH, f"more {n} {i}", "p0", 1, "a") for i in range(2)]
        drawn = judged([*votes, *more], held).filter(pl.col("norm").str.starts_with("more"))
        alone = judged([*more, *[(MON, ZH, f"dev {i}", "p0", 1, "a") for i in range(99)]], nothing)
        joined = drawn.join(alone, on="norm", suffix="_alone")
        assert (joined["split"] == joined["split_alone"]).all()


# ---- the register in the store, and the step


@pytest.fixture
def settings(both_settings: Settings) -> Settings:
    return both_settings


GOLD = market(snapshot=Snapshot(dev_share=0.25, gold_raters=8, gold_agree=7))


def labels(queries: tuple[str, ...], raters: range) -> list[dict[str, Any]]:
    return [
        label(f"{q}{k}{r}", q, f"p{k}", k, f"r{r}") for q in queries for k in range(3)
        for r in raters
    ]  # fmt: skip


def land_week(settings: Settings) -> None:
    """Monday's catalogue, and four of eight raters on Tuesday."""
    for locale, name in ((KO, "상품"), (ZH, "商品")):
        rows = [product(i, f"{name} {i}") for i in range(4)]
        land_lines(settings, MON, f"{locale}/catalogue.jsonl", rows)
    land_lines(
        settings, MON, f"{KO}/labels.jsonl", [label(i, "우유", f"p{i}", i) for i in range(3)]
    )
    land_lines(settings, TUE, f"{ZH}/labels.jsonl", labels(QUERIES, range(4)))
    for day in (MON, TUE):
        ingest(settings, day, GOLD)


def agree_on(settings: Settings, day: str) -> None:
    """Bring the other four raters of two queries, and a whole panel on a new one."""
    rest = labels(QUERIES[:2], range(4, 8))
    land_lines(settings, day, f"{ZH}/labels.jsonl", [*rest, *labels(("豆漿",), range(8))])
    ingest(settings, day, GOLD)


def sides(made: Artifact) -> dict[str, str]:
    """Return text → side of the target's queries."""
    pairs = pl.read_parquet(made.file("pairs.parquet")).filter(locale=ZH)
    named = pairs.join(pl.read_parquet(made.file("queries.parquet")), on="query_id")
    found = named.select("query", "split").unique()
    assert found["query"].is_unique().all()
    return dict(found.iter_rows())


@pytest.mark.parametrize(
    ("late", "until"), [(FRI, SUN), (SUN, NEXT), (TUE, NEXT)],
    ids=["twice in a week", "a late Sunday", "a corrected night"],
)  # fmt: skip
def test_what_a_snapshot_learnt_from_never_becomes_gold(
    settings: Settings, late: str, until: str
) -> None:
    land_week(settings)
    before = sides(snapshot(settings, 2, SUN, GOLD))
    assert set(before) == set(QUERIES)
    assert set(before.values()) == {"train", "dev"}
    if late == TUE:  # the night again, with all that there is now
        land_lines(settings, TUE, f"{ZH}/labels.jsonl", labels((*QUERIES, "豆漿"), range(8)))
        ingest(settings, TUE, GOLD)
    else:
        agree_on(settings, late)
    after = snapshot(settings, 2, until, GOLD)
    assert sides(after) == before | {"豆漿": "gold"}
    assert after.facts["late_gold_pairs"] == (12 if late == TUE else 6)


def test_gold_goes_by_no_calendar(settings: Settings) -> None:
    """Raters took two weeks, and no snapshot looked at the query in between."""
    land_week(settings)
    agree_on(settings, NEXT)
    found = sides(snapshot(settings, 2, NEXT, GOLD))
    assert {q for q, side in found.items() if side == "gold"} == {*QUERIES[:2], "豆漿"}


def test_a_text_learnt_in_the_source_market_is_no_gold(settings: Settings) -> None:
    land_week(settings)
    land_lines(settings, MON, f"{KO}/labels-more.jsonl", [label("lg", "ＬＧ", "p1", 2)])
    ingest(settings, MON, GOLD)
    snapshot(settings, 1, MON, GOLD)
    land_lines(settings, FRI, f"{ZH}/labels.jsonl", labels(("lg", "豆漿"), range(8)))
    ingest(settings, FRI, GOLD)
    found = sides(snapshot(settings, 2, SUN, GOLD))
    assert found["lg"] != "gold"
    assert found["豆漿"] == "gold"


def test_another_rule_or_seed_moves_no_query(settings: Settings) -> None:
    land_week(settings)
    agree_on(settings, FRI)
    before = sides(snapshot(settings, 2, SUN, GOLD))
    rules = Snapshot(dev_share=0.9, gold_raters=4, gold_agree=4)
    changed = market(seed=11, snapshot=rules)
    assert sides(snapshot(settings, 2, SUN, changed)) == before


def test_a_gold_query_is_held_out_even_when_its_pairs_are_gone(settings: Settings) -> None:
    land_week(settings)
    agree_on(settings, FRI)
    assert sides(snapshot(settings, 2, SUN, GOLD))["豆漿"] == "gold"
    land_lines(settings, FRI, f"{ZH}/labels.jsonl", labels(("豆漿",), range(2)))  # a correction
    ingest(settings, FRI, GOLD)
    assert "豆漿" not in sides(snapshot(settings, 2, SUN, GOLD))


def rows(settings: Settings) -> list[tuple[Any, ...]]:
    with reading(open_store(settings.db_url)) as connection:
        found = connection.execute(sa.select(SIDES).order_by(SIDES.c.text))
        return [tuple(r) for r in found]


def test_killed_before_it_is_published_a_snapshot_ends_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_week(settings)

    def killed(*args: Any, **kwargs: Any) -> Artifact:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ArtifactStore, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            snapshot(settings, 2, SUN, GOLD)
    registered = rows(settings)
    assert len(registered) == len(QUERIES) + 1
    made = snapshot(settings, 2, SUN, GOLD)
    assert rows(settings) == registered
    held = {text: side for _, text, side, _ in registered}
    found = sides(made)
    assert set(found) == set(QUERIES)
    assert [held[i] for i in text_ids(pl.Series("q", list(found)))] == list(found.values())


def test_of_two_snapshots_at_once_the_second_starts_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_week(settings)
    built: Callable[..., Any] = data.build

    def beside(*args: Any) -> Any:
        """Another run says of the same queries that they are gold, while this one is at work."""
        made = built(*args)
        other = sides_of(made.judged.pairs).with_columns(side=pl.lit("gold"))
        with writing(open_store(settings.db_url), "tiny") as connection:
            assert keep_sides(connection, "tiny", other, "tiny/snapshot/other")
        return made

    with monkeypatch.context() as patched:
        patched.setattr(data, "build", beside)
        with pytest.raises(ChangedInputError, match="run this one again"):
            snapshot(settings, 2, SUN, GOLD)
    assert {side for _, _, side, _ in rows(settings)} == {"gold"}
    assert sides(snapshot(settings, 2, SUN, GOLD)) == {}  # held out: nobody agrees on them yet


def test_a_lost_register_is_filled_from_the_earlier_snapshots(settings: Settings) -> None:
    land_week(settings)
    before = sides(snapshot(settings, 2, SUN, GOLD))
    registered = rows(settings)
    with writing(open_store(settings.db_url), "tiny") as connection:
        connection.execute(sa.delete(SIDES))
    agree_on(settings, FRI)
    assert sides(snapshot(settings, 2, SUN, GOLD)) == before | {"豆漿": "gold"}
    assert set(registered) < set(rows(settings))


def test_markets_have_registers_of_their_own(settings: Settings) -> None:
    with writing(open_store(settings.db_url), "tiny") as connection:
        for name, side in (("tiny", "train"), ("other", "gold")):
            one = pl.DataFrame({"text": ["t"], "side": [side], "snapshot": ["s"]})
            add_sides(connection, name, one)
        assert known_sides(connection, "tiny").rows() == [("t", "train")]
        assert json.dumps(known_sides(connection, "other").rows()) == '[["t", "gold"]]'
