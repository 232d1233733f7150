"""A query tower of fewer layers, cut from the full one (A34's 2-layer serving profile)."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from torch import nn

from csrm_tasks.errors import ConfigError
from csrm_tasks.towers.model import Tower


def cut(tower: Tower, layers: int) -> Tower:
    """Return a copy of ``tower`` with ``layers`` evenly chosen layers, the first and last included.

    The embeddings are the same module, not a copy: they are most of a multilingual encoder, and
    stay as they are. Raises :class:`ConfigError` where the encoder has no more layers than that.
    """
    depth = int(tower.encoder.config.num_hidden_layers)
    if not 0 < layers < depth:
        raise ConfigError(
            f"towers.query_layers is {layers}, but the query tower has {depth} layers: "
            f"give 1 to {depth - 1}, or null for the full tower alone"
        )
    shared = tower.encoder.get_input_embeddings()
    short = deepcopy(tower, memo={id(shared): shared})
    stack = _stack(short.encoder, depth)
    kept = np.linspace(0, depth - 1, layers).round().astype(int).tolist()
    chosen = [stack[i] for i in kept]
    del stack[:]
    stack.extend(chosen)
    short.encoder.config.num_hidden_layers = layers
    return short


def _stack(encoder: nn.Module, depth: int) -> nn.ModuleList:
    """Return the list of the encoder's layers."""
    lists = (m for m in encoder.modules() if isinstance(m, nn.ModuleList))
    found = next((m for m in lists if len(m) == depth), None)
    if found is None:
        raise ConfigError(
            f"towers.query_layers: {type(encoder).__name__} keeps its layers in no list that could "
            "be cut; set it to null"
        )
    return found
