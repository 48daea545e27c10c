"""Where mergekit 0.1.5 is wrong or leaves something open, and where implementations part: the right answers.

The page docs/parity.md quotes the first paragraph of every test here.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.errors import InputError
from heterosis.merge.api import merge_models
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.recipe.recipe import Recipe

from .recipes import Mergekit, Tensors, ours, stack, whole
from .zoo import TOKENS, WORDS, Zoo

pytestmark = pytest.mark.filterwarnings("ignore")

F32 = torch.float32
NORM = "model.norm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def changed(folder: str, out: Path, tensors: Mapping[str, Tensor | None], **config: Any) -> str:
    """A copy of a model with other tensors, or without some, and other keys of its config."""
    shutil.copytree(folder, out)
    held = {**load_file(out / "model.safetensors"), **tensors}
    save_file({n: t for n, t in held.items() if t is not None}, out / "model.safetensors", {"format": "pt"})
    values = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(values | config))
    return str(out)


def stored(folder: str) -> Tensors:
    return load_file(Path(folder) / "model.safetensors")


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def base(zoo: Zoo) -> str:
    return zoo.model("llama", "base", F32)


@pytest.fixture
def other(zoo: Zoo) -> str:
    return zoo.model("llama", "a", F32)


class Moved:
    """Models that differ from a base in the sixteen entries of its final norm alone, and merges of them."""

    def __init__(self, base: str, mergekit: Mergekit, root: Path) -> None:
        start = torch.ones(16)
        self._base = changed(base, root / "base", {NORM: start})
        self._mergekit = mergekit
        self._root = root

    def recipe(self, method: str, deltas: Sequence[Sequence[float]], settings: Sequence[Any], **keys: Any) -> Any:
        folders = [
            changed(self._base, self._root / f"{k}", {NORM: 1 + torch.tensor(delta)})
            for k, delta in enumerate(deltas)
        ]
        listed = list(zip(folders, settings, strict=True))
        return whole(method, *listed, base=self._base, parameters=keys)

    def both(self, recipe: Any) -> tuple[Tensor, Tensor]:
        """The deltas of mergekit's and of our merge."""
        theirs = self._mergekit(recipe, self._root / "theirs")[NORM]
        return theirs - 1, ours(recipe, self._root / "ours")[NORM] - 1


@pytest.fixture
def moved(base: str, mergekit: Mergekit, tmp_path: Path) -> Moved:
    return Moved(base, mergekit, tmp_path)


def assert_refused(recipe: Any, out: Path, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        merge_models(Recipe.parse(yaml.safe_dump(recipe)), out)
    assert not out.exists()


def assert_both(found: tuple[Tensor, Tensor], expected: Sequence[float]) -> None:
    for delta in found:
        torch.testing.assert_close(delta, torch.tensor(expected), atol=1e-6, rtol=1e-6)


# --- the language -----------------------------------------------------------------------------------------------


@pytest.fixture
def deep(make_llama: Any) -> str:
    """A model of five layers with a head of its own."""
    return str(make_llama("deep", seed=3, layers=5, tied=False, dtype=F32))


def assert_scaled(
    merged: Tensors, source: Tensors, factors: Sequence[float], outside: tuple[float, float] = (1.0, 1.0)
) -> None:
    """Layers of a passthrough times their factors; embeddings, and norm and head, times theirs."""
    for name, tensor in merged.items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        factor = factors[layer] if layer is not None else outside[name != EMBEDDING]
        torch.testing.assert_close(tensor, factor * source[name], msg=name)


@pytest.mark.parametrize(
    ("layers", "factors"), [(1, (4.0,)), (2, (1.0, 4.0)), (5, (1.0, 1.5, 2.0, 3.0, 4.0))], ids=str
)
def test_01_gradients_over_any_number_of_layers(
    layers: int, factors: tuple[float, ...], deep: str, mergekit: Mergekit, tmp_path: Path
) -> None:
    """A gradient of three numbers over 1, 2 and 5 layers; a single layer takes the last number, and embeddings,
    final norm and head the first."""
    recipe = stack((deep, [0, layers]), scale=[1, 2, 4])
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        assert_scaled(merged, stored(deep), factors)


def test_02_gradients_restart_in_every_slice(deep: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """Each slice's gradient runs over its own layers; embeddings take the first slice's first number, norm and
    head the last slice's first."""
    recipe = stack((deep, [0, 2]), (deep, [2, 5]))
    for part, gradient in zip(recipe["slices"], ([1, 2], [3, 5]), strict=True):
        part["parameters"] = {"scale": gradient}
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        assert_scaled(merged, stored(deep), (1, 2, 3, 4, 5), (1, 3))


def test_03_a_filter_that_matches_nothing_falls_through(other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """A level whose filters match no part of the name counts as absent: the next one decides."""
    listed = [(other, {"weight": {"filter": "no such", "value": 9}})]
    recipe = whole("linear", *listed, base=None, parameters={"weight": 2, "normalize": False})
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        assert all(torch.equal(tensor, 2 * stored(other)[name]) for name, tensor in merged.items())


def test_04_filters_see_renumbered_layers(base: str, other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """In a frankenmerge, filters of settings per model see the number of the model's layer, and of settings per
    merge that of the output's."""
    scaled = stack((other, [0, 1]), (other, [2, 3]), scale=[{"filter": "layers.2.mlp", "value": 3}, {"value": 1}])
    parts = [{"sources": [{"model": m, "layer_range": [k, k + 1]} for m in (base, other)]} for k in (0, 2)]
    place = [{"filter": "layers.1.mlp", "value": 1}, {"value": 0}]
    arc = {"merge_method": "slerp", "base_model": base, "slices": parts, "parameters": {"t": place}}
    start, end = stored(base), stored(other)
    for run in (mergekit, ours):
        merged = run(scaled, tmp_path / f"{run is ours}-scaled")
        for kind, factor in (("mlp.up_proj", 3), ("self_attn.q_proj", 1)):
            wanted = factor * end[f"model.layers.2.{kind}.weight"]
            torch.testing.assert_close(merged[f"model.layers.1.{kind}.weight"], wanted)
        merged = run(arc, tmp_path / f"{run is ours}-arc")
        for kind, model in (("mlp.up_proj", end), ("self_attn.q_proj", start)):
            wanted = model[f"model.layers.2.{kind}.weight"]
            torch.testing.assert_close(merged[f"model.layers.1.{kind}.weight"], wanted)


def test_what_is_misspelt_is_refused(base: str, other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """A key or parameter that no method has is an error with the nearest valid name; mergekit ignores it."""
    recipe = whole("ties", (other, {"weight": 1, "densty": 0.5}), base=base)
    mergekit(recipe, tmp_path / "theirs")
    assert_refused(recipe, tmp_path / "ours", "densty: unknown parameter of 'ties'; did you mean 'density'")
    recipe = whole("ties", (other, {"weight": 1}), base=base, base_mdel=other)
    mergekit(recipe, tmp_path / "theirs")
    assert_refused(recipe, tmp_path / "ours", "base_mdel: unknown key; did you mean 'base_model'")


def test_17_a_model_is_once_in_a_slice(other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """The same model twice in a slice is an error in both; mergekit 0.1.4 takes the last one."""
    recipe = whole("linear", (other, {"weight": 1}), (other, {"weight": 2}), base=None)
    with pytest.raises(Exception, match="uplicate"):
        mergekit(recipe, tmp_path / "theirs")
    assert_refused(recipe, tmp_path / "ours", "models must differ")


@pytest.mark.parametrize("layers", [[2, 1], [-1, 2], [1, 4]], ids=["reversed", "negative", "beyond"])
def test_absurd_layer_ranges_are_refused(layers: list[int], other: str, tmp_path: Path) -> None:
    """A reversed, negative or too long layer range is an error that names it; mergekit takes a reversed one for no
    layers at all, and finds the others only where a tensor is missing."""
    assert_refused(stack((other, [0, 1]), (other, layers)), tmp_path / "ours", "layer_range: ")


def test_a_reversed_range_is_nothing_in_mergekit(other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """mergekit gives a model of [0, 2] and [2, 1] the tensors of two layers, and a config that says one."""
    theirs = mergekit(stack((other, [0, 2]), (other, [2, 1])), tmp_path / "theirs")
    assert "model.layers.1.mlp.up_proj.weight" in theirs
    assert config_of(tmp_path / "theirs")["num_hidden_layers"] == 1


# --- methods ----------------------------------------------------------------------------------------------------

RAMP = [(k + 1) / 8 * (-1) ** k for k in range(16)]  # magnitudes 1/8 to 2, all different


def test_05_ties_keeps_at_least_one(moved: Moved) -> None:
    """A density that leaves less than one entry keeps the largest; 0 keeps none."""
    found = moved.both(moved.recipe("ties", [RAMP], [{"weight": 1, "density": 0.01}]))
    assert_both(found, [0.0] * 15 + RAMP[15:])


def test_05_a_density_of_zero_keeps_none(moved: Moved) -> None:
    """With a density of 0 the base is left."""
    assert_both(moved.both(moved.recipe("ties", [RAMP], [{"weight": 1, "density": 0}])), [0.0] * 16)


def test_06_ties_with_a_negative_weight(moved: Moved) -> None:
    """A negative weight votes for the other sign, and entries are divided by the weights of those that were kept,
    of whatever sign: [1, 1] at weights 1 and -0.5 gives 1, [0.2, 1] gives -0.5 / -0.5 = 1, and [-1, 1] gives
    (-1 - 0.5) / (1 - 0.5) = -3."""
    pad = [0.0] * 13
    deltas = [[1.0, 0.2, -1.0, *pad], [1.0, 1.0, 1.0, *pad]]
    found = moved.both(moved.recipe("ties", deltas, [{"weight": 1}, {"weight": -0.5}], normalize=True))
    assert_both(found, [1.0, 1.0, -3.0, *pad])


def test_07_a_tied_vote_is_positive(moved: Moved) -> None:
    """Where the weighted entries sum to zero the positive ones win."""
    deltas = [[0.5, -0.25, *[0.0] * 14], [-0.5, 0.25, *[0.0] * 14]]
    found = moved.both(moved.recipe("ties", deltas, [{"weight": 1}, {"weight": 1}]))
    assert_both(found, [0.5, 0.25, *[0.0] * 14])


@pytest.mark.parametrize(("density", "gamma", "kept"), [(0.5, 0.01, (8, 16)), (0.9, 0.4, (0, 14))], ids=str)
def test_08_breadcrumbs_at_its_edges(density: float, gamma: float, kept: tuple[int, int], moved: Moved) -> None:
    """Breadcrumbs drops no outliers where gamma leaves less than one, and fewer of them where the density needs
    them: it keeps floor(density n) entries in any case."""
    recipe = moved.recipe("breadcrumbs", [RAMP], [{"weight": 1, "density": density, "gamma": gamma}])
    assert_both(moved.both(recipe), [v if kept[0] <= k < kept[1] else 0.0 for k, v in enumerate(RAMP)])


@pytest.mark.parametrize("kind", ["zero", "close", "opposite"])
def test_09_slerp_where_there_is_no_arc(kind: str, base: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """A zero tensor counts as orthogonal; almost equal directions (cosine above 0.9995) and opposite ones are
    interpolated linearly."""
    start = torch.zeros(16)
    start[0] = 2.0
    angle = torch.tensor(0.028)  # its cosine is 0.9996
    close = torch.zeros(16)
    close[0], close[1] = torch.cos(angle), torch.sin(angle)
    ends = {"zero": torch.zeros(16), "close": close, "opposite": -start / 2}
    first = changed(base, tmp_path / "first", {NORM: start})
    second = changed(base, tmp_path / "second", {NORM: ends[kind]})
    recipe = whole("slerp", (first, {}), (second, {}), base=first, parameters={"t": 0.3})
    wanted = 0.7 * start + 0.3 * ends[kind]
    if kind == "zero":
        wanted = torch.sin(torch.tensor(0.7 * torch.pi / 2)) * start
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        torch.testing.assert_close(merged[NORM], wanted)


def test_10_weights_that_sum_to_zero_are_refused(
    base: str, other: str, mergekit: Mergekit, tmp_path: Path
) -> None:
    """linear with weights that sum to zero and `normalize` is an error; mergekit writes infinities and NaN."""
    recipe = whole("linear", (base, {"weight": 1}), (other, {"weight": -1}), base=None)
    assert not torch.isfinite(mergekit(recipe, tmp_path / "theirs")[NORM]).all()
    assert_refused(recipe, tmp_path / "ours", "`sum of weights != 0` must hold")


def test_10_eight_models_are_rounded_once(base: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """The mean of eight bfloat16 models is rounded once, at the end, in both programs."""
    values = [1 + k / 128 for k in range(8)]
    folders = [
        changed(base, tmp_path / f"{k}", {NORM: torch.full((16,), v, dtype=torch.bfloat16)})
        for k, v in enumerate(values)
    ]
    recipe = whole("linear", *((f, {"weight": 0.1 * (k + 1)}) for k, f in enumerate(folders)), base=None)
    exact = sum((k + 1) * v for k, v in enumerate(values)) / 36
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        assert merged[NORM].dtype == torch.bfloat16
        assert torch.equal(merged[NORM], torch.full((16,), exact).bfloat16())


def test_15_nuslerp_with_opposite_weights(moved: Moved) -> None:
    """nuslerp takes the middle where the weights sum to zero."""
    one, two = [1.0] + [0.0] * 15, [0.0, 1.0] + [0.0] * 14
    found = moved.both(moved.recipe("nuslerp", [one, two], [{"weight": 1}, {"weight": -1}]))
    assert_both(found, [0.5**0.5, 0.5**0.5] + [0.0] * 14)


def test_16_model_stock_with_opposing_task_vectors(moved: Moved) -> None:
    """model_stock leaves the base where two task vectors oppose each other, and there is no way between them."""
    assert_both(moved.both(moved.recipe("model_stock", [RAMP, [-v for v in RAMP]], [{}, {}])), [0.0] * 16)


def test_equal_magnitudes_are_kept_by_position(moved: Moved) -> None:
    """Of entries that are equal at a cut the first are kept, on every machine; mergekit's choice is that of an
    unstable sort."""
    recipe = moved.recipe("ties", [[0.5] * 16], [{"weight": 1, "density": 0.25}])
    theirs, mine = moved.both(recipe)
    assert int((theirs != 0).sum()) == 4
    assert mine.tolist() == [0.5] * 4 + [0.0] * 12


@pytest.mark.parametrize("density", [-0.1, 1.5])
def test_densities_are_fractions(
    density: float, base: str, other: str, mergekit: Mergekit, tmp_path: Path
) -> None:
    """A density outside [0, 1] is an error; mergekit takes it for 0 or 1."""
    recipe = whole("ties", (other, {"weight": 1, "density": density}), base=base)
    mergekit(recipe, tmp_path / "theirs")
    assert_refused(recipe, tmp_path / "ours", "`0 <= density <= 1` must hold")


def test_a_row_of_one_element_is_dropped_like_any_other(moved: Moved, tmp_path: Path, base: str) -> None:
    """della keeps the entry of a row of length one with probability `density`; mergekit divides zero by zero."""
    thin = {NORM: torch.zeros(2000, 1)}
    start = changed(base, tmp_path / "thin", thin)
    end = changed(base, tmp_path / "moved", {NORM: torch.ones(2000, 1)})
    recipe = whole("della", (end, {"weight": 1, "density": 0.6, "epsilon": 0.2}), base=start)
    recipe["parameters"] = {"rescale": False}
    kept = float(ours(recipe, tmp_path / "out")[NORM].mean())
    assert abs(kept - 0.6) < 5 * (0.24 / 2000) ** 0.5


# --- tensors outside the layers, and what does not fit ----------------------------------------------------------


def test_11_one_head_of_two_is_tied(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """Where one model has a head of its own, the other's embedding stands in for its head; the merged config says
    that they are not tied any more, where mergekit leaves the donor's word."""
    tied, untied = (zoo.model("llama-mixed", name, F32) for name in ("base", "a"))
    recipe = whole("linear", (tied, {"weight": 1}), (untied, {"weight": 3}), base=tied)
    wanted = 0.25 * stored(tied)[EMBEDDING] + 0.75 * stored(untied)[HEAD]
    for merged in (mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")):
        torch.testing.assert_close(merged[HEAD], wanted)
    assert config_of(tmp_path / "ours")["tie_word_embeddings"] is False
    assert config_of(tmp_path / "theirs")["tie_word_embeddings"] is True


def test_the_head_has_every_source_of_the_last_slice(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """Norm and head merge all sources of the last slice; mergekit takes as many as the first slice has."""
    first, second = (zoo.model("llama-untied", name, F32) for name in ("a", "b"))
    sources = [{"model": m, "layer_range": [1, 3]} for m in (first, second)]
    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [{"model": first, "layer_range": [0, 1]}]}, {"sources": sources}],
        "parameters": {"weight": 1},
    }
    theirs, mine = mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")
    for name in (NORM, HEAD):
        assert torch.equal(theirs[name], stored(first)[name])
        torch.testing.assert_close(mine[name], (stored(first)[name] + stored(second)[name]) / 2)


def test_what_does_not_fit_is_named(base: str, other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """A tensor that only some models have, or of another shape, is an error that names it; mergekit drops what its
    definition of the architecture does not hold."""
    more = changed(other, tmp_path / "more", {"model.extra.weight": torch.ones(3)})
    recipe = whole("linear", (base, {"weight": 1}), (more, {"weight": 1}), base=None)
    assert "model.extra.weight" not in mergekit(recipe, tmp_path / "theirs")
    assert_refused(recipe, tmp_path / "ours", "model.extra.weight: missing in")
    wide = changed(other, tmp_path / "wide", {NORM: torch.ones(17)})
    recipe = whole("linear", (base, {"weight": 1}), (wide, {"weight": 1}), base=None)
    assert_refused(recipe, tmp_path / "ours", "model.norm.weight: shapes must match")


def test_nan_is_not_written(base: str, other: str, mergekit: Mergekit, tmp_path: Path) -> None:
    """NaN or infinity in the output is an error that names the tensor; mergekit writes it."""
    broken = changed(other, tmp_path / "broken", {NORM: torch.full((16,), torch.nan)})
    recipe = whole("task_arithmetic", (broken, {"weight": 1}), base=base)
    assert torch.isnan(mergekit(recipe, tmp_path / "theirs")[NORM]).all()
    with pytest.raises(MergeError, match=re.escape(NORM)):
        ours(recipe, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- vocabularies -----------------------------------------------------------------------------------------------


def test_12_padding_survives(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """Rows that no token has stay where the base's tokenizer is taken; mergekit cuts them off."""
    base, other = (
        changed(
            folder := zoo.model("llama", name, F32, spoken=True),
            tmp_path / name,
            {EMBEDDING: torch.cat([stored(folder)[EMBEDDING], torch.full((4, 16), 3.0)])},
            vocab_size=TOKENS + 4,
        )
        for name in ("base", "c")
    )
    listed = ((base, {"weight": 1}), (other, {"weight": 1}))
    recipe = whole("linear", *listed, base=base, tokenizer_source="base")
    theirs, mine = mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")
    assert len(theirs[EMBEDDING]) == TOKENS
    assert len(mine[EMBEDDING]) == config_of(tmp_path / "ours")["vocab_size"] == TOKENS + 4
    torch.testing.assert_close(mine[EMBEDDING][:TOKENS], theirs[EMBEDDING])
    assert torch.equal(mine[EMBEDDING][TOKENS:], torch.full((4, 16), 3.0))


def test_13_a_token_of_one_model_alone(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """A token that only one model has takes its row in all models, so that the mean is that row."""
    base, other = (zoo.model("llama", name, F32, spoken=True) for name in ("base", "a"))
    listed = ((base, {"weight": 1}), (other, {"weight": 3}))
    recipe = whole("linear", *listed, base=base, tokenizer_source="union")
    mine = ours(recipe, tmp_path / "ours")
    assert len(mine[EMBEDDING]) == len(WORDS) + 2 == len(mergekit(recipe, tmp_path / "theirs")[EMBEDDING])
    torch.testing.assert_close(mine[EMBEDDING][-2:], stored(other)[EMBEDDING][-2:])


# --- outputs ----------------------------------------------------------------------------------------------------


def test_14_a_tensor_as_large_as_a_shard(other: str, tmp_path: Path) -> None:
    """A tensor that fills a shard to the byte is a shard of its own: none is empty, none is larger."""
    limit = 4 * stored(other)[EMBEDDING].numel()
    recipe = Recipe.model_validate(whole("linear", (other, {"weight": 1}), base=None))
    folder = merge_models(recipe, tmp_path / "ours", shard_size=limit)
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    sizes = [sum(4 * tensor.numel() for tensor in shard.values()) for shard in shards]
    assert len(shards) > 1
    assert min(sizes) > 0
    assert max(sizes) == limit
    assert {n: n for shard in shards for n in shard} == {n: n for n in stored(other)}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)


def test_per_layer_lists_follow_the_layers(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """Lists of a config with an entry for each layer follow the layers that were taken; mergekit fails on them."""
    model = zoo.model("gemma2", "a", F32)
    recipe = stack((model, [0, 2]), (model, [1, 3]))
    with pytest.raises(StrictDataclassClassValidationError):
        mergekit(recipe, tmp_path / "theirs")
    ours(recipe, tmp_path / "ours")
    kinds = config_of(Path(model))["layer_types"]
    assert config_of(tmp_path / "ours")["layer_types"] == [*kinds[:2], *kinds[1:]]


def test_the_config_says_which_dtype_was_written(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """Mixed inputs give float32 tensors and a config that says so; mergekit's says what the donor's does."""
    narrow, wide = zoo.model("llama", "a", torch.bfloat16), zoo.model("llama", "b", F32)
    recipe = whole("linear", (narrow, {"weight": 1}), (wide, {"weight": 1}), base=None)
    base = {**recipe, "base_model": narrow}
    assert mergekit(base, tmp_path / "theirs")[NORM].dtype == ours(base, tmp_path / "ours")[NORM].dtype == F32
    assert config_of(tmp_path / "theirs")["dtype"] == "bfloat16"
    assert config_of(tmp_path / "ours")["dtype"] == "float32"


@pytest.mark.parametrize("method", ["arcee_fusion", "ramplus_tl"])
def test_the_recipes_dtype_is_that_of_the_output(
    method: str, base: str, other: str, mergekit: Mergekit, tmp_path: Path
) -> None:
    """arcee_fusion and ramplus_tl give the recipe's dtype; mergekit's result is float32 whatever it says."""
    listed: list[tuple[str, Any]] = [(other, {}), (base, {})] if method == "arcee_fusion" else [(other, {})]
    recipe = whole(method, *listed, base=base, dtype="bfloat16")
    assert ours(recipe, tmp_path / "ours")[NORM].dtype == torch.bfloat16
    assert mergekit(recipe, tmp_path / "theirs")[NORM].dtype == F32


def test_buffers_of_integers_stay_integers(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """`dtype` does not touch tensors of integers and booleans; mergekit casts them as well."""
    model = zoo.model("gpt_neox", "a", F32)
    recipe = whole("linear", (model, {"weight": 1}), base=None, dtype="bfloat16")
    name = "gpt_neox.layers.0.attention.bias"
    assert torch.equal(ours(recipe, tmp_path / "ours")[name], stored(model)[name])
    assert mergekit(recipe, tmp_path / "theirs")[name].dtype == torch.bfloat16


def test_infinite_buffers_are_left_out(zoo: Zoo, mergekit: Mergekit, tmp_path: Path) -> None:
    """Old files of GPT-NeoX hold a constant for masks, minus infinity in float16, that no model reads any more: it
    is left out, where mergekit writes NaN."""
    base, model = (zoo.model("gpt_neox", name, torch.float16) for name in ("base", "a"))
    recipe = whole("task_arithmetic", (model, {"weight": 1}), base=base)
    name = "gpt_neox.layers.0.attention.masked_bias"
    assert torch.isnan(mergekit(recipe, tmp_path / "theirs")[name])
    assert stored(model).keys() - ours(recipe, tmp_path / "ours").keys() == {
        name.replace("0", str(layer)) for layer in range(3)
    }


def test_the_first_model_mentioned_is_the_donor(zoo: Zoo, tmp_path: Path) -> None:
    """Config, tokenizer and companions come from the base, else from the first model mentioned, where mergekit
    goes by hashes; generation_config.json comes along; and without a tokenizer there is none in the output."""
    first, second = (
        changed(zoo.model("llama", name, F32), tmp_path / name, {}, rope_theta=theta)
        for name, theta in (("b", 5000.0), ("a", 7000.0))
    )
    (Path(first) / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    recipe = whole("linear", (first, {"weight": 1}), (second, {"weight": 1}), base=None)
    ours(recipe, tmp_path / "ours")
    assert config_of(tmp_path / "ours")["rope_theta"] == 5000.0
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["temperature"] == 0.5
    assert not list((tmp_path / "ours").glob("tokenizer*"))


def test_adapters_are_not_written_out(zoo: Zoo, tmp_path: Path) -> None:
    """A model with an adapter is merged tensor by tensor: nothing but the result is written."""
    adapted = zoo.adapted("llama", "a", F32)
    ours(whole("linear", (adapted, {"weight": 1}), base=None), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
