"""docs/DAGS.md: every DAG, its parameters, parts and tasks, read from what Airflow loads.

``python -m tests.dag_reference --write`` writes the page (without it, it is printed). It loads one
plain market and one more for each option that adds tasks, so that the page says which key adds
which. Not a command of the product, which never imports Airflow.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from csrm_tasks.sections import Schedule
from csrm_tasks.steps.declaration import Step, all_steps
from tests.dags.test_dags_integrity import MARKETS, ROOT, load

PAGE = ROOT / "docs" / "DAGS.md"
PLAIN = "plain"
NONE = "–"
# In the order in which a market meets them, with the section of the market file that times them
ORDER = (
    "csrm_ingest", "csrm_replay", "csrm_cold_start", "csrm_retrain", "csrm_rollout", "csrm_refresh",
    "csrm_rollback", "csrm_drill", "csrm_study",
)  # fmt: skip
STEPS = "rollout: {steps: []}"
# What adds tasks: the key as the page says it, and how the plain file is changed (old, new)
OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("tasks", "seed: 0\n", "seed: 0\ntasks: [relevance, qc]\n"),
    ("llm.pretraining", "llm:\n", "llm:\n  pretraining: {steps: 4}\n"),
    ("llm.negatives", "llm:\n", "llm:\n  negatives: {per_query: 1}\n"),
    ("llm.augmentation", "llm:\n", "llm:\n  augmentation: {translator: table}\n"),
    ("llm.merge", "llm:\n", "llm:\n  merge: [linear]\n"),
    ("llm.score_shards", "llm:\n", "llm:\n  score_shards: 2\n"),
    ("retrieval.index_shards", "retrieval:\n", "retrieval:\n  index_shards: 2\n"),
    ("towers.query_layers", "towers:\n", "towers:\n  query_layers: 1\n"),
    ("towers.stacked_teacher", "towers:\n", "towers:\n  stacked_teacher: true\n"),
    ("filter.action", "llm:\n", "filter: {action: remove}\nllm:\n"),
    ("ablation.enabled", "llm:\n", "ablation: {enabled: true}\nllm:\n  misspelt_share: 0.1\n"),
    ("release.export_llm", "approval: auto", "approval: auto, export_llm: true"),
    ("rollout.steps", STEPS, "rollout: {}"),
    *(
        (f"controls.{name}", STEPS, f"controls: {{{name}: {value}}}\n{STEPS}")
        for name, value in (
            ("rqa_cold", "true"), ("rqa_off", "true"), ("rqa_unclicked", "true"),
            ("towers_seen", "true"), ("leave_out", "true"), ("cross_encoder", "true"),
            ("encoder", "./e"), ("prompt", "./p"),
        )
    ),
)  # fmt: skip
INTRO = """\
# Every DAG

Written by `python -m tests.dag_reference --write` from the DAGs as Airflow loads them; do not
edit.

Each market has these DAGs, called `csrm_…__{market}`; one without relevance
([TASKS.md](TASKS.md)) has `csrm_ingest`, `csrm_replay` and `csrm_retrain`. They run by the clocks
of the market (`schedule.timezone`), one run of a DAG at a time, and start nothing that would have
to be torn down. The page of a DAG in Airflow says what its window is and what to do when it
fails, the page of a task the same of its step. [OPERATIONS.md](OPERATIONS.md) begins with
symptoms.

**Reads** are a step's artifacts, by the name of its input; what it reads beside them comes in
brackets. Each step **writes** one artifact, `MARKET/step/…`; those that act on something else
(store, ledger, routing, MLflow, landing zone) are marked ●, always run, and do nothing twice.
*Releasing* ones (▲) are skipped in a backfill, a dry run, and a run that differs from the
market's normal one. A task that is drawn × is mapped.

## Parameters of a run by hand

Airflow refuses what is out of bounds when a run is triggered, in the form, by REST and by command
alike. A name that a DAG has no parameter for fails every task at once, in one line, instead of
being passed over.

    airflow dags trigger csrm_retrain__shop --conf '{"week": "2026-W02", "rounds": 1,
        "reason": "a quick look"}'

`base`, `rounds`, `force` and `reuse` make a run differ from the market's normal one. They reach
the steps as the market's file does, through their fingerprints: what they do not concern is
found, nothing stale is taken, and the market's normal week stays what it is. Such a run needs a
`reason`; its verdict, report and model card, its run in MLflow (tag `csrm.asked`) and its ledger
row (`csrm release history`, `show`) say what was asked for and why. It **releases nothing unless
`release` is set**; `dry_run` forbids it to any run.

- `force` makes trainings and scorings again, once in that run, however often its tasks are
  cleared. Where the same comes out, the first artifact stands for it; where not (a GPU), the run
  goes on with its own.
- `reuse` takes trainings from an earlier run: `{"train_ebr": "shop/train_ebr/0123…"}`, the
  reference that the task returned (*XCom*, MLflow's tag `csrm.ref`, `csrm show`). It must have
  been made of the same data with the same parameters; that code or market file have changed since
  is what the reason vouches for.
- `base` is the market's, or one that `csrm base add` keeps on the machine that parses the DAGs,
  and on every worker.
"""


def markets(folder: Path) -> None:
    """Write the plain market and one for each option, called by its number."""
    text = (MARKETS / "mini.yaml").read_text(encoding="utf-8")
    text = text.replace("  score_shards: 2\n", "").replace("market: mini", "market: {name}")
    found = {PLAIN: text}
    for n, (_, old, new) in enumerate(OPTIONS):
        assert old in text, old
        found[f"o{n}"] = text.replace(old, new, 1)
    for name, one in found.items():
        (folder / f"{name}.yaml").write_text(one.replace("{name}", name), encoding="utf-8")


def reference() -> str:
    """Return the text of ``docs/DAGS.md``."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "markets")
        folder.mkdir()
        markets(folder)
        found = load(folder)
    assert found["errors"] == {}, found["errors"]
    dags = found["dags"]
    assert {name.partition("__")[0] for name in dags} == set(ORDER)
    return "\n".join([INTRO, *(section(name, dags) for name in ORDER)])


def section(name: str, dags: Mapping[str, Any]) -> str:
    """Return what the page says of one DAG."""
    plain = dags[f"{name}__{PLAIN}"]
    title, _, rest = inspect.cleandoc(plain["doc"]).removeprefix("### ").partition("\n")
    window = next(p for p in rest.split("\n\n") if p.startswith("**Window**"))
    window = window.partition("**A task failed?**")[0]
    lines = [f"## {name}\n", f"{title}. {timed(name)}\n", f"{' '.join(window.split())}\n"]
    lines += parameters(plain)
    return "\n".join([*lines, *tasks(name, dags)]) + "\n"


def timed(name: str) -> str:
    """Return by which key a DAG is scheduled, and its default."""
    key = name.removeprefix("csrm_")
    field = Schedule.model_fields.get(key)
    return f"Runs by `schedule.{key}` (`{field.default}`)." if field else "Started by hand."


def parameters(dag: Mapping[str, Any]) -> list[str]:
    """Return a DAG's parameters with bounds, default and help, as a table."""
    if not dag["params"]:
        return ["No parameters.\n"]
    lines = ["| parameter | takes | default | what |", "| --- | --- | --- | --- |"]
    for name, default in dag["params"].items():
        shape, said = dag["shapes"][name], dag["help"][name]
        start = NONE if default is None else f"`{json.dumps(default)}`"
        if name in ("base", "rounds"):
            start = "the market's"
        lines.append(f"| `{name}` | {takes(name, shape)} | {start} | {said} |")
    return [*lines, ""]


def takes(name: str, shape: Mapping[str, Any]) -> str:
    """Return the type of a parameter with its bounds, in words; the market's own are said so."""
    kinds = [shape["type"]] if isinstance(shape["type"], str) else shape["type"]
    said = " or ".join({"null": "nothing", "object": "mapping"}.get(k, k) for k in kinds[::-1])
    if name == "base":
        return "the market's `llm.base`, or `base:…`"
    if name == "rounds":
        return "integer, 0 to `llm.distillation.rounds`"
    if shape.get("format"):
        said += f", a {shape['format']}"
    elif "pattern" in shape:
        said += f" like `{shape['pattern']}`".replace("|", "\\|")
    if "minLength" in shape or "maxLength" in shape:
        said += f" of {shape.get('minLength', 0)} to {shape['maxLength']} characters"
    return said


def tasks(name: str, dags: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks of a DAG by part, those of the plain market and what each option adds."""
    plain = dags[f"{name}__{PLAIN}"]["tasks"]
    keys = {task: "" for task in plain}
    rows = dict(plain)
    for n, (key, _, _) in enumerate(OPTIONS):
        more = dags.get(f"{name}__o{n}", {"tasks": {}})["tasks"]
        for task, about in more.items():
            if task not in rows:
                rows[task], keys[task] = about, key
    parts = list(dags[f"{name}__{PLAIN}"]["parts"].items()) or [("", "")]
    head = "| task | step | what | reads | only with |\n| --- | --- | --- | --- | --- |"
    for part, title in parts:
        own = [t for t in rows if not part or rows[t]["part"] == part]
        yield f"\n**{title}**\n\n{head}" if title else head
        for task in own:
            yield row(task, rows[task], keys[task])


def row(task: str, about: Mapping[str, Any], key: str) -> str:
    """Return one task's line."""
    spec = all_steps().get(about["step"] or "")
    mapped = " ×" if about["shards"] else ""
    only = f"`{key}`" if key else ""
    if spec is None:
        said = " ".join((about["doc"] or "").strip().split("\n\n")[0].split())
        return f"| `{task}`{mapped} | {NONE} | {first(said)} | {NONE} | {only} |"
    marks = ("●" if spec.side_effect else "") + ("▲" if about["withheld"] else "")
    step = f"`{spec.name}` {marks}".strip()
    return f"| `{task}`{mapped} | {step} | {what(spec)} | {reads(spec, about)} | {only} |"


def what(spec: Step) -> str:
    """Return the first line of a step's docstring, as Markdown."""
    return spec.summary.replace("``", "`").replace("|", "\\|")


def first(text: str) -> str:
    """Return the first sentence."""
    return text.split(". ")[0].rstrip(".") + "."


def reads(spec: Step, about: Mapping[str, Any]) -> str:
    """Return a task's inputs, and in brackets what it reads beside them."""
    given = [f"`{name}`" for name in about["inputs"]]
    if spec.external_inputs is not None:
        outside = (inspect.getdoc(spec.external_inputs) or "").split("\n\n")[0]
        said = first(" ".join(outside.split())).replace("``", "`")
        given.append(f"[{said}]")
    return ", ".join(given) or NONE


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    text = reference()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
