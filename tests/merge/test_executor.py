"""Execution: live models equal written folders, unchanged tensors are skipped, and bad numbers are found."""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.api import merge_models
from heterosis.merge.computing import computation, executor, input_blocks
from heterosis.merge.computing.computation import Computation
from heterosis.merge.computing.executor import THREAD_MINIMUM, MergeError, execute
from heterosis.merge.computing.sinks import ModelSink
from heterosis.merge.kernels import RUN
from heterosis.merge.methods import Bound, methods
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import InputModel, ModelRef, Recipe
from heterosis.merge.statistics import Statistics, selection
from heterosis.merge.statistics.reductions import Reductions
from heterosis.merge.statistics.selection import SMALL
from heterosis.merge.workspace import Workspace

MakeLlama = Callable[..., Path]
NAMES = sorted(methods())
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="session")
def family(make_llama: MakeLlama) -> list[Path]:
    base = make_llama("executor-base", seed=0)
    return [base, *(make_llama(f"executor-{i}", seed=i, noise_from=base) for i in (1, 2))]


def recipe_of(method: str, folders: Sequence[Path], **keys: Any) -> Recipe:
    """A recipe over a base and two models, as far as the method takes them."""
    spec = methods()[method]
    listed = folders[1:] if spec.base != "input" else folders[:2]
    listed = listed[: spec.inputs[1]]
    settings = {"weight": 0.6, "density": 0.5, "t": 0.3, "scale": 0.9}
    return Recipe(
        merge_method=method,
        base_model=None if spec.base == "ignored" else ModelRef(str(folders[0])),
        models=[InputModel(model=ModelRef(str(f))) for f in listed],
        **{"parameters": {k: v for k, v in settings.items() if k in spec.parameters}, **keys},
    )


class Recorder(ModelSink):
    """A live model that notes which tensors were written."""

    def __init__(self, plan: MergePlan, dtype: torch.dtype | None = None) -> None:
        self.tensors = {op.name: torch.full(op.shape, 7, dtype=dtype or op.dtype) for op in plan.ops}
        self.written: list[str] = []
        super().__init__(self.tensors)

    def done(self, op: TensorOp) -> None:
        super().done(op)
        self.written.append(op.name)


def run(recipe: Recipe, sink: Recorder | None = None, **options: Any) -> Recorder:
    plan = build_plan(recipe)
    sink = sink or Recorder(plan)
    sink.written.clear()
    execute(plan, sink, **options)
    return sink


def changed(folder: Path, to: Path, **tensors: torch.Tensor) -> Path:
    """A copy of a model with other tensors; dots in names are written as double underscores."""
    shutil.copytree(folder, to)
    content = load_file(to / "model.safetensors")
    content.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    save_file(content, to / "model.safetensors")
    return to


# --- live models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("keys", [{}, {"dtype": "float32", "out_dtype": "bfloat16"}], ids=["native", "narrowed"])
def test_a_live_model_equals_the_written_folder(
    method: str, keys: dict[str, str], family: list[Path], tmp_path: Path
) -> None:
    recipe = recipe_of(method, family, **keys, heterosis={"seed": 3})
    written = load_file(merge_models(recipe, tmp_path / "out") / "model.safetensors")
    wide = Recorder(build_plan(recipe), torch.float32)
    for live in (run(recipe), run(recipe, wide, threads=2, memory_limit=1)):
        assert live.tensors.keys() == written.keys()
        for name, tensor in written.items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(live.tensors[name], tensor.to(live.tensors[name].dtype)), name


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "sce"])
def test_a_merge_leaves_no_buffers_to_the_garbage_collector(method: str, family: list[Path]) -> None:
    """A worker makes hundreds of them; the collector comes rarely, and does not see how large its finds are."""
    plan = build_plan(recipe_of(method, family))
    sink = Recorder(plan)
    gc.collect()
    gc.disable()

    def found() -> list[object]:
        return [found for found in gc.get_objects() if type(found) in (Computation, Statistics, Workspace)]

    before = found()  # what modules hold
    try:
        execute(plan, sink, reductions=Reductions())
        kept = [type(one) for one in found() if not any(one is other for other in before)]
    finally:
        gc.enable()
    assert kept == []


@pytest.mark.parametrize("method", NAMES)
def test_only_what_changed_is_computed_again(method: str, family: list[Path]) -> None:
    known = methods()[method].parameters
    preferred = ("weight", "t", "scale", "select_topk", "tol", "epsilon", "filter_wise")
    parameter = next((name for name in preferred if name in known), None)
    if parameter is None:
        pytest.skip(f"{method} has no parameters")

    def variant(value: float) -> Recipe:
        plain = recipe_of(method, family)
        other, usual = (value > 0.5, False) if known[parameter].kind is bool else (value, 0.5)
        setting = [{"filter": "layers.1.", "value": other}, {"value": usual}]
        return plain.model_copy(update={"parameters": {**plain.parameters, parameter: setting}})

    first, second = variant(0.2), variant(0.9)
    live = run(first)
    held = {name: tensor.clone() for name, tensor in live.tensors.items()}
    run(first, live)
    assert live.written == []
    for recipe in (second, first, second):
        run(recipe, live)
        # Linear normalises: one weight for all models means the same coefficients, and yet other settings.
        assert sorted(live.written) == sorted(name for name in held if "layers.1." in name)
        fresh = run(recipe).tensors
        assert all(torch.equal(live.tensors[name], fresh[name]) for name in held)


@pytest.mark.parametrize("method", NAMES)
def test_other_models_are_computed_again(method: str, family: list[Path]) -> None:
    live = run(recipe_of(method, family))
    base, a, b = family
    other = recipe_of(method, [a, b, base])
    run(other, live)
    assert len(live.written) == len(live.tensors)
    expected = run(other).tensors
    assert all(torch.equal(live.tensors[name], expected[name]) for name in expected)


def test_another_seed_changes_random_masks(family: list[Path]) -> None:
    live = run(recipe_of("dare_linear", family))
    before = live.tensors[EMBEDDING].clone()
    run(recipe_of("dare_linear", family, heterosis={"seed": 1}), live)
    assert len(live.written) == len(live.tensors)
    assert not torch.equal(live.tensors[EMBEDDING], before)


def test_masks_depend_on_positions_and_not_on_paths(family: list[Path], tmp_path: Path) -> None:
    moved = [Path(shutil.copytree(f, tmp_path / str(i))) for i, f in enumerate(family)]
    here, there = (run(recipe_of("dare_ties", folders)).tensors for folders in (family, moved))
    assert all(torch.equal(here[name], there[name]) for name in here)
    base, a, _ = family
    twice = [base, a, Path(shutil.copytree(a, tmp_path / "a"))]
    one, two = ([op.keys for op in build_plan(recipe_of("dare_ties", f)).ops] for f in (family, twice))
    assert one == two
    assert all(len(set(keys)) == 2 for keys in one)


class Lost:
    """A tensor of which only the beginning can be read."""

    exact = True

    def __init__(self, source: TensorSource) -> None:
        self.name, self.shape, self.dtype, self.identity = source.name, source.shape, source.dtype, source.identity
        self._source = source

    def view(self, start: int, stop: int) -> torch.Tensor | None:
        return None

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        if start > 0:
            raise OSError("lost")
        self._source.read(start, stop, out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_model_passed_through_keeps_its_bits(dtype: str, tmp_path: Path) -> None:
    values = {"w": torch.tensor([-0.0, 0.0, 1e-39, -1e-39, 3e38]).to(getattr(torch, dtype))}
    save_file(values, tmp_path / "model.safetensors")
    live = run(
        Recipe.model_validate(
            {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "model.safetensors")}]}
        )
    )
    bits = torch.int16 if dtype == "bfloat16" else torch.int32
    assert torch.equal(live.tensors["w"].view(bits), values["w"].view(bits))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_tensor_that_failed_is_not_held(
    threads: int, family: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_blocks, "STREAMING_BLOCK", 8)
    first, second = (recipe_of("passthrough", family, parameters={"scale": s}) for s in (1, 2))
    live = run(first)
    held = live.tensors[NORM].clone()
    plan = build_plan(second)
    ops = (replace(op, inputs=tuple(map(Lost, op.inputs))) if op.name == NORM else op for op in plan.ops)
    with pytest.raises(OSError, match="lost"):
        execute(replace(plan, ops=tuple(ops)), live, threads=threads)
    assert torch.equal(live.tensors[NORM], torch.cat([2 * held[:8], held[8:]]))
    run(first, live)
    assert NORM in live.written
    expected = run(first).tensors
    assert all(torch.equal(live.tensors[name], expected[name]) for name in expected)


# --- steps in place ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def large(make_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Models with tensors longer than what a step works on at a time; the last is the base and an adapter."""
    rank, generator = 3, torch.Generator().manual_seed(3)
    adapter = tmp_path_factory.mktemp("adapters") / "mlp"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    shapes = {"lora_A": (rank, 48), "lora_B": (96, rank)}
    save_file(
        {
            f"base_model.model.model.layers.0.mlp.up_proj.{name}.weight": torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        },
        adapter / "adapter_model.safetensors",
    )

    def make(stored: str) -> list[str]:
        options: dict[str, Any] = {"layers": 1, "hidden": 48, "vocab": 515, "dtype": getattr(torch, stored)}
        base = make_llama(f"large-{stored}", seed=0, **options)
        others = [make_llama(f"large-{stored}-{i}", seed=i, noise_from=base, **options) for i in (1, 2)]
        return [*map(str, [base, *others]), f"{base}+{adapter}"]

    return make


@pytest.mark.parametrize("method", ["dare_linear", "della", "ties"])  # by element, by row, by cuts
@pytest.mark.parametrize(
    ("stored", "dtype", "in_place"),
    [
        ("bfloat16", "bfloat16", True),
        ("bfloat16", "float16", True),
        ("bfloat16", "float32", False),  # whose task vectors are no values of bfloat16
        ("float32", "float32", True),
        ("float32", "bfloat16", True),
    ],
)
@pytest.mark.parametrize("adapted", [False, True], ids=["", "adapted"])
def test_a_step_in_place_changes_no_bit(
    method: str,
    stored: str,
    dtype: str,
    in_place: bool,
    adapted: bool,
    large: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: list[bool] = []

    class Noting(Statistics):
        def absolute_sums(self, each: Bound) -> tuple[tuple[float, ...], tuple[float, ...]]:
            sums = super().absolute_sums(each)
            places.append(self.applied is each)
            return sums

    base, *models = large(stored)
    recipe = Recipe(
        merge_method=method,
        base_model=ModelRef(base),
        models=[InputModel(model=ModelRef.parse(model)) for model in (models[1:] if adapted else models[:2])],
        parameters={"weight": 0.6, "density": 0.4, "rescale": True},
        dtype=dtype,
    )
    monkeypatch.setattr(computation, "Statistics", Noting)
    again = run(recipe, threads=1, memory_limit=1).tensors
    assert set(places) == {False}
    assert all(tensor.isfinite().all() for tensor in again.values())
    monkeypatch.setattr(executor, "THREAD_MINIMUM", 1)  # else so little memory would mean a single thread
    for block in (1 << 19, 1000):
        monkeypatch.setattr(input_blocks, "STREAMING_BLOCK", block)
        for threads, memory_limit in [(1, 1 << 29), (2, 1 << 29), (2, 300_000), (1, 1)]:
            live = run(recipe, threads=threads, memory_limit=memory_limit).tensors
            assert all(torch.equal(live[name], again[name]) for name in again), (block, threads, memory_limit)
    assert set(places) == ({True, False} if in_place else {False})

    # A candidate copies what is mapped where the step takes long, and there is room.
    places.clear()
    reductions = Reductions()
    for memory_limit in (1 << 29, 1, 1 << 29):
        live = run(recipe, threads=1, memory_limit=memory_limit, reductions=reductions).tensors
        assert all(torch.equal(live[name], again[name]) for name in again), memory_limit
    mapped = stored == dtype == "bfloat16"
    assert (True in places) == (in_place and (method == "della" or not mapped))


# --- memory -----------------------------------------------------------------------------------------------------


def noted(buffer: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that merges will ask for a buffer from now on."""
    sizes: list[int] = []

    class Noting(Workspace):
        def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
            array = super().array(name, shape, dtype)
            if name == buffer:
                sizes.append(array.nbytes)
            return array

    monkeypatch.setattr(executor, "Workspace", Noting)
    return sizes


def test_few_bytes_are_enough_for_the_counts_of_all_regions(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = noted("counts", monkeypatch)
    options: dict[str, Any] = {"layers": 1, "hidden": 48, "vocab": 515, "dtype": torch.float32}
    models = [make_llama(f"counted-{i}", seed=i, **options) for i in range(6)]
    recipe = recipe_of("breadcrumbs", models)
    monkeypatch.setattr(selection, "_SMALLEST_REGION", 1 << 12)
    run(recipe, threads=1)
    assert 1024**2 < max(sizes) <= 2 * 1024**2


def test_what_a_step_makes_of_rows_takes_a_block_at_most(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = noted("after a step", monkeypatch)
    models = [make_llama(f"stepped-{i}", seed=i, layers=1, hidden=48, vocab=515) for i in range(3)]
    monkeypatch.setattr(input_blocks, "STREAMING_BLOCK", 4096)
    run(recipe_of("della", models), threads=1, memory_limit=THREAD_MINIMUM, reductions=Reductions())
    assert 4000 < max(sizes) / 4 <= 2 * 4096  # float32, of two models


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("threads", [1, 2])
def test_nan_and_infinity_are_found(
    method: str, value: float, threads: int, family: list[Path], tmp_path: Path
) -> None:
    norm = load_file(family[1] / "model.safetensors")[NORM]
    # One value, but for random masks, which may drop it: there all of the tensor.
    norm[: len(norm) if method.startswith("dare") else 1] = value
    bad = changed(family[1], tmp_path / "bad", model__norm__weight=norm)
    with pytest.raises(MergeError, match=rf"^{NORM}: "):
        run(recipe_of(method, [family[0], bad, family[2]]), threads=threads)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("live", [torch.bfloat16, torch.float32])
def test_nan_and_infinity_are_found_in_what_is_only_copied(
    value: float, live: torch.dtype, family: list[Path], tmp_path: Path
) -> None:
    norm = load_file(family[1] / "model.safetensors")[NORM]
    norm[-1] = value
    bad = changed(family[1], tmp_path / "bad", model__norm__weight=norm)
    recipe = recipe_of("passthrough", [bad, bad], parameters={})
    assert build_plan(recipe).ops[0].method is None
    with pytest.raises(MergeError, match=rf"^{NORM}: "):
        run(recipe, Recorder(build_plan(recipe), live))
    with pytest.raises(MergeError, match=rf"^{NORM}: "):
        merge_models(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [1, 10])
def test_ties_does_not_trim_nan_away(normalize: bool, count: int, family: list[Path], tmp_path: Path) -> None:
    norm = load_file(family[1] / "model.safetensors")[NORM]
    norm[:count] = torch.nan
    bad = changed(family[1], tmp_path / "bad", model__norm__weight=norm)
    parameters = {"weight": 1, "density": 0.3, "normalize": normalize}
    with pytest.raises(MergeError, match=rf"^{NORM}: "):
        run(recipe_of("ties", [family[0], bad, family[2]], parameters=parameters))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"weight": 1, "density": 0.1}),
        ("breadcrumbs", {"weight": 1, "density": 0.2, "gamma": 0.1}),
        ("sce", {"select_topk": 0.1}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_so_many_nan_that_a_cut_is_one_are_found(
    method: str, parameters: dict[str, float], dtype: torch.dtype, tmp_path: Path
) -> None:
    """In a tensor that is not sorted for its cuts."""
    base, *others = torch.randn(3, 2 * SMALL, generator=torch.Generator().manual_seed(0)).to(dtype)
    others[0][:SMALL] = torch.nan
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for file, tensor in zip(files, (base, *others), strict=True):
        save_file({"w": tensor}, file)
    with pytest.raises(MergeError, match=rf"^w: the merged tensor has NaN or infinity, as {files[1]} has; use"):
        run(recipe_of(method, files, parameters=parameters))


@pytest.mark.parametrize("method", NAMES)
def test_infinities_of_both_signs_in_one_tensor_are_found(method: str, tmp_path: Path) -> None:
    """In runs of elements that are summed apart."""
    base, *others = torch.randn(3, 2 * RUN, generator=torch.Generator().manual_seed(0))
    ends = [0, -1]
    base[ends], others[0][ends], others[1][ends] = 1.0, torch.tensor([torch.inf, -torch.inf]), 2.0
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for file, tensor in zip(files, (base, *others), strict=True):
        save_file({"w": tensor}, file)
    with pytest.raises(MergeError, match=rf"^w: the merged tensor has NaN or infinity, as {files[1]} has; use"):
        run(recipe_of(method, files))


def test_overflow_of_the_output_is_found(family: list[Path]) -> None:
    with pytest.raises(MergeError, match="NaN or infinity, though no input has; check weights and dtype"):
        run(recipe_of("passthrough", family, parameters={"scale": 1e6}, out_dtype="float16"))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_linear", "breadcrumbs"])
def test_weights_that_sum_to_zero_name_the_tensor(method: str, family: list[Path]) -> None:
    plain = recipe_of(method, family, parameters={"normalize": True})
    models = [
        m.model_copy(update={"parameters": {"weight": w}}) for m, w in zip(plain.models, (1, -1), strict=True)
    ]
    with pytest.raises(InputError, match=r"^model\.\S+: `sum of weights != 0` must hold .* weight=\[1.0, -1.0\]"):
        build_plan(plain.model_copy(update={"models": models}))


# --- shapes and integers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (), (1, 1, 1)], ids=str)
def test_empty_and_single_element_tensors(
    method: str, shape: tuple[int, ...], family: list[Path], tmp_path: Path
) -> None:
    folders = [changed(f, tmp_path / str(i), model__odd=torch.full(shape, 1.0 + i)) for i, f in enumerate(family)]
    merged = run(recipe_of(method, folders)).tensors["model.odd"]
    assert merged.shape == shape
    assert merged.isfinite().all()
    assert not (merged == 7).any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.uint16], ids=str)
def test_integers_must_agree(dtype: torch.dtype, family: list[Path], tmp_path: Path) -> None:
    ids = torch.tensor([1, 0, 1]).to(dtype)
    a, b = (changed(f, tmp_path / f.name, model__ids=ids) for f in family[1:])
    out = merge_models(recipe_of("linear", [family[0], a, b]), tmp_path / "out")
    kept = load_file(out / "model.safetensors")["model.ids"]
    assert kept.dtype == dtype
    assert torch.equal(kept, ids)
    c = changed(family[2], tmp_path / "c", model__ids=torch.tensor([1, 1, 1]).to(dtype))
    with pytest.raises(MergeError, match=r"^model.ids: a tensor of integers must be the same in all models"):
        run(recipe_of("linear", [family[0], a, c]))


def test_values_that_a_step_changed_are_not_read_again(family: list[Path]) -> None:
    base, *models = family
    recipe = Recipe(
        merge_method="dare_linear",
        base_model=ModelRef(str(base)),
        models=[InputModel(model=ModelRef(str(model))) for model in models[:2]],
        parameters={"weight": 0.6, "density": 0.4, "rescale": True},
        dtype="bfloat16",
    )
    op = next(op for op in build_plan(recipe).ops if len(op.shape) == 2)
    workspace = Workspace()
    subject = Computation(op, workspace, budget=1 << 24)
    assert subject.program.each is not None
    workspace.release()
    with pytest.raises(AssertionError, match="is lost"):
        next(subject.blocks())
