"""A mixture step of the LLM, as the product takes it and as it is usual with transformers and peft.

For :mod:`benchmarks.bench_base_trim`: texts of a generated market, and a step of relevance,
conversion and translation samples over them: forward, backward, clipping and AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.bench_tower_train import CLIP
from csrm_tasks.bases.texts import PRODUCT, TRANSLATION, MarketTexts
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.queries import make_queries
from csrm_tasks.demo.market.translations import make_translations
from csrm_tasks.llm.network.head import (
    label_logits,
    run_trunk,
    soft_cross_entropy,
    translation_loss,
)
from csrm_tasks.llm.network.model import Model, add_lora, load_base
from csrm_tasks.llm.network.packed import pack, run_packed
from csrm_tasks.llm.prompt.batching import pad
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import (
    LABEL_SPACES,
    ProductFields,
    QueryFields,
    translation_segments,
)
from csrm_tasks.sections import Lora

SIBLINGS, IGNORED = 4, -100
LORA = Lora(r=32, alpha=64, dropout=0.0)
Step = Callable[[], object]


class Samples:
    """Texts of a generated market, and the samples of one mixture step."""

    def __init__(self, count: int, labels: Mapping[str, int], asked: int) -> None:
        """Make ``count`` products; ``labels`` samples by task, ``asked`` translations."""
        world = demo_world(count, 0)
        both = (world.source, world.target)
        products = [
            (c.locale, p.title, p.brand, p.category, p.description)
            for c in both
            for p in c.products
        ]
        queries = [
            (c.locale, q.text) for c in both for q in make_queries(world, c.locale, 400).queries
        ]
        translations = make_translations(world)
        self.market = MarketTexts(
            _frame(products, PRODUCT), _frame(queries, ("locale", "query")),
            _frame(translations, TRANSLATION), [],
        )  # fmt: skip
        self.labels: dict[str, list[tuple[QueryFields, ProductFields]]] = {}
        titles = iter(range(0, len(products), 7))
        for name, wanted in labels.items():
            fields = [ProductFields(*products[next(titles)][1:]) for _ in range(wanted)]
            heads = [
                QueryFields(queries[i][1], fields[i].brand, (fields[i].title, fields[i - 1].title))
                for i in range(0, wanted, SIBLINGS)
            ]
            self.labels[name] = [(heads[i // SIBLINGS], field) for i, field in enumerate(fields)]
        some = [t for t in translations if t.kind == "title"]
        self.translations = some[:asked]
        self.locales = (world.source.locale, world.target.locale)

    def prompts(self, tokenizer: Any) -> dict[str, list[tuple[Ids, Ids]]]:
        """Return what comes before and what is asked, of every label task and of translation."""
        encoder = PromptEncoder(tokenizer, 1024)
        found = {
            name: [encoder.parts(LABEL_SPACES[name], q, p) for q, p in pairs]
            for name, pairs in self.labels.items()
        }
        end = np.asarray([tokenizer.eos_token_id], np.int32)
        found["mt"] = [
            (encoder.join(translation_segments(t.kind, *self.locales, t.source_text)),
             np.concatenate([encoder.segment(t.target_text), end]))
            for t in self.translations
        ]  # fmt: skip
        return found


def _frame(rows: Any, columns: tuple[str, ...]) -> pl.DataFrame:
    schema: dict[str, Any] = dict.fromkeys(columns, pl.String)
    found = pl.DataFrame([tuple(row) for row in rows], schema, orient="row")
    return found.unique().sort(columns)


def update(parameters: list[Any], optimizer: Any) -> None:
    """Clip, step, and drop the gradients."""
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def our_step(folder: Path, samples: Samples, dtype: torch.dtype | None = None) -> Step:
    """Return one optimizer step as the product takes it."""
    model = load_base(str(folder), dtype=dtype)
    add_lora(model, LORA, seed=0)
    prompts = samples.prompts(model.tokenizer)
    trained = [p for p in model.causal.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    model.causal.train()

    def step() -> None:
        for name in samples.labels:
            _label_loss(model, name, prompts[name]).backward()
        _translation_loss(model, prompts["mt"]).backward()
        update(trained, optimizer)

    return step


def _label_loss(model: Model, name: str, parts: list[tuple[Ids, Ids]]) -> Any:
    labels = model.labels[name]
    target = torch.eye(len(labels))[torch.arange(len(parts)) % len(labels)]
    hidden = run_packed(model.causal, pack(parts, model.device))
    return soft_cross_entropy(label_logits(model.causal, hidden, labels), target)


def _translation_loss(model: Model, parts: list[tuple[Ids, Ids]]) -> Any:
    ids, lengths = pad([np.concatenate(both) for both in parts], model.device)
    start = torch.tensor([len(before) for before, _ in parts])
    return translation_loss(model.causal, run_trunk(model.causal, ids), ids, start, lengths)


def peer_step(folder: Path, samples: Samples, dtype: torch.dtype | None = None) -> Step:
    """Return one optimizer step in the usual way; ``dtype``: other than that of the files."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = {} if dtype is None else {"dtype": dtype}
    causal = AutoModelForCausalLM.from_pretrained(folder, **given)
    config = LoraConfig(
        r=LORA.r, lora_alpha=LORA.alpha, target_modules=list(LORA.targets), task_type="CAUSAL_LM"
    )
    model = get_peft_model(causal, config).train()
    batches = [
        _padded(name, parts, tokenizer) for name, parts in samples.prompts(tokenizer).items()
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def step() -> None:
        for batch in batches:
            model(**batch).loss.backward()
        update(trained, optimizer)

    return step


def _padded(name: str, parts: list[tuple[Ids, Ids]], tokenizer: Any) -> dict[str, Any]:
    """Return padded rows; a label's token stands behind its prompt, which is ignored."""
    rows, told = [], []
    for i, (before, rest) in enumerate(parts):
        if name == "mt":
            asked, answer = before, rest
        else:
            space = LABEL_SPACES[name]
            asked = np.concatenate([before, rest])
            word = space.tokens[i % len(space.tokens)]
            answer = np.asarray(tokenizer(word, add_special_tokens=False)["input_ids"][-1:])
        rows.append(np.concatenate([asked, answer]))
        told.append(np.concatenate([np.full(len(asked), IGNORED), answer]))
    longest = max(map(len, rows))
    ids = np.stack([np.pad(r, (0, longest - len(r))) for r in rows])
    labels = np.stack([np.pad(t, (0, longest - len(t)), constant_values=IGNORED) for t in told])
    mask = np.stack([np.arange(longest) < len(r) for r in rows])
    return {
        "input_ids": torch.from_numpy(ids).long(), "labels": torch.from_numpy(labels).long(),
        "attention_mask": torch.from_numpy(mask).long(),
    }  # fmt: skip
