"""A toy target market of 12 product types, a tiny random encoder, and towers over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from csrm_tasks import records
from csrm_tasks.text import pair_id, query_id
from csrm_tasks.towers.examples import Examples, soft_examples
from csrm_tasks.towers.model import load_tokenizer
from csrm_tasks.towers.serving.tokens import TowerTokenizer

TYPES = (
    "茶壺",
    "雨傘",
    "背包",
    "拖鞋",
    "毛巾",
    "檯燈",
    "餐盤",
    "枕頭",
    "風扇",
    "手套",
    "書桌",
    "水瓶",
)
COLOURS = ("紅色", "藍色", "綠色", "白色")
TARGET, SOURCE = "zh-TW", "ko-KR"


def make_encoder(folder: Path, layers: int = 2, dim: int = 32) -> Path:
    """Write a random XLM-R-shaped encoder and a BPE tokenizer trained on the toy titles."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(
        [f"{c} {t} 品牌" for c in COLOURS for t in TYPES],
        trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False),
    )
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=core.get_vocab_size(), hidden_size=dim, num_hidden_layers=layers,
        num_attention_heads=2, intermediate_size=2 * dim, max_position_embeddings=66,
        type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def grade(query: str, title: str) -> int:
    """Exact: every word of the query stands in the title; substitute: the type alone does."""
    words = query.split()
    return 2 if all(w in title for w in words) else int(words[-1] in title)


def snapshot_tables(seed: int = 0) -> dict[str, pl.DataFrame]:
    """All tables of a snapshot: 96 titles, 60 queries, judged pairs in train, dev and gold."""
    rng = np.random.default_rng(seed)
    titles = [f"{c} {t} 品牌{i}" for i in range(2) for c in COLOURS for t in TYPES]
    products = [(f"p{i}", TARGET, t, "", "", "") for i, t in enumerate(titles)]
    asked = [*TYPES, *(f"{c} {t}" for c in COLOURS for t in TYPES)]
    queries, pairs, behaviour = [], [], []
    for n, text in enumerate(asked):
        q = query_id(TARGET, text)
        split = ("dev", "gold", "train", "train", "train")[n % 5]
        queries.append((q, TARGET, text, text, "", "label", int(rng.integers(0, 50))))
        near = [i for i, t in enumerate(titles) if text.split()[-1] in t]
        for i in sorted({*near, *rng.choice(len(titles), 6).tolist()}):
            p = f"p{i}"
            pairs.append((pair_id(q, p), q, p, TARGET, grade(text, titles[i]), split, 9, 9))
            behaviour.append((q, p, TARGET, int(rng.integers(0, 9)), 1, 0, 0, 0.5))
    frames = {
        "products": (products, records.PRODUCTS),
        "queries": (queries, records.QUERIES),
        "pairs": (pairs, records.PAIRS),
        "behaviour": (behaviour, records.BEHAVIOUR),
    }
    return {k: pl.DataFrame(rows, schema, orient="row") for k, (rows, schema) in frames.items()}


def oracle(pairs: pl.DataFrame, tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Score pairs as a perfect teacher would, smoothed by 5 %."""
    norm = dict(tables["queries"].select("query_id", "norm").iter_rows())
    title = dict(tables["products"].select("product_id", "title").iter_rows())
    truth = [grade(norm[q], title[p]) for q, p in pairs.select("query_id", "product_id").rows()]
    probabilities = np.full((len(truth), 3), 0.05)
    probabilities[np.arange(len(truth)), truth] = 0.9
    soft: dict[str, Any] = {f"p{k}": probabilities[:, k].astype(np.float32) for k in range(3)}
    return pairs.select("query_id", "product_id", "locale").with_columns(**{
        k: pl.Series(v) for k, v in soft.items()
    })  # fmt: skip


def oracle_examples(tables: dict[str, pl.DataFrame]) -> Examples:
    """Return what towers learn of the oracle's word on every pair of ``tables``."""
    queries, products, pairs = (tables[name] for name in ("queries", "products", "pairs"))
    return soft_examples(oracle(pairs, tables), queries, products, pairs)


def reader_of(base: Path, query_tokens: int, title_tokens: int, **prefixes: str) -> TowerTokenizer:
    """Return a reader with the tokenizer of an encoder of :func:`make_encoder`."""
    definition = load_tokenizer(str(base)).backend_tokenizer.to_str()
    return TowerTokenizer(definition, query_tokens, title_tokens, 1, **prefixes)
