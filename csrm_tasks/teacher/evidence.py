"""What a stack reads of a pair: logits of LLM and n-gram model, lexical features (A50)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from csrm_tasks.dataset.tables import table
from csrm_tasks.evaluation.baselines import CharacterModel, Texts, texts_of
from csrm_tasks.evaluation.gold import judgeable
from csrm_tasks.evaluation.metrics import Floats, Ints
from csrm_tasks.lexical.features import pair_features
from csrm_tasks.lexical.terms import Lexicon
from csrm_tasks.llm.scoring.probabilities import PROBABILITIES
from csrm_tasks.towers.examples import distinct
from csrm_tasks.towers.serving.texts import with_product_text

SMALLEST = 1e-4  # probability below which a logit says no more
CHUNK = 20_000  # pairs whose n-grams are in memory at a time
# Sets of features: without lexical evidence, which the others have to beat; with the n-gram model;
# with that and the features of csrm_tasks.lexical, which few dev pairs do not suffice to weigh.
LLM, NGRAMS, LEXICAL = VARIANTS = ("llm", "llm, n-grams", "llm, n-grams, lexical features")


def logits(probabilities: Floats) -> Floats:
    """Return log probabilities less their mean, (N, 3)."""
    logs = np.log(np.maximum(probabilities, SMALLEST))
    return np.asarray(logs - logs.mean(1, keepdims=True))


def read_as(
    variant: str, texts: JudgedTexts, model: CharacterModel, scored: pl.DataFrame
) -> Floats:
    """Return the features (N, F) that a stack of ``variant`` reads of pairs that the LLM scored.

    ``scored``: query_id, product_id, locale, p0, p1, p2. ``model``: the n-gram model.
    """
    parts = [logits(probabilities_of(scored))]
    if variant != LLM:
        parts.append(logits(texts.said_by(model, scored)))
    if variant == LEXICAL:
        parts.append(texts.lexical(scored))
    return np.hstack(parts)


def probabilities_of(scored: pl.DataFrame) -> Floats:
    """Return p0, p1, p2 of scored pairs, (N, 3)."""
    return scored.select(pl.col(PROBABILITIES).cast(pl.Float64)).to_numpy().reshape(-1, 3)


@dataclass(frozen=True)
class JudgedTexts:
    """A snapshot's judged pairs and texts, as the n-gram model reads them."""

    pairs: pl.DataFrame
    queries: pl.DataFrame
    products: pl.DataFrame

    @classmethod
    def of(cls, snapshot: Path) -> JudgedTexts:
        """Read a snapshot; pairs that it holds no text of are left out."""
        pairs, queries, products = (table(snapshot, n) for n in ("pairs", "queries", "products"))
        return cls(judgeable(pairs, queries, products), queries, products)

    def dev(self, locale: str, scored: pl.DataFrame) -> pl.DataFrame:
        """Return the dev pairs of ``locale`` with the LLM's p0, p1, p2 of ``scored``, by query."""
        own = self.pairs.filter((pl.col("split") == "dev") & (pl.col("locale") == locale))
        said = scored.select("pair_id", *PROBABILITIES)
        return own.join(said, on="pair_id", how="inner").sort("query_id", "pair_id")

    def fit_ngrams(self, locale: str) -> CharacterModel:
        """Fit the n-gram model on train pairs; its regularisation is chosen on other locales' dev.

        No dev pair of ``locale`` takes part, so the model is as wrong there as on any new query.
        """
        train = self.pairs.filter(pl.col("split") == "train")
        other = self.pairs.filter((pl.col("split") == "dev") & (pl.col("locale") != locale))
        return CharacterModel().fit(
            self._texts(train), _grades(train), self._texts(other), _grades(other)
        )

    def train_grades(self) -> Ints:
        """Return the grades of the train pairs."""
        return _grades(self.pairs.filter(pl.col("split") == "train"))

    def said_by(self, model: CharacterModel, pairs: pl.DataFrame) -> Floats:
        """Return the n-gram model's probabilities of ``pairs``, (N, 3), some at a time."""
        starts = range(0, len(pairs), CHUNK)
        parts = [model.probabilities(self._texts(pairs[start : start + CHUNK])) for start in starts]
        return np.concatenate([np.empty((0, 3)), *parts])

    def lexical(self, pairs: pl.DataFrame) -> Floats:
        """Return the lexical features of ``pairs``, (N, F), against title, brand and category."""
        texts = with_product_text(self.products, ("brand", "category"))
        texts = texts.select("product_id", "locale", text="title").unique(["product_id", "locale"])
        brands = {brand: brand for brand in self.products["brand"].unique().sort() if brand}
        read = pairs.join(
            self.queries.select("query_id", "norm").unique("query_id"), on="query_id",
            maintain_order="left",
        ).join(texts, on=["product_id", "locale"], maintain_order="left")  # fmt: skip
        (queries, query), (products, product) = (distinct(read[c]) for c in ("norm", "text"))
        lexicon = Lexicon.fit(texts["text"].to_list(), brands)
        return pair_features(queries, products, query, product, lexicon).astype(np.float64)

    def _texts(self, pairs: pl.DataFrame) -> Texts:
        return texts_of(pairs, self.queries, self.products)


def _grades(pairs: pl.DataFrame) -> Ints:
    return pairs["grade"].cast(pl.Int64).to_numpy()
