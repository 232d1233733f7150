"""A query tower of fewer layers: what is cut, and what it learns."""

from __future__ import annotations

import pytest
import torch

from csrm_tasks.errors import ConfigError
from csrm_tasks.towers.model import TwinTowers
from csrm_tasks.towers.shorten import cut
from tests.towers_fixtures import make_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TwinTowers:
    base = make_encoder(tmp_path_factory.mktemp("encoder"), layers=5)
    return TwinTowers.from_base(str(base), dim=16, scale=8.0, learn_scale=True, seed=0).eval()


def test_evenly_chosen_layers_and_the_same_embeddings(model: TwinTowers) -> None:
    ids, mask = torch.tensor([[0, 7, 9, 2], [0, 5, 2, 1]]), torch.tensor([[1] * 4, [1] * 3 + [0]])
    short = cut(model.query, 3)
    with torch.inference_mode():
        found = short(ids, mask)
        hidden = model.query.encoder.embeddings(ids)  # the slow way: layers 0, 2, 4 by hand
        wall = torch.zeros(2, 1, 4, 4).masked_fill(mask[:, None, None] == 0, -1e9)
        for i in (0, 2, 4):
            hidden = model.query.encoder.encoder.layer[i](hidden, wall)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        real = mask.unsqueeze(-1)
        states = model.query.projection((hidden * real).sum(1) / real.sum(1))
    wanted = torch.nn.functional.normalize(states.view(2, 2, 16), dim=-1)
    torch.testing.assert_close(found, wanted)
    assert short.encoder.get_input_embeddings() is model.query.encoder.get_input_embeddings()
    assert short.projection is not model.query.projection
    assert model.query.encoder.config.num_hidden_layers == 5


@pytest.mark.parametrize("layers", [0, 5, 6])
def test_no_fewer_layers_is_an_error(model: TwinTowers, layers: int) -> None:
    with pytest.raises(ConfigError, match=rf"query_layers is {layers}, .* 5 layers: give 1 to 4"):
        cut(model.query, layers)
