"""ONNX export: parity, refusal, and a runtime that needs neither torch nor transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from csrm_tasks.errors import ArtifactError, RefusedError
from csrm_tasks.towers import export, measure
from csrm_tasks.towers.export import export_towers, parity, write_onnx
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.quantise import LEAST_ROWS, RECIPES, in_8_bits, quantise
from csrm_tasks.towers.serving import runtime
from csrm_tasks.towers.serving.runtime import TowerRuntime, has_vnni
from csrm_tasks.towers.serving.texts import product_digest
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.thresholds import Threshold
from csrm_tasks.towers.tower import HEADS, Tower
from tests.towers_fixtures import COLOURS, TYPES, make_encoder, reader_of, snapshot_tables

TEXTS = [f"{c} {t}" for c in COLOURS for t in TYPES] + ["", "品牌 " * 40]
THRESHOLDS = {name: Threshold(0.5, 1.0, 1.0, 1.0) for name in HEADS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TwinTowers:
    base = make_encoder(tmp_path_factory.mktemp("encoder"), dim=64)
    made = TwinTowers.from_base(str(base), dim=16, scale=8.0, learn_scale=True, seed=0)
    with torch.no_grad():  # towers that differ, and heads of other scale and bias
        made.product.projection.weight.add_(0.02 * torch.randn_like(made.product.projection.weight))
        made.bias.copy_(torch.tensor([-5.0, -6.5]))
    return made.eval()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> TowerTokenizer:
    base = make_encoder(tmp_path_factory.mktemp("tokenizer"), dim=64)
    return reader_of(base, 16, 24)


@pytest.fixture(scope="module")
def reference(model: TwinTowers, reader: TowerTokenizer) -> export.Reference:
    from csrm_tasks.towers.examples import with_texts

    t = snapshot_tables()
    return measure.reference(model, reader, with_texts(t["pairs"], t["queries"], t["products"]))


@pytest.fixture(scope="module")
def folder(
    model: TwinTowers,
    reader: TowerTokenizer,
    reference: export.Reference,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("export")
    (out / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    export_towers(model, out, measure.describe(model, reader, THRESHOLDS), reference)
    return out


def test_runtime_equals_the_trained_model(
    model: TwinTowers, reader: TowerTokenizer, folder: Path
) -> None:
    runtime = TowerRuntime(folder, query="fp32", product="fp32")
    for tower, table, ours in (
        (model.query, reader.queries(TEXTS), runtime.encode_queries(TEXTS)),
        (model.product, reader.products(TEXTS), runtime.encode_products(TEXTS)),
    ):
        np.testing.assert_allclose(ours, measure.embed(tower, table), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), 1.0, atol=1e-5)


def test_a_text_alone_reads_as_in_company(reader: TowerTokenizer) -> None:
    every = np.arange(len(TEXTS))
    table = reader.queries(TEXTS)
    together, _ = table.batch(every)
    for row in every:
        ids, mask = reader.queries([TEXTS[row]]).batch(np.arange(1))
        assert ids[0].tolist() == together[row, : table.lengths[row]].tolist()
        assert mask.all()


def test_tracing_leaves_the_encoders_attention_as_it_was(model: TwinTowers, tmp_path: Path) -> None:
    before = model.query.encoder.config._attn_implementation
    write_onnx(model.query, tmp_path / "x.onnx")
    assert model.query.encoder.config._attn_implementation == before == "sdpa"
    operators = {n.op_type for n in onnx.load(tmp_path / "x.onnx").graph.node}
    assert "Softmax" in operators
    assert "IsNaN" not in operators  # the fused kernel's guard for rows that see nothing


def test_scores_and_decisions(model: TwinTowers, folder: Path) -> None:
    runtime = TowerRuntime(folder, query="fp32", product="fp32")
    queries, products = runtime.encode_queries(TEXTS[:3]), runtime.encode_products(TEXTS)
    for n, query in enumerate(queries):  # one query against all products broadcasts
        scores = runtime.score(query, products)
        for i in range(len(TEXTS)):
            cosine = [float(query[h] @ products[i][h]) for h in range(2)]
            z = [model.scale[h].item() * cosine[h] + model.bias[h].item() for h in range(2)]
            em, ok = (1.0 / (1.0 + np.exp(-x)) for x in z)
            assert scores.em[i] == pytest.approx(em, abs=1e-5)
            assert scores.defect[i] == pytest.approx(1.0 - ok, abs=1e-5), n
        decided = runtime.decide(scores)
        np.testing.assert_array_equal(decided.em, scores.em >= 0.5)
        np.testing.assert_array_equal(decided.defect, scores.defect >= 0.5)


def test_recorded_parity_is_what_the_files_give(folder: Path, reference: export.Reference) -> None:
    about = json.loads((folder / "serving.json").read_text(encoding="utf-8"))
    assert about["variants"]["fp32"]["admitted"]
    assert about["variants"]["fp32"]["cosine"] > 0.99999
    assert about["variants"]["fp32"]["flips"] == 0.0
    int8 = about["variants"]["int8_query"]
    assert int8["cosine"] >= export.MIN_COSINE
    assert about["serve"]["query"] == ("int8" if int8["admitted"] else "fp32")
    if int8["admitted"]:
        again = parity(TowerRuntime(folder, query="int8", product="fp32"), reference)
        assert (again.cosine, again.flips) == (int8["cosine"], int8["flips"])
    assert (folder / "query.int8.onnx").exists() == int8["admitted"]


def test_flips_are_counted_pair_by_pair(folder: Path, reference: export.Reference) -> None:
    turned = export.Reference(
        reference.queries, reference.products, reference.query, reference.product,
        -reference.query_vectors, reference.product_vectors,
    )  # fmt: skip
    runtime = TowerRuntime(folder, query="fp32", product="fp32")
    q, p = reference.query_vectors, reference.product_vectors
    flips = 0
    for i, j in zip(reference.query, reference.product, strict=True):
        sides = [runtime.decide(runtime.score(v[i], p[j])) for v in (q, -q)]
        flips += bool(sides[0].em != sides[1].em or sides[0].defect != sides[1].defect)
    found = parity(runtime, turned)
    assert flips > 0
    assert found.flips == pytest.approx(flips / len(reference.query))
    assert not found.admitted


def test_fp32_outside_the_bounds_is_refused(
    model: TwinTowers, reader: TowerTokenizer, reference: export.Reference, tmp_path: Path
) -> None:
    broken = export.Reference(
        reference.queries, reference.products, reference.query, reference.product,
        reference.query_vectors, reference.product_vectors[::-1].copy(),
    )  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    with pytest.raises(RefusedError, match=r"refused: fp32 .*cosine .*at least 0\.998"):
        export_towers(model, tmp_path, measure.describe(model, reader, THRESHOLDS), broken)


def test_int8_outside_the_bounds_leaves_fp32(
    model: TwinTowers, reader: TowerTokenizer, reference: export.Reference, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def bad(source: Path, target: Path, recipe: str) -> None:
        tried.append(recipe)
        other = TwinTowers.from_base(
            str(make_encoder(tmp_path / "base", dim=64)),
            dim=16,
            scale=8.0,
            learn_scale=True,
            seed=9,
        )
        write_onnx(other.query, target)

    tried: list[str] = []
    monkeypatch.setattr(export, "quantise", bad)
    (tmp_path / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    about = measure.describe(model, reader, THRESHOLDS)
    found = export_towers(model, tmp_path, about, reference)
    assert {k: v.admitted for k, v in found.items()} == {
        "fp32": True, "int8_query": False, "int8_product": False,
    }  # fmt: skip
    assert tried == list(RECIPES) * 2 == ["all", "mixed", "weights"] * 2
    written = json.loads((tmp_path / "serving.json").read_text(encoding="utf-8"))
    assert written["serve"] == {"query": "fp32", "product": "fp32"}
    assert not written["variants"]["int8_query"]["admitted"]
    assert not list(tmp_path.glob("*.int8.onnx"))
    TowerRuntime(tmp_path).encode_queries(["茶壺"])
    with pytest.raises(ArtifactError, match="refused at export"):
        TowerRuntime(tmp_path, query="int8")


def test_how_large_and_how_near_the_recipes_are(
    folder: Path, reference: export.Reference, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "x")
    found, sizes = {}, {}
    for recipe in RECIPES:
        target = tmp_path / "x" / "product.int8.onnx"
        quantise(folder / "product.onnx", target, recipe)
        runtime = TowerRuntime(tmp_path / "x", query="fp32", product="int8")
        found[recipe] = parity(runtime, reference).cosine
        sizes[recipe] = target.stat().st_size
    whole = (folder / "product.onnx").stat().st_size + (folder / "tables.bin").stat().st_size
    assert max(sizes.values()) < 0.6 * whole  # much of so small a file is its nodes
    assert min(found.values()) > export.MIN_COSINE


def test_which_products_are_taken_in_8_bits(folder: Path, tmp_path: Path) -> None:
    """Two layers of six products: four of attention, one that widens, one that narrows.

    The projection is never one of them.
    """
    found = {}
    for recipe in RECIPES:
        quantise(folder / "query.onnx", tmp_path / "x.onnx", recipe)
        operators = [n.op_type for n in onnx.load(tmp_path / "x.onnx").graph.node]
        found[recipe] = operators.count("MatMulInteger")
    assert found == {"all": 12, "mixed": 10, "weights": 0}


@pytest.mark.parametrize("axis", [0, 1])
def test_in_8_bits_a_row_or_a_column_has_a_scale_of_its_own(axis: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(5, 7)) * 10.0 ** rng.integers(-3, 3, (5, 7))).astype(np.float32)
    values[2] = values[:, 3] = 0
    numbers, scales = in_8_bits(values, axis)
    assert numbers.dtype == np.int8 and scales.shape == ((5, 1) if axis else (1, 7))
    for i, j in np.ndindex(values.shape):  # the slow way
        line = values[i] if axis else values[:, j]
        scale = float(np.abs(line).max()) / 127 or 1.0
        found = numbers[i, j] * float(scales[(i, 0) if axis else (0, j)])
        assert found == pytest.approx(round(float(values[i, j]) / scale) * scale, rel=1e-5)


def test_weights_in_8_bits_are_whole_numbers_times_their_scales(
    model: TwinTowers, reader: TowerTokenizer, folder: Path, tmp_path: Path
) -> None:
    """The recipe of fp32 products, against the trained model with rounded weights put in."""
    quantise(folder / "query.onnx", tmp_path / "query.int8.onnx", "weights")
    rounded = deepcopy(model.query)
    with torch.no_grad():
        for name, module in rounded.named_modules():
            table = isinstance(module, torch.nn.Embedding) and module.num_embeddings >= LEAST_ROWS
            if table or (isinstance(module, torch.nn.Linear) and name != "projection"):
                weight = module.weight.numpy()  # rows are tokens, or the columns of the graph
                numbers, scales = in_8_bits(weight, axis=1)
                module.weight.copy_(torch.from_numpy(numbers * scales))
    session = runtime.open_session(tmp_path / "query.int8.onnx", 1)
    texts = reader.queries(TEXTS)
    ids, mask = texts.batch(np.arange(len(TEXTS)))
    found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(found, measure.embed(rounded, texts), atol=2e-5)
    assert np.abs(found - measure.embed(model.query, texts)).max() > 1e-4


def test_the_table_is_written_once_for_both_towers(
    model: TwinTowers, reader: TowerTokenizer, folder: Path, tmp_path: Path
) -> None:
    for side in ("query", "product"):
        write_onnx(getattr(model, side), tmp_path / f"{side}.onnx")
    assert isinstance(model.query, Tower)
    table = model.query.encoder.get_input_embeddings().weight.detach().numpy()
    shared = [folder / name for name in ("query.onnx", "product.onnx", "tables.bin")]
    together = sum(f.stat().st_size for f in shared)
    apart = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert apart - together >= 0.9 * table.nbytes
    assert sum(f.read_bytes().count(table.tobytes()) for f in shared) == 1
    (tmp_path / "tokenizer.json").write_text(reader.definition, encoding="utf-8")
    shutil.copy(folder / "serving.json", tmp_path)
    one, two = (TowerRuntime(f, query="fp32", product="fp32") for f in (folder, tmp_path))
    np.testing.assert_array_equal(one.encode_queries(TEXTS), two.encode_queries(TEXTS))
    np.testing.assert_array_equal(one.encode_products(TEXTS), two.encode_products(TEXTS))


def test_runtime_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from csrm_tasks.towers.serving.runtime import TowerRuntime;"
        f"r = TowerRuntime(Path({str(folder)!r})); v = r.encode_queries(['茶壺']);"
        "assert v.shape == (1, 2, r.dim);"
        "print([m for m in ('torch', 'transformers', 'onnx', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folder_that_is_no_export_and_other_text_version(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"serving\.json is missing"):
        TowerRuntime(tmp_path)
    shutil.copytree(folder, tmp_path / "old")
    about = json.loads((folder / "serving.json").read_text(encoding="utf-8"))
    text = json.dumps(about | {"text_version": "0"})
    (tmp_path / "old" / "serving.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match="text version 0"):
        TowerRuntime(tmp_path / "old")


def test_no_text_gives_no_vector(folder: Path) -> None:
    assert TowerRuntime(folder).encode_queries([]).shape == (0, 2, 16)


def test_content_hash_follows_what_the_tower_reads() -> None:
    assert product_digest("Acme  Tea") == product_digest("ＡＣＭＥ tea ")
    assert product_digest("acme tea") != product_digest("acme teas")


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512_vnni\n", True),
        ("flags : avx2 avx_vnni\nflags : avx2\n", True),
        ("flags : avx2 avx512f\nbugs : avx512_vnni\n", False),
        ("Features : asimddp\n", False),
    ],
)
def test_signed_weights_are_trusted_to_vnni_alone(
    cpuinfo: str, found: bool, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert has_vnni(path) == found
    assert not has_vnni(tmp_path / "missing")


def test_without_vnni_the_same_vectors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = TowerRuntime(folder, query="int8").encode_queries(TEXTS)
    monkeypatch.setattr(runtime, "has_vnni", lambda: False)  # the option is set
    elsewhere = TowerRuntime(folder, query="int8").encode_queries(TEXTS)
    assert (here * elsewhere).sum(-1).min() > 0.99999
