"""What the relevance LLM costs: FLOPs and bytes from its shape, without running it.

Counted as ``torch.utils.flop_counter`` counts: 2·m·n·k for a product of matrices, nothing for the
rest. With LoRA the frozen matrices get no weight gradient, so a backward pass costs one forward
pass of them instead of two. ``tests/llm/test_llm_cost.py`` holds the counts to torch's own, number
by number, and the bytes to what autograd keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csrm_tasks.sections import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BF16, FP32 = 2, 4  # bytes
ADAM = 4 * FP32  # per trained weight: itself, its gradient, two moments


@dataclass(frozen=True)
class Adapted:
    """The adapted ones of some linear layers: names to (values in, values out)."""

    layers: dict[str, tuple[int, int]]
    r: int

    @classmethod
    def of(cls, layers: dict[str, tuple[int, int]], lora: Lora | None) -> Adapted:
        """Choose by ``lora.targets``; a name may have a path before it."""
        if lora is None:
            return cls({}, 0)
        if isinstance(lora.targets, str):
            return cls(layers, lora.r)
        names = {target.rpartition(".")[2] for target in lora.targets}
        return cls({k: v for k, v in layers.items() if k in names}, lora.r)

    @property
    def weights(self) -> int:
        """Trained weights."""
        return self.r * sum(into + out for into, out in self.layers.values())

    @property
    def kept(self) -> int:
        """Values that autograd keeps of a token: each one's input and inner vector, in fp32."""
        return sum(into + self.r for into, _ in self.layers.values())

    def inputs(self, *names: str) -> int:
        """Weights of A, the inner layer's, of those of ``names`` that are adapted."""
        return self.r * sum(self.layers[name][0] for name in names if name in self.layers)

    def outputs(self, name: str) -> int:
        """Weights of B, the outer layer's, if ``name`` is adapted."""
        return self.r * self.layers[name][1] if name in self.layers else 0


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's build: grouped-query attention, gated feed-forward part."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool  # lm_head is the embedding

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """Read a Hugging Face configuration."""
        head_dim = getattr(config, "head_dim", None)
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size, layers=config.num_hidden_layers, heads=heads,
            kv_heads=config.num_key_value_heads, head_dim=head_dim or config.hidden_size // heads,
            intermediate=config.intermediate_size, vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
        )  # fmt: skip

    @property
    def attention(self) -> int:
        """Weights of the q, k, v and o projections of one layer."""
        return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def feed_forward(self) -> int:
        """Weights of gate, up and down of one layer."""
        return 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """All weights but the norms'."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.layers * (self.attention + self.feed_forward) + embeddings

    def lora(self, lora: Lora) -> int:
        """Trained weights of LoRA (A5)."""
        return self.layers * sum(own.weights for own in self.adapted(lora))

    def adapted(self, lora: Lora | None) -> tuple[Adapted, Adapted]:
        """Return what LoRA adapts of one layer: of attention, and of the feed-forward part.

        Layers that Llama does not have are not counted.
        """
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (self.hidden, heads), "k_proj": (self.hidden, kv),
                     "v_proj": (self.hidden, kv), "o_proj": (heads, self.hidden)}  # fmt: skip
        wide, narrow = (self.hidden, self.intermediate), (self.intermediate, self.hidden)
        feed_forward = {"gate_proj": wide, "up_proj": wide, "down_proj": narrow}
        return Adapted.of(attention, lora), Adapted.of(feed_forward, lora)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that one token leaves, in bf16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * BF16


ORION_14B = Shape(5120, 40, 40, 40, 128, 15360, 84608, False)  # paper 1's base
QWEN3_14B = Shape(5120, 40, 40, 8, 128, 17408, 151936, False)  # paper 2's


@dataclass(frozen=True)
class Work:
    """What goes through the trunk, as packed rows (:mod:`csrm_tasks.llm.network.packed`)."""

    tokens: float
    rows: float  # prompts, each read out at its last token
    attended: float  # pairs of a token and one that it may look at, as the kernel computes them
    asked: float  # such pairs of the last layer, where only last tokens look
    keys: float  # keys gathered per layer: a shared prefix once for each of its products
    targets: float = 0.0  # translation target tokens, each against the whole vocabulary (A7)


def shared(
    queries: float, products: float, prefix: float, product: float, causal: bool = True
) -> Work:
    """Return ``products`` per query behind one run of the query's prefix (A12).

    ``causal``: the kernel skips what a token may not see.
    """
    half = 2 if causal else 1
    rows = queries * products
    attended = queries * prefix**2 / half + rows * product * (prefix + product / half)
    tokens = queries * prefix + rows * product
    keys = queries * prefix + rows * (prefix + product)
    return Work(tokens, rows, attended, rows * (prefix + product), keys)


def one_by_one(rows: float, length: float, causal: bool = True) -> Work:
    """Return ``rows`` prompts of ``length`` tokens that share nothing."""
    return shared(rows, 1, 0, length, causal)


def translations(rows: float, length: float, targets: float, causal: bool = True) -> Work:
    """Return ``rows`` translations of ``length`` tokens, ``targets`` of all tokens to be told."""
    pairs = rows * length**2 / (2 if causal else 1)
    return Work(rows * length, rows, pairs, pairs, rows * length, targets)


def forward_flops(shape: Shape, work: Work, lora: Lora | None = None, labels: int = 3) -> float:
    """FLOPs of a forward pass; with ``lora`` beside the weights, or without (merged or none).

    The last layer's feed-forward part and attention run for last tokens only, unless whole rows
    are needed (translation).
    """
    beside = [own.weights for own in shape.adapted(lora)]
    flops = _linear_flops(shape, work, shape.attention + beside[0], shape.feed_forward + beside[1])
    return flops + _attention_flops(shape, work) + _head_flops(shape, work, labels)


def _linear_flops(shape: Shape, work: Work, attention: float, feed_forward: float) -> float:
    """Products with so many weights of a layer's attention and of its feed-forward part."""
    whole = work.tokens if work.targets else work.rows
    linear = shape.layers * attention + (shape.layers - 1) * feed_forward
    return 2.0 * work.tokens * linear + 2.0 * whole * feed_forward


def _attention_flops(shape: Shape, work: Work) -> float:
    """Scores and weighted values of a forward pass."""
    pairs = (shape.layers - 1) * work.attended + work.asked
    return 4.0 * shape.heads * shape.head_dim * pairs


def _head_flops(shape: Shape, work: Work, labels: int) -> float:
    """Label rows at one position of a row, or the whole vocabulary at target tokens (A2)."""
    if work.targets:
        return 2.0 * work.targets * shape.hidden * shape.vocabulary
    return 2.0 * work.rows * shape.hidden * labels


def train_flops(
    shape: Shape, work: Work, lora: Lora, labels: int = 3, checkpointing: bool = False
) -> float:
    """FLOPs of a forward and backward pass with LoRA (the optimizer's are none).

    Backward: every product once for its input's gradient, LoRA's once more for its weights',
    attention twice. Nothing flows into the first layer's input (with LoRA on q, k and v: with
    fewer of them a little less is computed there than is counted). ``checkpointing``: every layer
    but the last is run again up to its last product, and the first one's input gets its gradient,
    which nobody reads.
    """
    beside, fed = shape.adapted(lora)
    forward = forward_flops(shape, work, lora, labels)
    trained = _linear_flops(shape, work, beside.weights, fed.weights)
    backward = forward + trained + _attention_flops(shape, work)
    if not checkpointing:
        qkv = shape.hidden * shape.head_dim * (shape.heads + 2 * shape.kv_heads)
        first = qkv + beside.inputs("q_proj", "k_proj", "v_proj")
        return forward + backward - 2.0 * work.tokens * first
    last = fed.outputs("down_proj") or shape.feed_forward / 3  # the last product
    layer = shape.attention + shape.feed_forward + beside.weights + fed.weights - last
    again = 2.0 * work.tokens * layer + 4.0 * shape.heads * shape.head_dim * work.attended
    return forward + backward + (shape.layers - 1) * again


def layer_bytes(shape: Shape, work: Work, lora: Lora, last: bool = False) -> float:
    """Bytes that autograd keeps of one layer for the backward pass, in bf16 with LoRA.

    Per token: two norms keep their input in fp32; LoRA keeps its own in fp32 for each layer that it
    adapts, and its inner one; attention keeps queries, gathered keys and values, and its result;
    the feed-forward part keeps three vectors (in the last layer of last tokens only). Frozen
    matrices keep nothing. Dropout is left out.
    """
    beside, fed = shape.adapted(lora)
    vectors = FP32 * (2 * shape.hidden + beside.kept) + BF16 * 2 * shape.heads * shape.head_dim
    gathered = work.keys * BF16 * 2 * shape.kv_heads * shape.head_dim
    forward_fed = work.rows if last and not work.targets else work.tokens
    wide = FP32 * fed.kept + BF16 * 3 * shape.intermediate
    return work.tokens * vectors + gathered + forward_fed * wide


def activation_bytes(shape: Shape, work: Work, lora: Lora, checkpointing: bool = False) -> float:
    """Bytes that autograd keeps at most; with checkpointing each layer's input, and one layer."""
    layer = layer_bytes(shape, work, lora)
    if checkpointing:
        return work.tokens * shape.layers * BF16 * shape.hidden + layer
    return (shape.layers - 1) * layer + layer_bytes(shape, work, lora, last=True)


def train_bytes(
    shape: Shape, work: Work, lora: Lora, checkpointing: bool = False, slices: int = 1
) -> float:
    """Bytes of a training process with passes of ``work``, weights in bf16.

    ``slices``: processes that share the decoder layers (``llm.sharding``). Then each holds besides
    its slice the layer that runs, the next one, and the buffer in which that one arrives.
    """
    kept = activation_bytes(shape, work, lora, checkpointing)
    weights = float(shape.weights)
    if slices > 1:
        layer = shape.attention + shape.feed_forward
        weights += layer * (3 + shape.layers / slices - shape.layers)
    return BF16 * weights + ADAM * shape.lora(lora) + kept
