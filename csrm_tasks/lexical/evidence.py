"""Lexical evidence beside a model's own logit: the coefficients of both heads (A50).

What is served for a head is σ(w·z + f·u + f·S·f + b) of its own logit z = s·c + b (A28) and the
features f. Products of two features say what their sum cannot: that every word is found *and* no
number differs. The weights are those of a good pair (exact; not defect), so a defect's probability
is 1 less its own. They stand in the towers' ``serving.json``, the lexicon in a file beside it: both
belong to the release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csrm_tasks.errors import ArtifactError
from csrm_tasks.lexical.brands import BrandForms
from csrm_tasks.lexical.features import NAMES, VERSION, Floats
from csrm_tasks.lexical.terms import Lexicon, TermWeights

FILE = "lexicon.npz"
LINEAR = 1  # version of evidence without products of features


@dataclass(frozen=True)
class Evidence:
    """Weights of both heads, and the lexicon that features are read with."""

    lexicon: Lexicon
    own: Floats  # (2,) weight of each head's own logit
    weights: Floats  # (F, 2) of the features: u
    products: Floats  # (2, F, F) of features by features, symmetric: S
    bias: Floats  # (2,)

    @property
    def kept(self) -> tuple[bool, bool]:
        """Which heads have evidence; the other is served as the towers give it."""
        kept = [bool(self.weights[:, i].any() or self.products[i].any()) for i in range(2)]
        return kept[0], kept[1]

    @cached_property
    def _squares(self) -> tuple[Floats, Floats]:
        """Return S of both heads as sums of squares, and u behind them; made once for serving.

        (F, 2·F + 2) directions and u; (2·F, 2) what the square of each direction weighs.
        """
        value, vector = np.linalg.eigh(self.products.astype(np.float64))  # (2, F), (2, F, F)
        weighs = np.zeros((vector.shape[1] * 2, 2), np.float32)
        weighs[: len(weighs) // 2, 0], weighs[len(weighs) // 2 :, 1] = value
        return np.hstack([*vector, self.weights]).astype(np.float32), weighs

    def logits(self, own: Floats, features: Floats) -> Floats:
        """Return logits (..., 2) of good pairs from the heads' own and features (..., F)."""
        directions, weighs = self._squares
        along = features @ directions
        squares, said = along[..., :-2], along[..., -2:]
        combined: Floats = own * self.own + np.square(squares) @ weighs + said + self.bias
        return combined

    def parts(self, features: Floats) -> Floats:
        """Return what each feature adds to both heads' logits, (..., 2, F), of features (..., F).

        Half of what a product of two features says is counted to each.
        """
        turned = np.stack([features @ products for products in self.products], -2)
        made: Floats = (turned + self.weights.T) * features[..., None, :]
        return made

    def describe(self) -> dict[str, Any]:
        """Return what :meth:`load` reads beside the lexicon's file."""
        return {
            "version": VERSION,
            "features": list(NAMES),
            "own": self.own.tolist(),
            "weights": self.weights.tolist(),
            "products": self.products.tolist(),
            "bias": self.bias.tolist(),
        }

    @classmethod
    def load(cls, folder: Path, about: Mapping[str, Any]) -> Evidence:
        """Open what stands in ``folder``; raises :class:`ArtifactError` for other features."""
        if about["version"] not in (LINEAR, VERSION) or about["features"] != list(NAMES):
            raise ArtifactError(
                f"{folder}: lexical evidence of version {about['version']}, this code reads "
                f"{VERSION}; run the code of that release, or train the towers again"
            )
        own, weights, bias = (np.array(about[k], np.float32) for k in ("own", "weights", "bias"))
        none = np.zeros((2, len(NAMES), len(NAMES)), np.float32)
        products = none if about["version"] == LINEAR else np.array(about["products"], np.float32)
        return cls(load_lexicon(folder), own, weights, products, bias)


def save_lexicon(folder: Path, lexicon: Lexicon) -> None:
    """Write the lexicon's file."""
    hashes, idf, rarest = lexicon.weights
    forms: Mapping[str, str] = lexicon.brands.forms
    np.savez(
        folder / FILE,
        hashes=hashes,
        idf=idf,
        rarest=np.float64(rarest),
        forms=_column(list(forms)),
        brands=_column(list(forms.values())),
    )


def load_lexicon(folder: Path) -> Lexicon:
    """Read the lexicon's file; raises :class:`ArtifactError` where it is missing."""
    path = folder / FILE
    if not path.exists():
        raise ArtifactError(f"{folder} has lexical evidence without {FILE}; export it again")
    with np.load(path, allow_pickle=False) as kept:
        weights = TermWeights(kept["hashes"], kept["idf"], float(kept["rarest"]))
        forms = dict(zip(_texts(kept["forms"]), _texts(kept["brands"]), strict=True))
    return Lexicon(weights, BrandForms(forms))


def _column(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    # Lines of UTF-8: an array of strings takes four bytes a character, at the longest's length.
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def _texts(column: npt.NDArray[np.uint8]) -> list[str]:
    return column.tobytes().decode().split("\n") if len(column) else []
