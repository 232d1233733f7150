"""Any sequence-to-sequence model of Hugging Face as a translator: Marian, T5, M2M, NLLB, mBART."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csrm_tasks.artifacts import json_digest
from csrm_tasks.base_models import base_digest, pretrained
from csrm_tasks.curation.translation.translators import cleaned, readable
from csrm_tasks.errors import ConfigError
from csrm_tasks.sections import Augmentation

VERSION = "1"  # of how texts are given and read, part of the identity
BATCH = 32
GROWTH, MORE = 2, 16  # a translation has at most so many times the tokens of its text, and more


def identity(config: Augmentation, name: str) -> str:
    """Return what the translations by model ``name`` depend on, without loading it."""
    how = [config.codes, config.prefix, config.beams, VERSION]
    return f"seq2seq:{name}:{json_digest([base_digest(name), *how])[:16]}"


class Seq2SeqTranslator:
    """Translates by beam search of the model's own."""

    def __init__(self, config: Augmentation, name: str) -> None:
        """Load model ``name`` from safetensors; raises :class:`ConfigError` where it cannot be."""
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        from csrm_tasks.training.precision import choose_device

        self._config, self._name, self._device = config, name, choose_device()
        source: dict[str, Any] = dict(pretrained(name))
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForSeq2SeqLM.from_pretrained(
                **source, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as e:
            reason = str(e).strip().split("\n")[0]
            raise ConfigError(
                f"llm.augmentation: the sequence-to-sequence model {name!r} cannot be loaded: "
                f"{reason}"
            ) from e
        self._model: Any = model.eval().to(self._device)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[tuple[str, ...]]:
        """Return the beams of each text, best first."""
        codes = {place: self._code(locale) for place, locale in (("source", source),
                                                                 ("target", target))}  # fmt: skip
        forced = self._told_languages(codes)
        bare = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        known = readable(bare, self._tokenizer.unk_token_id, self._name, source)
        found: list[tuple[str, ...]] = [()] * len(texts)
        asked = sorted((i for i in range(len(texts)) if known[i]), key=lambda i: len(bare[i]))
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            most = GROWTH * len(bare[batch[-1]]) + MORE
            prefixed = [self._config.prefix.format(**codes) + texts[i] for i in batch]
            for at, answer in zip(batch, self._answers(prefixed, most, forced), strict=True):
                found[at] = answer
        return found

    def _answers(
        self, texts: Sequence[str], most: int, forced: Mapping[str, int]
    ) -> list[tuple[str, ...]]:
        import torch

        given = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        beams = self._config.beams
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=given["input_ids"].to(self._device),
                attention_mask=given["attention_mask"].to(self._device),
                num_beams=beams, num_return_sequences=beams, do_sample=False,
                max_new_tokens=most, **forced,
            )  # fmt: skip
        said = self._tokenizer.batch_decode(out, skip_special_tokens=True)
        return [cleaned(said[i : i + beams]) for i in range(0, len(said), beams)]

    def _code(self, locale: str) -> str:
        return self._config.codes.get(locale, locale.partition("-")[0])

    def _told_languages(self, codes: Mapping[str, str]) -> dict[str, int]:
        """Set the source language, and return how generation is told the target.

        A model that is told languages by tokens has a tokenizer with ``src_lang``; others are told
        by ``prefix``, or know one direction only. Raises :class:`ConfigError` for a code that is
        none of its tokens.
        """
        if not hasattr(type(self._tokenizer), "src_lang"):
            return {}
        ids = {place: self._token_of(code) for place, code in codes.items()}
        self._tokenizer.src_lang = codes["source"]
        return {"forced_bos_token_id": ids["target"]}

    def _token_of(self, code: str) -> int:
        vocabulary = self._tokenizer.get_vocab()
        for token in (code, f"__{code}__"):  # as NLLB and mBART write it, as M2M does
            if token in vocabulary:
                return int(vocabulary[token])
        raise ConfigError(
            f"llm.augmentation: {self._name!r} knows no language {code!r}; give its name of the "
            "locale in llm.augmentation.codes, as in zh-TW: zho_Hant"
        )
