"""Tiny stand-ins of the two real bases, of the same architectures, and a market's store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
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
from tokenizers import processors as post
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
)

from csrm_tasks.bases.vocabulary import BYTES
from csrm_tasks.llm.prompt.prompts import TEMPLATE_PIECES
from csrm_tasks.settings import Settings
from tests.data_fixtures import DAY0, KO, ZH, ingest, label, land_lines, market, product
from tests.llm_fixtures import WORDS, save_random

# What a base has read that the market has not: most of a real base's vocabulary.
ELSEWHERE = (
    "поиск товаров магазин чайник красный", "βραστήρας κόκκινος κατάστημα", "कच्चा लाल केतली",
    "ตลาดกาน้ำสีแดง", "kettle bouilloire rouge wasserkocher rot", "سوق غلاية حمراء",
    "하늘 바다 나무 사람", "天空 海洋 樹木 人民 電腦 冰箱",
)  # fmt: skip
TITLES = {
    KO: ("농심 라면 순한맛 5개입", "서울 우유 멸균 1000ml", "기저귀 대형 2~3팩"),
    ZH: ("農心拉麵 辣味 5入", "光泉牛奶 保久乳 1000ml", "幫寶適尿布 大號 2～3包"),
}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def store_of_titles(settings: Settings) -> None:
    """Take one day in: titles of both locales, a query with a grade, translations."""
    for locale, titles in TITLES.items():
        rows = [product(i, t, t.split()[0], "식품" if locale == KO else "食品")
                for i, t in enumerate(titles)]  # fmt: skip
        land_lines(settings, DAY0, f"{locale}/catalogue.jsonl", rows)
    land_lines(settings, DAY0, f"{KO}/labels.jsonl", [label(1, "매운 라면", "p0", 2)])
    pairs = zip(*TITLES.values(), strict=True)
    rows = [{"kind": "title", "source_text": a, "target_text": b} for a, b in pairs]
    land_lines(settings, DAY0, f"{ZH}/translations.jsonl", rows)
    ingest(settings, DAY0, market())


def gemma_tokenizer(size: int = 900) -> PreTrainedTokenizerFast:
    """BPE over whole texts with ▁ for spaces and bytes for what is unknown, as Gemma's is."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(BYTES), special_tokens=[*SPECIAL, "<unused0>"], show_progress=False
    )
    texts = [*TEMPLATE_PIECES, *WORDS, *ELSEWHERE, *(t for some in TITLES.values() for t in some)]
    trained.train_from_iterator([*texts, *(f"{p}x" for p in TEMPLATE_PIECES)] * 4, trainer)
    spec = json.loads(trained.to_str())
    letters = list("0123456789abcdefghijklmnopqrstuvwxyz가나天地")
    for token in (*BYTES, *letters):
        spec["model"]["vocab"].setdefault(token, len(spec["model"]["vocab"]))
    spec["model"]["byte_fallback"] = True
    inner = Tokenizer.from_str(json.dumps(spec))
    inner.add_tokens([AddedToken("<table>", normalized=False)])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.post_processor = post.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B",
        special_tokens=[("<bos>", SPECIAL.index("<bos>"))],
    )  # fmt: skip
    pad, eos, bos, unk, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, eos_token=eos, bos_token=bos, unk_token=unk,
        mask_token=mask, model_max_length=256,
    )  # fmt: skip


def tiny_gemma(folder: Path, **changed: Any) -> Path:
    """Write a random Gemma 3 of three layers: sliding windows, q-k norm, a tied table."""
    tokenizer = gemma_tokenizer()
    config = Gemma3TextConfig(
        **{
            "vocab_size": len(tokenizer) + 7,  # rows that no token has, as real tables have
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "query_pre_attn_scalar": 16, "sliding_window": 256, "max_position_embeddings": 512,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        } | changed
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return save_random(Gemma3ForCausalLM, config, folder)


def e5_tokenizer(size: int = 400) -> PreTrainedTokenizerFast:
    """Unigram with scores, words with a leading ▁, and a normaliser of its own, as e5's is."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    texts = [
        *WORDS,
        *ELSEWHERE,
        "query: passage: | a",
        *(t for some in TITLES.values() for t in some),
    ]
    inner.train_from_iterator(texts * 4, trainer)
    inner.post_processor = post.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=64,
    )  # fmt: skip


def tiny_e5(folder: Path) -> Path:
    """Write a random BertModel of two layers."""
    tokenizer = e5_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def write_gguf(path: Path, folder: Path) -> None:
    """Write a tiny Gemma 3 as GGUF: matrices in blocks of 8 bits, norms and table in fp32."""
    gguf: Any = pytest.importorskip("gguf", reason="the extra bases is not installed")
    causal = AutoModelForCausalLM.from_pretrained(folder)
    config, names = causal.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 3)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(config.sliding_window)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    rows = [*tokens, *(f"<row{i}>" for i in range(config.vocab_size - len(tokens)))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(rows)
    writer.add_token_scores([-float(i) for i in range(len(rows))])
    writer.add_token_types([3 if t in ("<pad>", "<eos>", "<bos>", "<unk>") else 1 for t in rows])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    for name, tensor in causal.state_dict().items():
        if name != "lm_head.weight":
            short = names.get_name(name, try_suffixes=(".weight",))
            values = tensor.numpy() + (1.0 if "norm" in name else 0.0)
            if values.ndim == 2 and "embed" not in name:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(short, gguf.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(short, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
