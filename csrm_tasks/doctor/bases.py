"""Market files, and the base models that they name: there, unchanged, labels in one token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

from csrm_tasks.base_models import KEPT, base_digest, local_folder, pretrained, weights_bytes
from csrm_tasks.bases.record import read_record
from csrm_tasks.doctor.findings import Asked, Finding, Said, explained
from csrm_tasks.errors import CsrmError
from csrm_tasks.file_state import digests_kept_in
from csrm_tasks.market_files.check import faults_of, of_folder
from csrm_tasks.markets import bases_of

say = Said("bases")


def bases(asked: Asked) -> Iterator[Finding]:
    """Check every market's file and the models that it names, each of them once."""
    if not asked.markets:
        yield say.fault(
            f"there is no market file in {asked.settings.markets}",
            "csrm market new writes one; CSRM_MARKETS names the folder",
        )
    seen: dict[str, str] = {}
    for market in asked.markets:
        path = asked.settings.markets / f"{market}.yaml"
        if not path.is_file():
            yield say.fault(f"market {market}: {path} does not exist", "csrm market new writes one")
            continue
        config, faults = faults_of(path)
        for fault in faults:
            yield say.fault(f"market {market}: {fault}", "correct the market's file")
        if config is None or faults:
            continue
        yield say.ok(f"market {market}: its file has no faults (csrm market check {market})")
        for key, base in bases_of(config).items():
            if base not in seen or (key == "llm.base" and seen[base] != key):
                seen[base] = key
                yield from _of_base(asked, f"market {market}: {key} {base}", key, base)


def _of_base(asked: Asked, what: str, key: str, base: str) -> Iterator[Finding]:
    folder = local_folder(base)
    try:
        if folder is None:
            yield from _elsewhere(what, base)
        else:
            yield from _in_folder(asked, what, key, base, folder)
    except CsrmError as e:
        yield say.fault(*explained(e, what))


def _elsewhere(what: str, base: str) -> Iterator[Finding]:
    if base.startswith(KEPT) or "@" not in base:
        name = base.removeprefix(KEPT)
        cure = f"csrm base add {name}" if base.startswith(KEPT) else "put the folder there"
        yield say.fault(f"{what} is not on this machine", f"{cure}, on every worker that trains")
    elif find_spec("huggingface_hub") is None or not weights_bytes(base):
        yield say.warning(
            f"{what} was not fetched from the Hugging Face hub yet; the first step that needs it "
            "does, which takes the network",
            "hf download it with this revision on every worker, or set HF_HOME to where it is",
        )
    else:
        yield say.ok(f"{what} is in the cache of the hub's client")


def _in_folder(asked: Asked, what: str, key: str, base: str, folder: Path) -> Iterator[Finding]:
    lacks = list(of_folder(key, folder))
    for line in lacks:
        yield say.fault(f"{what}: {line.removeprefix(f'{key}: ')}", "choose another base model")
    if lacks:
        return
    if base.startswith(KEPT):
        record = read_record(folder)
        record.check(folder)
        yield say.ok(f"{what}: files are as they were added ({record.digest[:12]})")
    else:
        kept = asked.settings.cache / "digests"  # as steps do; no folder is made for it
        with digests_kept_in(kept) if kept.is_dir() else nullcontext():
            yield say.ok(f"{what}: digest {base_digest(base)[:12]}, to compare with other workers'")
    if key == "llm.base":
        yield from _labels(what, base)


def _labels(what: str, base: str) -> Iterator[Finding]:
    if find_spec("transformers") is None:
        yield say.skipped(f"{what}: its labels are not tried; transformers is not installed here")
        return
    from transformers import AutoTokenizer

    from csrm_tasks.llm.prompt.label_tokens import label_ids
    from csrm_tasks.llm.prompt.prompts import LABEL_SPACES

    tokenizer = AutoTokenizer.from_pretrained(**pretrained(base))
    for space in LABEL_SPACES.values():
        label_ids(tokenizer, space)
    yield say.ok(f"{what}: each label is one token ({', '.join(LABEL_SPACES)})")


def in_words(error: BaseException, asked: Asked) -> tuple[str, str]:
    """Return what an error of this check means, and the cure."""
    del asked
    return explained(error, "market files and base models")
