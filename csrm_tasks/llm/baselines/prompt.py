"""Baseline of paper 1, table 2: an LLM that is only asked, never trained (GPT-4o there).

The question is plain English around the same fields that the trained model sees. A local causal
model answers with the probabilities of its next token; an endpoint that speaks OpenAI's chat
completions, with its log probabilities where it gives any, else with the digit that it writes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csrm_tasks.connections import parse_address
from csrm_tasks.errors import ConfigError, CsrmError
from csrm_tasks.llm.prompt.prompts import RELEVANCE, ProductFields, QueryFields

if TYPE_CHECKING:
    import httpx
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("csrm")

Floats = npt.NDArray[np.float64]

URL, TOKEN = "CSRM_LLM_URL", "CSRM_LLM_TOKEN"  # filled by the DAG from an Airflow connection
QUESTION = """\
You judge search results of an online shop. Grade how well the product answers the query:
2 = exact: the product is what the shopper asked for, in every respect the query names
1 = substitute: not exactly that, but it could serve instead (another brand, size or variant)
0 = irrelevant: it could not
Answer with one digit only: 0, 1 or 2.

Query: {query}
{titles}Product: {title}
Brand: {brand}
Category: {category}
Grade:"""
DIGITS = RELEVANCE.tokens
AT_ONCE, TRIES, SECONDS = 8, 5, 60.0  # requests at a time, per pair, and the limit of one
UNSURE = 1e-3  # probability of a digit that was not among the answer's likeliest


class EndpointError(CsrmError):
    """The endpoint refused or did not answer; the message holds no token."""


def question(query: QueryFields, product: ProductFields) -> str:
    """Return the prompt of one pair; white space is collapsed, so that no field forges a line."""
    one = {k: " ".join(v.split()) or "none" for k, v in vars(product).items()}
    titles = "; ".join(" ".join(t.split()) for t in query.titles)
    similar = f"Similar products: {titles}\n" if titles else ""
    return QUESTION.format(
        query=" ".join(query.query.split()), titles=similar,
        title=one["title"], brand=one["brand"], category=one["category"],
    )  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """Where chat completions are asked for."""

    url: str  # base, such as https://host/v1
    token: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"  # never the token

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Endpoint:
        """Read URL and token; raises :class:`ConfigError` where the URL is missing or is none."""
        if not env.get(URL):
            raise ConfigError(
                f"{URL} is not set: name an Airflow connection in controls.prompt_connection, or "
                f"set {URL} and {TOKEN} for a run by hand"
            )
        found = parse_address(env[URL], URL)
        return cls(found.url.rstrip("/"), env.get(TOKEN) or found.password)


def ask_all(endpoint: Endpoint, model: str, prompts: Sequence[str], kept: Path) -> Floats:
    """Return probabilities (N, 3) of the digits, asking about each distinct prompt once, ever.

    Answers are appended to ``kept`` as they come, so a run that was killed pays for none twice.
    Raises :class:`EndpointError` after :data:`TRIES` failures of one request.
    """
    import httpx

    known = _answers(kept)
    missing = [p for p in dict.fromkeys(prompts) if p not in known]
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    with (
        httpx.Client(headers=headers, timeout=SECONDS) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
        kept.open("a", encoding="utf-8") as file,
    ):
        asked = pool.map(lambda p: (p, _ask(client, endpoint, model, p)), missing)
        for done, (prompt, answer) in enumerate(asked, 1):
            file.write(json.dumps([prompt, answer]) + "\n")
            file.flush()
            known[prompt] = answer
            if done % 500 == 0:
                log.info("asked %d of %d", done, len(missing))
    return np.asarray([known[p] for p in prompts]).reshape(-1, 3)


def _answers(kept: Path) -> dict[str, list[float]]:
    """Read what is known; the line that a kill cut off is dropped."""
    if not kept.exists():
        return {}
    text = kept.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    kept.write_text(whole, encoding="utf-8")
    return dict(json.loads(line) for line in whole.splitlines())


def _ask(client: httpx.Client, endpoint: Endpoint, model: str, prompt: str) -> list[float]:
    import httpx
    from tenacity import (
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )

    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
        "max_tokens": 4, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    again = Retrying(
        stop=stop_after_attempt(TRIES), wait=wait_random_exponential(multiplier=0.5, max=30),
        retry=retry_if_exception_type(_BusyError), reraise=True,
    )  # fmt: skip
    try:
        answer = again(_post, client, f"{endpoint.url}/chat/completions", body)
        return read_answer(answer)
    except (httpx.HTTPError, _BusyError) as e:
        raise EndpointError(f"{endpoint.url}: {type(e).__name__}: {e}") from None
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise EndpointError(f"{endpoint.url}: not a chat completion ({type(e).__name__})") from e


class _BusyError(Exception):
    """Worth another try."""


def _post(client: httpx.Client, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    import httpx

    try:
        response = client.post(url, json=body)
    except httpx.TransportError as e:
        raise _BusyError(str(e)) from e
    if response.status_code == 429 or response.status_code >= 500:
        raise _BusyError(f"answered {response.status_code}")
    response.raise_for_status()
    return response.json()  # type: ignore[no-any-return]  # read_answer sees what it is


def read_answer(answer: Mapping[str, Any]) -> list[float]:
    """Return probabilities of the three digits from a chat completion.

    Raises :class:`ValueError` where the answer holds no grade.
    """
    choice = answer["choices"][0]
    for token in (choice.get("logprobs") or {}).get("content") or []:
        if token["token"].strip() in DIGITS:
            chance = dict.fromkeys(DIGITS, 0.0)
            for near in token.get("top_logprobs") or [token]:
                if (digit := near["token"].strip()) in chance:  # "2" and " 2" are one answer
                    chance[digit] += math.exp(near["logprob"])
            return _normalised(chance.values())
    said = re.search(r"[012]", choice["message"]["content"])
    if said is None:
        raise ValueError("no digit 0, 1 or 2")
    return _normalised([float(d == said.group()) for d in DIGITS])


def _normalised(weights: Iterable[float]) -> list[float]:
    kept = [max(w, UNSURE) for w in weights]
    return [w / sum(kept) for w in kept]


def answer_locally(base: str, prompts: Sequence[str]) -> Floats:
    """Return probabilities (N, 3) of the digits as next token of a local causal model.

    A model with a chat template is asked through it. Raises :class:`ConfigError` where the model
    cannot be loaded or a digit is not one token.
    """
    from csrm_tasks.llm.network.model import load_base
    from csrm_tasks.llm.scoring.predict import label_probabilities

    model = load_base(base)
    chat = model.tokenizer.chat_template is not None
    texts = [_chat(model.tokenizer, p) for p in prompts] if chat else list(prompts)

    def ids(some: Sequence[str]) -> list[list[int]]:
        tokens: list[list[int]] = model.tokenizer(some, add_special_tokens=not chat)["input_ids"]
        return tokens

    if texts:
        before, *after = ids([texts[0], *(texts[0] + d for d in DIGITS)])
        labels = model.labels[RELEVANCE.name].tolist()
        if after != [[*before, label] for label in labels]:
            raise ConfigError(f"{base!r} does not read {', '.join(DIGITS)} as one token each here")
    rows = [np.asarray(row, np.int32) for row in ids(texts)]
    parts = [(row[:-1], row[-1:]) for row in rows]
    return label_probabilities(model, parts, RELEVANCE.name).astype(np.float64)


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
