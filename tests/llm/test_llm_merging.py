"""The arithmetic of merging adapters, beside loops over single weights and beside peft's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from csrm_tasks.errors import ArtifactError
from csrm_tasks.llm.network.identity import LlmCard
from csrm_tasks.llm.network.merging import (
    CONFIG,
    WEIGHTS,
    factors,
    layers_of,
    merge_adapters,
    merged_product,
)
from csrm_tasks.llm.training.merge import why_not
from csrm_tasks.sections import Llm, MergeMethod

SHAPES = {"h.0.q_proj": (6, 7), "h.0.k_proj": (3, 7)}  # (O, I)
Matrix = list[list[float]]


def make_adapter(
    folder: Path, seed: int, shapes: Mapping[str, tuple[int, int]] = SHAPES, **lora: Any
) -> Path:
    """Write an adapter of random weights as training does."""
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]} | lora)
    config.save_pretrained(str(folder))
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (wide, narrow) in shapes.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(config.r, narrow, generator=draw)
        state[f"{layer}.lora_B.weight"] = torch.randn(wide, config.r, generator=draw)
    save_file(state, folder / WEIGHTS)
    return folder


def products(folder: Path) -> dict[str, np.ndarray]:
    """Return ΔW of each layer by peft's own reading of the configuration, in fp64."""
    config = LoraConfig.from_pretrained(str(folder))
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    state = {k: v.double().numpy() for k, v in load_file(folder / WEIGHTS).items()}
    layers = [k.removesuffix(".lora_A.weight") for k in state if k.endswith("lora_A.weight")]
    return {x: scale * state[f"{x}.lora_B.weight"] @ state[f"{x}.lora_A.weight"] for x in layers}


def slow(given: Sequence[Matrix], method: str) -> Matrix:
    """Linear and TIES, weight by weight."""
    rows, columns = len(given[0]), len(given[0][0])
    if method == "linear":
        return [
            [sum(g[i][j] for g in given) / len(given) for j in range(columns)] for i in range(rows)
        ]
    trimmed = []
    for g in given:
        places = sorted(
            ((i, j) for i in range(rows) for j in range(columns)), key=lambda p: -abs(g[p[0]][p[1]])
        )
        kept = set(places[: rows * columns // 2])
        trimmed.append(
            [[g[i][j] if (i, j) in kept else 0.0 for j in range(columns)] for i in range(rows)]
        )
    merged = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            positive = sum(t[i][j] for t in trimmed) >= 0
            agree = [t[i][j] for t in trimmed if (t[i][j] > 0 if positive else t[i][j] < 0)]
            merged[i][j] = sum(agree) / len(agree) if agree else 0.0
    return merged


@examples(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5),
    st.sampled_from(["linear", "ties"]),
)  # fmt: skip
@example(0, 2, 1, 1, "ties")  # half of one weight is none
def test_linear_and_ties_are_those_of_a_loop_over_weights(
    seed: int, n: int, rows: int, columns: int, method: MergeMethod
) -> None:
    draw = torch.Generator().manual_seed(seed)
    given = [torch.randn(rows, columns, generator=draw) for _ in range(n)]
    found = merged_product(given, method)
    expected = np.asarray(slow([g.double().tolist() for g in given], method))
    assert np.abs(found.numpy() - expected).max() < 1e-6


@examples(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6), st.integers(1, 7))
def test_the_factors_are_the_nearest_of_their_rank(
    seed: int, rows: int, columns: int, rank: int
) -> None:
    product = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    a, b, left_out = factors(product, rank)
    assert (a.shape, b.shape) == ((rank, columns), (rows, rank))
    assert left_out == pytest.approx(float((product - b @ a).norm()), abs=1e-5)
    values = np.linalg.svd(product.double().numpy(), compute_uv=False)
    assert left_out == pytest.approx(float(np.linalg.norm(values[rank:])), abs=1e-5)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_of_full_rank_nothing_is_lost_whatever_ranks_and_scales(
    tmp_path: Path, method: MergeMethod
) -> None:
    """The first has more rank than its layers, and rslora; the others have less."""
    folders = [
        make_adapter(tmp_path / "a", 0, r=8, lora_alpha=8, use_rslora=True),
        make_adapter(tmp_path / "b", 1, lora_alpha=3),
        make_adapter(tmp_path / "c", 2, r=3, use_rslora=True),
    ]
    lost = merge_adapters(folders, method, 0, tmp_path / "out")
    assert lost.error < 1e-6 and lost.worst < 1e-6
    given, found = [products(folder) for folder in folders], products(tmp_path / "out")
    assert set(found) == set(SHAPES)
    for layer in SHAPES:
        expected = np.asarray(slow([one[layer].tolist() for one in given], method))
        assert np.abs(found[layer] - expected).max() < 1e-5
    assert (tmp_path / "out" / CONFIG).read_bytes() == (folders[0] / CONFIG).read_bytes()


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_what_the_rank_leaves_out_is_told(tmp_path: Path, method: MergeMethod) -> None:
    folders = [make_adapter(tmp_path / f"{i}", i, r=1) for i in range(3)]
    lost = merge_adapters(folders, method, 0, tmp_path / "out")
    given, found = [products(folder) for folder in folders], products(tmp_path / "out")
    shares, missing, whole = [], 0.0, 0.0
    for layer in SHAPES:
        full = np.asarray(slow([one[layer].tolist() for one in given], method))
        assert np.linalg.matrix_rank(found[layer], tol=1e-5) == 1
        missing += float(((full - found[layer]) ** 2).sum())
        whole += float((full**2).sum())
        shares.append(float(np.linalg.norm(full - found[layer]) / np.linalg.norm(full)))
    assert lost.error == pytest.approx(math.sqrt(missing / whole), rel=1e-4)
    assert lost.worst == pytest.approx(max(shares), rel=1e-4)
    assert 0.05 < lost.error < 1.0


def test_dare_keeps_half_of_each_doubled_and_draws_by_the_seed(tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / f"{i}", i, r=8) for i in range(2)]
    state = torch.random.get_rng_state()
    files = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        merge_adapters(folders, "dare", seed, tmp_path / name)
        files.append((tmp_path / name / WEIGHTS).read_bytes())
    assert files[0] == files[1] != files[2]
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's draws are moved
    one, two = (products(folder)["h.0.q_proj"] for folder in folders)
    found = products(tmp_path / "one")["h.0.q_proj"]
    # mean of two, each doubled or dropped: one of four values for each weight
    possible = np.stack([np.zeros_like(one), one, two, one + two])
    assert np.abs(possible - found).min(axis=0).max() < 1e-5


def test_dare_is_the_mean_on_average() -> None:
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(40, 50, generator=draw) for _ in range(3)]
    torch.manual_seed(0)
    found = torch.stack([merged_product(given, "dare") for _ in range(300)])
    kept = float((merged_product(given[:1], "dare") != 0).float().mean())
    assert kept == pytest.approx(0.5, abs=0.05)
    mean = sum(given) / 3  # type: ignore[operator]
    error = (sum(g.square() for g in given) / 9 / 300).sqrt()  # type: ignore[union-attr]
    assert float(((found.mean(dim=0) - mean) / error).abs().max()) < 6


@pytest.mark.parametrize(
    ("method", "kind", "weight"), [("linear", "svd", 0.5), ("ties", "ties_svd", 1.0)]
)
def test_without_rslora_it_is_what_peft_adds_as_a_weighted_adapter(
    tmp_path: Path, method: MergeMethod, kind: str, weight: float
) -> None:
    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(7, 6, bias=False)

    shapes = {"base_model.model.q_proj": (6, 7)}
    folders = [make_adapter(tmp_path / f"{i}", i, shapes) for i in range(2)]
    config = LoraConfig.from_pretrained(str(folders[0]))
    wrapped: Any = get_peft_model(Base(), config, adapter_name="x0")
    wrapped.add_adapter("x1", config)
    layer = wrapped.base_model.model.q_proj
    for i, folder in enumerate(folders):
        for part in "AB":
            weights = load_file(folder / WEIGHTS)[f"base_model.model.q_proj.lora_{part}.weight"]
            getattr(layer, f"lora_{part}")[f"x{i}"].weight.data = weights
    wrapped.base_model.add_weighted_adapter(
        ["x0", "x1"], [weight, weight], "merged", combination_type=kind, density=0.5
    )
    expected = layer.get_delta_weight("merged").detach().numpy()
    merge_adapters(folders, method, 0, tmp_path / "out")
    assert np.abs(products(tmp_path / "out")["base_model.model.q_proj"] - expected).max() < 1e-5


def test_what_cannot_be_merged_is_one_line(tmp_path: Path) -> None:
    one = make_adapter(tmp_path / "one", 0)
    fewer = make_adapter(tmp_path / "fewer", 1, {"h.0.k_proj": (3, 7)})
    assert layers_of(one) == set(SHAPES) and layers_of(fewer) == {"h.0.k_proj"}
    with pytest.raises(ArtifactError, match=r"fewer: adapts no layer 'h.0.q_proj'"):
        merge_adapters([one, fewer], "linear", 0, tmp_path / "out")
    state = load_file(one / WEIGHTS)
    state["h.0.k_proj.lora_A.weight"][0, 0] = math.nan
    save_file(state, one / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"one: layer 'h.0.k_proj' is not finite"):
        merge_adapters([one], "linear", 0, tmp_path / "out")


def test_adapters_that_add_nothing_merge_to_nothing(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "one", 0)
    state = load_file(folder / WEIGHTS)
    save_file({k: v * ("lora_A" in k) for k, v in state.items()}, folder / WEIGHTS)
    lost = merge_adapters([folder, folder], "ties", 0, tmp_path / "out")
    assert (lost.error, lost.worst) == (0.0, 0.0)
    assert all((found == 0).all() for found in products(tmp_path / "out").values())


def test_a_market_file_names_each_method_once_and_smooths_little() -> None:
    def section(**keys: Any) -> Llm:
        return Llm.model_validate_json(json.dumps({"base": "b"} | keys))

    assert section(merge=["ties", "dare"]).merge == ("ties", "dare")
    assert section(merge=["ties"]).model_dump() == section().model_dump()  # trains nothing anew
    with pytest.raises(ValidationError, match="merge names 'ties' twice"):
        section(merge=["ties", "ties"])
    with pytest.raises(ValidationError, match="'linear', 'ties' or 'dare'"):
        section(merge=["slerp"])
    assert section(label_smoothing=0.2).model_dump() != section().model_dump()
    for wrong in (-0.01, 0.21):
        with pytest.raises(ValidationError, match="label_smoothing"):
            section(label_smoothing=wrong)


CARD = LlmCard("b", "d1", {"relevance": [3, 4, 5]}, 64, True, "fp32", "stage2", 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arm": "round1", "round": 1, "precision": "bf16", "temperature": 2.0}, None),
        ({"base_digest": "d2"}, "it has another base (llm.base)"),
        ({"pretraining": "p"}, "it has another stage 0 (llm.pretraining)"),
        ({"product_fields": ("brand",)}, "it has another product form"),
        ({"category_levels": 1}, "it has another product form"),
        ({"label_ids": {"relevance": [3, 4, 6]}}, "it has another label token ids"),
        ({"prompt_version": "0"}, "trained with prompt version 0"),
    ],
)
def test_models_of_another_kind_are_told_apart(
    tmp_path: Path, change: dict[str, Any], reason: str | None
) -> None:
    for name, card in (("one", CARD), ("other", replace(CARD, **change))):
        make_adapter(tmp_path / name / "adapter", 0)
        card.write(tmp_path / name)
    found = why_not(tmp_path / "one", tmp_path / "other")
    assert found is None if reason is None else reason in str(found)
    if reason is None:
        make_adapter(tmp_path / "other" / "adapter", 0, {"h.0.q_proj": (6, 7)})
        found = why_not(tmp_path / "one", tmp_path / "other")
        assert found == "its adapter is on other layers (llm.lora.targets)"
