"""What two graphs have both, written once: query and product tower share their table (A27).

An ONNX file may keep a tensor's bytes in a file beside it, and two may name the same bytes. That
file is mapped into memory by onnxruntime, so processes that load both share its pages, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

TABLES = "tables.bin"  # beside the graphs
LEAST_BYTES = 4096  # of a tensor that is worth a place of its own
PAGE = 4096  # offsets are multiples of it, so that the bytes can be mapped


def share_tables(graphs: Sequence[Path], shared: Path) -> None:
    """Move to ``shared`` the bytes of large tensors that all ``graphs``, in its folder, have.

    One graph at a time is in memory. Nothing is written where they have nothing in common.
    """
    common = set.intersection(*({_digest(t) for t in _large(onnx.load(g))} for g in graphs))
    places: dict[str, int] = {}  # digest → offset in the file
    for path in graphs if common else ():
        model = onnx.load(path)
        for tensor in _large(model):
            digest = _digest(tensor)
            if digest in common:
                if digest not in places:
                    places[digest] = _append(shared, tensor.raw_data)
                set_external_data(tensor, shared.name, places[digest], len(tensor.raw_data))
                tensor.ClearField("raw_data")
        onnx.save(model, path)
        onnx.checker.check_model(str(path))


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [t for t in model.graph.initializer if len(t.raw_data) >= LEAST_BYTES]


def _digest(tensor: onnx.TensorProto) -> str:
    return hashlib.sha256(tensor.raw_data).hexdigest()


def _append(shared: Path, data: bytes) -> int:
    """Write ``data`` at the next page of the file; returns its offset."""
    with shared.open("ab") as f:
        f.write(bytes(-f.tell() % PAGE))
        offset = f.tell()
        f.write(data)
    return offset
