"""The cost formula against torch's own counting, to the last FLOP, and autograd's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from csrm_tasks.cli.main import main
from csrm_tasks.llm.cost.formula import (
    ORION_14B,
    QWEN3_14B,
    Shape,
    Work,
    activation_bytes,
    forward_flops,
    layer_bytes,
    one_by_one,
    shared,
    train_bytes,
    train_flops,
    translations,
)
from csrm_tasks.llm.cost.job import (
    Volume,
    job,
    most_steps,
    pretraining_flops,
    step_flops,
    tried_steps,
)
from csrm_tasks.llm.network import packed as packed_module
from csrm_tasks.llm.network.head import (
    label_logits,
    run_trunk,
    soft_cross_entropy,
    translation_loss,
)
from csrm_tasks.llm.network.packed import Parts, pack, run_packed
from csrm_tasks.markets import load_market
from csrm_tasks.sections import (
    Ablation,
    Augmentation,
    Distillation,
    Llm,
    Lora,
    Mixture,
    Pretraining,
)
from csrm_tasks.settings import PROJECT_ROOT

ROWS, LENGTH = 3, 20
QKV = Lora(r=4, alpha=8)
ALL = Lora(r=4, alpha=8, targets="all-linear")
SOME = Lora(r=4, alpha=8, targets=("self_attn.q_proj", "k_proj", "v_proj", "o_proj", "up_proj"))
LORAS = {"qkv": QKV, "all": ALL, "some": SOME}
SHAPE = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
LABELS = torch.tensor([5, 6, 7])


@pytest.fixture
def every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention by plain products, which computes and counts every pair of tokens."""

    def attend(q: Any, k: Any, v: Any, mask: Any, **more: Any) -> Any:
        n = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(n, 1) for x in (k, v))
        scores = q @ k.transpose(-1, -2)
        mask = torch.ones_like(scores, dtype=torch.bool).tril() if mask is None else mask
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v

    monkeypatch.setattr(packed_module, "scaled_dot_product_attention", attend)


def make(kind: str, attention: str = "eager", **more: Any) -> Any:
    """A tiny model; eager attention computes every pair of tokens, which is what is counted."""
    torch.manual_seed(0)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[kind]
    causal = model(config(**SHAPE | more, attn_implementation=attention))
    return causal.requires_grad_(False)


def with_lora(causal: Any, lora: Lora = QKV) -> Any:
    chosen = lora.targets if isinstance(lora.targets, str) else [*lora.targets]
    config = LoraConfig(r=lora.r, lora_alpha=8, target_modules=chosen, task_type="CAUSAL_LM")
    get_peft_model(causal, config)
    return causal.train()


def prompts(rows: int = ROWS, shared_tokens: int = 0) -> Parts:
    """Prompts of one length that share so many first tokens, or none."""
    rng = np.random.default_rng(0)
    prefix = rng.integers(0, 97, shared_tokens, np.int32)
    return [(prefix, rng.integers(0, 97, LENGTH, np.int32)) for _ in range(rows)]


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def label_step(causal: Any, parts: Parts) -> None:
    logits = label_logits(causal, run_packed(causal, pack(parts, torch.device("cpu"))), LABELS)
    loss = soft_cross_entropy(logits, torch.full((len(parts), 3), 1 / 3))
    loss.backward()  # type: ignore[no-untyped-call]


CASES = [
    (prompts(), one_by_one(ROWS, LENGTH, causal=False)),
    (prompts(5, 12), shared(1, 5, 12, LENGTH, causal=False)),
]


@pytest.mark.usefixtures("every_pair")
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize(("parts", "work"), CASES, ids=["one by one", "shared prefix"])
def test_a_training_step_on_labels_costs_what_the_formula_says(
    kind: str, parts: Parts, work: Work, lora: Lora
) -> None:
    causal = with_lora(make(kind), lora)
    shape = Shape.of(causal.config)
    assert counted(lambda: label_step(causal, parts)) == train_flops(shape, work, lora)
    causal.gradient_checkpointing_enable({"use_reentrant": False})
    causal.base_model.layers[-1].gradient_checkpointing = False
    found = counted(lambda: label_step(causal, parts))
    assert found == train_flops(shape, work, lora, checkpointing=True)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
def test_a_training_step_on_translations_costs_what_the_formula_says(lora: Lora) -> None:
    causal = with_lora(make("llama"), lora)
    ids = torch.randint(0, 97, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([LENGTH, LENGTH - 3, LENGTH])
    starts = ends - torch.tensor([2, 5, 3])

    def step() -> None:
        loss = translation_loss(causal, run_trunk(causal, ids), ids, starts, ends)
        loss.backward()  # type: ignore[no-untyped-call]

    work = translations(ROWS, LENGTH, 10, causal=False)
    assert counted(step) == train_flops(Shape.of(causal.config), work, lora)


@pytest.mark.usefixtures("every_pair")
@pytest.mark.parametrize(("parts", "work"), CASES, ids=["one by one", "shared prefix"])
def test_scoring_costs_what_the_formula_says(parts: Parts, work: Work) -> None:
    causal = make("llama")

    def score() -> None:
        label_logits(causal, run_packed(causal, pack(parts, torch.device("cpu"))), LABELS)

    with torch.no_grad():
        assert counted(score) == forward_flops(Shape.of(causal.config), work)


def test_a_causal_kernel_computes_half_of_each_square() -> None:
    work = shared(2, 3, 12, 8)
    assert work.attended == 2 * 12 * 12 / 2 + 6 * (8 * 12 + 8 * 8 / 2)
    assert (work.tokens, work.rows, work.asked) == (2 * 12 + 6 * 8, 6, 6 * 20)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("siblings", [1, 4])
def test_autograd_keeps_as_many_bytes_as_the_formula_says(
    siblings: int, checkpointing: bool, lora: Lora
) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 640, "head_dim": 64, "num_hidden_layers": 6}
    causal = with_lora(make("llama", "sdpa", **wide), lora).bfloat16()
    for name, p in causal.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
    if checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
        causal.base_model.layers[-1].gradient_checkpointing = False
    weights = {p.data_ptr() for p in causal.parameters()}
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    rng = np.random.default_rng(0)
    parts = []
    for _ in range(8 // siblings):
        prefix = rng.integers(0, 97, 40, np.int32)
        parts += [(prefix, rng.integers(0, 97, 24, np.int32)) for _ in range(siblings)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run_packed(causal, pack(parts, torch.device("cpu"))).float().sum()
    work = shared(2, 4, 40, 24) if siblings > 1 else one_by_one(8, 64)
    shape = Shape.of(causal.config)
    expected = activation_bytes(shape, work, lora, checkpointing)
    if checkpointing:  # what is kept before the first layer is run again
        expected += layer_bytes(shape, work, lora, last=True) - layer_bytes(shape, work, lora)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.1)


def test_the_papers_bases_have_their_published_sizes() -> None:
    assert ORION_14B.weights == pytest.approx(14.5e9, rel=0.01)
    assert QWEN3_14B.weights == pytest.approx(14.8e9, rel=0.01)
    trained = ORION_14B.lora(Lora())
    share = trained / (ORION_14B.weights + trained)
    assert share == pytest.approx(0.0107, abs=0.0001)  # paper 1: 1.07 % (A5)


def test_slices_of_the_layers_leave_the_rest_whole() -> None:
    """Beside its slice a process holds three layers, the embeddings, LoRA and what it keeps."""
    work = one_by_one(8, 170)
    layers = 2 * (QWEN3_14B.weights - 2 * QWEN3_14B.vocabulary * QWEN3_14B.hidden)
    whole = train_bytes(QWEN3_14B, work, ALL, True)
    sliced = train_bytes(QWEN3_14B, work, ALL, True, slices=4)
    assert whole - sliced == pytest.approx(layers * (1 - 1 / 4 - 3 / QWEN3_14B.layers))


def test_a_job_grows_with_what_there_is_to_do_and_shrinks_with_what_is_shared() -> None:
    llm = Llm(base="none", preset="csrm-llm")
    train, relabel, score = job(ORION_14B, llm, Volume())
    twice = job(ORION_14B, llm, Volume(labels=2 * Volume().labels))
    assert [p.flops for p in twice] == pytest.approx(
        [2 * train.flops, 2 * relabel.flops, score.flops]
    )
    alone = job(ORION_14B, llm, Volume(judged=1, products=1, queries=120e6))
    assert all(a.flops > 2 * b.flops for a, b in zip(alone, (train, relabel, score), strict=True))
    no_rounds = llm.model_copy(update={"distillation": Distillation(rounds=0)})
    assert job(ORION_14B, no_rounds, Volume())[0].flops == pytest.approx(train.flops / 3)


def test_an_llm_that_translates_learns_both_directions() -> None:
    """As much as twice the share of one direction costs (A37)."""
    llm = Llm(base="none", mixture=Mixture(mt=0.1))
    twice = llm.model_copy(update={"mixture": Mixture(mt=0.2)})
    both = llm.model_copy(update={"augmentation": Augmentation(translator="llm")})
    assert job(ORION_14B, both, Volume()) == job(ORION_14B, twice, Volume())
    assert step_flops(ORION_14B, both) == step_flops(ORION_14B, twice)
    assert step_flops(ORION_14B, both) != step_flops(ORION_14B, llm)


def test_judged_tasks_take_their_shares_of_a_batch_and_of_a_pass() -> None:
    """Beside relevance they cost what as many conversion examples cost; alone, relevance's part."""
    llm = Llm(base="none", mixture=Mixture(mt=0.1, cvr=0.5, qc=0.3, qi=0.2))
    more, alone = (
        llm.model_copy(update={"mixture": m})
        for m in (Mixture(mt=0.1, cvr=1.0), Mixture(mt=0.2, cvr=0))
    )
    whole = job(ORION_14B, llm, Volume(), tasks=("relevance", "qc", "qi"))
    assert [p.flops for p in whole] == pytest.approx(
        [p.flops for p in job(ORION_14B, more, Volume())]
    )
    (qc, *_), (same, *_) = (
        job(ORION_14B, llm, Volume(), tasks=("qc", "qi")),
        job(ORION_14B, alone, Volume()),
    )
    assert qc.flops == pytest.approx(same.flops)
    for tasks, like in ((("relevance", "qc", "qi"), more), (("qc", "qi"), alone)):
        step = step_flops(ORION_14B, llm, tasks=tasks)
        assert step == pytest.approx(step_flops(ORION_14B, like))


def test_stage_0_is_a_part_of_the_job_where_the_market_has_one() -> None:
    llm = Llm(base="none", preset="csrm-llm")
    assert pretraining_flops(ORION_14B, llm) == 0.0
    few, many, texts = (
        llm.model_copy(update={"pretraining": Pretraining(steps=n, translations=share)})
        for n, share in ((100, 0.5), (300, 0.5), (100, 0.0))
    )
    first, *rest = job(ORION_14B, few, Volume())
    assert first.name == "stage 0, once" and rest == job(ORION_14B, llm, Volume())
    assert first.flops == pretraining_flops(ORION_14B, few)
    assert pretraining_flops(ORION_14B, many) == pytest.approx(3 * first.flops)
    # 4.6 passes of 2 FLOPs a weight and token: forward, and backward through what is frozen
    tokens = 100 * few.pretraining.tokens
    assert first.flops == pytest.approx(4 * ORION_14B.weights * tokens, rel=0.1)
    assert pretraining_flops(ORION_14B, texts) > first.flops  # more tokens are told


def test_an_ablation_costs_its_short_trainings() -> None:
    llm = Llm(base="none", preset="csrm-llm", steps=400)
    plain = job(ORION_14B, llm, Volume())
    train, *_ = plain
    one = train.flops / (1 + llm.distillation.rounds)
    first, *rest = job(ORION_14B, llm, Volume(), [100] * 3)
    assert rest == plain and first.name == "ablation, 3 short trainings"
    assert first.flops == pytest.approx(one * 0.75)
    market = load_market("demo", PROJECT_ROOT / "dags" / "markets")
    on = {"label_smoothing": 0.1, "steps": 400}
    tried = market.model_copy(
        update={
            "ablation": Ablation(enabled=True, seeds=2),
            "llm": market.llm.model_copy(update=on),
        }
    )
    assert tried_steps(market) == [] and tried_steps(tried) == [200] * 4
    off = tried.model_copy(update={"ablation": Ablation()})
    assert most_steps(tried) == most_steps(off) + [200] * 8  # of a cold start, and of a week


def test_the_command_prints_hours_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--base", "orion-14b", "--labels", "1e6", "--price", "2"]
    assert main(["llm-cost", "--market", "demo", *more]) == 0
    out = capsys.readouterr().out
    *_, total = [line.split("|") for line in out.splitlines() if line.startswith("| ")]
    assert total[1].strip() == "all"
    assert float(total[5].replace(",", "")) == pytest.approx(2 * float(total[4]), rel=0.01)
    assert "14.5 G weights" in out
