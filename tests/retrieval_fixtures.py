"""Tiny encoders and a small bilingual snapshot for the tests of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from csrm_tasks import records
from csrm_tasks.text import normalise, pair_id, query_id

KINDS = {
    "ko-KR": ("커피", "라면", "신발", "모자", "우유", "가방", "의자", "책상"),
    "zh-TW": ("咖啡", "湯麵", "鞋子", "帽子", "牛奶", "背包", "椅子", "書桌"),
}
BRANDS = ("nongshim", "ottogi", "acme", "zeta")


def tiny_encoder(folder: Path, texts: Sequence[str]) -> Path:
    """Save a random XLM-R of a few thousand weights and a BPE tokenizer trained on ``texts``."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>",
    )  # fmt: skip
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=80, pad_token_id=1,
    )  # fmt: skip
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def products() -> pl.DataFrame:
    """32 products a locale: every brand sells every kind."""
    rows = [
        (f"{locale[:2]}{i:02d}", locale, f"{brand.title()} {kind} {100 + i}g", brand, kind, "")
        for locale, kinds in KINDS.items()
        for i, (brand, kind) in enumerate((b, k) for b in BRANDS for k in kinds)
    ]
    return pl.DataFrame(rows, records.PRODUCTS, orient="row")


def queries() -> pl.DataFrame:
    """Kinds, and brand with kind: 40 queries a locale."""
    rows = []
    for locale, kinds in KINDS.items():
        for text in [*kinds, *(f"{b} {k}" for b in BRANDS for k in kinds)]:
            norm = normalise(text)
            rows.append((query_id(locale, text), locale, text, norm, "", "label", 1))
    return pl.DataFrame(rows, records.QUERIES, orient="row")


def pairs() -> pl.DataFrame:
    """Every query with every product of its locale whose kind or brand it names; 2, 1 or 0."""
    goods = products().to_dicts()
    rows = []
    for n, query in enumerate(queries().to_dicts()):
        for product in goods:
            kind = product["category"] in query["norm"]
            brand = product["brand"] in query["norm"]
            if product["locale"] != query["locale"] or not (kind or brand):
                continue
            exact = kind and (brand or " " not in query["norm"])
            grade = 2 if exact else 1 if kind else 0
            ids = (query["query_id"], product["product_id"])
            split = "dev" if n % 4 == 0 else "train"
            rows.append((pair_id(*ids), *ids, query["locale"], grade, split, 1, 1))
    return pl.DataFrame(rows, records.PAIRS, orient="row")


def scored() -> pl.DataFrame:
    """Every pair with a CVR as a good ranker would say it."""
    cvr = {2: 0.9, 1: 0.2, 0: 0.02}
    frame = pairs().with_columns(p1=pl.col("grade").cast(pl.Int64).replace_strict(cvr))
    frame = frame.with_columns(p0=1 - pl.col("p1"), p2=pl.lit(0.0))
    return frame.select([pl.col(c).cast(t) for c, t in records.SCORED.items()])


def behaviour() -> pl.DataFrame:
    """The first 40 substitutes were seen; every other one was clicked, too."""
    frame = pairs().filter(pl.col("grade") == 1).head(40).with_row_index("n")
    clicks = 3 * (pl.col("n") % 2 == 0).cast(pl.Int64)
    zero = pl.lit(0)
    frame = frame.with_columns(
        impressions=pl.lit(9), clicks=clicks, carts=zero, purchases=zero, weight=pl.lit(0.95)
    )
    return frame.select([pl.col(c).cast(t) for c, t in records.BEHAVIOUR.items()])


def write_snapshot(folder: Path) -> None:
    """Write the tables that retrieval reads."""
    tables = {
        "products": products(), "queries": queries(), "pairs": pairs(), "behaviour": behaviour()
    }  # fmt: skip
    for name, frame in tables.items():
        schema: records.Schema = getattr(records, name.upper())
        records.write_table(frame, schema, folder / f"{name}.parquet")
