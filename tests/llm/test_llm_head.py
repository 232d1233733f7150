"""The label-row head against full logits, and translation loss against a loop (A2, A6, A7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.head import (
    check_read_out,
    label_logits,
    run_trunk,
    soft_cross_entropy,
    translation_loss,
)
from csrm_tasks.llm.network.model import Model, add_lora, load_base
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.sections import Lora
from tests.llm_fixtures import make_base

LENGTHS = torch.tensor([9, 4, 12, 1])
LABELS = torch.tensor([7, 3, 11])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path) -> Model:
    found = load_base(str(base))
    add_lora(found, Lora(r=4, alpha=8, dropout=0.0), seed=0)
    with torch.no_grad():  # a fresh LoRA changes nothing; this one does
        for name, p in found.causal.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    return found


def batch(vocabulary: int = 280) -> tuple[Tensor, Tensor]:
    """Ids (4, 12) with rubbish as padding, and soft targets (4, 3)."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocabulary, (len(LENGTHS), 12), generator=generator)
    return ids, torch.randn(len(LENGTHS), 3, generator=generator).softmax(-1)


def our_logits(causal: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    """Each row up to its length as a prompt whose first token is shared where it is the same."""
    rows = [row[:n].int().numpy() for row, n in zip(ids, lengths.tolist(), strict=True)]
    packed = pack([(row[:1], row[1:]) for row in rows], ids.device)
    return label_logits(causal, run_packed(causal, packed), LABELS)


def gradients(model: Model, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in model.causal.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters))


def full_logits(causal: Any, ids: Tensor) -> Tensor:
    """The model's own logits of every position and the whole vocabulary, then three of them."""
    logits = causal(input_ids=ids).logits  # (B, T, V)
    return torch.stack([logits[i, n - 1, LABELS] for i, n in enumerate(LENGTHS)])


def test_loss_and_gradients_equal_the_full_logits(model: Model) -> None:
    ids, target = batch()
    expected = functional.cross_entropy(full_logits(model.causal, ids), target)
    found = soft_cross_entropy(our_logits(model.causal, ids, LENGTHS), target)
    assert (found - expected).abs().item() <= 1e-6
    pairs = list(zip(gradients(model, found), gradients(model, expected), strict=True))
    assert len(pairs) == 12  # q, k, v of two layers, A and B
    for ours, theirs in pairs:
        assert theirs.abs().max() > 1e-4
        assert (ours - theirs).abs().max() <= 1e-6


def test_one_by_one_without_padding_gives_the_same(model: Model) -> None:
    ids, _ = batch()
    with torch.no_grad():
        found = our_logits(model.causal, ids, LENGTHS)
        for i, n in enumerate(LENGTHS.tolist()):
            alone = model.causal(input_ids=ids[i : i + 1, :n]).logits[0, -1, LABELS]
            assert (found[i] - alone).abs().max() <= 1e-5


def test_padding_on_the_left_with_a_mask_gives_the_same(model: Model) -> None:
    ids, _ = batch()
    left = torch.zeros_like(ids)
    mask = torch.zeros_like(ids)
    for i, n in enumerate(LENGTHS.tolist()):
        left[i, -n:], mask[i, -n:] = ids[i, :n], 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model.causal(input_ids=left, attention_mask=mask, position_ids=positions)
        found = our_logits(model.causal, ids, LENGTHS)
    assert (found - out.logits[:, -1, LABELS]).abs().max() <= 1e-5


def test_what_is_in_the_padding_and_in_the_batch_does_not_matter(model: Model) -> None:
    ids, _ = batch()
    with torch.no_grad():
        whole = our_logits(model.causal, ids, LENGTHS)
        ids[1, 4:] = 0
        other = our_logits(model.causal, ids, LENGTHS)
        alone = our_logits(model.causal, ids[1:2], LENGTHS[1:2])
    assert torch.equal(whole[1], other[1])
    assert (whole[1] - alone[0]).abs().max() <= 1e-6


def test_soft_cross_entropy_is_the_sum_over_classes() -> None:
    _, target = batch()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    p = logits.softmax(-1).log()
    expected = -sum(float(t * q) for t, q in zip(target.ravel(), p.ravel(), strict=True)) / 4
    assert float(soft_cross_entropy(logits, target)) == pytest.approx(expected, abs=1e-6)
    wide = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(z, target.double()), wide)


def test_translation_loss_is_a_mean_per_sample_and_then_over_samples(model: Model) -> None:
    ids, _ = batch()
    start, end = torch.tensor([5, 1, 3]), torch.tensor([9, 4, 12])
    ids = ids[:3]
    expected = []
    for row, a, b in zip(ids, start.tolist(), end.tolist(), strict=True):
        log_p = model.causal(input_ids=row[None, :b]).logits[0].log_softmax(-1)
        expected.append(-sum(log_p[t - 1, row[t]] for t in range(a, b)) / (b - a))
    reference = torch.stack(expected).mean()
    hidden = run_trunk(model.causal, ids)
    found = translation_loss(model.causal, hidden, ids, start, end)
    assert (found - reference).abs().item() <= 1e-6
    for ours, theirs in zip(gradients(model, found), gradients(model, reference), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5  # other summation order, gradients up to 1


class ScaledLlama(LlamaForCausalLM):
    """As Cohere and Granite do: logits are changed after ``lm_head``."""

    change: Callable[[Tensor], Tensor] = staticmethod(lambda logits: logits * 1.01)

    def forward(self, **kwargs: Any) -> Any:
        out = super().forward(**kwargs)
        out.logits = self.change(out.logits)
        return out


class CappedLlama(ScaledLlama):
    """As Gemma 2 does; at logits of one or two a thousandth, which bf16 rounds away."""

    change = staticmethod(lambda logits: 30 * torch.tanh(logits / 30))


class ShiftedLlama(ScaledLlama):
    change = staticmethod(lambda logits: logits + 0.5 * (torch.arange(logits.shape[-1]) == 7))


class NarrowedLlama(LlamaForCausalLM):
    """As MiniCPM does: the trunk's states are changed before ``lm_head``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1.01,))


class TwoWayLlama(LlamaForCausalLM):
    """Every token sees all others."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        length = input_ids.shape[1]
        mask = torch.zeros(1, 1, length, length, dtype=self.dtype)
        return super().forward(input_ids=input_ids, attention_mask=mask, **kwargs)


PROMPT = torch.arange(3, 63)[None] * 4
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize("kind", [ScaledLlama, CappedLlama, ShiftedLlama, NarrowedLlama])
def test_a_model_that_changes_its_states_or_logits_is_refused(
    base: Path, kind: Any, dtype: torch.dtype
) -> None:
    causal = kind.from_pretrained(base, dtype=dtype)
    with pytest.raises(ConfigError, match="does not give plain lm_head logits"):
        check_read_out(causal, PROMPT)


@DTYPES
def test_a_model_that_attends_otherwise_is_refused(base: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match="'llama' attends otherwise"):
        check_read_out(TwoWayLlama.from_pretrained(base, dtype=dtype), PROMPT)
    check_read_out(LlamaForCausalLM.from_pretrained(base, dtype=dtype), PROMPT)


def test_the_rounding_of_bf16_over_many_layers_is_no_fault() -> None:
    """As deep as Gemma 3 270M, with its norms: other roundings move a probability by a hundredth.

    The weights are random and large, so that they move them by far more than a trained model's do.
    """
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=18,
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, initializer_range=0.1,
    )  # fmt: skip
    causal = Gemma3ForCausalLM(config).to(torch.bfloat16).eval()
    check_read_out(causal, PROMPT)
    own = causal(input_ids=PROMPT, use_cache=False).logits[0, -1, LABELS].float().softmax(-1)
    tokens = PROMPT[0].int().numpy()
    packed = pack([(tokens[:30], tokens[30:])] * 2, PROMPT.device)
    ours = label_logits(causal, run_packed(causal, packed), LABELS).softmax(-1)
    assert (ours - own).abs().max() > 1e-3  # they are not the same to the last bit


def test_a_model_of_another_build_is_refused() -> None:
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=4, n_positions=32)
    with pytest.raises(ConfigError, match="gpt2"):
        check_read_out(GPT2LMHeadModel(config), torch.tensor([[1, 5, 9]]))


def test_lora_on_layers_that_are_not_there_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        add_lora(load_base(str(base)), Lora(r=2, targets=("qkv_proj",)), seed=0)


@pytest.mark.parametrize("rows", ["embed_tokens", "lm_head"])
def test_lora_leaves_the_label_rows_alone(base: Path, rows: str) -> None:
    with pytest.raises(ConfigError, match="takes in the embeddings"):
        add_lora(load_base(str(base)), Lora(r=2, targets=("q_proj", rows)), seed=0)


def test_a_base_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_base("./no/such-model")
