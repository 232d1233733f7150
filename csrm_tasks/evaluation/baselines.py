"""What any model must beat: the majority class, and a linear model on characters.

The linear model is meant to be strong: TF-IDF of character n-grams of the query and of the
product (title, brand, category), and what a linear model cannot see in them by itself: how much of
the query occurs in the product (words, letters, bigrams, cosine, contained n-gram weight), against
the title and against brand and category. Trained on the same train pairs of all languages; its
regularisation is chosen on dev.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from csrm_tasks.errors import DataError
from csrm_tasks.evaluation.metrics import Floats, Ints

log = logging.getLogger("csrm")
STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # inverse regularisation tried on dev
TERMS, NUMBERS = "ngrams.json", "ngrams.npz"  # of a saved model


@dataclass(frozen=True)
class Texts:
    """Aligned texts of N pairs."""

    query: list[str]
    title: list[str]
    context: list[str]  # brand and category

    @property
    def product(self) -> list[str]:
        """Everything about the product."""
        return [f"{t} {c}" for t, c in zip(self.title, self.context, strict=True)]


def texts_of(pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame) -> Texts:
    """Look up the texts of ``pairs`` in order; raises :class:`DataError` for an unknown id."""
    about = products.select(
        "product_id",
        "locale",
        title=pl.col("title").str.to_lowercase(),
        context=pl.concat_str("brand", "category", separator=" ").str.to_lowercase(),
    ).unique(["product_id", "locale"])
    joined = pairs.join(
        queries.select("query_id", "norm").unique("query_id"),
        on="query_id", how="left", maintain_order="left",
    ).join(about, on=["product_id", "locale"], how="left", maintain_order="left")  # fmt: skip
    lost = joined.filter(pl.col("norm").is_null() | pl.col("title").is_null())
    if lost.height:
        first = lost["pair_id"][0]
        raise DataError(f"pair {first} names a query or product that the snapshot does not hold")
    return Texts(joined["norm"].to_list(), joined["title"].to_list(), joined["context"].to_list())


def majority(train_grades: Ints, n: int) -> Floats:
    """Return the train set's class shares for each of ``n`` pairs, (n, 3)."""
    shares = np.bincount(train_grades, minlength=3) / max(len(train_grades), 1)
    return np.tile(shares.astype(np.float64), (n, 1))


class CharacterModel:
    """Character n-gram TF-IDF with overlap features and multinomial logistic regression."""

    def __init__(self) -> None:
        self.query = _vectorizer()
        self.product = _vectorizer()  # also what overlap is counted in
        self.model: LogisticRegression | None = None
        self.strength = 0.0

    def fit(self, texts: Texts, grades: Ints, dev: Texts, dev_grades: Ints) -> CharacterModel:
        """Fit on train pairs, choosing the regularisation by micro-F1 on dev.

        Without a dev pair it is the strongest. Raises :class:`DataError` where there is nothing to
        tell apart.
        """
        if len(np.unique(grades)) < 2:
            raise DataError("the train pairs have fewer than two grades; nothing to learn")
        self.query.fit(sorted({*texts.query}))
        self.product.fit(sorted({*texts.product}))
        x, dev_x = self._features(texts), self._features(dev) if len(dev_grades) else None
        best = -1.0
        for c in STRENGTHS if dev_x is not None else STRENGTHS[:1]:
            model = LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(x, grades)
            score = float(model.score(dev_x, dev_grades)) if dev_x is not None else 0.0
            if score > best:
                best, self.model, self.strength = score, model, c
        log.info("baseline: C=%g, dev micro-F1 %.3f", self.strength, best)
        return self

    def probabilities(self, texts: Texts) -> Floats:
        """Return (N, 3); a grade that never occurred in training has probability 0."""
        assert self.model is not None
        probabilities = np.zeros((len(texts.query), 3))
        if len(probabilities):
            probabilities[:, self.model.classes_.astype(int)] = self.model.predict_proba(
                self._features(texts)
            )
        return probabilities

    def save(self, folder: Path) -> None:
        """Write the fitted model to ``folder``: terms as JSON, numbers as an array archive."""
        assert self.model is not None
        sides = {"query": self.query, "product": self.product}
        terms = {name: list(one.get_feature_names_out()) for name, one in sides.items()}
        (folder / TERMS).write_text(json.dumps(terms, ensure_ascii=False), encoding="utf-8")
        idf = {f"{name}_idf": one.idf_ for name, one in sides.items()}
        model = self.model
        np.savez(
            folder / NUMBERS, coef=model.coef_, intercept=model.intercept_, classes=model.classes_,
            strength=self.strength, **idf,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> CharacterModel:
        """Read what :meth:`save` has written; it says the same probabilities."""
        made = cls()
        terms = json.loads((folder / TERMS).read_text(encoding="utf-8"))
        with np.load(folder / NUMBERS, allow_pickle=False) as numbers:
            made.query, made.product = (
                _vectorizer({t: i for i, t in enumerate(terms[name])})
                for name in ("query", "product")
            )
            made.query.idf_, made.product.idf_ = numbers["query_idf"], numbers["product_idf"]
            made.strength = float(numbers["strength"])
            model = LogisticRegression(C=made.strength)
            model.coef_, model.intercept_ = numbers["coef"], numbers["intercept"]
            model.classes_ = numbers["classes"]
        made.model = model
        return made

    def _features(self, texts: Texts) -> sp.csr_matrix:
        parts = [
            _transform(self.query, texts.query),
            _transform(self.product, texts.product),
            sp.csr_matrix(self._overlap(texts)),
        ]
        return sp.hstack(parts).tocsr()

    def _overlap(self, texts: Texts) -> Floats:
        """Dense features in [0, 1], binned too, so that a linear model can bend; (N, F)."""
        words = np.array(
            [_coverage(q, p) for q, p in zip(texts.query, texts.product, strict=True)]
        ).reshape(-1, 4)
        query = _transform(self.product, texts.query)
        columns = [*words.T]
        for side in (texts.title, texts.context):
            product = _transform(self.product, side)
            columns += [_cosine(query, product), _contained(query, product)]
        dense = np.stack(columns, 1)
        steps = [dense >= edge for edge in (0.25, 0.5, 0.75, 0.999)]
        return np.hstack([dense, *steps]).astype(np.float64)


def _vectorizer(vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
    return TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), max_features=30_000, sublinear_tf=True,
        dtype=np.float64, vocabulary=vocabulary,
    )  # fmt: skip


def _transform(vectorizer: TfidfVectorizer, texts: list[str]) -> sp.csr_matrix:
    """Transform every distinct text once: pairs repeat their queries and products many times."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if not row:
        return sp.csr_matrix((0, len(vectorizer.vocabulary_)))
    return vectorizer.transform(list(row))[[row[text] for text in texts]]


def _coverage(query: str, product: str) -> tuple[float, float, float, float]:
    """Share of the query's words, letters, bigrams and of its last word found in the product."""
    words = query.split() or [""]
    letters = set(query.replace(" ", ""))
    flat = query.replace(" ", "")
    pairs = {flat[i : i + 2] for i in range(len(flat) - 1)}
    return (
        sum(w in product for w in words) / len(words),
        sum(c in product for c in letters) / max(len(letters), 1),
        sum(b in product for b in pairs) / max(len(pairs), 1),
        float(words[-1] in product),
    )


def _cosine(a: sp.csr_matrix, b: sp.csr_matrix) -> Floats:
    return np.asarray(normalize(a).multiply(normalize(b)).sum(1), dtype=np.float64).ravel()


def _contained(query: sp.csr_matrix, product: sp.csr_matrix) -> Floats:
    """Share of the query's n-gram weight that the product has."""
    kept = np.asarray(query.multiply(product > 0).sum(1), dtype=np.float64).ravel()
    whole = np.asarray(query.sum(1), dtype=np.float64).ravel()
    return np.divide(kept, whole, out=np.zeros_like(kept), where=whole > 0)


def baseline_scores(
    pairs: pl.DataFrame, queries: pl.DataFrame, products: pl.DataFrame, gold: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """Train both baselines on the train split; return name → (pair_id, grade, p0, p1, p2) on gold.

    The regularisation is chosen on target dev where there is any, else on source dev.
    """
    train, dev = (pairs.filter(pl.col("split") == s) for s in ("train", "dev"))
    local = dev.filter(pl.col("locale").is_in(gold["locale"].unique().implode()))
    dev = local if local.height else dev
    grades = train["grade"].cast(pl.Int64).to_numpy()
    model = CharacterModel().fit(
        texts_of(train, queries, products), grades,
        texts_of(dev, queries, products), dev["grade"].cast(pl.Int64).to_numpy(),
    )  # fmt: skip
    probabilities = {
        "majority": majority(grades, gold.height),
        "tfidf": model.probabilities(texts_of(gold, queries, products)),
    }
    return {name: _scored(gold, p) for name, p in probabilities.items()}


def _scored(gold: pl.DataFrame, p: Floats) -> pl.DataFrame:
    return gold.select("pair_id", "grade").with_columns(
        p0=pl.Series(p[:, 0]), p1=pl.Series(p[:, 1]), p2=pl.Series(p[:, 2])
    )
