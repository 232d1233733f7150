"""The bi-encoder: any Hugging Face encoder → mask-aware mean → linear → unit length (A22).

One encoder serves queries and products of every locale. Saved as a folder: what
``save_pretrained`` writes for encoder and tokenizer, ``head.safetensors`` and ``biencoder.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from csrm_tasks.text import normalise
from csrm_tasks.training.encoders import check_reads, load_encoder
from csrm_tasks.training.precision import cast

BATCH_TOKENS = 8192  # padded tokens of one inference batch
Vectors = npt.NDArray[np.float32]


class BiEncoder(nn.Module):
    """Text to a unit vector of ``dim`` numbers."""

    def __init__(self, encoder: Any, tokenizer: Any, dim: int, max_length: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, dim, bias=False)
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.head.out_features

    @property
    def width(self) -> int:
        """Hidden size of the encoder."""
        return self.head.in_features

    @classmethod
    def from_base(cls, name: str, dim: int, max_length: int, seed: int) -> BiEncoder:
        """Start from a pretrained encoder with a fresh, seeded head.

        ``name`` is a folder or a Hugging Face name@commit; raises :class:`ConfigError` when it
        cannot be loaded.
        """
        key = "retrieval.ebr.encoder"
        encoder = load_encoder(key, name)
        check_reads(name, encoder.config, {"retrieval.ebr.max_length": max_length})
        try:
            tokenizer = AutoTokenizer.from_pretrained(**pretrained(name))
        except (OSError, ValueError) as e:
            reason = str(e).split("\n")[0]
            raise ConfigError(f"{key} {name!r} has no tokenizer: {reason}") from e
        model = cls(encoder, tokenizer, dim, max_length)
        generator = torch.Generator().manual_seed(seed)
        nn.init.orthogonal_(model.head.weight, generator=generator)
        return model

    @classmethod
    def load(cls, folder: Path) -> BiEncoder:
        """Load what :meth:`save` wrote; raises :class:`ArtifactError` where it is not whole."""
        about = folder / "biencoder.json"
        if not about.exists():
            raise ArtifactError(f"{folder} holds no bi-encoder: biencoder.json is missing")
        config = json.loads(about.read_text(encoding="utf-8"))
        encoder = load_encoder("encoder", str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = cls(encoder, tokenizer, config["dim"], config["max_length"])
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
        save_file(self.head.state_dict(), folder / "head.safetensors")
        config = {"dim": self.dim, "max_length": self.max_length, "pool": "mean"}
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

    def tokenise(self, texts: Sequence[str]) -> TokenisedTexts:
        """Normalise and tokenise ``texts`` once, cut to this model's length.

        Normalised here and nowhere else, so that training, index and queries cannot differ.
        """
        return TokenisedTexts(self.tokenizer, [normalise(t) for t in texts], self.max_length)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed ``texts`` as (len(texts), dim) float32, batched by length, in the order given."""
        training = self.training
        self.eval()
        vectors: Vectors = np.zeros((len(texts), self.dim), np.float32)
        tokenised = self.tokenise(texts)
        for rows in tokenised.by_length(BATCH_TOKENS):
            ids, mask = tokenised.batch(rows)
            vectors[rows] = self(ids, mask).numpy()
        self.train(training)
        return vectors


def encoder_digest(folder: Path) -> str:
    """Digest every file of a saved bi-encoder."""
    return json_digest(describe_files(folder))
