"""A random tiny Llama with its own byte-level BPE, and a small snapshot to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from csrm_tasks.llm.prompt.prompts import TEMPLATE_PIECES
from csrm_tasks.llm.training.finetune import Finetuned
from csrm_tasks.llm.training.inputs import FinetuneInputs
from csrm_tasks.llm.training.launch import run_training
from csrm_tasks.llm.training.pretrain import PretrainInputs
from csrm_tasks.markets import MarketConfig
from csrm_tasks.records import (
    CONVERSIONS,
    PAIRS,
    PRODUCTS,
    QUERIES,
    RQA,
    TRANSLATIONS,
    VOTES,
    write_table,
)

WORDS = (
    "라면",
    "순한맛",
    "우유",
    "멸균",
    "기저귀",
    "拉麵",
    "牛奶",
    "尿布",
    "保久",
    "辣味",
    "soup",
    "milk",
)
SOURCE, TARGET = "ko-KR", "zh-TW"


def make_tokenizer(folder: Path, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the template and a few words; digits and label words stay whole."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*TEMPLATE_PIECES, *WORDS, "soup", "milk"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def make_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a random Llama and its tokenizer to ``folder``."""
    tokenizer = make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return save_random(LlamaForCausalLM, config, folder, seed)


def save_random(kind: Any, config: PretrainedConfig, folder: Path, seed: int = 0) -> Path:
    """Write a model of random weights to ``folder``."""
    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():  # larger than usual, so that prompts really differ
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(0.0, 0.15)
    model.save_pretrained(str(folder))
    return folder


def make_market(base: Path, **llm: Any) -> MarketConfig:
    """A market whose LLM section is small and quick."""
    section: dict[str, Any] = {
        "base": str(base), "lora": {"r": 4, "alpha": 8, "dropout": 0.05}, "lr": 1e-2, "batch": 16,
        "steps": 12, "evaluate_every": 4, "patience": 10, "max_length": 96,
        "must_learn": False,  # a dozen steps are to be quick
    }  # fmt: skip
    return MarketConfig.model_validate({
        "market": "tiny", "source_locale": SOURCE, "target_locale": TARGET,
        "llm": section | llm,
        "retrieval": {"ebr": {"encoder": "./none"}}, "towers": {"encoder": "./none"},
    })  # fmt: skip


def make_snapshot(
    folder: Path, *, target_labels: bool = False, n: int = 48, raters: int = 1
) -> Path:
    """Write a snapshot whose grade is the number of words that query and title share.

    So say all the ``raters`` of a pair.
    """
    kinds = {SOURCE: WORDS[:5], TARGET: WORDS[5:10]}
    queries, products, pairs, conversions = [], [], [], []
    for locale, words in kinds.items():
        for i in range(n):
            a, b = words[i % 5], words[(i // 5 + i) % 5]
            qid, pid = f"q{locale}{i % 12}", f"p{i}"
            queries.append((qid, locale, f"{words[i % 12 % 5]} {words[(i % 12) // 3]}"))
            products.append((pid, locale, f"{a} {b}"))
            query = set(queries[-1][2].split())
            grade = len(query & {a, b})
            split = "dev" if i % 12 in (0, 7) else "gold" if i % 12 == 3 else "train"
            if locale == SOURCE or target_labels:
                pairs.append((f"{qid}/{pid}", qid, pid, locale, grade, split, 1, 1))
            if locale == SOURCE:
                conversions.append((qid, pid, locale, int(grade == 2)))
    translations = [
        (kind, s, t, "train", SOURCE, TARGET)
        for kind in ("category", "brand", "title", "query")
        for s, t in zip(kinds[SOURCE], kinds[TARGET], strict=True)
    ]
    q = pl.DataFrame(queries, ["query_id", "locale", "query"], orient="row").unique("query_id")
    write_table(
        q.sort("query_id").with_columns(
            norm=pl.col("query"), brand=pl.lit(""), origin=pl.lit("label"), impressions=pl.lit(1)
        ),
        QUERIES, folder / "queries.parquet",
    )  # fmt: skip
    p = pl.DataFrame(products, ["product_id", "locale", "title"], orient="row")
    write_table(
        p.with_columns(
            brand=pl.lit("milk"), category=pl.lit("soup > milk"), description=pl.lit("")
        ),
        PRODUCTS, folder / "products.parquet",
    )  # fmt: skip
    votes = [(p[0], p[3], f"r{r}", p[4]) for p in pairs if p[5] != "gold" for r in range(raters)]
    for rows, schema, name in (
        (pairs, PAIRS, "pairs"),
        (votes, VOTES, "votes"),
        (conversions, CONVERSIONS, "conversions"),
        (translations, TRANSLATIONS, "translations"),
    ):
        frame = pl.DataFrame(rows, list(schema), orient="row")
        write_table(frame, schema, folder / f"{name}.parquet")
    return folder


def make_rqa(folder: Path, snapshot: Path) -> Path:
    """Write retrieved titles for every query: the first two products of its locale."""
    queries = pl.read_parquet(snapshot / "queries.parquet")
    products = pl.read_parquet(snapshot / "products.parquet")
    rows = []
    for query_id, locale in queries.select("query_id", "locale").iter_rows():
        top = products.filter(pl.col("locale") == locale).head(2)
        rows.append((query_id, top["title"].to_list(), top["product_id"].to_list(), [1.0, 0.5]))
    frame = pl.DataFrame(rows, list(RQA), orient="row")
    write_table(frame, RQA, folder / "rqa.parquet")
    return folder


def make_given(folder: Path) -> FinetuneInputs:
    """Write a snapshot and its retrieved titles below ``folder``: what a training is given."""
    snapshot = make_snapshot(folder / "snapshot")
    return FinetuneInputs(snapshot, make_rqa(folder / "rqa", snapshot), None, "plain", 0)


def run_as(
    name: str,
    market: MarketConfig,
    given: FinetuneInputs | PretrainInputs,
    folder: Path,
    **llm: Any,
) -> Finetuned:
    """Train into ``out-{name}`` below ``folder``, with the LLM section changed by ``llm``."""
    (folder / f"out-{name}").mkdir(exist_ok=True)
    market = market.model_copy(update={"llm": market.llm.model_copy(update=llm)})
    return run_training(market, given, folder / f"out-{name}", folder / f"work-{name}")
