"""The tokenizer of the demo's base models: byte-level BPE in which a word is mostly one token.

Merges are learned inside words only, so that a Chinese title without spaces still falls apart
into its words, and a word has the same tokens wherever it stands: white space is dropped, case is
folded. What it has never seen falls back to bytes. Dropped spaces make decoding lossy; nothing
here generates Korean.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from csrm_tasks.demo.bases.questions import READING
from csrm_tasks.llm.prompt.prompts import LABEL_SPACES, NONE, TEMPLATE_PIECES

PAD, END, MASK = "<pad>", "<eos>", "<mask>"
ALWAYS_WHOLE = 1000  # repeats of a template word, so that its merges come first
# A run of one script, or a number; anything else is a character by itself.
PIECES = r"\p{Han}+|\p{Hangul}+|\p{Latin}+|\p{N}{1,4}|[^\p{Han}\p{Hangul}\p{Latin}\p{N}\s]"


def train_tokenizer(words: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Learn at most ``size`` tokens from ``words`` (repeated as often as they weigh)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    headers = [AddedToken(p, normalized=False) for p in TEMPLATE_PIECES if p.startswith("\n")]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(headers),
        min_frequency=2,
        special_tokens=[PAD, END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    labels = [token for space in LABEL_SPACES.values() for token in space.tokens]
    instructions = [space.instruction for space in (*LABEL_SPACES.values(), *READING)]
    fixed = [*labels, *instructions, NONE] * ALWAYS_WHOLE
    tokenizer.train_from_iterator([*fixed, *words], trainer)
    tokenizer.add_tokens(headers)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        mask_token=MASK,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
