#!/usr/bin/env bash
# onnxruntime 1.31.1: quantize_dynamic(per_channel=True) gives every column of a weight its own scale, but
# the table that a Gather looks rows up in has one scale for all of its rows. One large number, of a token
# that no text of yours has, decides how coarsely every other row is kept: here rows of size 1 beside one
# row of size 1000 come back as zeros. Neither an error nor a warning says so. It matters for encoders with
# large vocabularies, where the table is most of the file. A scale for each row keeps the same row to a
# hundredth, in as many bytes. Exits non-zero when tables are quantised by row.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

rng = np.random.default_rng(0)
table = rng.normal(size=(8, 4)).astype(np.float32)
table[7] *= 1000  # a row that is never looked up below
weight = rng.normal(size=(4, 3)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"),
     helper.make_node("MatMul", ["rows", "weight"], ["out"], name="product")],
    "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
    [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 4]),
     helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
    [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.save(model, "fp32.onnx")
quantize_dynamic("fp32.onnx", "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
scales = {t.name: list(t.dims) for t in onnx.load("int8.onnx").graph.initializer if t.name.endswith("_scale")}
rows = ort.InferenceSession("int8.onnx").run(["rows"], {"ids": np.arange(7)})[0]
scale = np.abs(table[:7]).max(axis=1, keepdims=True) / 127
own = np.rint(table[:7] / scale) * scale
print("shapes of the scales:", scales)
print("largest error of seven rows, one scale for the table:", float(np.abs(rows - table[:7]).max()))
print("largest error of seven rows, a scale for each row:   ", float(np.abs(own - table[:7]).max()))
if scales.get("table_scale") != [] or scales.get("weight_scale") != [3]:
    raise SystemExit("onnxruntime quantises tables otherwise now")
PY
