"""Twin towers: one embedding module, two encoders, two heads (A27-A29).

    text → embeddings (shared) → encoder of the tower → mean over real tokens
         → projection per head → unit vectors (B, 2, dim); heads: exact match, not defect

The tower's own part starts equal on both sides: encoders from the same base and, per head, the
same orthogonal projection. So the first cosines are those of the base's mean-pooled states and not
of two unrelated random maps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.markets import resolve_model

HEADS = ("em", "defect")
WEIGHTS = "model.safetensors"


class Tower(nn.Module):
    """One side: token ids to unit vectors of both heads."""

    def __init__(self, encoder: Any, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.config.hidden_size, len(HEADS) * dim)
        self.dim = dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to vectors (B, 2, dim), each of length 1."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        hidden = states.last_hidden_state  # (B, T, H)
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        mean = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)  # (B, H)
        return F.normalize(self.projection(mean).view(-1, len(HEADS), self.dim), dim=-1)


class TwinTowers(nn.Module):
    """Query tower and product tower, and per head the scale and bias of A28."""

    def __init__(
        self, query: Any, product: Any, *, dim: int, scale: float, learn_scale: bool
    ) -> None:
        """Join two encoders of one architecture; ``product`` gives up its embeddings."""
        super().__init__()
        for encoder in (query, product):
            _drop_pooler(encoder)
        _share_embeddings(query, product)
        self.query = Tower(query, dim)
        self.product = Tower(product, dim)
        self.scale = nn.Parameter(torch.full((len(HEADS),), scale), requires_grad=learn_scale)
        self.bias = nn.Parameter(torch.zeros(len(HEADS)), requires_grad=learn_scale)

    @classmethod
    def from_base(
        cls, name: str, *, dim: int, scale: float, learn_scale: bool, seed: int
    ) -> TwinTowers:
        """Start both towers from one pretrained encoder, a folder or a Hugging Face name.

        Raises :class:`ConfigError` when it cannot be loaded.
        """
        found = resolve_model(name)
        try:
            query, product = (AutoModel.from_pretrained(found, dtype=torch.float32) for _ in "qp")
        except (OSError, ValueError) as e:
            reason = str(e).split("\n")[0]
            raise ConfigError(f"towers.encoder {name!r} cannot be loaded: {reason}") from e
        model = cls(query, product, dim=dim, scale=scale, learn_scale=learn_scale)
        generator = torch.Generator().manual_seed(seed)
        for rows in model.query.projection.weight.detach().view(len(HEADS), dim, -1):
            nn.init.orthogonal_(rows, generator=generator)
        nn.init.zeros_(model.query.projection.bias)
        model.product.projection.load_state_dict(model.query.projection.state_dict())
        return model

    @classmethod
    def load(cls, folder: Path, *, dim: int) -> TwinTowers:
        """Load what :meth:`save` wrote, ready for inference."""
        if not (folder / WEIGHTS).exists():
            raise ArtifactError(f"{folder} holds no towers: {WEIGHTS} is missing")
        config = AutoConfig.from_pretrained(folder)
        query, product = (AutoModel.from_config(config, dtype=torch.float32) for _ in "qp")
        model = cls(query, product, dim=dim, scale=0.0, learn_scale=False)
        weights = load_file(folder / WEIGHTS)
        if set(weights) != set(_tensors(model)):
            raise ArtifactError(f"{folder / WEIGHTS} does not hold these towers; train them again")
        model.load_state_dict(weights, strict=False)  # the shared names have no tensor of their own
        return model.eval()

    def save(self, folder: Path) -> None:
        """Write the weights (shared ones once) and the encoders' configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        # Not safetensors' save_model: it names shared tensors in random order, so that the same
        # weights would be another artifact each time.
        save_file(_tensors(self), folder / WEIGHTS)
        self.query.encoder.config.save_pretrained(folder)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state by name, a tensor that has two names under the first."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        found.setdefault(id(value), (name, value))
    return {name: value.detach() for name, value in found.values()}


def load_tokenizer(name: str) -> Any:
    """Load the fast tokenizer of an encoder; raises :class:`ConfigError` without one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as e:
        reason = str(e).split("\n")[0]
        raise ConfigError(f"towers.encoder {name!r} has no tokenizer: {reason}") from e
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ConfigError(
            f"towers.encoder {name!r}: its tokenizer must be a fast one (tokenizer.json) with a "
            "padding token, since serving loads it without transformers"
        )
    return tokenizer


def _drop_pooler(encoder: Any) -> None:
    """Remove what mean pooling has no use for; where the base lacks it, it would be random."""
    if "pooler" in dict(encoder.named_children()):
        encoder.pooler = None


def _share_embeddings(query: Any, product: Any) -> None:
    """Make ``product`` use the embedding module of ``query`` (A27), positions included."""
    if "embeddings" in dict(query.named_children()):  # BERT, XLM-R, MPNet, DistilBERT, …
        product.embeddings = query.embeddings
    else:
        product.set_input_embeddings(query.get_input_embeddings())
