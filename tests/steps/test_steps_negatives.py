"""The step that draws negatives, on real indexes of a small snapshot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from csrm_tasks import records, tracking
from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ConfigError, DataError
from csrm_tasks.llm.data import load_fields
from csrm_tasks.llm.scoring.probabilities import with_probabilities
from csrm_tasks.llm.scoring.scoring import RelevanceScorer
from csrm_tasks.records import NEGATIVES, read_table, write_table
from csrm_tasks.sections import Negatives
from tests.retrieval_fixtures import behaviour, pairs, products, queries
from tests.steps.test_steps_retrieval import Chain

pytestmark = pytest.mark.usefixtures("fingerprints_hold")


class Scorer:
    """A model that accepts every other pair."""

    fields = staticmethod(load_fields)

    def score(self, space: object, fields: object, given: pl.DataFrame) -> pl.DataFrame:
        p = np.full((len(given), 3), [0.2, 0.5, 0.3])
        p[::2] = [0.6, 0.3, 0.1]
        return with_probabilities(given, p)


def asked() -> pl.DataFrame:
    """The queries, of which a train query of zh-TW is typed as a dev query of ko-KR."""
    split = dict(pairs().select("query_id", "split").unique().iter_rows())
    rows = [(i, split[i], locale) for i, locale in queries().select("query_id", "locale").rows()]
    dev = next(i for i, side, locale in rows if (side, locale) == ("dev", "ko-KR"))
    train = next(i for i, side, locale in rows if (side, locale) == ("train", "zh-TW"))
    text = queries().filter(query_id=dev)["norm"][0]
    here = pl.col("query_id") == train
    return queries().with_columns(norm=pl.when(here).then(pl.lit(text)).otherwise("norm"))


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(tracking, "log_run", lambda *args, **more: "run")
    made = Chain(tmp_path)
    folder = tmp_path / "whole"
    none = pl.DataFrame(schema=records.CONVERSIONS)
    tables = {
        "products": products(), "queries": asked(), "pairs": pairs(), "behaviour": behaviour(),
        "conversions": none,
    }  # fmt: skip
    for name, frame in tables.items():
        write_table(frame, getattr(records, name.upper()), folder / f"{name}.parquet")
    made.snapshot = made.publish("snapshot", folder, 2)  # type: ignore[attr-defined]
    return made


def mined(chain: Chain, config: Negatives, **more: str) -> Artifact:
    llm = chain.market.llm.model_copy(update={"negatives": config})
    chain.market = chain.market.model_copy(update={"llm": llm})
    snap: str = chain.snapshot  # type: ignore[attr-defined]
    bm25 = chain.run("build_bm25", {"snapshot": snap})
    ebr = chain.run("train_ebr", {"snapshot": snap, "scored": "small/scored/1"}, local=False)
    index = chain.run("build_index", {"snapshot": snap, "ebr": ebr})
    given: dict[str, Any] = {"snapshot": snap, "bm25": bm25, "ebr": ebr, "index": index}
    return chain.open(chain.run("mine_negatives", given | more))


def test_every_row_says_where_it_is_from_and_the_llm_has_its_say(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Negatives(per_query=4, first=4, last=12)
    made = mined(chain, config)
    rows = read_table(made.file("negatives.parquet"), NEGATIVES)
    judged = pairs()
    texts = asked().join(judged, on="query_id").select("norm", "split").unique()
    held_out = texts.filter(pl.col("split") != "train")["norm"].to_list()
    norms = rows.join(asked(), on="query_id")
    assert not set(norms["norm"]) & set(held_out) and norms["locale"].n_unique() == 2
    assert rows.join(judged, on="pair_id", how="inner").is_empty()
    assert set(rows["kind"]) == {"easy", "ranked", "mined"} and rows["p0"].null_count() == len(rows)
    goods = products().select("product_id", "locale")
    assert rows.join(goods, on=["product_id", "locale"], how="anti").is_empty()
    facts = made.facts
    assert facts["negatives"] == len(rows) == sum(facts["kinds"].values())
    assert sum(facts["channels"].values()) == sum(facts["locales"].values()) == len(rows)
    assert facts["relevant_share_with_negatives"] < facts["relevant_share"]
    assert facts["held_out"] == 1  # typed alike in the other locale, where it is a dev query

    monkeypatch.setattr(RelevanceScorer, "load", lambda folder: Scorer())
    less = mined(chain, config, llm="small/scored/1")
    kept = read_table(less.file("negatives.parquet"), NEGATIVES)
    ordered = rows.sort("query_id", "pair_id")
    assert kept.drop("p0").equals(ordered.gather_every(2).drop("p0"))
    assert less.facts["accepted"] == len(rows) - len(kept) and (kept["p0"] >= 0.5).all()


def test_what_cannot_be_is_refused_in_a_line(chain: Chain) -> None:
    easy = {"easy": 1.0, "ranked": 0.0, "mined": 0.0, "first": 0, "last": 1}
    wrong = [
        (Negatives(), ConfigError, "per_query is 0"),
        (Negatives.model_validate({"per_query": 60} | easy), ConfigError, "would swamp"),
        (Negatives(per_query=1, easy=0.0, ranked=1.0, mined=0.0, first=40, last=50), DataError,
         "no negatives: of"),
    ]  # fmt: skip
    for config, kind, said in wrong:
        with pytest.raises(kind, match=said) as caught:
            mined(chain, config)
        assert "\n" not in str(caught.value)


def test_what_somebody_put_into_the_cart_is_no_negative(chain: Chain, tmp_path: Path) -> None:
    config = Negatives(per_query=4, first=4, last=12)
    keys = ["query_id", "product_id", "locale"]
    drawn = read_table(mined(chain, config).file("negatives.parquet"), NEGATIVES)
    some = drawn.filter(pl.col("kind") == "mined").head(5).select(keys)
    assert some.height == 5
    log = behaviour()
    acts = {"clicks": 0, "purchases": 0, "carts": 2, "impressions": 3}
    for cart in some.iter_rows(named=True):
        row = log.head(1).with_columns(**{k: pl.lit(v) for k, v in (cart | acts).items()})
        log = log.vstack(row.cast(dict(log.schema)))  # type: ignore[arg-type]
    folder = tmp_path / "carts"
    shutil.copytree(tmp_path / "whole", folder)
    write_table(log, records.BEHAVIOUR, folder / "behaviour.parquet")
    chain.snapshot = chain.publish("snapshot", folder, 3)  # type: ignore[attr-defined]
    again = read_table(mined(chain, config).file("negatives.parquet"), NEGATIVES)
    assert again.join(some, on=keys, how="semi").is_empty() and not again.is_empty()
