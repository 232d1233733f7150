"""`/score` of 100 precomputed products under load, beside `mlflow models serve` on the same bundle.

The server is a process of its own, and so is its peer; a light closed loop asks both the same. The
query tower has XLM-R-base's widths and two layers (the serving profile), int8, random weights;
queries are drawn from generated titles by Zipf's law, so that some come again (ours remembers them;
how many is shown). Then three switches of release and one rollback under load: what failed counts.
Then what it costs to refresh a catalogue of which 1 % changed, as a share of embedding it whole.
Last, how long a release of a million products takes to be ready, and what a second one adds.

With ``CSRM_PREVIOUS`` (:mod:`benchmarks.previous`) an earlier build answers the same requests in
turn, and both are asked at one rate in an open loop, where a request's time begins when it is due.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl

from benchmarks.harness import closing_line, table
from benchmarks.load import Load, drive, drive_open, for_seconds, post, run
from benchmarks.servers import BIN, earlier, ours_of, server
from benchmarks.serving_scale import ready_and_memory
from benchmarks.serving_world import MARKET, Releases, route
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.release.bundle import model
from csrm_tasks.settings import Settings, load_settings
from csrm_tasks.towers.serving.embed import Known, embed_catalogue
from csrm_tasks.towers.serving.runtime import TowerRuntime
from tests.ports import reserve_port

PRODUCTS = 100  # of a request
ZIPF = 1.2
CLIENTS = (1, 8, 64)
PREVIOUS = "csrm serve, previous"
OPEN = 0.6  # of the previous build's greatest rate: what the open loop asks of both


def searches(titles: list[str], products: list[str], count: int) -> list[tuple[str, list[str]]]:
    """Return queries (the first words of titles, often asked ones often) with products each."""
    rng = np.random.default_rng(0)
    ranks = np.minimum(rng.zipf(ZIPF, count), len(titles)) - 1
    texts = [" ".join(titles[r].split()[:4]) for r in ranks]
    return [(t, rng.choice(products, PRODUCTS, replace=False).tolist()) for t in texts]


def ours_body(query: str, ids: list[str]) -> bytes:
    """Return the body of a request to the service."""
    return json.dumps({"query": query, "products": ids}).encode()


def of_sessions(asked: list[tuple[str, list[str]]]) -> list[bytes]:
    """Return the same requests, each of a session of its own."""
    return [
        json.dumps({"query": query, "products": ids, "session_id": f"s{n}"}).encode()
        for n, (query, ids) in enumerate(asked)
    ]


def peer_body(query: str, ids: list[str]) -> bytes:
    """Return the body of the same request to MLflow's server."""
    rows = [[query, i] for i in ids]
    split = {"columns": ["query", "product_id"], "data": rows}
    return json.dumps({"dataframe_split": split}).encode()


async def switches(
    settings: Settings, port: int, requests: list[bytes], made: list[tuple[str, object]]
) -> Load:
    """Switch three times and go back once while eight clients ask; waits until each one answers."""
    plan = [(1, made[1], made[:1]), (2, made[2], made[1:2]), (3, made[3], made[2:3]),
            (4, made[2], made[1:2])]  # fmt: skip
    done, at = False, 0

    def going(load: Load) -> bool:
        nonlocal done, at
        if at < len(plan) and (at == 0 or plan[at - 1][1][0].encode() in load.last):
            seq, stable, before = plan[at]
            route(settings, seq + 1, stable, *before)  # type: ignore[arg-type]
            at += 1
        elif at == len(plan) and plan[-1][1][0].encode() in load.last:
            done = True
        return not done

    return await drive(port, requests, 8, going)


def refresh(folder: Path, titles: list[str], work: Path) -> tuple[float, float, int]:
    """Return seconds of a whole embedding, of a refresh of 1 %, and how many that encoded."""
    runtime = TowerRuntime(folder)
    ids = [f"{i:06d}" for i in range(len(titles))]
    changed = [f"{t} 新" if i % 100 == 0 else t for i, t in enumerate(titles)]
    frames = [pl.DataFrame({"product_id": ids, "title": t}) for t in (titles, changed)]
    for name in ("whole", "part"):
        (work / name).mkdir()
    began = time.perf_counter()
    embed_catalogue(frames[0], runtime.encode_products, runtime.dim, work / "whole")
    middle = time.perf_counter()
    known = Known.load(work / "whole")
    done = embed_catalogue(frames[1], runtime.encode_products, runtime.dim, work / "part", known)
    return middle - began, time.perf_counter() - middle, done.encoded


def row(name: str, clients: int, load: Load) -> dict[str, object]:
    """Return a row of the table."""
    return {
        "server": name, "clients": clients, "requests/s": load.rate,
        **{f"p{p} ms": load.quantile(p / 100) * 1e3 for p in (50, 95, 99)}, "failed": load.failed,
    }  # fmt: skip


def open_loops(
    streams: dict[str, tuple[int, list[bytes]]], loads: dict[tuple[str, int], list[Load]],
    seconds: float, repeats: int,
) -> dict[str, list[Load]]:  # fmt: skip
    """Ask this build and the previous one at one rate; nothing where there is no previous one."""
    if (PREVIOUS, 64) not in loads:
        return {}
    rate = OPEN * median(one.rate for one in loads[PREVIOUS, 64])
    found: dict[str, list[Load]] = {"csrm serve": [], PREVIOUS: []}
    for _ in range(repeats):
        for name, each in found.items():
            port, requests = streams[name]
            each.append(run(drive_open(port, requests, 64, rate, seconds)))
    return {name: sorted(each, key=lambda one: one.quantile(0.99)) for name, each in found.items()}


def printed(
    loads: dict[tuple[str, int], list[Load]], arrivals: dict[str, list[Load]], moved: Load
) -> None:
    """Print what the clients saw: of each contest the run of the median rate."""
    best = {k: sorted(v, key=lambda one: one.rate)[len(v) // 2] for k, v in loads.items()}
    rows = [row(name, clients, load) for (name, clients), load in best.items()]
    print(table([*rows, row("csrm serve, 3 switches and a rollback", 8, moved)]))
    opened = [row(name, 64, each[len(each) // 2]) for name, each in arrivals.items()]
    print("\nOpen loop, one rate for all:\n\n" + table(opened) if opened else "")


def figures_of(loads: dict[tuple[str, int], list[Load]], moved: Load) -> dict[str, float]:
    """Return what the clients saw as figures."""
    ours, theirs = loads["csrm serve", 8], loads["mlflow models serve", 8]
    failed = moved.failed + sum(one.failed for key, v in loads.items()
                                if key[0] == "csrm serve" for one in v)  # fmt: skip
    figures = {
        "requests_per_s": median(one.rate for one in ours),
        "p99_s": median(one.quantile(0.99) for one in ours),
        "failed": failed,
        "ratio_mlflow": median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True)),
        "p99_switching_s": moved.quantile(0.99),
    }
    if (PREVIOUS, 64) in loads:
        pairs = list(zip(loads["csrm serve", 64], loads[PREVIOUS, 64], strict=True))
        figures |= {
            "ratio_previous_64": median(a.rate / b.rate for a, b in pairs),
            "p99_ratio_previous_64": median(a.quantile(0.99) / b.quantile(0.99) for a, b in pairs),
        }
    return figures


def main(quick: bool) -> None:
    """Print the tables and the figures."""
    seconds, repeats = (0.3, 1) if quick else (5.0, 5)
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings({"CSRM_HOME": home, "CSRM_MARKETS": f"{home}/markets"})
        settings.home.mkdir(exist_ok=True)
        titles = [p.title for p in demo_world(1000 if quick else 5000, 0).target.products]
        titles = list(dict.fromkeys(titles))
        products = [f"p{i}" for i in range(len(titles))]
        releases = Releases(settings, products)
        made = [releases.make(seed) for seed in range(4)]
        route(settings, 1, made[0])
        asked = searches(titles, products, 200 if quick else 2000)
        token = secrets.token_hex(16)
        saved = model.save(made[0][1].path, Path(home) / "mlflow")
        env = ours_of(settings.home, token)
        ports = reserve_port(), reserve_port()
        streams = {
            "csrm serve": (ports[0], [post("/score", ours_body(*a), token) for a in asked]),
            "mlflow models serve": (ports[1], [post("/invocations", peer_body(*a)) for a in asked]),
        }
        peer = ["mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local"]
        path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
        loads: dict[tuple[str, int], list[Load]] = {}
        with (
            server(["csrm", "serve", "--market", MARKET], ports[0], "/readyz", env),
            server(peer, ports[1], "/ping", path),
            earlier(settings.home / "previous", len(products), token) as before,
        ):
            if before is not None:
                streams[PREVIOUS] = before, streams["csrm serve"][1]
            for _ in range(repeats):
                for clients in CLIENTS:
                    for name, (port, requests) in streams.items():
                        load = run(drive(port, requests, clients, for_seconds(seconds)))
                        loads.setdefault((name, clients), []).append(load)
            arrivals = open_loops(streams, loads, seconds, repeats)
            moved = run(switches(settings, ports[0], streams["csrm serve"][1], made))
        whole, part, encoded = refresh(releases.export.path, titles[: 200 if quick else 3000],
                                       settings.home)  # fmt: skip
        large = 3000 if quick else 1_000_000
        everywhere = searches(titles, [f"p{i}" for i in range(large)], 500)
        scale = ready_and_memory(settings.home / "large", large, of_sessions(everywhere))
    printed(loads, arrivals, moved)
    distinct = len({q for q, _ in asked})
    print(f"\n{PRODUCTS} products a request; {distinct} distinct of {len(asked)} queries.")
    print(f"\nRefresh: {encoded} titles in {part:.3f} s, all in {whole:.2f} s.\n")
    figures = figures_of(loads, moved) | {"refresh_share": part / whole} | scale
    print(closing_line("serving", figures, ("starlette", "uvicorn", "onnxruntime", "mlflow")))
