"""sentence-transformers with its ONNX backend and its own dynamic int8, in the peer's environment.

``python -m benchmarks.peers.st_onnx BASE PROJECTION FOLDER THREADS``: exports the encoder in
``BASE`` with the projection (weight and bias of an .npz) and quantises it for this CPU by two of
the configurations it offers. Then each line of JSON ``{"config", "texts", "each"}`` is answered by
the seconds of every text encoded alone (``each``), or by the vectors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model
from sentence_transformers import models as parts

CONFIGS = {"avx512_vnni": "qint8_avx512_vnni", "avx2": "quint8_avx2"}
TOKENS = 32


def export(base: str, projection: str, folder: str) -> None:
    """Write the model and its int8 variants as sentence-transformers does."""
    about = Path(base) / "tokenizer_config.json"  # our transformers' class has another name there
    named = json.loads(about.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    about.write_text(json.dumps(named))
    found = np.load(projection)
    rows, width = found["weight"].shape
    encoder = parts.Transformer(base, max_seq_length=TOKENS, backend="onnx",
                                model_kwargs=_session(1) | {"export": True})  # fmt: skip
    dense = parts.Dense(width, rows, activation_function=torch.nn.Identity())
    dense.linear.weight.data.copy_(torch.from_numpy(found["weight"]))
    dense.linear.bias.data.copy_(torch.from_numpy(found["bias"]))
    pool = parts.Pooling(width, pooling_mode="mean")
    model = SentenceTransformer(modules=[encoder, pool, dense], device="cpu", backend="onnx")
    model.save_pretrained(folder)
    for config in CONFIGS:
        export_dynamic_quantized_onnx_model(model, config, folder)


def load(folder: str, config: str, threads: int) -> SentenceTransformer:
    """Load one int8 variant."""
    name = {"file_name": f"onnx/model_{CONFIGS[config]}.onnx"}
    return SentenceTransformer(
        folder, device="cpu", backend="onnx", model_kwargs=_session(threads) | name
    )


def _session(threads: int) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return {"provider": "CPUExecutionProvider", "session_options": options}


def answer(model: SentenceTransformer, question: dict[str, Any]) -> list[Any]:
    """Return seconds of each text, or vectors."""
    if not question["each"]:
        found: list[Any] = model.encode(question["texts"], show_progress_bar=False).tolist()
        return found
    seconds = []
    for text in question["texts"]:
        began = time.perf_counter()
        model.encode(text, show_progress_bar=False, normalize_embeddings=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Export, load, answer until the input ends."""
    base, projection, folder, threads = sys.argv[1:]
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(threads))
    with contextlib.redirect_stdout(sys.stderr):
        export(base, projection, folder)
        loaded = {config: load(folder, config, int(threads)) for config in CONFIGS}
    name = f"sentence-transformers {version('sentence-transformers')} ONNX int8, "
    print(json.dumps({"configs": [name + config for config in CONFIGS]}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        config = question["config"].removeprefix(name)
        print(json.dumps(answer(loaded[config], question)), flush=True)


if __name__ == "__main__":
    main()
