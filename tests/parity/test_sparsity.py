"""Parity of the methods that drop entries with the installed mergekit 0.1.5."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from .recipes import Mergekit, Tensors, located, ours, ulp, whole

pytestmark = pytest.mark.filterwarnings("ignore")

A, B = {"weight": 0.4}, {"weight": 0.7}
BAND = ("a", {**A, "density": 0.6, "gamma": 0.05}), ("b", {**B, "density": 0.3, "gamma": 0.2})
CASES: dict[str, dict[str, Any]] = {
    "ties": whole(
        "ties", ("a", {**A, "density": 0.3}), ("b", {**B, "density": 0.6}), parameters={"rescale": True}
    ),
    "breadcrumbs": whole("breadcrumbs", *BAND),
    "breadcrumbs-all": whole("breadcrumbs", ("a", A), ("b", B), parameters={"gamma": 0.3}),
    "breadcrumbs-crowded": whole(
        "breadcrumbs", ("a", {**A, "density": 0.9, "gamma": 0.4}), ("b", {**B, "density": 0.97})
    ),
    "breadcrumbs-options": whole(
        "breadcrumbs", *BAND, parameters={"rescale": True, "normalize": True, "lambda": 0.8}
    ),
    "breadcrumbs_ties": whole("breadcrumbs_ties", *BAND),
    "breadcrumbs_ties-options": whole(
        "breadcrumbs_ties", *BAND, parameters={"rescale": True, "normalize": True, "lambda": 0.8}
    ),
    "sce": whole("sce", ("a", {}), ("b", {})),
    "sce-selected": whole("sce", ("a", {}), ("b", {}), ("far", {}), parameters={"select_topk": 0.4}),
    "sce-none": whole("sce", ("a", {}), ("b", {}), parameters={"select_topk": 0}),
    "sce-one": whole("sce", ("a", {})),
    "sce-one-selected": whole("sce", ("a", {}), parameters={"select_topk": 0.9}),
}


def tensors_of(recipe: dict[str, Any]) -> list[Tensors]:
    """Those of the base, then of every model."""
    folders = [recipe["base_model"], *(m["model"] for m in recipe["models"])]
    return [load_file(Path(folder) / "model.safetensors") for folder in folders]


def at_a_cut(recipe: dict[str, Any], name: str, rows: list[torch.Tensor]) -> torch.Tensor:
    """Where a task vector is as large as one of its cuts: the choice among those is a matter of the machine."""
    n = rows[0].numel()
    result = torch.zeros(rows[0].shape, dtype=torch.bool)
    if recipe["merge_method"] == "sce":
        topk = recipe.get("parameters", {}).get("select_topk", 1)
        variance = torch.stack(rows).double().var(0, unbiased=False)
        k = int(topk * int((variance > 0).sum()))
        if 0 < k < n:
            # mergekit has variances of bfloat16, and the number of them in float32.
            cut = variance.flatten().topk(k).values[-1]
            result = (variance - cut).abs() <= (2e-2 if rows[0].dtype == torch.bfloat16 else 1e-5) * cut
        return result
    for row, model in zip(rows, recipe["models"], strict=True):
        size, settings = row.abs(), {**recipe.get("parameters", {}), **model["parameters"]}
        keep = math.floor(settings.get("density", 1.0) * n)
        top = 0 if recipe["merge_method"] == "ties" else math.floor(settings.get("gamma", 0.01) * n)
        for k in (keep + min(top, n - keep), min(top, n - keep)):
            if 0 < k < n:
                result |= size == size.flatten().topk(k).values[-1]
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_within_rounding_away_from_the_cuts(
    case: str, dtype: str, models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    recipe = located({**CASES[case], "dtype": dtype}, models)
    theirs, mine = mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")
    # In float64 the same rules without their rounding (tests/reference has them as naive loops).
    exact = ours({**recipe, "dtype": "float64"}, tmp_path / "exact")
    assert mine.keys() == theirs.keys() == exact.keys()
    kind = getattr(torch, dtype)
    base, *listed = tensors_of(recipe)
    elects = recipe["merge_method"] != "breadcrumbs"
    # The factor of rescaled task vectors is rounded too, as are they.
    allowed = 4 if recipe.get("parameters", {}).get("rescale") else 2
    for name, tensor in mine.items():
        other, true = theirs[name].double(), exact[name]
        assert tensor.dtype == theirs[name].dtype == kind
        rows = [t[name].to(kind) - base[name].to(kind) for t in listed]
        used = [t[name].double() for t in (base, *listed)]
        summands = [true, true - used[0], true.abs().mean().expand_as(true), *used]
        step = ulp(torch.stack(summands).abs().amax(0), kind)
        decided = ~at_a_cut(recipe, name, rows)
        assert decided.double().mean() > (0.9 if true.numel() > 1000 else 0.5), "else there is nothing to compare"
        for what in (other, true):
            far = int((((tensor.double() - what).abs() > allowed * step) & decided).sum())
            # Rounded task vectors that almost cancel may elect another sign.
            assert far <= elects * (2 + 0.001 * tensor.numel()), f"{name}: {far} of {tensor.numel()}"


def test_arcee_fusion_agrees_away_from_its_threshold(
    models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    wrong = {"ours": 0, "theirs": 0}
    for dtype in ("float32", "bfloat16"):
        recipe = located(whole("arcee_fusion", ("a", {}), ("base", {}), dtype=dtype), models)
        theirs, mine = mergekit(recipe, tmp_path / f"theirs-{dtype}"), ours(recipe, tmp_path / f"ours-{dtype}")
        base, other, _ = tensors_of(recipe)
        for name, tensor in mine.items():
            b, x = base[name].double(), other[name].double()
            p, q = (t.softmax(-1) + 1e-8 for t in (x, b))
            importance = (x - b).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
            order = importance.flatten().sort().values
            q1, median, q3 = (order[int(at * (order.numel() - 1))] for at in (0.25, 0.5, 0.75))
            threshold = median + 1.5 * (q3 - q1)
            true = torch.where(importance >= threshold, x, b)
            decided = (importance - threshold).abs() > 1e-4 * threshold
            assert decided.double().mean() > 0.9
            assert 0.005 < (importance >= threshold).double().mean() < 0.2, name
            assert tensor.dtype == getattr(torch, dtype)
            assert theirs[name].dtype == torch.float32  # whatever the recipe says
            assert torch.equal(tensor.double()[decided], true[decided]), name
            if dtype == "float32":
                torch.testing.assert_close(theirs[name].double()[decided], true[decided], rtol=1e-6, atol=1e-7)
            else:  # theirs adds a rounded difference to the base, and rounds the divergences
                middle = (x + b) / 2
                taken = (theirs[name].double() > middle) == (x > middle)
                wrong["theirs"] += int(((taken != (importance >= threshold)) & (x != b)).sum())
                wrong["ours"] += int((tensor.double() != true).sum())
    assert wrong["ours"] < 0.1 * wrong["theirs"]


# --- DELLA's random masks ---------------------------------------------------------------------------------------


def masks(merged: Tensors, base: Tensors, listed: list[Tensors], weights: list[float]) -> dict[str, torch.Tensor]:
    """Which entries of each model's matrices were kept, ``[m, rows, n]``, found from the sum without rescaling."""
    result = {}
    choices = torch.tensor([[k >> j & 1 for j in range(len(weights))] for k in range(1 << len(weights))])
    for name, tensor in merged.items():
        if tensor.ndim == 2:
            b = base[name].float()
            rows = torch.stack([w * (t[name].float() - b) for w, t in zip(weights, listed, strict=True)])
            sums = torch.einsum("cm,mrn->crn", choices.float(), rows)
            found = ((tensor - b) - sums).abs().argmin(0)
            result[name] = choices.bool()[found].movedim(-1, 0)
    return result


def by_rank(kept: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """Entries of each row from the smallest to the largest task vector's."""
    return torch.gather(kept, -1, deltas.abs().argsort(-1))


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_agrees_in_distribution(
    method: str, models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    density, epsilon = 0.45, 0.35
    shared = {"parameters": {"normalize": False, "rescale": False}, "dtype": "float32"}
    settings = {"weight": 0.8, "density": density, "epsilon": epsilon}
    recipe = located(whole(method, ("a", settings), **shared), models)
    base, *listed = tensors_of(recipe)
    deciles = {}
    for who, merged in (("theirs", mergekit(recipe, tmp_path / "t")), ("ours", ours(recipe, tmp_path / "o"))):
        kept = masks(merged, base, listed, [0.8])
        pooled = [by_rank(kept[n][0], listed[0][n].float() - base[n].float()) for n in kept]
        # Rows of 32 and 64 entries have sixteen groups of ranks alike.
        deciles[who] = torch.cat([p.reshape(len(p), 16, -1).double().mean(-1) for p in pooled]).mean(0).numpy()
        rows = sum(len(p) for p in pooled)
        error = 0.5 / math.sqrt(2 * rows)
        widths = np.array([p.shape[1] for p in pooled])
        shares = np.array([len(p) for p in pooled]) / rows
        expected = [
            sum(
                share
                * np.mean(
                    density - epsilon + 2 * epsilon * np.arange(w)[k * w // 16 : (k + 1) * w // 16] / (w - 1)
                )
                for w, share in zip(widths, shares, strict=True)
            )
            for k in range(16)
        ]
        assert np.all(abs(deciles[who] - expected) < 4.5 * error), who
    assert error < 0.02
    assert deciles["ours"][-1] - deciles["ours"][0] > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_restores_norms_like_mergekit(
    method: str, dtype: str, models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    recipe = located(whole(method, ("a", {"weight": 1, "density": 0.4}), dtype=dtype), models)
    theirs, mine = mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")
    base, listed = tensors_of(recipe)
    kind = getattr(torch, dtype)
    for name in mine:
        before = (listed[name].to(kind) - base[name].to(kind)).double().abs().sum()
        for merged in (mine, theirs):
            after = (merged[name].double() - base[name].double()).abs().sum()
            assert float(after) == pytest.approx(float(before), rel=1e-5 if dtype == "float32" else 0.02), name


def test_dellas_masks_are_independent_between_models(
    models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    weights = [0.4, 0.7]
    listed_ = [(n, {"weight": w, "density": 0.5}) for n, w in zip("ab", weights, strict=True)]
    recipe = located(whole("della_linear", *listed_, parameters={"rescale": False}, dtype="float32"), models)
    base, *listed = tensors_of(recipe)
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        kept = masks(merged, base, listed, weights)
        both = np.concatenate([k.double().reshape(2, -1).numpy() for k in kept.values()], axis=1)
        assert abs(both.mean(1) - 0.5).max() < 4.5 * 0.5 / math.sqrt(both.shape[1])
        assert abs(np.corrcoef(both)[0, 1]) < 4.5 / math.sqrt(both.shape[1])
