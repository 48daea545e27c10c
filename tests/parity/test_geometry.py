"""Parity with mergekit 0.1.5 of the methods about angles, distances and counts.

Here mergekit computes in the dtype of the merge, step by step: in bfloat16 its norms and angles are good to two
digits. Its own run in float64 is the oracle; it has the same rules without that rounding. We must agree with it in
every dtype, in bfloat16 be no farther from it than mergekit is, and agree with its float32 wherever that is sound.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .recipes import Mergekit, Tensors, located, ours, ulp, whole

pytestmark = pytest.mark.filterwarnings("ignore")

PLAIN_A, PLAIN_B, FAR = ("a", {}), ("b", {}), ("far", {})
A, B, C = ("a", {"weight": 0.4}), ("b", {"weight": 0.7}), ("far", {"weight": 0.3})
BY_LINE = {"nuslerp_flatten": False}
GRADIENT = [{"filter": "mlp", "value": [0.1, 0.9, 0.3]}, {"value": [0.2, 0.8]}]

CASES: dict[str, dict[str, Any]] = {
    "nuslerp": whole("nuslerp", A, C, base=None),
    "nuslerp-deltas": whole("nuslerp", A, B),
    "nuslerp-equal": whole("nuslerp", ("a", {"weight": 1}), ("b", {"weight": -1})),
    "nuslerp-gradient": whole("nuslerp", ("a", {"weight": GRADIENT}), B),
    "nuslerp-lines": whole("nuslerp", A, C, base=None, parameters=BY_LINE),
    "nuslerp-rows": whole("nuslerp", A, B, parameters={**BY_LINE, "nuslerp_row_wise": True}),
    "nuslerp-both": whole("nuslerp", A, B, parameters={"nuslerp_row_wise": True}),
    "multislerp": whole("multislerp", A, B, C, base=None),
    "multislerp-deltas": whole("multislerp", A, B, C),
    "multislerp-sum": whole("multislerp", A, ("b", {"weight": -0.3}), parameters={"normalize_weights": False}),
    "multislerp-one": whole("multislerp", A),
    "karcher": whole("karcher", PLAIN_A, PLAIN_B, FAR, base=None),
    "karcher-base": whole("karcher", FAR, PLAIN_A),
    "karcher-options": whole("karcher", FAR, PLAIN_A, PLAIN_B, parameters={"max_iter": 1, "tol": 1e-3}),
    "model_stock": whole("model_stock", PLAIN_A, PLAIN_B, FAR),
    "model_stock-rows": whole("model_stock", PLAIN_A, PLAIN_B, parameters={"filter_wise": True}),
    "nearswap": whole("nearswap", PLAIN_A, parameters={"t": 0.02}),
    "nearswap-gradient": whole("nearswap", FAR, parameters={"t": GRADIENT}),
    "ram": whole("ram", PLAIN_A, PLAIN_B, parameters={"epsilon": 0.125}),
    "ram-defaults": whole("ram", PLAIN_A, PLAIN_B, FAR),
    "ramplus_tl": whole("ramplus_tl", PLAIN_A, PLAIN_B, FAR, parameters={"epsilon": 0.125, "r": 0.4, "alpha": 5}),
    "ramplus_tl-bounded": whole("ramplus_tl", PLAIN_A, PLAIN_B, parameters={"epsilon": 0.125}),
}


# In float32 too, mergekit's vectors of unit length cost it some places.
NOISY = ("karcher", "multislerp")


def far(a: torch.Tensor, b: torch.Tensor, allowed: torch.Tensor) -> int:
    return int(((a.double() - b.double()).abs() > allowed).sum())


@pytest.mark.parametrize("case", CASES)
def test_agrees_within_rounding(case: str, models: dict[str, str], mergekit: Mergekit, tmp_path: Path) -> None:
    recipe = located(CASES[case], models)

    def both(dtype: str) -> tuple[Tensors, Tensors]:
        typed = {**recipe, "dtype": dtype}
        theirs, mine = mergekit(typed, tmp_path / f"theirs-{dtype}"), ours(typed, tmp_path / f"ours-{dtype}")
        assert mine.keys() == theirs.keys()
        assert all(t.dtype == getattr(torch, dtype) for t in mine.values())
        return theirs, mine

    true, exact = both("float64")
    # In mergekit ratios of counts are float32 in every dtype (as is what becomes of bfloat16): ours are finer.
    precision = 1e-6 if case.startswith("ramplus") else 1e-9
    for name, tensor in exact.items():
        torch.testing.assert_close(tensor, true[name], rtol=precision, atol=precision)
        assert tensor.shape == true[name].shape
    true = exact if case.startswith("ramplus") else true
    folders = {entry["model"] for entry in recipe["models"]} | {recipe.get("base_model")} - {None}
    stored = [load_file(Path(folder) / "model.safetensors") for folder in folders]
    for dtype in ("float32", "bfloat16"):
        theirs, mine = both(dtype)
        # Rounding takes entries of task vectors across the threshold: the same ones in both, but not in float64.
        oracle = theirs if case.startswith("ram") and dtype == "bfloat16" else true
        distance = {"ours": 0.0, "theirs": 0.0}
        for name, tensor in mine.items():
            wanted = oracle[name].double()
            inputs = torch.stack([t[name].double() for t in stored])
            summands = [wanted, wanted.abs().mean().expand_as(wanted), *inputs, inputs.amax(0) - inputs.amin(0)]
            step = ulp(torch.stack(summands).abs().amax(0), getattr(torch, dtype))
            few = 2 + 0.001 * tensor.numel()
            assert far(tensor, wanted, 2 * step) <= few, name
            assert far(tensor, wanted, 16 * step) == 0, name
            if dtype == "float32" and not case.startswith(NOISY):  # its dot products are sums in float32
                assert far(tensor, theirs[name], 4 * step) <= few, name
            distance["ours"] += float((tensor.double() - wanted).abs().sum())
            distance["theirs"] += float((theirs[name].double() - wanted).abs().sum())
        # One input comes back as it is in mergekit, and as the base plus the rounded difference in ours.
        if oracle is true and case != "multislerp-one":
            assert distance["ours"] <= distance["theirs"], (dtype, distance)
