"""Query vectors: each text encoded once, in batches that form while one is under way."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from csrm_tasks.serving import queries
from csrm_tasks.serving.metrics import Metrics
from csrm_tasks.serving.queries import MOST, Floats, QueryEncoder


class Encoder:
    """Remembers its batches; the first one waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, texts: list[str]) -> Floats:
        self.batches.append(texts)
        assert self.go.wait(60)
        if "bad" in texts:
            raise ValueError("bad")
        return np.array([[[float(t)]] for t in texts], np.float32)


async def settled(encoder: Encoder, tasks: list[asyncio.Task[Floats]]) -> list[Floats]:
    """Let all tasks ask, then let the encoder go."""
    while not encoder.batches:
        await asyncio.sleep(0)
    encoder.go.set()
    return await asyncio.gather(*tasks)


def run(texts: list[str], encoder: Encoder) -> list[Floats]:
    async def all_at_once() -> list[Floats]:
        with ThreadPoolExecutor(1) as pool:
            found = QueryEncoder(encoder, pool, Metrics())
            tasks = [asyncio.create_task(found.vector(t)) for t in texts]
            return await settled(encoder, tasks)

    return asyncio.run(all_at_once())


def test_everyone_gets_the_vector_of_what_he_asked_and_each_text_is_encoded_once() -> None:
    encoder = Encoder()
    texts = [str(i % 150) for i in range(400)]
    found = run(texts, encoder)
    assert [v.item() for v in found] == [float(t) for t in texts]
    encoded = [t for batch in encoder.batches for t in batch]
    assert sorted(encoded) == sorted(set(texts))
    assert max(map(len, encoder.batches)) <= MOST
    assert len(encoder.batches) <= 4


def test_what_was_asked_lately_is_remembered_and_the_oldest_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queries, "CACHED", 2)
    encoder = Encoder()
    encoder.go.set()

    async def one_by_one() -> None:
        with ThreadPoolExecutor(1) as pool:
            found = QueryEncoder(encoder, pool, Metrics())
            for text in ("1", "2", "1", "3", "1", "2"):
                assert (await found.vector(text)).item() == float(text)

    asyncio.run(one_by_one())
    assert encoder.batches == [["1"], ["2"], ["3"], ["2"]]


def test_what_is_remembered_takes_its_own_bytes_and_not_those_of_its_batch() -> None:
    encoder = Encoder()
    found = run([str(i) for i in range(100)], encoder)
    assert max(map(len, encoder.batches)) > 1
    assert {v.nbytes if v.base is None else v.base.nbytes for v in found} == {4}


def test_a_failure_reaches_those_who_asked_and_the_next_batch_goes_on() -> None:
    encoder = Encoder()

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as pool:
            found = QueryEncoder(encoder, pool, Metrics())
            first = asyncio.create_task(found.vector("bad"))
            while not encoder.batches:
                await asyncio.sleep(0)
            gone = asyncio.create_task(found.vector("5"))
            stays = asyncio.create_task(found.vector("5"))
            await asyncio.sleep(0)
            gone.cancel()
            encoder.go.set()
            with pytest.raises(ValueError, match="bad"):
                await first
            assert (await stays).item() == 5.0
            encoder.batches.clear()
            with pytest.raises(ValueError, match="bad"):
                await found.vector("bad")  # a failure is not remembered

    asyncio.run(scenario())
