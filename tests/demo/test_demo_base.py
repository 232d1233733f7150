"""The demo's base models: tokenizer, reading questions, initialisation, and the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csrm_tasks.demo.bases.encoder import contrastive_loss, embed, found_share
from csrm_tasks.demo.bases.lessons import lessons, page_row
from csrm_tasks.demo.bases.llm import new_llm
from csrm_tasks.demo.bases.pretrain import BAR, Pretraining, answer_ids, reading_accuracy
from csrm_tasks.demo.bases.questions import CATEGORY, MAKER, READING, WORDS, QuestionSource
from csrm_tasks.demo.bases.text import LOCALES, Library, lexicon_words, make_library
from csrm_tasks.demo.bases.train import base_tokenizer, save
from csrm_tasks.demo.market.generate import demo_world
from csrm_tasks.demo.market.lexicon import load_lexicon
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.label_tokens import label_ids
from csrm_tasks.llm.prompt.prompts import LABEL_SPACES, ProductFields, QueryFields, relevance_prompt
from csrm_tasks.settings import PROJECT_ROOT

SHIPPED = PROJECT_ROOT / "csrm_tasks" / "demo" / "bases" / "shipped"


@pytest.fixture(scope="module")
def libraries() -> list[Library]:
    return [make_library(load_lexicon(), locale, 600, seed=5) for locale in LOCALES]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return base_tokenizer(load_lexicon())


def test_most_words_are_one_token_wherever_they_stand(tokenizer: Any) -> None:
    words = {w for lang in ("ko", "zh") for w in lexicon_words(load_lexicon(), lang)}
    lengths = [len(tokenizer(w)["input_ids"]) for w in words]
    assert np.mean(np.array(lengths) == 1) > 0.8

    inside = tokenizer("[熱銷] HANBIT 韓光燦 辣味湯麵 500g")["input_ids"]
    spaced = tokenizer("[熱銷] hanbit韓光燦  辣味 湯麵500 g")["input_ids"]
    assert inside == spaced


def test_labels_are_single_tokens_and_unknown_text_survives(tokenizer: Any) -> None:
    for space in (*LABEL_SPACES.values(), *READING):
        assert len(label_ids(tokenizer, space)) == len(space.tokens)
    unknown = "龘靐ßŁ🙂"
    decoded = tokenizer.decode(tokenizer(unknown)["input_ids"])
    assert decoded == unknown.lower()


def test_words_questions_are_answered_by_the_text(libraries: list[Library]) -> None:
    """Slow reference: look every word of a spaced query up in the listing's words."""
    for library in libraries:
        reader = QuestionSource(library, seed=1, plain=True)
        seen = set()
        for _ in range(300):
            page = reader.page(WORDS, 2)
            for product, answer in zip(page.products, page.answers, strict=True):
                words = page.query.query.split()
                if library.lang == "zh" and len(words) == 1:
                    continue  # words may be written as one
                held = [w in product.title.lower() for w in words]
                seen.add(answer)
                assert (answer == 2) <= all(held)
                assert (answer == 0) <= (not any(held))
        assert seen == {0, 1, 2}


def test_category_and_maker_questions_agree_with_the_listings_own_fields(
    libraries: list[Library],
) -> None:
    for library in libraries:
        reader = QuestionSource(library, seed=2)
        categories = {p.title: p.category for p in library.listings}
        answers: dict[str, set[int]] = {}
        for _ in range(200):
            page = reader.page(CATEGORY, 4)
            for product, answer in zip(page.products, page.answers, strict=True):
                answers.setdefault(categories[product.title], set()).add(answer)
            of_pages = {
                categories[p.title] for p, a in zip(page.products, page.answers, strict=True) if a
            }
            assert len(of_pages) <= 1  # all that belong are of one category
        assert any(found == {0, 1} for found in answers.values())
        brands = reader.page(MAKER, 6)
        assert set(brands.answers) <= {0, 1}


def test_a_row_has_its_answers_behind_its_slots(libraries: list[Library], tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, 512)
    page = QuestionSource(libraries[0], seed=3).page(WORDS, 3)
    row = page_row(encoder, page)
    tokens = [tokenizer.convert_tokens_to_ids(page.space.tokens[a]) for a in page.answers]
    assert row.answers.tolist() == tokens == row.ids[row.slots + 1].tolist()
    first = relevance_prompt(page.space, page.query, page.products[0])
    assert row.ids[: row.slots[0] + 1].tolist() == tokenizer(first)["input_ids"]


def test_a_fresh_model_attends_to_like_tokens(tokenizer: Any) -> None:
    causal = new_llm(tokenizer, torch.randn(len(tokenizer), 128), seed=0)
    for number, layer in enumerate(causal.model.layers):
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        sharp = slice(64, 128)
        if number:
            assert torch.equal(query[sharp], key[sharp])
        scores = (query.double().T @ key.double()).diagonal()
        assert bool((scores > 0).all())


def test_the_first_lesson_is_learnt_in_seconds(libraries: list[Library], tokenizer: Any) -> None:
    """The initialisation's point: with a usual one this takes hundreds of steps; chance is .5."""
    torch.manual_seed(0)
    causal = new_llm(tokenizer, torch.randn(len(tokenizer), 128), seed=0)
    training = Pretraining(causal, tokenizer, libraries, seed=0)
    for step in range(1, 81):
        training.step(step, min(1.0, step / 30))
    assert float(np.mean(training._right)) > 0.6


def test_lessons_get_harder_and_each_page_has_a_query(libraries: list[Library]) -> None:
    names = [lesson.name for lesson in lessons(libraries, seed=0)]
    assert names == ["word", "words", "titles", "listings"]
    for lesson in lessons(libraries, seed=0):
        page = lesson.page()
        assert page.query.query and len(page.products) == len(page.answers) > 0


def test_contrastive_loss_equals_a_loop() -> None:
    torch.manual_seed(0)
    left, right = (torch.nn.functional.normalize(torch.randn(5, 3), dim=-1) for _ in range(2))
    total = 0.0
    for i in range(5):
        for a, b in ((left, right), (right, left)):
            scores = torch.stack([a[i] @ b[j] / 0.1 for j in range(5)])
            total -= float(torch.log_softmax(scores, 0)[i])
    assert float(contrastive_loss(left, right, 0.1)) == pytest.approx(total / 10, abs=1e-6)


def test_a_saved_model_is_loaded_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    causal = new_llm(tokenizer, torch.randn(len(tokenizer), 128), seed=0)
    save(causal, tokenizer, tmp_path / "llm")
    model = load_base(str(tmp_path / "llm"))
    assert torch.equal(model.causal.lm_head.weight, causal.lm_head.weight.float())
    prompt = relevance_prompt(READING[0], QueryFields("湯麵"), ProductFields("辣味湯麵", "HANBIT"))
    assert model.tokenizer(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]


def test_the_shipped_models_pass_their_bar_on_the_demo_market() -> None:
    """On listings of the demo's own world, which neither model has seen."""
    world = demo_world(1500, seed=0)
    market = [Library(world.lexicon, world.catalogue(locale)) for locale in LOCALES]
    model = load_base(str(SHIPPED / "llm"))
    encoder = PromptEncoder(model.tokenizer, 512)
    found = reading_accuracy(model.causal, encoder, market, questions=150)
    assert min(found.values()) >= BAR - 0.03  # 450 questions: a standard error of 1.7 points
    assert len(answer_ids(model.tokenizer)) == 5
    quality = json.loads((SHIPPED / "quality.json").read_text(encoding="utf-8"))
    assert min(quality["reading_accuracy"].values()) >= BAR

    from transformers import AutoModel, AutoTokenizer

    shipped = AutoModel.from_pretrained(
        SHIPPED / "encoder", dtype=torch.float32, add_pooling_layer=False
    )
    words = AutoTokenizer.from_pretrained(SHIPPED / "encoder")
    assert embed(shipped, words, ["湯麵", "국물라면"]).shape == (2, 128)
    assert min(found_share(shipped, words, library, rounds=2) for library in market) >= BAR


def test_the_shipped_models_are_small_and_safe() -> None:
    files = [p for p in SHIPPED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 10_000_000
    assert {p.suffix for p in files} <= {".json", ".safetensors"}
