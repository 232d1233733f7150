"""A language of made-up words with concepts to be told apart, and towers fitted to it.

Every text is ten words, twelve tokens: five words of its concept, three of its attribute, two of
neither. Concept and attribute of both texts equal: exact; the concept alone: substitute. Towers
are random but for their projections, which are least-squares fits: so cosines spread as those of
trained towers do, and the thresholds lie where pairs are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from csrm_tasks.records import Grade
from csrm_tasks.towers.thresholds import choose_threshold

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
CONCEPTS, ATTRIBUTES = (32, 12), (16, 8)  # how many, of how many words each
RIDGE = 1.0  # of the states' mean variance
DIM = 128


def word(i: int) -> str:
    """Return the ``i``-th word: three syllables, 729,000 of them."""
    return "".join(SYLLABLES[i // len(SYLLABLES) ** k % len(SYLLABLES)] for k in range(3))


def make_tokenizer(size: int) -> Any:
    """Return a Unigram tokenizer as XLM-R's, of ``size`` pieces: one per word."""
    letters = sorted({c for s in SYLLABLES for c in s} | {"▁"})
    words = range(size - len(SPECIAL) - len(letters))
    pieces = [(s, 0.0) for s in SPECIAL] + [(c, -20.0) for c in letters]
    pieces += [(f"▁{word(i)}", -10.0 - i * 1e-6) for i in words]
    core = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """N texts and what they are about."""

    texts: list[str]
    concept: Ints
    attribute: Ints

    def __len__(self) -> int:
        """Return N."""
        return len(self.texts)

    def head(self, n: int) -> Texts:
        """Return the first ``n``."""
        return Texts(self.texts[:n], self.concept[:n], self.attribute[:n])

    def tail(self, n: int) -> Texts:
        """Return all but the first ``n``."""
        return Texts(self.texts[n:], self.concept[n:], self.attribute[n:])


def make_texts(n: int, words: int, seed: int) -> Texts:
    """Draw texts over a vocabulary of ``words`` words."""
    rng = np.random.default_rng(seed)
    named = np.random.default_rng(0).permutation(words)  # which word says what
    (concepts, per_concept), (attributes, per_attribute) = CONCEPTS, ATTRIBUTES
    of_concept = named[: concepts * per_concept].reshape(CONCEPTS)
    rest = named[concepts * per_concept :]
    of_attribute = rest[: attributes * per_attribute].reshape(ATTRIBUTES)
    noise = rest[attributes * per_attribute :]
    concept, attribute = rng.integers(0, concepts, n), rng.integers(0, attributes, n)
    texts = []
    for c, a in zip(concept, attribute, strict=True):
        parts = ((of_concept[c], 5), (of_attribute[a], 3), (noise, 2))
        chosen = np.concatenate([rng.choice(pool, k, replace=False) for pool, k in parts])
        texts.append(" ".join(word(int(i)) for i in rng.permutation(chosen)))
    return Texts(texts, concept, attribute)


def wanted_vectors(texts: Texts) -> Floats:
    """Return the vectors (N, 2, DIM) that a projection is fitted to, each of length 1.

    Head 0 tells concept and attribute, head 1 the concept alone.
    """
    rng = np.random.default_rng(1)
    concept, attribute = (
        directions / np.linalg.norm(directions, axis=1, keepdims=True)
        for directions in (rng.normal(size=(n, DIM)) for n in (CONCEPTS[0], ATTRIBUTES[0]))
    )
    both = 0.75 * concept[texts.concept] + 0.66 * attribute[texts.attribute]
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    found: Floats = np.stack([both, concept[texts.concept]], axis=1).astype(np.float32)
    return found


def fit(states: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """Return weight (2·DIM, H) and bias of the projection from pooled states (N, H), by ridge."""
    x, y = states.astype(np.float64), wanted.reshape(len(wanted), -1).astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram += np.eye(len(gram)) * RIDGE * np.trace(gram) / len(gram)
    weight = np.linalg.solve(gram, x.T @ y).T
    return weight.astype(np.float32), (y_mean - weight @ x_mean).astype(np.float32)


def make_pairs(queries: Texts, products: Texts, seed: int) -> tuple[Ints, Ints, Ints]:
    """Return rows of queries and products, and grades: of each query as many of every grade."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int, int]] = []
    for q in range(len(queries)):
        same = products.concept == queries.concept[q]
        exact = same & (products.attribute == queries.attribute[q])
        for grade, pool in (
            (Grade.EXACT, exact), (Grade.SUBSTITUTE, same & ~exact), (Grade.IRRELEVANT, ~same),
        ):  # fmt: skip
            at = np.flatnonzero(pool)
            rows += [(q, int(p), int(grade)) for p in rng.permutation(at)[:8]]
    query, product, grade = np.array(rows, np.int64).T
    return query, product, grade


def thresholds(probabilities: Floats, grade: Ints) -> dict[str, float]:
    """Choose both heads' thresholds (best F1) from probabilities (P, 2): exact, defect."""
    truth = {"em": grade == Grade.EXACT, "defect": grade == Grade.IRRELEVANT}
    return {
        name: choose_threshold(name, probabilities[:, i], wanted, None).value
        for i, (name, wanted) in enumerate(truth.items())
    }
