"""Whether a base's tokenizer knows the languages that it is to learn."""

from __future__ import annotations

from collections.abc import Iterable

from csrm_tasks.errors import ConfigError
from csrm_tasks.llm.prompt.encoding import PromptEncoder

TITLES = 200  # of a language that are looked at
MOST_UNKNOWN = 0.5  # of their tokens


def refuse_unknown(encoder: PromptEncoder, titles: Iterable[tuple[str, str]]) -> None:
    """Raise :class:`ConfigError` where most tokens of a language's titles are the unknown one.

    ``titles``: locale and title. A tokenizer that falls back to bytes has no such token: it knows
    everything, if badly (``csrm base check`` says how badly).
    """
    unknown = encoder.tokenizer.unk_token_id
    if unknown is None:
        return
    found: dict[str, list[str]] = {}
    for locale, title in titles:
        own = found.setdefault(locale, [])
        if len(own) < TITLES:
            own.append(title)
    encoder.tokenize(title for own in found.values() for title in own)
    for locale, own in found.items():
        ids = [i for title in own for i in encoder.segment(title).tolist()]
        share = ids.count(unknown) / max(1, len(ids))
        if share > MOST_UNKNOWN:
            raise ConfigError(
                f"llm.base: its tokenizer does not know {locale}: {share:.0%} of the tokens of its "
                "titles are unknown; choose a base that has read the language, or leave it out"
            )
