"""qc and qi learn translated queries (A37) and negatives (A38), and nothing of dev and gold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_tasks.errors import DataError
from csrm_tasks.llm.data import Fields
from csrm_tasks.llm.prompt.prompts import ProductFields, QueryFields
from csrm_tasks.llm.task_augmented import load_texts, with_negatives, with_translated
from csrm_tasks.llm.task_data import load_task_pairs
from csrm_tasks.llm.training.inputs import FinetuneInputs, load_training_data
from csrm_tasks.records import NEGATIVES, PAIRS, TASK_PAIRS, TRANSLATED, WEIGHTS, write_table
from csrm_tasks.text import normalise, pair_id, query_id
from tests.llm_fixtures import SOURCE, TARGET, make_base, make_market
from tests.task_fixtures import make_task_snapshot, pair

TEXTS = ["tea", "Tea ", "mug", "茶", "茶壺"]
OTHER = "id-ID"


def frame(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, TASK_PAIRS)


def translations(rows: list[tuple[str, str, str]]) -> pl.DataFrame:
    """TRANSLATED of (query of the source, language, text), each of two products."""
    named = [
        {"pair_id": pair_id(query_id(SOURCE, q), p), "query_id": query_id(SOURCE, q),
         "product_id": p, "locale": SOURCE, "query": q, "to_locale": to, "text": text}
        for q, to, text in rows for p in ("p1", "p2")
    ]  # fmt: skip
    return pl.DataFrame(named, TRANSLATED)


judged = st.tuples(
    st.sampled_from(["qc", "qi"]), st.sampled_from(TEXTS), st.sampled_from(["a", "b"]),
    st.integers(0, 1), st.sampled_from([0.25, 1.0]),
)  # fmt: skip
asked = st.tuples(st.sampled_from(TEXTS), st.sampled_from([TARGET, OTHER]), st.sampled_from(TEXTS))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(judged, max_size=10, unique_by=lambda x: x[:3]),
    st.lists(asked, max_size=6, unique_by=lambda x: x[:2]),
    st.lists(st.sampled_from(TEXTS), max_size=2),
    st.booleans(),
)
def test_copies_are_those_of_a_slow_reference(
    pairs: list[tuple[str, str, str, int, float]],
    words: list[tuple[str, str, str]],
    held_out: list[str],
    weighted: bool,
) -> None:
    train = frame([pair(t, SOURCE, q, i, g, "train", f"{t}{i}") for t, q, i, g, _ in pairs])
    train = train.unique("pair_id", keep="first", maintain_order=True)
    weights = {(t, q, i): w for t, q, i, _, w in pairs}
    given = train
    if weighted:
        own = [weights[row] for row in train.select("task", "query", "item").iter_rows()]
        given = train.with_columns(pl.Series("weight", own, pl.Float32))
    barred = {normalise(t) for t in held_out}
    copies: dict[tuple[str, str, str, str], list[tuple[str, int, float]]] = {}
    for row in given.sort("pair_id").iter_rows(named=True):
        for to, text in {
            (to, text) for q, to, text in words if query_id(SOURCE, q) == row["query_id"]
        }:
            if normalise(text) not in barred:
                key = (row["task"], to, normalise(text), row["item"])
                weight = 0.5 * (row["weight"] if weighted else 1.0)
                copies.setdefault(key, []).append((row["pair_id"], row["grade"], weight))
    expected = {
        (key[0], f"translated/{key[1]}/{told[0][0]}", key[1], key[3], *told[0][1:])
        for key, told in copies.items() if len({grade for _, grade, _ in told}) == 1
    }  # fmt: skip
    found = with_translated(given, pl.Series(held_out, dtype=pl.String), translations(words), 0.5)
    made = found.filter(pl.col("pair_id").str.starts_with("translated/"))
    if made.height:
        columns = ("task", "pair_id", "locale", "item", "grade", "weight")
        assert set(made.select(columns).iter_rows()) == expected
    else:
        assert not expected and found.equals(given)
    assert found.filter(~pl.col("pair_id").str.starts_with("translated/")).height == given.height


def test_a_negative_is_a_no_of_qi_alone_and_only_of_queries_that_qi_judged() -> None:
    train = frame([
        pair("qi", SOURCE, "tea", "green tea", 1, "train", "p1"),
        pair("qc", SOURCE, "mug", "kitchen", 1, "train"),
    ])  # fmt: skip
    queries = {query_id(SOURCE, q): QueryFields(q, "a brand") for q in ("tea", "mug")}
    fields = Fields(queries, {(SOURCE, "p9"): ProductFields("a kettle", "acme", "kitchen")})
    drawn = [
        {"pair_id": pair_id(q, "p9"), "query_id": q, "product_id": "p9", "locale": SOURCE,
         "kind": "ranked", "channel": "bm25", "rank": 30} for q in queries
    ]  # fmt: skip
    found = with_negatives(train, fields, pl.DataFrame(drawn, NEGATIVES), 0.5)
    assert found.height == 3
    (made,) = found.filter(pl.col("pair_id").str.starts_with("ranked/bm25/")).to_dicts()
    assert (made["task"], made["query"], made["item"], made["grade"]) == (
        "qi",
        "tea",
        "a kettle",
        0,
    )
    assert made["weight"] == 0.5 and found.filter(pl.col("weight") == 1.0).height == 2
    assert with_negatives(train, fields, pl.DataFrame(schema=NEGATIVES), 0.5).equals(train)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task_snapshot(tmp_path_factory.mktemp("snapshot"))


def test_a_training_learns_them_and_a_filtered_pair_stays_out(
    snapshot: Path, tmp_path: Path
) -> None:
    """Pairs of qi that are of relevance labels, as in a market with both."""
    labels = pl.read_parquet(snapshot / "pairs.parquet").filter(split="train", locale=SOURCE)
    labels = labels.select(list(PAIRS)).head(4)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in snapshot.iterdir():
        (folder / file.name).symlink_to(file)
    read = labels.with_columns(
        task=pl.lit("qi"), grade=pl.lit(1, pl.Int8), query=pl.lit("tea"), item=pl.lit("a mug")
    ).with_columns(item=pl.col("item") + pl.col("product_id"))
    tasks = pl.concat([load_task_pairs(snapshot), read.select(list(TASK_PAIRS))])
    (folder / "task_pairs.parquet").unlink()
    write_table(tasks, TASK_PAIRS, folder / "task_pairs.parquet")
    base = make_base(tmp_path / "base")
    translated = labels.with_columns(
        query=pl.lit("tea"), to_locale=pl.lit(OTHER), text=pl.lit("a text of nobody"),
        brand=pl.lit(""), translator=pl.lit("x"), numbers=pl.lit(""), back=pl.lit("tea"),
        likeness=pl.lit(1.0, pl.Float32),
    )  # fmt: skip
    (tmp_path / "translated").mkdir()
    write_table(
        translated.select(list(TRANSLATED)), TRANSLATED, tmp_path / "translated/translated.parquet"
    )
    decided = translated.select("query_id", "to_locale", "text", reason=pl.lit("")).unique()
    decided.write_parquet(tmp_path / "translated/decisions.parquet")
    given = FinetuneInputs(folder, None, None, "plain", 0, translated=tmp_path / "translated")
    rows = {r.space.name: r for r in load_training_data(make_market(base), given).tasks}
    made = [n for n in rows["qi"].names if n.startswith("translated/")]
    assert len(made) == 4
    assert {rows["qi"].queries[rows["qi"].names.index(n)].language for n in made} == {"Indonesian"}
    train = pl.read_parquet(snapshot / "pairs.parquet").filter(split="train")
    weights = train.select(
        "pair_id", weight=(pl.col("pair_id") != labels["pair_id"][0]).cast(pl.Float32)
    )
    (tmp_path / "filtered").mkdir()
    write_table(weights, WEIGHTS, tmp_path / "filtered/decisions.parquet")
    given = replace(given, filtered=tmp_path / "filtered")
    rows = {r.space.name: r for r in load_training_data(make_market(base), given).tasks}
    assert sum(n.startswith("translated/") for n in rows["qi"].names) == 3
    other = load_task_pairs(snapshot).filter(split="gold").head(1)
    for wrong in ({"query_id": other["query_id"][0]}, {"text": other["query"][0].upper()}):
        bad = decided.head(1).with_columns(**{k: pl.lit(v) for k, v in wrong.items()})
        bad.write_parquet(tmp_path / "translated/decisions.parquet")
        with pytest.raises(DataError, match="1 of 1 queries are not of this") as caught:
            load_texts(folder, tmp_path / "translated")
        assert "\n" not in str(caught.value)
