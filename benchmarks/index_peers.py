"""The product's index beside those that search engines are built on, at equal recall, and changed.

All get the same vectors and widen their search until recall at 100 is .97 on 500 queries; timed are
1,500 others, all in one call and then 200 one by one, on one thread, in turn. Then a tenth of the
products goes and another tenth gets other vectors, and those that can take that are tried again.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.harness import table
from benchmarks.peers.process import Peer, PeerError, Process

OURS = "ours"
HERE = (OURS, "faiss_hnsw", "faiss_ivf_pq")  # of what is installed with us
ELSEWHERE = ("usearch", "hnswlib", "svs", "svs_dynamic")
K, ONES = 100, 200
Vectors = npt.NDArray[np.float32]


@dataclass
class Contestant:
    """One index in its process; seconds of its turns."""

    peer: Process
    told: dict[str, Any]
    turns: list[float] = field(default_factory=list)
    ones: list[float] = field(default_factory=list)

    def rate(self, queries: int) -> float:
        """Queries a second, all in one call."""
        return queries / statistics.median(self.turns)

    def row(self, name: str, queries: int) -> dict[str, object]:
        """Return the row of a table."""
        rates = sorted(queries / s for s in self.turns)
        return {
            "index": name, "build s": self.told["build"], "recall@100": self.told["recall"],
            "queries/s": round(self.rate(queries)), "spread": f"{rates[0]:.0f}–{rates[-1]:.0f}",
            "queries/s, one by one": round(ONES / statistics.median(self.ones)),
            "MB": self.told["bytes"] / 2**20,
        }  # fmt: skip


def truth_of(vectors: Vectors, numbers: npt.NDArray[np.int64], queries: Vectors) -> Any:
    """Return the numbers (Q, K) of the nearest of ``vectors``, which are numbered so."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return numbers[flat.search(queries, K)[1]]


def write_inputs(folder: Path, queries: Vectors, tuning: int) -> int:
    """Write queries, what changes, and the nearest before and after; returns how many are timed.

    ``v.npy`` lies in ``folder``; the first ``tuning`` queries are those that search is widened by.
    """
    vectors: Vectors = np.load(folder / "v.npy")
    numbers = np.arange(len(vectors))
    rng = np.random.default_rng(0)
    gone, rows = np.split(rng.permutation(numbers)[: 2 * (len(vectors) // 10)], 2)
    near = vectors[rng.permutation(rows)] + 0.03 * rng.normal(size=(len(rows), vectors.shape[1]))
    more = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    changed = vectors.copy()
    changed[rows] = more
    kept = np.setdiff1d(numbers, gone)
    parts = {"tune": queries[:tuning], "q": queries[tuning:]}
    for name, part in parts.items():
        np.save(folder / f"{name}.npy", part)
        np.save(folder / f"{name}_before.npy", truth_of(vectors, numbers, part))
        np.save(folder / f"{name}_after.npy", truth_of(changed[kept], kept, part))
    for name, own in (("gone", np.sort(gone)), ("rows", rows), ("more", more)):
        np.save(folder / f"{name}.npy", own)
    return len(parts["q"])


def compare(folder: Path, queries: Vectors, tuning: int, quick: bool) -> dict[str, float]:
    """Print both tables; return our ratios to the best peers; ``quick``: to those at hand."""
    timed, repeats = write_inputs(folder, queries, tuning), 1 if quick else 5
    found = start(folder, HERE if quick else (*HERE, *ELSEWHERE))
    take_turns(found, "before", repeats)
    figures = shown(found, timed, "")
    changing = {name: one for name, one in found.items() if one.told["changes"]}
    for one in changing.values():
        one.told["build"] = one.peer.ask("change")["seconds"]
        one.turns, one.ones = [], []
    take_turns(changing, "after", repeats)
    print("a tenth deleted, another tenth replaced; build s: what that took\n")
    figures |= shown(changing, timed, "_changed")
    for one in found.values():
        one.peer.close()
    return figures


def start(folder: Path, kinds: Sequence[str]) -> dict[str, Contestant]:
    """Build every index, one after the other."""
    found = {}
    for kind in kinds:
        try:
            peer = process(kind, str(folder))
            found[kind] = Contestant(peer, dict(peer.hello))
        except PeerError as e:
            print(f"without {kind}: {e}\n")
    return found


def process(kind: str, folder: str) -> Process:
    """Start an index in its process."""
    if kind in ELSEWHERE:
        return Peer("vectors", kind, folder, alone=True)
    return Process([sys.executable, "-m", "benchmarks.peers.vectors", kind, folder], os.environ)


def take_turns(found: Mapping[str, Contestant], when: str, repeats: int) -> None:
    """Widen each search as far as it must be, then time all in turn; the first turn warms up."""
    files = {"tune": f"tune_{when}.npy", "judge": f"q_{when}.npy"}
    for one in found.values():
        one.told |= one.peer.ask(files)
    for turn in range(repeats + 1):
        for one in found.values():
            seconds = [one.peer.ask(what)["seconds"] for what in ("turn", "one")]
            if turn:
                one.turns.append(seconds[0])
                one.ones.append(seconds[1])


def shown(found: Mapping[str, Contestant], timed: int, suffix: str) -> dict[str, float]:
    """Print a table; return our ratios to the fastest peer whose recall is met."""
    print(table([one.row(one.told["about"], timed) for one in found.values()]), "\n")
    met = {n: o for n, o in found.items() if n != OURS and o.told["tuned"] >= 0.97}
    if not met:
        return {}
    ours, best = found[OURS], max(met.values(), key=lambda one: one.rate(timed))
    ratios = [b / a for a, b in zip(ours.turns, best.turns, strict=True)]
    print(f"the fastest peer whose recall is .97: {best.told['about']}\n")
    return {
        f"ratio_best_peer{suffix}": statistics.median(ratios),
        f"memory_ratio_best_peer{suffix}": ours.told["bytes"] / best.told["bytes"],
    }
