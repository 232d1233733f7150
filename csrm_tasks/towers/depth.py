"""A tower of fewer layers, cut from a full one (A34's 2-layer query tower)."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import numpy as np
from torch import nn

from csrm_tasks.errors import ConfigError
from csrm_tasks.towers.tower import Tower


def truncate_layers(tower: Tower, layers: int) -> Tower:
    """Return a copy of ``tower`` with ``layers`` evenly chosen layers, first and last among them.

    Layers and projection are its own. All else is the same tensors, the embeddings above all: they
    are most of a multilingual encoder, and stay as they are. Raises :class:`ConfigError` where the
    encoder has no more layers than that.
    """
    depth = int(tower.encoder.config.num_hidden_layers)
    if not 0 < layers < depth:
        raise ConfigError(
            f"towers.query_layers is {layers}, but the query tower has {depth} layers: "
            f"give 1 to {depth - 1}, or null for the full tower"
        )
    own = {id(p) for p in own_parameters(tower)}
    short = deepcopy(tower, memo={id(p): p for p in tower.parameters() if id(p) not in own})
    stack = _stack(short)
    kept = [stack[i] for i in np.linspace(0, depth - 1, layers).round().astype(int).tolist()]
    del stack[:]
    stack.extend(kept)
    short.encoder.config.num_hidden_layers = layers
    return short


def own_parameters(tower: Tower) -> list[nn.Parameter]:
    """Return the parameters of the layers and the projection."""
    return list(chain(_stack(tower).parameters(), tower.projection.parameters()))


def _stack(tower: Tower) -> nn.ModuleList:
    """Return the list of the encoder's layers."""
    depth = tower.encoder.config.num_hidden_layers
    lists = (m for m in tower.encoder.modules() if isinstance(m, nn.ModuleList))
    layers = next((m for m in lists if len(m) == depth), None)
    if layers is None:
        raise ConfigError(
            f"towers.query_layers: {type(tower.encoder).__name__} keeps its layers in no list that "
            "could be cut; set it to null"
        )
    return layers
