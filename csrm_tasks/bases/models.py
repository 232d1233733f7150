"""Loading a kept base as it is: for cutting and measuring, not for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from csrm_tasks.bases.record import CAUSAL


def load_model(folder: Path, kind: str) -> Any:
    """Load a causal model, or an encoder without its pooler, in the number format of its files."""
    if kind == CAUSAL:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    try:  # an encoder's pooler has no use here; where the base lacks it, it would be random
        return AutoModel.from_pretrained(folder, dtype="auto", add_pooling_layer=False).eval()
    except TypeError:  # an architecture that has none to leave out
        return AutoModel.from_pretrained(folder, dtype="auto").eval()


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' progress bars and reports out of a command's output."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
