"""The bundle holds what serving needs, refuses mixed parts, and scores as the towers do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from csrm_tasks.artifacts import Artifact
from csrm_tasks.errors import ArtifactError, DataError
from csrm_tasks.llm.prompt.prompts import PROMPT_VERSION
from csrm_tasks.release.bundle import model
from csrm_tasks.release.bundle.manifest import release_id
from csrm_tasks.release.bundle.scorer import ProductVectors, ReleaseScorer, Scored
from csrm_tasks.settings import Settings
from csrm_tasks.steps import run_step
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.texts import TEXT_VERSION
from tests.release_fixtures import (
    CARD,
    DIM,
    market,
    parts,
    publish,
    store_of,
    write_embeddings,
    write_terms,
)


def bundle_of(settings: Settings, key: str = "a", **other: str) -> Artifact:
    given = {**parts(settings, key, stage=1), **other}
    return store_of(settings).open(run_step("bundle", market(), given, {}, settings))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([7, 8], ["7", "8"]),
        ([7.0, None], ["7", None]),  # what a gap makes of integers
        (["007", 7], ["007", "7"]),
        ([8801234567890, "a"], ["8801234567890", "a"]),
        ([1.5, float("nan")], ["1.5", None]),
        (pd.array([2**60 + 1, None], dtype="Int64"), [str(2**60 + 1), None]),
        (pd.array(["a", None], dtype="string"), ["a", None]),
        ([np.int64(7), np.float32(7)], ["7", "7"]),
        ([True, "a"], "row 0: product_id is a bool"),
        (["a", ["b"]], "row 1: product_id is a list"),
        ([float(2**60), 1.0], "row 0: product_id is 1.15.*whose digits are lost"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*type hints:UserWarning")
def test_a_number_and_its_text_are_the_same_product(values: Any, texts: Any) -> None:
    from mlflow.exceptions import MlflowException

    from csrm_tasks.release.bundle.pyfunc import ReleaseModel

    asked: list[Any] = []

    def score(queries: list[str], products: list[str | None], titles: Any) -> Any:
        asked.extend(products)
        return Scored(*(np.zeros(len(queries)) for _ in range(4)))

    pyfunc = ReleaseModel()
    pyfunc.scorer = SimpleNamespace(score=score)
    rows = pd.DataFrame({"query": ["q", "q"], "product_id": values})
    if isinstance(texts, str):
        with pytest.raises(MlflowException, match=texts):
            pyfunc.predict(None, rows)
    else:
        pyfunc.predict(None, rows)
        assert asked == texts


def test_the_manifest_names_every_part_by_digest(settings: Settings) -> None:
    found = bundle_of(settings)
    manifest = json.loads(found.file("release.json").read_text())
    store = store_of(settings)
    for name, part in manifest["parts"].items():
        assert part == {"ref": found.inputs[name], "digest": store.open(part["ref"]).digest}
    assert (manifest["market"], manifest["stage"]) == ("tiny", 1)
    assert manifest["text_version"] == TEXT_VERSION
    assert found.facts["source_dev_micro_f1"] == 0.7
    assert release_id(found) == f"tiny-{found.digest[:12]}"
    assert manifest["llm"] == {
        "base": "none", "base_digest": "d1", "pretraining": "",
        "label_ids": {"relevance": [3, 4, 5]},
        "prompt_version": PROMPT_VERSION, "temperature": 1.2,
    }  # fmt: skip


def test_an_exported_llm_is_named_beside_the_adapter_it_was_made_from(settings: Settings) -> None:
    own = parts(settings, "a", stage=1)["llm"]
    made = publish(settings, "export_llm", "a", CARD.write, inputs={"llm": own})
    manifest = json.loads(bundle_of(settings, llm_export=made.ref).file("release.json").read_text())
    assert manifest["parts"]["llm_export"] == {"ref": made.ref, "digest": made.digest}
    of = {"llm": "tiny/select_llm/b"}
    other = publish(settings, "export_llm", "b", replace(CARD, round=2).write, inputs=of)
    with pytest.raises(ArtifactError, match=r"export_llm/b was made from llm tiny/select_llm/b"):
        bundle_of(settings, llm_export=other.ref)


def test_the_same_parts_are_the_same_release_and_others_another(settings: Settings) -> None:
    assert release_id(bundle_of(settings)) == release_id(bundle_of(settings))
    assert release_id(bundle_of(settings)) != release_id(bundle_of(settings, "b"))


@pytest.mark.parametrize("name", ["embeddings", "index", "rqa", "snapshot"])
def test_parts_that_do_not_belong_together_are_refused(settings: Settings, name: str) -> None:
    other = parts(settings, "b", stage=1)[name]
    with pytest.raises(ArtifactError, match=r"was made from .* not from"):
        bundle_of(settings, **{name: other})


def test_stored_vectors_are_used_for_known_products_and_titles_for_others(
    settings: Settings,
) -> None:
    folder = bundle_of(settings).path
    towers = TowerRuntime(folder / "towers")
    queries = ["物品", "紅色 1", "物品", "物品"]
    products, titles = ["p1", "p0", "new", None], [None, "ignored", "紅色 物品", "2 3"]
    found = ReleaseScorer(folder).score(queries, products, titles)
    stored = np.load(folder / "embeddings.npy")
    vectors = np.stack([stored[1], stored[0], *towers.encode_products(["紅色 物品", "2 3"])])
    alone = [towers.encode_queries([q])[0] for q in queries]
    slow = [towers.score(q, v) for q, v in zip(alone, vectors, strict=True)]
    assert np.allclose(found.em, [s.em for s in slow], atol=1e-6)
    assert np.allclose(found.defect, [s.defect for s in slow], atol=1e-6)
    assert (found.rank_score == np.where(found.is_defect, 0, found.em)).all()
    assert vectors.shape == (4, 2, DIM)


def test_a_pair_without_product_or_title_is_an_error_with_its_row(settings: Settings) -> None:
    scorer = ReleaseScorer(bundle_of(settings).path)
    with pytest.raises(DataError, match="row 1: product 'new' is not in this release"):
        scorer.score(["物品", "物品"], ["p0", "new"], [None, None])


def hidden_from(model: Path) -> list[str]:
    """Return the modules installed here that the model's requirements would not bring along."""
    wanted = [Requirement(line) for line in (model / "requirements.txt").read_text().splitlines()]
    found: set[str] = set()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        here = one.marker is None or one.marker.evaluate({"extra": ""})
        if here and name not in found:
            found.add(name)
            wanted += [Requirement(r) for r in metadata.distribution(name).requires or []]
    own = metadata.packages_distributions().items()
    return [m for m, of in own if not found & {canonicalize_name(name) for name in of}]


def write_numbered(folder: Path) -> None:
    """Write vectors of products of which one is called by a number."""
    write_embeddings(folder)
    write_terms(folder)
    ids = pl.DataFrame({"product_id": ["p0", "7", "8"], "digest": ["a", "b", "c"]})
    ids.write_parquet(folder / "product_ids.parquet")


@pytest.mark.slow
def test_the_saved_model_scores_with_its_own_code_and_nothing_but_its_requirements(
    settings: Settings, tmp_path: Path
) -> None:  # A48, in small
    made = parts(settings, "a", stage=1, evidence=True)
    of = {name: made[name] for name in ("snapshot", "export")}
    numbered = publish(settings, "embed_products", "numbered", write_numbered, inputs=of)
    folder = bundle_of(settings, **(made | {"embeddings": numbered.ref})).path
    saved = model.save(folder, tmp_path / "work")
    assert not list(saved.rglob("*.pkl"))
    hidden = hidden_from(saved)
    assert {"torch", "transformers", "airflow", "csrm_tasks"} <= {*hidden}
    code = (
        "import sys, json\n"
        "class Hidden:\n"
        "    names = {*json.loads(sys.argv[2])} - {'csrm_tasks'}\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in self.names: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import pandas as pd, mlflow\n"
        "m = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "rows = pd.DataFrame({'query': ['物品', '紅色'], 'product_id': ['p0', None],\n"
        "                     'title': [None, '紅色 3'], 'category': [None, '1']})\n"
        "out = m.predict(rows)\n"
        "from mlflow.pyfunc import scoring_server\n"
        "asked = json.dumps({'dataframe_records': [\n"
        "    {'query': '物品', 'product_id': 7, 'title': '2 3'},\n"
        "    {'query': '物品', 'product_id': 7.0},\n"
        "    {'query': '物品', 'product_id': '7', 'title': None}]})\n"
        "def answer(body):\n"
        "    schema = m.metadata.get_input_schema()\n"
        "    said = scoring_server.invocations(body, 'application/json', m, schema).response\n"
        "    return [row['em'] for row in json.loads(said)['predictions']]\n"
        "served = answer(asked) + answer(asked.replace(json.dumps('7'), '7'))\n"
        "import csrm_tasks\n"
        "print(json.dumps({'code': csrm_tasks.__file__, 'rows': out.to_dict('list'),\n"
        "                  'served': served}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), json.dumps(hidden)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"].startswith(str(saved))
    direct = ReleaseScorer(folder).score(["物品", "紅色"], ["p0", None], [None, "紅色 3 | 1"])
    assert said["rows"]["em"] == pytest.approx(direct.em.tolist(), abs=1e-6)
    assert said["rows"]["is_defect"] == direct.is_defect.tolist()
    seven = ReleaseScorer(folder).score(["物品"], ["7"], [None]).em.tolist()
    assert said["served"] == pytest.approx(6 * seven, abs=1e-6)  # whatever JSON called it
    assert pl.DataFrame(said["rows"]).columns == ["em", "defect", "is_defect", "rank_score"]


@pytest.mark.parametrize("name", ["towers/query.onnx", "towers/serving.json", "embeddings.npy"])
def test_a_changed_byte_is_refused_by_whoever_loads_the_bundle(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(bundle_of(settings).path, tmp_path / "copy"))
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} was changed .* fetch the release again"):
        ReleaseScorer(copy)


def test_a_folder_that_is_no_bundle_or_a_newer_one_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"release\.json is missing"):
        ReleaseScorer(tmp_path)
    copy = Path(shutil.copytree(bundle_of(settings).path, tmp_path / "copy"))
    manifest = json.loads((copy / "release.json").read_text())
    (copy / "release.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ArtifactError, match="bundle format 99"):
        ReleaseScorer(copy)
    (copy / "release.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        ReleaseScorer(copy)


@pytest.mark.parametrize("empty", ["", " ", "\u3000", "\u200b"])
def test_an_empty_query_is_an_error_with_its_row(settings: Settings, empty: str) -> None:
    scorer = ReleaseScorer(bundle_of(settings).path)
    with pytest.raises(DataError, match="row 1: the query is empty"):
        scorer.score(["物品", empty], ["p0", "p0"], [None, None])


def test_ten_thousand_pairs_at_once_are_scored_as_one_by_one(settings: Settings) -> None:
    scorer = ReleaseScorer(bundle_of(settings).path)
    queries = ["紅色 物品", "2"] * 5_000
    products = ["p1", None, "p2", "new"] * 2_500
    titles = [None, "3 紅色", None, "物品"] * 2_500
    found = scorer.score(queries, products, titles)
    alone = [
        scorer.score([q], [p], [t]).em
        for q, p, t in zip(queries[:4], products[:4], titles[:4], strict=True)
    ]
    assert np.allclose(found.em.reshape(-1, 4), np.ravel(alone), atol=1e-6)


@pytest.mark.parametrize("name", ["query", "title"])
def test_a_text_of_100_kb_is_an_error_with_its_row(settings: Settings, name: str) -> None:
    scorer = ReleaseScorer(bundle_of(settings).path)
    long = "長" * 100_000
    query, title = (long, "3") if name == "query" else ("1", long)
    with pytest.raises(DataError, match=f"row 1: the {name} has 100000 characters, at most"):
        scorer.score(["物品", query], ["p0", None], [None, title])


def test_vectors_of_a_catalogue_are_mapped_and_not_read(settings: Settings) -> None:
    vectors = ReleaseScorer(bundle_of(settings).path).products._vectors
    assert isinstance(vectors.base, np.memmap)
    assert not vectors.flags.writeable


def test_vectors_of_another_width_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = bundle_of(settings).path
    with pytest.raises(ArtifactError, match="embed the products again"):
        ProductVectors(folder, DIM + 1)
