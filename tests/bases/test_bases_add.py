"""Bases are added whole, once, and named: from a folder, the hub's cache, a GGUF file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from csrm_tasks.base_models import base_digest, check_base, pretrained
from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.packages import text_of
from csrm_tasks.bases.record import kept_bases, read_record
from csrm_tasks.bases.sources import Folder, source_of
from csrm_tasks.cli.main import main
from csrm_tasks.errors import ArtifactError, ConfigError, RefusedError
from csrm_tasks.settings import bases_folder
from tests.bases_fixtures import tiny_e5, tiny_gemma
from tests.warm import warm_models

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_gemma(tmp_path_factory.mktemp("made") / "gemma")
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: gemma\n---\n# A model\n")
    (folder / "NOTICE.txt").write_text("notice")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CSRM_HOME", str(tmp_path / "home"))
    return bases_folder()


def test_a_folder_is_kept_with_its_record_and_found_by_name(
    gemma: Path, bases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["base", "add", "small", "--from", str(gemma)]) == 0
    record = read_record(bases / "small")
    assert (record.kind, record.dtype, record.trimmed) == ("causal", "F32", None)
    assert (record.origin.source, record.origin.licence) == ("folder:gemma", "gemma")
    model = AutoModelForCausalLM.from_pretrained(**pretrained("base:small"))
    assert record.parameters == sum(p.numel() for p in model.parameters())
    assert record.vocabulary == model.config.vocab_size
    names = {p.name for p in (bases / "small").rglob("*") if p.is_file()}
    assert {"base.json", "model.safetensors", "tokenizer.json", "NOTICE.txt"} <= names
    assert "pytorch_model.bin" not in names
    check_base("llm.base", "base:small")
    capsys.readouterr()

    assert main(["base", "list"]) == 0
    assert capsys.readouterr().out.startswith("base:small  causal")
    assert main(["base", "show", "small"]) == 0
    shown = capsys.readouterr().out
    assert f"identity: {base_digest('base:small')}" in shown and "licence: gemma" in shown


def test_added_twice_it_is_as_it_was_and_another_one_never_takes_its_place(
    gemma: Path, bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("added", "is there already"):
        assert main(["base", "add", "small", "--from", str(gemma)]) == 0
        assert said in capsys.readouterr().out
        written = (bases / "small" / "base.json").stat()
    assert (bases / "small" / "base.json").stat().st_mtime_ns == written.st_mtime_ns
    other = tiny_e5(tmp_path / "other")
    assert main(["base", "add", "small", "--from", str(other)]) == 2
    assert "there is another base small (folder:gemma" in capsys.readouterr().err
    assert read_record(bases / "small").kind == "causal"


def test_the_same_base_added_elsewhere_is_the_same_one(gemma: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gemma, tmp_path / "else" / "gemma")
    for where, source in (("a", gemma), ("b", copy)):
        add_base(tmp_path / where, "small", Folder(source), accept_terms=False)
    assert base_digest(str(tmp_path / "a/small")) == base_digest(str(tmp_path / "b/small"))


def test_a_base_that_is_not_kept_here_is_named_with_its_remedy(bases: Path) -> None:
    check_base("llm.base", "base:absent")  # the scheduler need not have it
    for ask in (pretrained, base_digest):
        with pytest.raises(ConfigError, match="csrm base add absent"):
            ask("base:absent")
    with pytest.raises(ConfigError, match=r"llm.base: 'base:../x' is no name"):
        check_base("llm.base", "base:../x")
    assert not bases.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no weights in safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: _edit(f / "config.json", quantization_config={}), "quantised"),
    ],
)
def test_what_is_no_usable_model_is_refused_and_leaves_nothing(
    gemma: Path, bases: Path, tmp_path: Path, change: object, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = shutil.copytree(gemma, tmp_path / "broken")
    change(folder)  # type: ignore[operator]
    assert main(["base", "add", "small", "--from", str(folder)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert [p for p in bases.iterdir() if p.is_dir()] == []


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


KILLED = """
import os, sys
from pathlib import Path
from csrm_tasks.bases import adding, landing, record, sources
point, bases, folder = sys.argv[1:]
def end(*_): os._exit(9)
if point == "half":
    real = sources.shutil.copyfile
    def half(a, b):
        if str(a).endswith(".safetensors"):
            Path(b).write_bytes(Path(a).read_bytes()[:999]); end()
        return real(a, b)
    sources.shutil.copyfile = half
elif point == "no-record":
    record.BaseRecord.write = end
else:
    Path.rename = end
adding.add_base(Path(bases), "small", sources.Folder(Path(folder)), accept_terms=False)
"""


@pytest.mark.parametrize("point", ["half", "no-record", "no-rename"])
def test_killed_at_any_moment_nothing_half_is_seen_and_the_next_one_clears_it(
    gemma: Path, tmp_path: Path, point: str
) -> None:
    bases = tmp_path / "bases"
    done = warm_models().run(KILLED, point, str(bases), str(gemma), env=os.environ)
    assert done.returncode == 9, done.stderr
    assert kept_bases(bases) == {} and not (bases / "small").exists()
    assert [p.name for p in bases.iterdir() if p.is_dir()] != []  # it did get somewhere
    assert add_base(bases, "small", Folder(gemma), accept_terms=False)
    assert [p.name for p in bases.iterdir() if p.is_dir()] == ["small"]
    read_record(bases / "small").check(bases / "small")


def test_two_at_once_add_it_once(gemma: Path, tmp_path: Path) -> None:
    bases = tmp_path / "bases"
    with ThreadPoolExecutor(4) as pool:
        added = pool.map(
            lambda _: add_base(bases, "small", Folder(gemma), accept_terms=False), range(4)
        )
    assert sorted(added) == [False, False, False, True]


def test_a_changed_file_is_found_and_a_folder_of_somebody_else_is_left_alone(
    gemma: Path, bases: Path
) -> None:
    add_base(bases, "small", Folder(gemma), accept_terms=False)
    (bases / "small" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json was changed"):
        read_record(bases / "small").check(bases / "small")
    (bases / "mine").mkdir()
    with pytest.raises(RefusedError, match="is no base"):
        add_base(bases, "mine", Folder(gemma), accept_terms=False)
    assert list((bases / "mine").iterdir()) == []


def test_a_hub_name_is_taken_at_its_commit_only(tmp_path: Path) -> None:
    """From a cache that holds it, without network; in a process that reads HF_HOME anew."""
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / COMMIT
    tiny_e5(snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    env = os.environ | {
        "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "CSRM_BASES": str(tmp_path / "bases"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }  # fmt: skip
    add = [sys.executable, "-m", "csrm_tasks", "base", "add"]
    for name, commit, code in (("hub", COMMIT, 0), ("other", "b" * 40, 2)):
        asked = [*add, name, "--from", f"org/model@{commit}"]
        done = subprocess.run(asked, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert done.stderr.startswith("csrm: hub:org/model@bbb") and done.stderr.count("\n") == 1
    assert list(kept_bases(tmp_path / "bases")) == ["hub"]
    with pytest.raises(ConfigError, match="40 hexadecimal digits"):
        source_of("org/model")
    record = read_record(tmp_path / "bases" / "hub")
    assert (record.origin.source, record.origin.revision) == ("hub:org/model", COMMIT)
    assert (record.origin.licence, record.kind) == ("mit", "encoder")


def test_tokenizer_json_is_used_as_it_stands(tmp_path: Path) -> None:
    """A class named beside it would bring its own normaliser, and say nothing."""
    folder = tiny_gemma(tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inner = tokenizer.backend_tokenizer
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), inner.normalizer])
    inner.save(str(folder / "tokenizer.json"))
    _edit(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
    replaced = AutoTokenizer.from_pretrained(folder)("MILK")["input_ids"]
    add_base(tmp_path / "bases", "small", Folder(folder), accept_terms=False)
    found = AutoTokenizer.from_pretrained(tmp_path / "bases" / "small")("MILK")["input_ids"]
    assert found == inner.encode("milk").ids != replaced


def test_a_bare_word_is_neither_source_nor_known_base(
    bases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["base", "add", "gema"]) == 2
    assert "known by name (gemma-270m, e5-small); say --from SOURCE" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is no file"):
        source_of("absent.gguf").origin()
    assert main(["base", "add", "A b", "--from", "/"]) == 2
    assert "no name of a base" in capsys.readouterr().err or not bases.exists()


def test_a_damaged_gguf_file_is_one_line(
    tmp_path: Path, bases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 40)
    assert main(["base", "add", "small", "--from", str(path)]) == 2
    err = capsys.readouterr().err
    assert "model.gguf" in err and err.count("\n") == 1


def test_terms_are_read_as_text() -> None:
    page = "<head><title>x</title></head><p>You  accept\n<b>these</b></p><script>f()</script><p>End"
    assert text_of(page) == "You accept\nthese\nEnd"


def test_an_encoder_with_a_pooler_is_kept_whole(tmp_path: Path) -> None:
    folder = tiny_e5(tmp_path / "made")
    config = BertConfig.from_pretrained(folder)
    BertModel(config, add_pooling_layer=True).save_pretrained(folder)
    add_base(tmp_path / "bases", "small", Folder(folder), accept_terms=False)
    record = read_record(tmp_path / "bases" / "small")
    assert record.kind == "encoder"
    assert record.parameters == sum(p.numel() for p in BertModel(config).parameters())
