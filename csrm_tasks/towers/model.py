"""Twin towers: one embedding module, two encoders, two heads (A27-A29).

    text → embeddings (shared) → encoder of the tower → mean over real tokens
         → projection per head → unit vectors (B, 2, dim); heads: exact match, not defect

With separate trunks the heads are two such models, nothing shared between them, side by side in
one module, one file and one graph.

The tower's own part starts equal on both sides: encoders from the same base and, per head, the
same orthogonal projection. So the first cosines are those of the base's mean-pooled states and not
of two unrelated random maps. In the encoder's own width the projection starts as the identity: it
is not left out, since with one trunk both heads would then be one vector. A lexical channel and
what else is fitted to a market's texts before the first step: :mod:`csrm_tasks.towers.start`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from csrm_tasks.base_models import pretrained
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.towers.depth import truncate_layers
from csrm_tasks.towers.tower import HEADS, AnyTower, SplitTower, Tower, trunks_of
from csrm_tasks.training.encoders import load_encoder, without_pooler

WEIGHTS = "model.safetensors"


class TwinTowers(nn.Module):
    """Query tower and product tower, and per head the scale and bias of A28."""

    def __init__(
        self, trunks: Sequence[tuple[Any, Any]], *, dim: int, scale: float, learn_scale: bool,
        lexical: bool = False,
    ) -> None:  # fmt: skip
        """Join (query, product) encoders of one architecture: one pair for both heads, or one each.

        The product encoder of a pair gives up its embeddings.
        """
        super().__init__()
        for query, product in trunks:
            _share_embeddings(query, product)
        self.query: AnyTower = _side([query for query, _ in trunks], dim, lexical)
        self.product = _side([product for _, product in trunks], dim, lexical)
        self.scale = nn.Parameter(torch.full((len(HEADS),), scale), requires_grad=learn_scale)
        self.bias = nn.Parameter(torch.zeros(len(HEADS)), requires_grad=learn_scale)

    @property
    def config(self) -> Any:
        """The configuration of the query encoders; the products' differ in depth at most."""
        return trunks_of(self.query)[0].encoder.config

    @classmethod
    def from_base(
        cls, name: str, *, dim: int | None, scale: float, learn_scale: bool, seed: int,
        separate: bool = False, lexical: bool = False,
    ) -> TwinTowers:  # fmt: skip
        """Start both towers from one pretrained encoder, a folder or a Hugging Face name.

        ``dim`` None is the encoder's own width. ``separate`` gives each head its own pair of
        trunks; its first vectors are the same. ``lexical``: with a channel of words, not begun.
        Raises :class:`ConfigError` when it cannot be loaded.
        """
        trunks = _pairs(lambda: load_encoder("towers.encoder", name), separate)
        width = dim or int(trunks[0][0].config.hidden_size)
        model = cls(trunks, dim=width, scale=scale, learn_scale=learn_scale, lexical=lexical)
        generator = torch.Generator().manual_seed(seed)
        for query, product in zip(trunks_of(model.query), trunks_of(model.product), strict=True):
            hidden = int(query.encoder.config.hidden_size)
            start_equal(query.projection, product.projection, dim, generator, hidden)
        return model

    @classmethod
    def load(cls, folder: Path, *, dim: int) -> TwinTowers:
        """Load what :meth:`save` wrote, ready for inference."""
        if not (folder / WEIGHTS).exists():
            raise ArtifactError(f"{folder} holds no towers: {WEIGHTS} is missing")
        config, weights = AutoConfig.from_pretrained(folder), load_file(folder / WEIGHTS)
        separate = any(name.startswith("query.trunks.") for name in weights)
        trunks = _pairs(
            lambda: without_pooler(AutoModel.from_config(config, dtype=torch.float32)), separate
        )
        lexical = any(".words." in name for name in weights)
        model = cls(trunks, dim=dim, scale=0.0, learn_scale=False, lexical=lexical)
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
        """Leave the query tower ``layers`` of its layers; as ``truncate_layers`` chooses them."""
        short = [truncate_layers(trunk, layers) for trunk in trunks_of(self.query)]
        self.query = short[0] if len(short) == 1 else SplitTower(short)


def _side(encoders: Sequence[Any], dim: int, lexical: bool) -> AnyTower:
    towers = [Tower(encoder, dim, len(HEADS) // len(encoders), lexical) for encoder in encoders]
    return towers[0] if len(towers) == 1 else SplitTower(towers)


def _pairs(make: Callable[[], Any], separate: bool) -> list[tuple[Any, Any]]:
    return [(make(), make()) for _ in (HEADS if separate else HEADS[:1])]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state by name, a tensor that has two names under the first."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(value), (name, value))
    return {name: value.detach() for name, value in tensors.values()}


def start_equal(
    query: nn.Linear, product: nn.Linear, dim: int | None, generator: torch.Generator,
    hidden: int | None = None,
) -> None:  # fmt: skip
    """Start both projections as one orthogonal map per head; ``dim`` None: as the identity.

    ``hidden``: of the first so many inputs, the mean state's; others start at zero.
    """
    hidden = hidden or query.in_features
    nn.init.zeros_(query.weight)
    for rows in query.weight.detach().view(-1, dim or hidden, query.in_features):
        if dim is None:
            nn.init.eye_(rows[:, :hidden])
        else:
            rows[:, :hidden] = nn.init.orthogonal_(torch.empty(dim, hidden), generator=generator)
    nn.init.zeros_(query.bias)
    product.load_state_dict(query.state_dict())


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


def _share_embeddings(query: Any, product: Any) -> None:
    """Make ``product`` use the embedding module of ``query`` (A27), positions included."""
    if "embeddings" in dict(query.named_children()):  # BERT, XLM-R, MPNet, DistilBERT, …
        product.embeddings = query.embeddings
    else:
        product.set_input_embeddings(query.get_input_embeddings())
