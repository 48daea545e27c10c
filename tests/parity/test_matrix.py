"""Parity with mergekit 0.1.5: every pair of method, form of recipe, architecture and dtypes (docs/parity.md).

Ours must be within two units in the last place of the naive references in float64, and so must mergekit's be of
ours, but where it is known to be noisier (noise.py).
"""

import math
import runpy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from heterosis.merge.api import merge_models
from heterosis.merge.methods import get_method
from heterosis.merge.models.checkpoint import open_checkpoint
from heterosis.merge.plan import TensorOp
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe

from . import matrix
from .exact import RANDOM, Chances, Exact, chances, exact
from .matrix import FACTORS, Case, all_pairs, cases, coverage
from .noise import MISTAKEN, NEAR, NOISY, OUR_FARTHEST, SHARE, THEIR_FARTHEST, UNDECIDED, WIDENING
from .recipes import Mergekit, Tensors
from .zoo import EXPERTS, Zoo

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parents[2]
TABLES = (
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "shared.weight"),
    *("lm_head.weight", "embed_out.weight", "lm_head.bias"),
)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_same_recipe_gives_the_same_model(case: Case, zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    recipe = case.recipe(zoo)
    theirs = _their_tensors(recipe, mergekit, tmp_path / "theirs")
    folder = merge_models(Recipe.model_validate(recipe), tmp_path / "ours", threads=1)
    mine = load_file(folder / "model.safetensors")
    theirs = {name: x for name, x in theirs.items() if not name.endswith(".masked_bias")}  # which nothing reads
    if case.form == "tokenizer":
        theirs = _in_our_order(theirs, folder, tmp_path / "theirs")
    assert fused(mine).keys() == theirs.keys()
    with ExitStack() as opened:
        plan = build_plan(Recipe.model_validate(recipe), lambda ref: opened.enter_context(open_checkpoint(ref)))
        assert {op.name for op in plan.ops} == mine.keys()
        floating = [op for op in plan.ops if op.dtype.is_floating_point]
        merged = {op.name: exact(op) for op in floating}
        random = {op.name: chances(op) for op in floating if case.method in RANDOM and op.method is not None}
    _check_dtypes(case, plan.ops, mine, theirs)
    for op in plan.ops:
        if not op.dtype.is_floating_point:
            assert torch.equal(mine[op.name], theirs[op.name].to(op.dtype))  # theirs has the recipe's dtype

    ours = _distances(mine, {name: (x.values, x.unit, x.decided) for name, x in merged.items()})
    _check_near(ours, OUR_FARTHEST)
    if any(float(x.variance.sum()) > 0 for x in random.values()):
        _check_chances(case, mine, random, "ours")
        _check_chances(case, theirs, random, "theirs")
    else:
        _check_theirs(case, floating, merged, mine, theirs)


def _their_tensors(recipe: matrix.Recipe, mergekit: Mergekit, out: Path) -> Tensors:
    try:
        return mergekit(recipe, out)
    except StrictDataclassClassValidationError:
        # The tensors are there, but `layer_types` in the config is for the old number of layers.
        return load_file(out / "model.safetensors")


def _in_our_order(theirs: Tensors, folder: Path, their_folder: Path) -> Tensors:
    """Tensors with a row for each token, in the order of our ids: mergekit's vary for tokens that were added."""
    tokens, others = (Tokenizer.from_file(str(f / "tokenizer.json")).get_vocab() for f in (folder, their_folder))
    assert tokens.keys() == others.keys()
    result = {}
    for name, tensor in theirs.items():
        if name.endswith(TABLES):
            order = torch.arange(len(tensor))  # padding stays
            for token, row in tokens.items():
                order[row] = others[token]
            tensor = tensor[order]
        result[name] = tensor
    return result


def fused(stored: Tensors) -> Tensors:
    """Mixtral's experts in two tensors for each layer, as mergekit writes them."""
    result = {}
    for name, tensor in stored.items():
        layer, _, rest = name.replace("block_sparse_moe", "mlp").partition(".experts.")
        if not rest:
            result[layer] = tensor
        elif rest == "0.w1.weight":
            gate, up, down = (
                torch.stack([stored[name.replace("0.w1", f"{e}.{kind}")] for e in range(EXPERTS)])
                for kind in ("w1", "w3", "w2")
            )
            result[f"{layer}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            result[f"{layer}.experts.down_proj"] = down
    return result


def _check_dtypes(case: Case, ops: Iterable[TensorOp], mine: Tensors, theirs: Tensors) -> None:
    for op in ops:
        assert mine[op.name].dtype == op.dtype
        if op.name in theirs and op.dtype.is_floating_point:
            widened = case.method in WIDENING and theirs[op.name].dtype == torch.float32
            assert theirs[op.name].dtype == op.dtype or widened, op.name


def _distances(tensors: Tensors, wanted: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """All decided elements' distances from the values wanted, in their units."""
    far = [
        ((tensors[name].double() - values).abs() / unit)[decided]
        for name, (values, unit, decided) in wanted.items()
    ]
    return torch.cat(far)


def _share(distances: Tensor, limit: float) -> float:
    return float((distances > limit).double().mean())


def _check_near(distances: Tensor, farthest: float) -> None:
    assert _share(distances, NEAR) <= SHARE, _summary(distances)
    assert float(distances.max()) <= farthest, _summary(distances)


def _summary(distances: Tensor) -> str:
    return f"{_share(distances, NEAR):.2%} beyond {NEAR:g} units, the farthest {float(distances.max()):.1f}"


def _check_theirs(
    case: Case, ops: list[TensorOp], merged: dict[str, Exact], mine: Tensors, theirs: Tensors
) -> None:
    fields = ("values", "their_unit", "decided")
    values, unit, decided = (fused({n: getattr(x, key) for n, x in merged.items()}) for key in fields)
    slack = fused({name: torch.full_like(x.values, x.slack) for name, x in merged.items()})
    # Of all experts at once, mergekit has other norms, angles and cuts than of each by itself.
    compared = [name for name in values if not (".experts." in name and get_method(case.method).reduces)]
    undecided = torch.cat([~decided[name].flatten() for name in compared]).double().mean()
    assert undecided <= UNDECIDED

    widest = max((torch.finfo(op.compute).eps, op.compute) for op in ops)[1]
    arithmetic = str(widest).removeprefix("torch.")
    rounded = any(torch.finfo(op.dtype).eps > torch.finfo(op.compute).eps for op in ops)  # finer than the output
    key = (case.method, arithmetic)
    if key in MISTAKEN and not rounded:
        chosen = _distances(theirs, {n: (values[n], unit[n], decided[n]) for n in compared})
        assert _share(chosen, NEAR) <= MISTAKEN[key].limit, _summary(chosen)
    elif key in NOISY and not rounded:
        distances = _distances(theirs, {n: (values[n], unit[n], decided[n]) for n in compared})
        assert float(distances.max()) <= NOISY[key].limit, _summary(distances)
    else:
        own = fused(mine)
        wanted = {n: (own[n].double(), unit[n] + slack[n] / NEAR, decided[n]) for n in compared}
        distances = _distances(theirs, wanted)
        _check_near(distances, THEIR_FARTHEST)


# --- chance -----------------------------------------------------------------------------------------------------

LARGE = 200  # elements of a tensor; in smaller ones the restored norm biases the mean


def _check_chances(case: Case, merged: Tensors, random: dict[str, Chances], who: str) -> None:
    """As many elements are dropped as should be, and the others make up for it: five standard deviations."""
    kept = {name: x for name, x in random.items() if name in merged and ".experts." not in name}
    large = {name: x for name, x in kept.items() if x.mean.numel() >= LARGE}
    assert large
    dropped = expected = spread = 0.0
    pull = variance = 0.0
    for name, x in large.items():
        delta = merged[name].double() - x.base
        same = delta.abs() <= 2 * x.unit
        dropped += float(same[x.visible].sum())
        expected += float(x.dropped[x.visible].sum())
        spread += float((x.dropped * (1 - x.dropped))[x.visible].sum())
        direction = x.mean.sign()
        pull += float(((delta - x.mean) * direction).sum())
        variance += float((x.variance + x.unit**2).sum())
    assert abs(dropped - expected) <= 5 * math.sqrt(spread), f"{who}: {dropped:.0f} dropped of {expected:.0f}"
    assert abs(pull) <= 5 * math.sqrt(variance), f"{who}: {pull / math.sqrt(variance):.1f} standard deviations off"


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_keep_restore_and_do_not_shift(
    method: str, zoo: Zoo, mergekit: Mergekit, tmp_path: Path
) -> None:
    density = 0.4
    base, model = (zoo.model("gpt2", name, torch.float32) for name in ("base", "a"))
    settings = {"weight": 1, "density": density}
    recipe = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model, "parameters": settings}],
    }
    start, end = (load_file(Path(folder) / "model.safetensors") for folder in (base, model))
    folder = merge_models(Recipe.model_validate(recipe), tmp_path / "ours", threads=1)
    for merged in (load_file(folder / "model.safetensors"), mergekit(recipe, tmp_path / "theirs")):
        n = kept = 0
        pull = variance = 0.0
        for name, tensor in merged.items():
            full, delta = (end[name] - start[name]).double(), (tensor - start[name]).double()
            n, kept = n + full.numel(), kept + int((delta != 0).sum())
            assert float(delta.abs().sum()) == pytest.approx(float(full.abs().sum()), rel=1e-5), name
            # Signs that the mask does not know of, as the sum along the task vector is what was restored.
            signs = torch.randn(full.shape, generator=torch.Generator().manual_seed(len(name))).sign().double()
            pull += float(((delta - full) * signs).sum())
            variance += float(full.square().sum()) * (1 / density - 1)
        assert abs(kept - density * n) <= 5 * math.sqrt(n * density * (1 - density))
        assert abs(pull) <= 5 * math.sqrt(variance)


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_do_not_depend_on_threads_or_memory(
    method: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"layers": 1, "vocab": 1600}  # more elements than a block of the least memory holds
    base = make_llama("mask-base", seed=0, **options)
    models = [make_llama(f"mask-{k}", seed=k, noise_from=base, noise=0.1, **options) for k in (1, 2)]
    recipe = Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": str(base),
            "models": [{"model": str(m), "parameters": {"weight": 0.5, "density": 0.5}} for m in models],
        }
    )
    runs = []
    for threads, memory in ((1, 1 << 29), (2, 1 << 29), (2, 1 << 25), (1, 1 << 24)):
        folder = merge_models(recipe, tmp_path / f"{threads}-{memory}", threads=threads, memory_limit=memory)
        runs.append(load_file(folder / "model.safetensors"))
    for other in runs[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in runs[0].items())


# --- coverage ---------------------------------------------------------------------------------------------------


def test_every_pair_is_covered(capsys: pytest.CaptureFixture[str]) -> None:
    possible, impossible = all_pairs()
    counts = coverage(cases())
    assert len(cases()) >= 150
    assert not [pair for pair in possible if not counts[pair]]
    assert not [pair for pair in impossible if counts[pair]]
    with capsys.disabled():
        print(f"\n{len(cases())} recipes cover {len(possible)} pairs; {len(impossible)} cannot be:")
        for i, j in combinations(range(len(FACTORS)), 2):
            of = [counts[pair] for pair in possible if (pair[0], pair[2]) == (i, j)]
            print(f"  {FACTORS[i]} and {FACTORS[j]}: {len(of)} pairs, each {min(of)} to {max(of)} times")


def test_the_page_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_parity_page.py"))
    assert script["render"]() == (ROOT / "docs" / "parity.md").read_text(encoding="utf-8"), (
        "run scripts/make_parity_page.py"
    )
