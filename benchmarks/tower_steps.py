"""Steps of training towers over a real encoder's vocabulary, by this build and by an earlier one.

The encoder is e5-small where it is kept (``csrm base add``), else of its build with random weights:
12 × 384, a table of a quarter of a million rows, of which a batch reads a few hundred. Both builds
take the same texts, targets and batches, and end at a loss that they are asked for, too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.base_shapes import whole_bases
from benchmarks.harness import Timing
from benchmarks.previous import contestants
from csrm_tasks.towers.examples import Examples

STEPS = 6
# Run by each checkout, by names that every one since 27ac4c9 has.
CODE = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from csrm_tasks.towers.examples import Examples, batches
from csrm_tasks.towers.losses import towers_loss
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.train import TrainPlan, pair_logits, train
try:
    from csrm_tasks.towers.serving.tokens import TowerTokenizer as Reader
except ImportError:
    from csrm_tasks.towers.measure import Reader
base, given, work, steps, queries, products = sys.argv[1:]
torch.set_num_threads(2)
texts = json.loads((Path(given) / "texts.json").read_text())
pairs = np.load(Path(given) / "pairs.npz")
names = ("query", "product", "exact", "irrelevant")
examples = Examples(texts["queries"], texts["products"], *(pairs[name] for name in names))
model = TwinTowers.from_base(base, dim=128, scale=8.0, learn_scale=True, seed=0)
reader = Reader((Path(base) / "tokenizer.json").read_text(), 32, 48, 1)
tables = reader.queries(examples.queries), reader.products(examples.products)
seconds = []
for number in range(2):  # the first warms up
    plan = TrainPlan(int(steps), int(queries), int(products), 8e-5, 8e-5, number)
    began = time.perf_counter()
    train(model, examples, *tables, plan, Path(work) / f"{number}.safetensors")
    seconds.append(time.perf_counter() - began)
rows = next(batches(examples.query, examples.product, int(queries), int(products), 99))
model.eval()
with torch.no_grad():
    logits = pair_logits(model, *tables, examples.query[rows], examples.product[rows])
    target = [torch.from_numpy(x[rows]) for x in (examples.exact, examples.irrelevant)]
    print(json.dumps([seconds[1], float(towers_loss(logits, *target))]))
"""


def tower_steps(
    examples: Examples, work: Path, quick: bool, repeats: int
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Return seconds of :data:`STEPS` steps of every checkout, in turn, and the loss after."""
    base = whole_bases(work / "bases-of-steps", quick)[1]
    given = work / "given"
    given.mkdir()
    texts = {"queries": list(examples.queries), "products": list(examples.products)}
    (given / "texts.json").write_text(json.dumps(texts))
    np.savez(
        given / "pairs.npz", query=examples.query, product=examples.product,
        exact=examples.exact, irrelevant=examples.irrelevant,
    )  # fmt: skip
    width = ("8", "4") if quick else ("32", "8")
    seconds: dict[str, list[float]] = {}
    losses = {}
    for repeat in range(repeats):
        for name, checkout in contestants().items():
            own = work / f"{name}{repeat}"
            own.mkdir()
            said = checkout.run(CODE, base, given, own, str(STEPS), *width, OMP_NUM_THREADS="2")
            spent, losses[name] = json.loads(said.splitlines()[-1])
            seconds.setdefault(name, []).append(spent)
    return {name: Timing(tuple(spent)) for name, spent in seconds.items()}, losses
