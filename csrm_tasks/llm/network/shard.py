"""The base's weights stored once across the processes that train together (``llm.sharding``).

FSDP (torch's ``fully_shard``) keeps a slice of every decoder layer in each process. A layer is
gathered when a pass comes to it and dropped behind it, in training and in evaluation alike, so
every process must make equally many passes.

What is not sharded: embeddings, last norm and ``lm_head``, since a pass over samples would hold
them whole from its first to its last moment anyway, and label rows are read from them directly
(A2); and LoRA, which is put on afterwards: its gradients are summed by DDP as without sharding, so
clipping, optimizer and checkpoints do not know of it. The cost is 16 bytes per trained weight in
each process. Frozen weights have no gradients, so layers are gathered but nothing is scattered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from csrm_tasks.errors import ConfigError


def shard_layers(causal: Any, device: torch.device) -> None:
    """Move ``causal`` to ``device``, of its decoder layers only this process' slice.

    Layers move one by one: the device never holds more than all slices and one whole layer. The
    process group must be there. Raises :class:`ConfigError` for a model without ``layers``.
    """
    trunk = causal.base_model
    if not isinstance(getattr(trunk, "layers", None), torch.nn.ModuleList):
        raise ConfigError(
            f"llm.sharding: model type {causal.config.model_type!r} is not built of layers; "
            "set it to none or choose another base model (llm.base)"
        )
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in trunk.layers:
        fully_shard(layer, mesh=mesh)
    whole = {p for p in trunk.parameters() if not isinstance(p, DTensor)}
    fully_shard(trunk, mesh=mesh, ignored_params=whole)  # one stream of gathering for all layers
    causal.to(device)


def leave_shards_to_fsdp(module: torch.nn.Module) -> None:
    """Keep DDP, which makes all processes' weights those of the first, from their slices."""
    names = [name for name, p in module.named_parameters() if isinstance(p, DTensor)]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, names)
