"""Int8 variants of an encoder's fp32 graph (A34): recipes, the one to be preferred first.

All weights of the encoder are kept in 8 bits by each, so the files are equally small; what differs
is which matrix products are taken in 8 bits. ``all``: every one. ``mixed``: not those that narrow,
the second of each feed-forward block, whose inputs have a few numbers far above the rest; one scale
for all rounds the others too coarsely (e5-small: cosine .994 by ``all``, .998 so, at 1.5 times its
time). ``weights``: none; a session makes weights fp32 when it loads the file, and takes the time of
fp32 (.9999).

The projection stays fp32, and is run once a text. In the encoder's own width it is the identity and
what training added, small numbers that one scale for a column would round away (.975).

Products are dynamic, with signed 8-bit weights: the quickest kind where the CPU has VNNI. Elsewhere
they would overflow 16-bit accumulators (cosine 0.977 measured on AVX2), so there the runtime sets
onnxruntime's precision option (``towers.serving.runtime``), which makes such weights unsigned when
they are loaded: the same numbers, slower.

A table keeps a scale for each row, a weight one for each column. onnxruntime's own quantisation of
tables has one scale for all rows, which the largest number of the whole vocabulary decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

LEAST_ROWS = 32  # of a matrix that is worth the nodes
Floats = npt.NDArray[np.float32]


# Recipe → whether a product of a weight (inner, outer) stays in fp32.
RECIPES: dict[str, Callable[[int, int], bool]] = {
    "all": lambda inner, outer: False,
    "mixed": lambda inner, outer: inner > outer,
    "weights": lambda inner, outer: True,
}


def quantise(source: Path, target: Path, recipe: str) -> None:
    """Write the int8 variant of an fp32 graph by one of :data:`RECIPES`, as one file."""
    graph = onnx.load(source).graph
    weights = {t.name: tuple(t.dims) for t in graph.initializer if len(t.dims) == 2}
    products = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    whole = [n.name for n in products if RECIPES[recipe](*weights[n.input[1]])]
    projection = {f"{n.name}_MatMul" for n in graph.node if n.op_type == "Gemm"}  # once rewritten
    _int8_products(source, target, [*whole, *projection])
    model = onnx.load(target)
    _replace(model.graph, "MatMul", 1, axis=0, nodes=_scaled_weight, kept=projection)
    _replace(model.graph, "Gather", 0, axis=1, nodes=_scaled_rows)
    onnx.save(model, target)
    onnx.checker.check_model(str(target))


def _int8_products(source: Path, target: Path, whole: list[str]) -> None:
    """Write the graph with products of weights in 8 bits, all but the nodes ``whole``."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a pre-processing that dynamic graphs do not need
    try:
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul"], per_channel=True,
            weight_type=QuantType.QInt8, nodes_to_exclude=whole,
        )  # fmt: skip
    finally:
        root.setLevel(level)


def in_8_bits(values: Floats, axis: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return int8 numbers and scales whose product is ``values`` (R, C), nearly.

    There is a scale for each row (R, 1) with ``axis`` 1, for each column (1, C) with ``axis`` 0.
    """
    scales = np.abs(values).max(axis=axis, keepdims=True) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


def _replace(
    graph: onnx.GraphProto, kind: str, at: int, *, axis: int,
    nodes: Callable[[onnx.NodeProto], Iterator[onnx.NodeProto]], kept: Collection[str] = (),
) -> None:  # fmt: skip
    """Keep in 8 bits the fp32 matrices that nodes of ``kind`` have as input ``at``, in place.

    ``nodes`` gives what stands for such a node; it may name the matrix's ``.int8`` and ``.scale``.
    Nodes ``kept`` stay as they are.
    """
    matrices = {
        t.name: t
        for t in graph.initializer
        if len(t.dims) == 2 and t.dims[0] >= LEAST_ROWS and t.data_type == onnx.TensorProto.FLOAT
    }
    rewritten: list[onnx.NodeProto] = []
    replaced: set[str] = set()
    for node in graph.node:
        found = node.op_type == kind and node.input[at] in matrices and node.name not in kept
        rewritten.extend(nodes(node) if found else [node])
        replaced |= {node.input[at]} if found else set()
    for name in sorted(replaced):
        parts = in_8_bits(numpy_helper.to_array(matrices[name]), axis)
        for suffix, values in zip(("int8", "scale"), parts, strict=True):
            graph.initializer.append(numpy_helper.from_array(values, f"{name}.{suffix}"))
    del graph.node[:]
    graph.node.extend(rewritten)
    used = {name for node in rewritten for name in node.input}
    tensors = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _scaled_rows(gather: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """``int8[ids] · scale[ids]`` for ``table[ids]``: only the rows of a text are ever in fp32."""
    (table, ids), (out,) = gather.input, gather.output
    yield _node("Gather", [f"{table}.int8", ids], f"{out}.int8")
    yield _node("Cast", [f"{out}.int8"], f"{out}.float", to=onnx.TensorProto.FLOAT)
    yield _node("Gather", [f"{table}.scale", ids], f"{out}.scale")
    yield _node("Mul", [f"{out}.float", f"{out}.scale"], out)


def _scaled_weight(product: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """``x · (int8 · scale)``: constants, so that a session computes the weight once, on loading."""
    (states, weight), (out,) = product.input, product.output
    yield _node("Cast", [f"{weight}.int8"], f"{out}.float", to=onnx.TensorProto.FLOAT)
    yield _node("Mul", [f"{out}.float", f"{weight}.scale"], f"{out}.weight")
    yield _node("MatMul", [states, f"{out}.weight"], out)


def _node(kind: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes)
