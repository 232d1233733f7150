"""Twin towers: one embedding module, two encoders, two heads (A27-A29).

    text → embeddings (shared) → encoder of the tower → mean over real tokens
         → projection per head → unit vectors (B, 2, dim); heads: exact match, not defect

With separate trunks the heads are two such models, nothing shared between them, side by side in
one module, one file and one graph.

The tower's own part starts equal on both sides: encoders from the same base and, per head, the
same orthogonal projection. So the first cosines are those of the base's mean-pooled states and not
of two unrelated random maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from csrm_tasks.base_models import pretrained
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.towers.depth import cut

HEADS = ("em", "defect")
WEIGHTS = "model.safetensors"


class Tower(nn.Module):
    """One side: token ids to unit vectors of ``heads`` heads, by one trunk."""

    def __init__(self, encoder: Any, dim: int, heads: int = len(HEADS)) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.config.hidden_size, heads * dim)
        self.dim, self.heads = dim, heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to vectors (B, heads, dim) of length 1, in fp32 always."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        mean = token_mean(states.last_hidden_state, attention_mask)
        with torch.autocast(mean.device.type, enabled=False):  # s·c magnifies a cosine's rounding
            return F.normalize(self.projection(mean).view(-1, self.heads, self.dim), dim=-1)


class SplitTower(nn.Module):
    """One side with a trunk for each head, as the paper has it: twice the work (A29)."""

    def __init__(self, trunks: Sequence[Tower]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        self.dim = trunks[0].dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and mask (B, T) to vectors (B, 2, dim), each of length 1, in fp32 always."""
        return torch.cat([trunk(input_ids, attention_mask) for trunk in self.trunks], dim=1)


AnyTower = Tower | SplitTower


class TwinTowers(nn.Module):
    """Query tower and product tower, and per head the scale and bias of A28."""

    def __init__(
        self, trunks: Sequence[tuple[Any, Any]], *, dim: int, scale: float, learn_scale: bool
    ) -> None:
        """Join (query, product) encoders of one architecture: one pair for both heads, or one each.

        The product encoder of a pair gives up its embeddings.
        """
        super().__init__()
        for query, product in trunks:
            _share_embeddings(query, product)
        self.query: AnyTower = _side([query for query, _ in trunks], dim)
        self.product = _side([product for _, product in trunks], dim)
        self.scale = nn.Parameter(torch.full((len(HEADS),), scale), requires_grad=learn_scale)
        self.bias = nn.Parameter(torch.zeros(len(HEADS)), requires_grad=learn_scale)

    @property
    def config(self) -> Any:
        """The configuration of the query encoders; the products' differ in depth at most."""
        return trunks_of(self.query)[0].encoder.config

    @classmethod
    def from_base(
        cls, name: str, *, dim: int, scale: float, learn_scale: bool, seed: int,
        separate: bool = False,
    ) -> TwinTowers:  # fmt: skip
        """Start both towers from one pretrained encoder, a folder or a Hugging Face name.

        ``separate`` gives each head its own pair of trunks; its first vectors are the same.
        Raises :class:`ConfigError` when it cannot be loaded.
        """
        trunks = _pairs(lambda: load_encoder(name), separate)
        model = cls(trunks, dim=dim, scale=scale, learn_scale=learn_scale)
        generator = torch.Generator().manual_seed(seed)
        for query, product in zip(trunks_of(model.query), trunks_of(model.product), strict=True):
            start_equal(query.projection, product.projection, dim, generator)
        return model

    @classmethod
    def load(cls, folder: Path, *, dim: int) -> TwinTowers:
        """Load what :meth:`save` wrote, ready for inference."""
        if not (folder / WEIGHTS).exists():
            raise ArtifactError(f"{folder} holds no towers: {WEIGHTS} is missing")
        config, weights = AutoConfig.from_pretrained(folder), load_file(folder / WEIGHTS)
        separate = any(name.startswith("query.trunks.") for name in weights)
        trunks = _pairs(
            lambda: _without_pooler(AutoModel.from_config(config, dtype=torch.float32)), separate
        )
        model = cls(trunks, dim=dim, scale=0.0, learn_scale=False)
        if config.query_layers < config.num_hidden_layers:
            model.shorten_query(config.query_layers)
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
        config = deepcopy(trunks_of(self.product)[0].encoder.config)
        config.query_layers = self.config.num_hidden_layers
        config.save_pretrained(folder)

    def shorten_query(self, layers: int) -> None:
        """Leave the query tower ``layers`` of its layers; see :func:`towers.depth.cut`."""
        short = [cut(trunk, layers) for trunk in trunks_of(self.query)]
        self.query = short[0] if len(short) == 1 else SplitTower(short)


def trunks_of(side: AnyTower) -> list[Tower]:
    """Return a side's trunks: one for both heads, or one for each."""
    return [side] if isinstance(side, Tower) else [cast(Tower, t) for t in side.trunks]


def _side(encoders: Sequence[Any], dim: int) -> AnyTower:
    towers = [Tower(encoder, dim, len(HEADS) // len(encoders)) for encoder in encoders]
    return towers[0] if len(towers) == 1 else SplitTower(towers)


def _pairs(make: Callable[[], Any], separate: bool) -> list[tuple[Any, Any]]:
    return [(make(), make()) for _ in (HEADS if separate else HEADS[:1])]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state by name, a tensor that has two names under the first."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        found.setdefault(id(value), (name, value))
    return {name: value.detach() for name, value in found.values()}


def token_mean(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the states (B, T, H) at ``chosen`` tokens (B, T), 0 or 1: (B, H)."""
    real = chosen.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    mean: Tensor = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
    return mean


def start_equal(query: nn.Linear, product: nn.Linear, dim: int, generator: torch.Generator) -> None:
    """Start both projections as one orthogonal map per head."""
    for rows in query.weight.detach().view(-1, dim, query.in_features):
        nn.init.orthogonal_(rows, generator=generator)
    nn.init.zeros_(query.bias)
    product.load_state_dict(query.state_dict())


def load_encoder(name: str) -> Any:
    """Load a pretrained encoder, a folder or a Hugging Face name@commit, without its pooler.

    Raises :class:`ConfigError` when it cannot be loaded.
    """
    try:
        found = AutoModel.from_pretrained(**pretrained(name), dtype=torch.float32)
    except (OSError, ValueError) as e:
        reason = str(e).split("\n")[0]
        raise ConfigError(f"towers.encoder {name!r} cannot be loaded: {reason}") from e
    return _without_pooler(found)


def load_tokenizer(name: str) -> Any:
    """Load the fast tokenizer of an encoder; raises :class:`ConfigError` without one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(**pretrained(name))
    except (OSError, ValueError) as e:
        reason = str(e).split("\n")[0]
        raise ConfigError(f"towers.encoder {name!r} has no tokenizer: {reason}") from e
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ConfigError(
            f"towers.encoder {name!r}: its tokenizer must be a fast one (tokenizer.json) with a "
            "padding token, since serving loads it without transformers"
        )
    return tokenizer


def _without_pooler(encoder: Any) -> Any:
    """Remove what mean pooling has no use for; where the base lacks it, it would be random."""
    if "pooler" in dict(encoder.named_children()):
        encoder.pooler = None
    return encoder


def _share_embeddings(query: Any, product: Any) -> None:
    """Make ``product`` use the embedding module of ``query`` (A27), positions included."""
    if "embeddings" in dict(query.named_children()):  # BERT, XLM-R, MPNet, DistilBERT, …
        product.embeddings = query.embeddings
    else:
        product.set_input_embeddings(query.get_input_embeddings())
