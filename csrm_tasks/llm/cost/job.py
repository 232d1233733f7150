"""What a whole job costs: fine-tuning, its rounds of self-distillation, and scoring for the towers.

Training and scoring are products of matrices at this size, so hours are FLOPs over what a GPU
reaches of its peak (``mfu``). Loading models, evaluating on dev and a GPU that waits are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csrm_tasks.llm.cost.formula import (
    Shape,
    Work,
    forward_flops,
    shared,
    train_bytes,
    train_flops,
    translations,
)
from csrm_tasks.markets import MarketConfig
from csrm_tasks.options import ablation_arms, ablation_steps
from csrm_tasks.sections import Llm
from csrm_tasks.sections.tasks import Task

RELEVANCE: tuple[Task, ...] = ("relevance",)  # what a market learns unless its file says more
PREFIX, PRODUCT = 110, 60  # mean tokens of query part and product part, realistic prompts
TRANSLATION, TARGET = 60, 25  # mean tokens of a translation sample, and of its target


@dataclass(frozen=True)
class Gpu:
    """What is rented."""

    tflops: float = 989.0  # peak in bf16, dense: an H100 SXM's data sheet
    mfu: float = 0.4  # share of the peak that is reached
    price: float = 3.0  # of an hour

    def hours(self, flops: float) -> float:
        """Return GPU-hours."""
        return flops / (self.tflops * 1e12 * self.mfu) / 3600


@dataclass(frozen=True)
class JobPart:
    """One part of the job."""

    name: str
    flops: float
    pairs: float


@dataclass(frozen=True)
class Volume:
    """How much there is to train on and to score."""

    labels: float = 5.5e6  # judged pairs
    judged: float = 8.0  # of them per query: how far a query's prefix is shared
    epochs: float = 1.0  # passes over them in each training
    queries: float = 1e6  # to score for the towers …
    products: float = 120.0  # … with so many products each, M + N (A31)


@dataclass(frozen=True)
class Speed:
    """What this machine reached in a dry run (:mod:`csrm_tasks.llm.training.dry_run`)."""

    train: float  # FLOP/s, forward and backward
    score: float  # FLOP/s
    prefix: int = PREFIX  # tokens of a query's part, on average
    product: int = PRODUCT  # … and of the rest of a prompt
    seconds: float = 0.0  # that the dry run took
    threads: int = 1


def label_samples(llm: Llm, tasks: Sequence[Task] = RELEVANCE) -> tuple[float, float]:
    """Return label samples, and translations, of a batch for each of its judged pairs (A6).

    Judged pairs are those of relevance; of a market without it, those of its other tasks together.
    """
    others = sum(
        share for t, share in (("qc", llm.mixture.qc), ("qi", llm.mixture.qi)) if t in tasks
    )
    if "relevance" in tasks:
        return 1.0 + llm.mixture.cvr + others, llm.translations
    return 1.0, llm.translations / others


def job(
    shape: Shape, llm: Llm, of: Volume, tried: Sequence[int] = (), tasks: Sequence[Task] = RELEVANCE
) -> list[JobPart]:
    """Return the parts of a weekly job.

    Each training passes over the labels, with translations and conversions in their shares (A6);
    each round relabels all pairs (A16) and trains from the base again (A17). The ablation's short
    trainings, of ``tried`` steps each, pass over such a share of them as that is (A41).
    """
    rounds, kept = llm.distillation.rounds, llm.gradient_checkpointing
    samples, others = label_samples(llm, tasks)
    rows = of.labels * of.epochs * samples
    translated = of.labels * of.epochs * others
    once = sum(
        train_flops(shape, work, llm.lora, checkpointing=kept)
        for work in (
            together(rows, min(of.judged, llm.siblings)),
            translations(translated, TRANSLATION, translated * TARGET),
        )
    )
    relabel = forward_flops(shape, together(of.labels, of.judged))
    scored = of.queries * of.products
    score = forward_flops(shape, together(scored, of.products))
    trained = (rows + translated) * (1 + rounds)
    stage0 = [JobPart("stage 0, once", pretraining_flops(shape, llm), _told(llm).rows)]
    name, short = f"ablation, {len(tried)} short trainings", sum(tried) / llm.steps
    ablation = [JobPart(name, once * short, (rows + translated) * short)]
    return [
        *(stage0 if llm.pretraining.steps else []),
        *(ablation if tried else []),
        JobPart(f"training, {1 + rounds} times", once * (1 + rounds), trained),
        JobPart(f"relabelling, {rounds} times", relabel * rounds, of.labels * rounds),
        JobPart("scoring pairs for the towers", score, scored),
    ]


def pretraining_flops(shape: Shape, llm: Llm) -> float:
    """FLOPs of stage 0, all its steps; of a translation the target is told, else every token."""
    return train_flops(shape, _told(llm), llm.lora, checkpointing=llm.gradient_checkpointing)


def _told(llm: Llm) -> Work:
    stage = llm.pretraining
    rows = stage.steps * stage.tokens / TRANSLATION
    told = rows * (stage.translations * TARGET + (1 - stage.translations) * TRANSLATION)
    return translations(rows, TRANSLATION, told)


def step_flops(
    shape: Shape, llm: Llm, prefix: int = PREFIX, product: int = PRODUCT,
    tasks: Sequence[Task] = RELEVANCE,
) -> float:  # fmt: skip
    """FLOPs of an optimizer step of this market's mixture (A6), prompts of these mean lengths."""
    samples, others = label_samples(llm, tasks)
    one = llm.batch / (samples + others)
    rows, translated = one * samples, one * others
    return sum(
        train_flops(shape, work, llm.lora, checkpointing=llm.gradient_checkpointing)
        for work in (
            shared(rows / llm.siblings, llm.siblings, prefix, product),
            translations(translated, TRANSLATION, translated * TARGET),
        )
    )


def most_steps(market: MarketConfig) -> list[int]:
    """Return the steps at most of each training from a cold start to the first weekly release.

    The cold start's two, stage 2, its rounds, and the control on the cold start's RQA; and the
    ablation's short ones of both (A41).
    """
    llm = market.llm
    weekly = 1 + llm.distillation.rounds + market.controls.rqa_cold
    first = [llm.ranker_steps or llm.steps, llm.steps]
    return first + [llm.steps] * weekly + 2 * tried_steps(market)


def tried_steps(market: MarketConfig) -> list[int]:
    """Return the steps at most of each short training of an ablation (A41)."""
    return [ablation_steps(market)] * len(ablation_arms(market))


def here(shape: Shape, market: MarketConfig, speed: Speed) -> str:
    """Say in a line how long this machine takes for the market's LLM, at most."""
    llm, towers = market.llm, market.towers
    step = step_flops(shape, llm, speed.prefix, speed.product, market.tasks) / speed.train
    steps = most_steps(market)
    pairs = towers.queries * (towers.impressed + towers.retrieved + towers.random)
    work = shared(towers.queries, pairs / towers.queries, speed.prefix, speed.product)
    scored = forward_flops(shape, work) / speed.score
    stage0 = pretraining_flops(shape, llm) / speed.train / 3600
    first = f"stage 0 at most {stage0:.2g} hours; " if llm.pretraining.steps else ""
    return (
        f"LLM on this machine: {first}a step of {llm.batch} samples {step:.2g} s; {len(steps)} "
        f"trainings of {sum(steps):,} steps together at most {step * sum(steps) / 3600:.2g} hours, "
        f"scoring {pairs:,} pairs for the towers {scored / 3600:.2g} (measured in "
        f"{speed.seconds:.0f} s; threads: {speed.threads}; tokens of a prompt: {speed.prefix} + "
        f"{speed.product})"
    )


def together(rows: float, siblings: float) -> Work:
    """Return ``rows`` prompts of realistic length, ``siblings`` of one query a time."""
    return shared(rows / siblings, siblings, PREFIX, PRODUCT)


def table(parts: Sequence[JobPart], gpu: Gpu, gpus: Sequence[int]) -> str:
    """Render the parts and their sum as a Markdown table; ``gpus``: machines to cut it across."""
    rows = [*parts, JobPart("all", sum(p.flops for p in parts), sum(p.pairs for p in parts))]
    heads = ["part", "pairs", "EFLOP", "GPU-hours", "cost", *(f"hours on {n} GPUs" for n in gpus)]
    lines = [heads, ["---"] * len(heads)]
    for part in rows:
        hours = gpu.hours(part.flops)
        cells = [part.name, f"{part.pairs / 1e6:.1f} M", f"{part.flops / 1e18:,.3g}"]
        cells += [f"{hours:,.3g}", f"{hours * gpu.price:,.0f}"]
        lines.append(cells + [f"{hours / n:,.2g}" for n in gpus])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def memory(shape: Shape, llm: Llm) -> str:
    """Say what a training process needs, with and without checkpointed layers."""
    rows = llm.micro_batch or llm.batch
    work, gib = together(rows, 1), 2**30
    slices = llm.processes if llm.sharding == "full" else 1
    with_all, with_few = (
        train_bytes(shape, work, llm.lora, kept, slices) / gib for kept in (False, True)
    )
    return (
        f"{shape.weights / 1e9:.3g} G weights, {shape.lora(llm.lora) / 1e6:.3g} M trained; "
        f"training {rows} unrelated prompts a pass: {with_all:.3g} GiB a process, {with_few:.3g} "
        "with gradient_checkpointing"
    )
