"""What the papers compare with, as steps: an encoder classifier, and an LLM that is only asked.

Each scores the gold split like ``score_pairs``, so ``evaluate`` takes it among ``llm_scores``. They
are off unless a market names them in ``controls``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from csrm_tasks.steps.declaration import Context, Metadata, step

if TYPE_CHECKING:
    import polars as pl

    from csrm_tasks.llm.baselines.encoder import JudgedTexts
    from csrm_tasks.llm.baselines.prompt import Floats
    from csrm_tasks.markets import MarketConfig
    from csrm_tasks.settings import Settings


def _encoder_identity(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """The base encoder's files are an input of training, though no artifact."""
    from csrm_tasks.base_models import base_digest

    return base_digest(params["encoder"])


@step(
    "baseline_encoder",
    inputs=["snapshot"],
    config=["seed"],
    external_inputs=_encoder_identity,
)
def baseline_encoder(
    ctx: Context,
    *,
    encoder: str,
    steps: int = 20_000,
    batch: int = 64,
    lr: float = 2e-5,
    max_length: int = 256,
) -> Metadata:
    """Fine-tune an encoder on the train pairs and score the gold set with it (paper 1, table 2)."""
    import torch

    from csrm_tasks import tracking
    from csrm_tasks.llm.baselines import encoder as peer
    from csrm_tasks.llm.data import load_fields, load_pairs, selection_dev

    torch.set_num_threads(ctx.settings.threads)
    snapshot, market = ctx.input("snapshot").path, ctx.market
    fields = load_fields(snapshot)
    dev, _ = selection_dev(snapshot, market.target_locale)
    train, gold = load_pairs(snapshot, "train"), load_pairs(snapshot, "gold")

    def judged(pairs: pl.DataFrame) -> JudgedTexts:
        return peer.JudgedTexts(*fields.of(pairs), pairs["grade"].to_numpy().astype("int64"))

    recipe = peer.EncoderRecipe(encoder, steps, batch, lr, max_length, market.seed)
    model, best = peer.train_encoder(recipe, judged(train), judged(dev))
    _write(ctx, gold, peer.predict_encoder(model, judged(gold)).astype("float64"))
    facts: Metadata = {"dev_micro_f1": best, "train_pairs": len(train), "gold_pairs": len(gold)}
    facts["dev_majority"] = dev["grade"].value_counts(sort=True)["count"][0] / len(dev)
    tracking.log_run(
        ctx.settings, market.market, ctx.ref, params=vars(recipe), metrics={"dev_micro_f1": best}
    )
    return facts


def _asked(market: MarketConfig, settings: Settings, params: Mapping[str, Any]) -> str:
    """Who answers: a local model's files, or the endpoint's address."""
    from csrm_tasks.base_models import base_digest

    if not params["remote"]:
        return base_digest(params["model"])
    from csrm_tasks.llm.baselines.prompt import Endpoint

    return Endpoint.from_environment().url


@step(
    "baseline_prompt",
    inputs=["snapshot"],
    optional=["rqa"],
    external_inputs=_asked,
)
def baseline_prompt(ctx: Context, *, model: str, remote: bool = False) -> Metadata:
    """Ask an untrained LLM for the grade of every gold pair (zero-shot; paper 1, table 2).

    ``model``: folder or Hugging Face name@commit; with ``remote`` a model's name at the
    OpenAI-compatible endpoint in ``CSRM_LLM_URL``, with the token in ``CSRM_LLM_TOKEN``.
    """
    import torch

    from csrm_tasks.llm.baselines import prompt as peer
    from csrm_tasks.llm.data import load_fields, load_pairs

    torch.set_num_threads(ctx.settings.threads)
    snapshot, rqa = ctx.input("snapshot").path, ctx.inputs.get("rqa")
    gold = load_pairs(snapshot, "gold")
    fields = load_fields(snapshot, None if rqa is None else rqa.path)
    prompts = [peer.question(q, p) for q, p in zip(*fields.of(gold), strict=True)]
    if remote:
        endpoint = peer.Endpoint.from_environment()
        probabilities = peer.ask_all(endpoint, model, prompts, ctx.work / "answers.jsonl")
    else:
        probabilities = peer.answer_locally(model, prompts)
    _write(ctx, gold, probabilities)
    right = (probabilities.argmax(axis=1) == gold["grade"].to_numpy()).sum()
    return {"gold_pairs": len(gold), "gold_agreement": float(right / max(1, len(gold)))}


def _write(ctx: Context, gold: pl.DataFrame, probabilities: Floats) -> None:
    """Write ``scored.parquet`` as ``score_pairs`` does."""
    from csrm_tasks.llm.scoring.probabilities import with_probabilities
    from csrm_tasks.records import PAIRS, SCORED, write_table

    schema = {k: PAIRS[k] for k in ("pair_id", "grade")} | SCORED
    write_table(with_probabilities(gold, probabilities), schema, ctx.out / "scored.parquet")
