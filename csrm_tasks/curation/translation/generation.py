"""The relevance LLM as a translator: it has learnt the translation task beside relevance (A7)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from csrm_tasks.curation.translation.translators import cleaned, readable
from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.network.beam import written
from csrm_tasks.llm.network.model import Model
from csrm_tasks.llm.prompt.encoding import Ids, PromptEncoder
from csrm_tasks.llm.prompt.prompts import translation_segments
from csrm_tasks.llm.scoring.scoring import RelevanceScorer

VERSION = "1"  # of what is written by a model, part of a translator's identity
ROWS = 64  # beams of a batch, over all its texts
GROWTH, MORE = 2, 16  # a translation has at most so many times the tokens of its text, and more


class LlmTranslator:
    """Writes translations as the translation task's prompts end."""

    def __init__(self, model: Model, encoder: PromptEncoder, beams: int) -> None:
        """Raises :class:`ConfigError` for a tokenizer without an end of text."""
        if not len(encoder.stop):
            raise ConfigError(
                f"llm.base {model.base!r} has no end-of-text token: it never learns where a "
                "translation ends; choose another llm.augmentation.translator"
            )
        self._model, self._encoder, self._beams = model, encoder, beams
        self._unknown: int | None = model.tokenizer.unk_token_id

    @classmethod
    def load(cls, folder: Path, beams: int) -> LlmTranslator:
        """Load the artifact of ``train_llm`` or ``select_llm``."""
        scorer = RelevanceScorer.load(folder)
        return cls(scorer.model, scorer.encoder, beams)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[tuple[str, ...]]:
        """Return what the beams have finished, best first; none of what the prompt has no room for.

        Texts of one length are run together, so that nothing is padded.
        """
        segments = [translation_segments("query", source, target, text) for text in texts]
        self._encoder.tokenize([*(s for prompt in segments for s in prompt), *texts])
        words = [self._encoder.segment(text).tolist() for text in texts]
        known = readable(words, self._unknown, self._model.base, source)
        prompts = [self._encoder.join(prompt) for prompt in segments]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for at, prompt in enumerate(prompts):
            most = min(GROWTH * len(words[at]) + MORE, self._encoder.max_length - len(prompt))
            if known[at] and most > 1:
                groups[len(prompt), most].append(at)
        found: list[tuple[str, ...]] = [()] * len(texts)
        for (_, most), own in groups.items():
            size = max(1, ROWS // self._beams)
            for start in range(0, len(own), size):
                batch = own[start : start + size]
                written_ = self._written([prompts[i] for i in batch], most)
                for at, answer in zip(batch, written_, strict=True):
                    found[at] = answer
        return found

    def _written(self, prompts: Sequence[Ids], most: int) -> list[tuple[str, ...]]:
        stop = int(self._encoder.stop[0])
        hypotheses = written(self._model, prompts, beams=self._beams, most=most, stop=stop)
        decode = self._model.tokenizer.decode
        return [
            cleaned(decode(list(h.tokens), skip_special_tokens=True) for h in own)
            for own in hypotheses
        ]
