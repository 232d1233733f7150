"""What cutting a base to a market's tokens (A61) saves, against the whole base and the usual way.

The two real bases where ``csrm base add`` keeps them, else stand-ins of their build, cut to a
generated market's texts by the product's own command. Same texts, LoRA and samples for all.

A mixture step is :mod:`benchmarks.mixture_steps`'. The peer is what one writes with transformers
and peft: rows padded to the longest, ``model(input_ids, attention_mask, labels=…)``, in the number
format of the files, and in ours. Peak memory is the whole process' resident size from the loaded
model on, each in a process of its own.

A step of the towers: the product's trainer on the cut and the whole encoder; the peer puts every
pair's query and title through both towers, with AdamW over all weights, in the same number format.
The file is the query tower as ONNX, fp32. ``log_prob_difference`` is over the kept tokens, the
whole model's renormalised, at every target token of the translations, in fp32.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.base_shapes import whole_bases
from benchmarks.bench_tower_train import LR, Texts, make_examples
from benchmarks.harness import Timing, alternate, closing_line, ratio, table, timing_rows
from benchmarks.mixture_steps import Samples, Step, our_step, peer_step, update
from csrm_tasks.bases.models import quietly
from csrm_tasks.bases.trim import trim_base
from csrm_tasks.llm.network.head import run_trunk
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.towers.export import write_onnx
from csrm_tasks.towers.model import TwinTowers, load_tokenizer
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.train import TrainPlan, train
from csrm_tasks.training.precision import choose_dtype

THREADS = 2
OURS, WHOLE, PEER = "trimmed (ours)", "whole (ours)", "whole, transformers + peft as they come"
PEER_CAST = "whole, transformers + peft, our number format"
STEPS = 2  # of the towers in one timing; its optimizer is made anew


@dataclass(frozen=True)
class Sizes:
    """How much there is."""

    products: int
    labels: dict[str, int]  # samples of each label task
    translations: int
    tower: tuple[int, int]  # queries, products of each
    repeats: int


QUICK = Sizes(600, {"relevance": 4, "cvr": 4}, 2, (4, 2), 1)
FULL = Sizes(5000, {"relevance": 16, "cvr": 4}, 2, (32, 4), 3)


def peak_bytes(make: Callable[[], Step]) -> int:
    """Return this process' greatest resident size over three steps, from the loaded model on."""
    torch.set_num_threads(THREADS)
    with quietly():
        step = make()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024


def peaks(
    contestants: dict[str, Callable[[], Step]], repeats: int, together: bool
) -> dict[str, list[int]]:
    """Return :func:`peak_bytes` of each in new processes, or of all in one: less exact."""
    found: dict[str, list[int]] = {name: [] for name in contestants}
    for group in [list(contestants)] if together else [[name] for name in contestants] * repeats:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for name in group:
                found[name].append(pool.submit(peak_bytes, contestants[name]).result())
    return found


@torch.inference_mode()
def log_prob_difference(whole: Path, trimmed: Path, samples: Samples) -> float:
    """Return the greatest difference over kept tokens at the targets of the translations."""
    a, b = (load_base(str(folder), dtype=torch.float32) for folder in (whole, trimmed))
    words = b.tokenizer.convert_ids_to_tokens(range(len(b.tokenizer)))
    kept = torch.tensor(a.tokenizer.convert_tokens_to_ids(words))
    every = torch.arange(len(words))
    worst = 0.0
    for one, other in zip(*(samples.prompts(m.tokenizer)["mt"] for m in (a, b)), strict=True):
        read = []
        for model, rows, parts in ((a, kept, one), (b, every, other)):
            ids = torch.from_numpy(np.concatenate(parts)).long()[None]
            hidden = run_trunk(model.causal, ids)[0, len(parts[0]) - 1 : -1]
            logits = functional.linear(hidden, model.causal.get_output_embeddings().weight[rows])
            read.append(functional.log_softmax(logits, dim=-1))
        worst = max(worst, float((read[0] - read[1]).abs().max()))
    return worst


class Towers:
    """Towers on one encoder, and a step of them in our way and in the usual one."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.width = folder, sizes.tower
        self.examples = make_examples(sizes.products // 2, 4 * sizes.tower[0])
        self.dtype = choose_dtype(torch.device("cpu"), self.model().config.hidden_size)

    def model(self) -> TwinTowers:
        """Return the same towers every time."""
        return TwinTowers.from_base(str(self.folder), dim=128, scale=8.0, learn_scale=True, seed=0)

    def ours(self) -> Step:
        """Return the product's trainer for :data:`STEPS` steps."""
        tokenizer, model = load_tokenizer(str(self.folder)), self.model()
        definition = tokenizer.backend_tokenizer.to_str()
        reader = TowerTokenizer(definition, 32, 96, tokenizer.pad_token_id)
        texts = reader.queries(self.examples.queries), reader.products(self.examples.products)
        plan = TrainPlan(STEPS, *self.width, LR, LR, 0)

        def steps() -> None:
            with tempfile.TemporaryDirectory() as folder:
                train(model, self.examples, *texts, plan, Path(folder) / "none", self.dtype)

        return steps

    def peer(self) -> Step:
        """Return as many steps of a plain loop over as many pairs."""
        model, tokenizer = self.model().train(), load_tokenizer(str(self.folder))
        rows = np.arange(self.width[0] * self.width[1])
        texts = Texts(self.examples, rows, tokenizer)

        def steps() -> None:
            trained = list(model.parameters())
            optimizer = torch.optim.AdamW(trained, lr=LR)
            for _ in range(STEPS):
                texts.loss(model, self.dtype).backward()  # type: ignore[no-untyped-call]
                update(trained, optimizer)

        return steps

    def file_bytes(self, path: Path) -> int:
        """Return the bytes of the exported query tower."""
        write_onnx(self.model().query, path)
        return path.stat().st_size


def trim_both(work: Path, whole: tuple[Path, Path], samples: Samples) -> tuple[Path, Path]:
    """Cut both bases to the market's texts; say what was left of them."""
    places = []
    for folder in whole:
        place = work / "cut" / f"{folder.name}-demo"
        for line in trim_base(folder, place, "demo", samples.market):
            if "→" in line:
                print(f"- {folder.name}: {line}")
        places.append(place)
    return places[0], places[1]


def race(contestants: dict[str, Callable[[], Step]], repeats: int) -> dict[str, Timing]:
    """Make every contestant and time them in turn."""
    return alternate({name: make() for name, make in contestants.items()}, repeats)


def main(quick: bool) -> None:
    """Print tables and the closing line."""
    torch.set_num_threads(THREADS)
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder, quietly():
        work, samples = Path(folder), Samples(sizes.products, sizes.labels, sizes.translations)
        llm, encoder, what = whole_bases(work, quick)
        print(f"{what}, cut to a generated market of {sizes.products:,} products\n")
        cut_llm, cut_encoder = trim_both(work, (llm, encoder), samples)
        dtype = load_base(str(cut_llm)).dtype
        mixture = {
            OURS: partial(our_step, cut_llm, samples, dtype),
            WHOLE: partial(our_step, llm, samples, dtype),
            PEER: partial(peer_step, llm, samples),
            PEER_CAST: partial(peer_step, llm, samples, dtype),
        }
        held = peaks(mixture, min(2, sizes.repeats), together=quick)
        steps = race(mixture, sizes.repeats)
        differ = log_prob_difference(llm, cut_llm, samples)
        cut, whole = (Towers(f, sizes) for f in (cut_encoder, encoder))
        towers = race({OURS: cut.ours, WHOLE: whole.ours, PEER: whole.peer}, sizes.repeats)
        files = {n: t.file_bytes(work / f"{n[:3]}.onnx") for n, t in ((OURS, cut), (WHOLE, whole))}
    report(sizes, dtype, held, steps, towers, files)
    most = float(np.median(held[OURS]))
    figures = {
        "memory_ratio": float(np.median(held[PEER])) / most,
        "memory_ratio_cast": float(np.median(held[PEER_CAST])) / most,
        "memory_ratio_whole": float(np.median(held[WHOLE])) / most,
        "step_ratio": ratio(steps[PEER], steps[OURS]),
        "step_ratio_cast": ratio(steps[PEER_CAST], steps[OURS]),
        "step_ratio_whole": ratio(steps[WHOLE], steps[OURS]),
        "tower_step_ratio": ratio(towers[PEER], towers[OURS]),
        "tower_step_ratio_whole": ratio(towers[WHOLE], towers[OURS]),
        "file_ratio": files[WHOLE] / files[OURS],
        "log_prob_difference": differ,
    }
    print(closing_line("base_trim", figures, ("torch", "transformers", "peft", "onnx")))


def report(
    sizes: Sizes, dtype: torch.dtype, held: dict[str, list[int]], steps: dict[str, Timing],
    towers: dict[str, Timing], files: dict[str, int],
) -> None:  # fmt: skip
    """Print the tables."""
    count = sum(sizes.labels.values()) + sizes.translations
    asked = ", ".join(f"{n} {name}" for name, n in sizes.labels.items())
    print(f"\nA mixture step of {asked}, {sizes.translations} translations; ours in {dtype}\n")
    print(table(timing_rows(steps, count, "samples/s")), end="\n\n")
    print(table([{"contestant": name, "peak MB, median": float(np.median(values)) / 1e6,
                  "least–greatest": f"{min(values) / 1e6:.4g}–{max(values) / 1e6:.4g}"}
                 for name, values in held.items()]), end="\n\n")  # fmt: skip
    pairs = STEPS * sizes.tower[0] * sizes.tower[1]
    print(f"{STEPS} steps of the towers, {sizes.tower[0]} queries × {sizes.tower[1]} products\n")
    print(table(timing_rows(towers, pairs, "pairs/s")), end="\n\n")
    print(table([{"query tower, fp32 ONNX": n, "MB": b / 1e6} for n, b in files.items()]))
    print()
