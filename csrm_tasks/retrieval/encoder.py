"""The bi-encoder: any Hugging Face encoder → mask-aware mean → linear → unit length (A22).

One encoder serves queries and products of every locale; what it was pretrained to read before
either ("query: ", "passage: ") tells them apart. Without a projection the mean itself is the
vector, in the encoder's own width. Saved as a folder: what ``save_pretrained`` writes for encoder
and tokenizer, ``head.safetensors`` where there is a projection, and ``biencoder.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from csrm_tasks.artifacts import describe_files, json_digest
from csrm_tasks.base_models import pretrained
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.retrieval.tokenised import TokenisedTexts
from csrm_tasks.text import as_read, prefix_tokens
from csrm_tasks.training.encoders import check_reads, load_encoder
from csrm_tasks.training.precision import cast

BATCH_TOKENS = 8192  # padded tokens of one inference batch
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """How texts are read; both parts are cut to the same length."""

    max_length: int  # tokens of a text, special ones included; a prefix comes on top
    query_prefix: str = ""
    title_prefix: str = ""


class BiEncoder(nn.Module):
    """Text to a unit vector of ``dim`` numbers."""

    def __init__(self, encoder: Any, tokenizer: Any, dim: int | None, reading: Reading) -> None:
        """``dim``: width of a learnt projection; None: none, vectors of the encoder's own width."""
        super().__init__()
        self.encoder, self.tokenizer, self.reading = encoder, tokenizer, reading
        self.width = int(encoder.config.hidden_size)
        self.projects, self.dim = dim is not None, dim or self.width
        self.head = nn.Linear(self.width, dim, bias=False) if dim else nn.Identity()

    @classmethod
    def from_base(
        cls, name: str, dim: int | None, max_length: int, seed: int, query_prefix: str = "",
        title_prefix: str = "",
    ) -> BiEncoder:  # fmt: skip
        """Start from a pretrained encoder with a fresh, seeded head, or with none.

        ``name`` is a folder or a Hugging Face name@commit; raises :class:`ConfigError` when it
        cannot be loaded, or reads fewer tokens at once.
        """
        key = "retrieval.ebr.encoder"
        encoder = load_encoder(key, name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(**pretrained(name))
        except (OSError, ValueError) as e:
            reason = str(e).split("\n")[0]
            raise ConfigError(f"{key} {name!r} has no tokenizer: {reason}") from e
        reading = Reading(max_length, query_prefix, title_prefix)
        model = cls(encoder, tokenizer, dim, reading)
        model.read_as(reading, name)
        if isinstance(model.head, nn.Linear):
            generator = torch.Generator().manual_seed(seed)
            nn.init.orthogonal_(model.head.weight, generator=generator)
        return model

    def read_as(self, reading: Reading, name: str) -> None:
        """Read texts so from now on.

        Raises :class:`ConfigError` where that is more than the encoder, called ``name``, reads.
        """
        key = "retrieval.ebr.max_length"
        asked = {
            key: "",
            f"{key} with query_prefix": reading.query_prefix,
            f"{key} with title_prefix": reading.title_prefix,
        }
        limits = {key: self._limit(reading.max_length, p) for key, p in asked.items()}
        check_reads(name, self.encoder.config, limits)
        self.reading = reading

    def _limit(self, max_length: int, prefix: str) -> int:
        """Return the tokens of the longest text with its prefix."""
        return max_length + prefix_tokens(lambda t: len(self.tokenizer(t)["input_ids"]), prefix)

    @classmethod
    def load(cls, folder: Path) -> BiEncoder:
        """Load what :meth:`save` wrote; raises :class:`ArtifactError` where it is not whole."""
        about = folder / "biencoder.json"
        if not about.exists():
            raise ArtifactError(f"{folder} holds no bi-encoder: biencoder.json is missing")
        config = json.loads(about.read_text(encoding="utf-8"))
        encoder = load_encoder("encoder", str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        known = {name: config[name] for name in asdict(Reading(0)) if name in config}
        model = cls(encoder, tokenizer, config["dim"], Reading(**known))  # of old: no prefixes
        if model.projects:
            model.head.load_state_dict(load_file(folder / "head.safetensors"))
        return model.eval()

    def save(self, folder: Path) -> str:
        """Write encoder, tokenizer and head; returns the digest that an index is bound to."""
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save_pretrained(folder)
        if isinstance(self.tokenizer, PreTrainedTokenizerFast):
            # It remembers the last call's truncation, which must not depend on what was encoded.
            self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder)
        if self.projects:
            save_file(self.head.state_dict(), folder / "head.safetensors")
        dim = self.dim if self.projects else None
        config = {"dim": dim, "pool": "mean", **asdict(self.reading)}
        (folder / "biencoder.json").write_text(json.dumps(config), encoding="utf-8")
        return encoder_digest(folder)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to unit vectors (B, dim)."""
        # Pooling and head are fp32 whatever the encoder runs in (A13).
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        real = mask[:, :, None].to(hidden.dtype)
        # (B, T, H) and (B, T, 1)
        mean = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)  # (B, H)
        return F.normalize(self.head(mean), dim=-1)

    def for_inference(self, dtype: torch.dtype) -> BiEncoder:
        """Cast the encoder in place and stop dropout; not to be trained or saved afterwards."""
        cast(self.encoder, dtype)
        return self.eval()

    def queries(self, texts: Sequence[str]) -> TokenisedTexts:
        """Tokenise queries once, in the form in which all of training and search read them."""
        return self._tokenised(texts, self.reading.query_prefix)

    def titles(self, texts: Sequence[str]) -> TokenisedTexts:
        """Tokenise titles once, in the form in which training and index read them."""
        return self._tokenised(texts, self.reading.title_prefix)

    def _tokenised(self, texts: Sequence[str], prefix: str) -> TokenisedTexts:
        # Brought into form here and nowhere else: training, index and queries cannot differ.
        limit = self._limit(self.reading.max_length, prefix)
        return TokenisedTexts(self.tokenizer, [as_read(t, prefix) for t in texts], limit)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries as (len(texts), dim) float32, in the order given."""
        return self._encode(self.queries(texts))

    def encode_titles(self, texts: Sequence[str]) -> Vectors:
        """Embed titles as (len(texts), dim) float32, in the order given."""
        return self._encode(self.titles(texts))

    @torch.inference_mode()
    def _encode(self, tokenised: TokenisedTexts) -> Vectors:
        """Embed in batches of like length."""
        training = self.training
        self.eval()
        vectors: Vectors = np.zeros((len(tokenised), self.dim), np.float32)
        for rows in tokenised.by_length(BATCH_TOKENS):
            ids, mask = tokenised.batch(rows)
            vectors[rows] = self(ids, mask).numpy()
        self.train(training)
        return vectors


def encoder_digest(folder: Path) -> str:
    """Digest every file of a saved bi-encoder."""
    return json_digest(describe_files(folder))
