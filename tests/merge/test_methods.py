"""Conformance: every registered method keeps the executor's promises, without opting in."""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from heterosis.errors import InputError
from heterosis.merge import methods as package
from heterosis.merge.computing import executor, input_blocks
from heterosis.merge.computing.executor import MergeError, execute
from heterosis.merge.computing.sinks import ModelSink
from heterosis.merge.kernels import Inputs, Values, fill_uniform, map_loop, step_loop
from heterosis.merge.methods import (
    Bound,
    Formula,
    Method,
    PerInput,
    Program,
    Uniform,
    base,
    formula,
    get_method,
    merge_method,
    methods,
)
from heterosis.merge.methods.combine import combine
from heterosis.merge.methods.random_mask import drop
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import InputModel, ModelRef, Recipe
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.quantities import between, cuts_in, typed

MakeLlama = Callable[..., Path]
NAMES = sorted(methods())
# Addresses of random masks, of a few models.
KEYS = ((7, 0), (8, 11), (9, 22))


def middle(method: Method, name: str, fraction: float) -> float:
    """A value of a parameter inside its search range."""
    search = method.search.get(name, Uniform(0.2, 0.8))
    return search.low + fraction * (search.high - search.low)


def make_recipe(method: Method, folders: Sequence[Path], *, optional: bool = True, **keys: Any) -> Recipe:
    """A recipe over as many of the folders as the method takes, the first being the base if it has a role."""
    low, high = method.inputs
    first = int(method.takes_deltas)
    count = max(low, min(high or len(folders), len(folders) - first))
    models = []
    for j, folder in enumerate(folders[first : first + count]):
        chosen = {
            p.name: middle(method, p.name, (j + 1) / (count + 2))
            for p in method.per_input.values()
            if p.required or (optional and p.name in method.search)
        }
        models.append(InputModel(model=ModelRef(str(folder)), parameters=chosen))
    return Recipe(
        merge_method=method.name,
        base_model=None if method.base == "ignored" else ModelRef(str(folders[0])),
        models=models,
        parameters={p.name: middle(method, p.name, 0.3) for p in method.per_merge.values() if p.required},
        **keys,
    )


def run(recipe: Recipe, **options: Any) -> dict[str, torch.Tensor]:
    plan = build_plan(recipe)
    tensors = {op.name: torch.full(op.shape, torch.nan, dtype=op.dtype) for op in plan.ops}
    execute(plan, ModelSink(tensors), **options)
    return tensors


def bits(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def digests(folders: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for f in folders for p in sorted(f.iterdir())]


@pytest.fixture(scope="session")
def family(make_llama: MakeLlama) -> list[Path]:
    """A base and two fine-tunes, with tensors above two runs in length and not a multiple of one."""
    options: dict[str, Any] = {"layers": 1, "hidden": 48, "vocab": 515}
    base = make_llama("family-base", seed=0, **options)
    return [base, *(make_llama(f"family-{i}", seed=i, noise_from=base, **options) for i in (1, 2))]


@pytest.mark.parametrize("name", NAMES)
def test_keeps_shapes_and_dtypes_and_leaves_inputs_alone(name: str, family: list[Path]) -> None:
    before = digests(family)
    expected = {k: (t.shape, t.dtype) for k, t in stored(family[0]).items()}
    merged = run(make_recipe(get_method(name), family))
    assert {k: (t.shape, t.dtype) for k, t in merged.items()} == expected
    assert all(t.isfinite().all() for t in merged.values())
    assert bits(merged) != bits(stored(family[0])), "the settings of this test must change something"
    assert digests(family) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_identical_models_are_a_fixed_point(name: str, dtype: str, family: list[Path], tmp_path: Path) -> None:
    # Copies of the files, because inputs known to be the same bytes are not computed at all.
    copies = [Path(shutil.copytree(family[0], tmp_path / str(i))) for i in range(2)]
    merged = run(make_recipe(get_method(name), [family[0], *copies], optional=False, dtype=dtype))
    for key, tensor in stored(family[0]).items():
        if get_method(name).takes_deltas:
            assert torch.equal(merged[key].float(), tensor.float()), key
        else:  # coefficients that sum to one, up to rounding
            torch.testing.assert_close(merged[key].float(), tensor.float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_bits_depend_on_neither_blocks_nor_threads(
    name: str, dtype: str, family: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(get_method(name), family, dtype=dtype, out_dtype="float64")
    whole = bits(run(recipe, threads=1))
    monkeypatch.setattr(input_blocks, "STREAMING_BLOCK", 4096)
    monkeypatch.setattr(executor, "THREAD_MINIMUM", 1)  # else so little memory would mean a single thread
    for threads, memory_limit in [(1, 1), (2, 2), (4, 4), (4, 512 << 20), (2, 500_000)]:
        assert bits(run(recipe, threads=threads, memory_limit=memory_limit)) == whole, (threads, memory_limit)


def program_of(method: Method, models: tuple[Any, ...]) -> Program:
    m = len(models)
    arguments: dict[str, Any] = {}
    for p in method.parameters.values():
        if p.per_input:
            arguments[p.argument] = tuple(middle(method, p.name, (j + 1) / (m + 2)) for j in range(m))
        else:
            arguments[p.argument] = middle(method, p.name, 0.3) if p.required else p.default
    if not method.reduces:
        return method.function(**arguments)
    shape = (20, len(models[0]) // 20)
    deltas = Statistics(lambda *_: [(0, Inputs(models))], models[0].dtype, m, shape, KEYS[:m])
    return method.function(deltas, **arguments)


compiled = cache(numba.njit)


def stepped_plainly(each: Bound, model: int, x: Values, start: int) -> Values:
    """What a step makes of one model's values, by calling its formula as plain Python; of rows, all at once."""
    u = np.empty(len(x), np.float32)
    fill_uniform(start, KEYS[model], u)
    own = tuple(number[model] for number in each.numbers)
    if each.formula.per_row:  # those have to be compiled
        out, shape = x.copy(), (-1, each.row_length)
        compiled(each.formula.function)(start, out.reshape(shape), u.reshape(shape), *typed(own, x.dtype))
        return out
    numbers = [typed(own, x.dtype, start + i) for i in range(len(x))]
    drawn = [(u[i],) if each.formula.random else () for i in range(len(x))]
    return np.array([each.formula(start + i, value, *drawn[i], *numbers[i]) for i, value in enumerate(x)], x.dtype)


def merged(program: Program, step: Bound | None, models: tuple[Values, ...], start: int) -> Values:
    """What the compiled loop of a program makes of values, with or without a step before it."""
    dtype, out = models[0].dtype, np.empty_like(models[0])
    loop = map_loop(program.map.formula.function, step and step.formula.function)
    scale = None if program.scale is None else typed(program.scale, dtype)
    keys = KEYS[: len(models)] if step and step.formula.random else None
    cuts = [*cuts_in(program.map.numbers), *cuts_in(step.numbers if step else ())]
    for at, stop in between(start, start + len(out), cuts, 1 << 32):
        part = slice(at - start, stop - start)
        steps = step and tuple(typed(tuple(n[j] for n in step.numbers), dtype, at) for j in range(len(models)))
        numbers = typed(program.map.numbers, dtype, at)
        parts, length = tuple(values[part] for values in models), program.map.row_length or start + len(out)
        loop(parts, None, None, at, length, steps, keys, scale, numbers, out[part])
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", [0, (5 << 32) - 150], ids=["start", "far"])
def test_compiled_loops_equal_the_formulas_as_plain_python(name: str, dtype: type, start: int) -> None:
    method = get_method(name)
    m = min(method.inputs[1] or 3, 3)
    drawn = np.random.default_rng(3).normal(size=(m, 300)).astype(dtype)
    drawn[:, :4] = [[0.0, -0.0, 1.0, -1.0]] * m
    program = program_of(method, tuple(drawn))
    if start and any(isinstance(number, np.ndarray) for number in program.map.numbers):
        pytest.skip("it has numbers for rows that this tensor does not have")
    expected, each = drawn.copy(), program.each
    if each is not None:
        statistics = Statistics(lambda *_: [], drawn.dtype, m, (start + 300,), KEYS[:m])
        for j, values in enumerate(drawn):
            expected[j] = stepped_plainly(each, j, values, start)
            out = np.empty_like(values)
            statistics.step(each, j, start, Inputs(tuple(drawn)), out)
            assert out.tobytes() == expected[j].tobytes()
    scaled = expected if program.scale is None else expected * np.array(program.scale, dtype)[:, None]
    numbers = [typed(program.map.numbers, drawn.dtype, start + i) for i in range(300)]
    of_element = [
        tuple(n[i // program.map.row_length, 0] if isinstance(n, np.ndarray) else n for n in numbers[i])
        for i in range(300)
    ]
    plain = [program.map.formula(start + i, tuple(scaled[:, i]), *of_element[i]) for i in range(300)]
    fused = [None] if each is None or each.formula.per_row else [None, each]
    for step in fused:
        models = tuple(drawn if step else expected)
        assert merged(program, step, models, start).tobytes() == np.array(plain, dtype).tobytes()


def test_a_loop_is_made_once() -> None:
    assert map_loop(combine.function, drop.function) is map_loop(combine.function, drop.function)
    assert step_loop(drop.function, False, True) is step_loop(drop.function, False, True)


# --- the registry -----------------------------------------------------------------------------------------------


def test_an_unknown_method_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown method 'tie'; did you mean 'ties'\?"):
        get_method("tie")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Method]:
    """The registered methods, of which none stays that a test adds."""
    monkeypatch.setattr(base, "_METHODS", {**methods()})
    return base._METHODS


def test_a_name_that_is_taken(registry: dict[str, Method]) -> None:
    with pytest.raises(InputError, match=r"'ties': the name is taken by heterosis.merge.methods.ties; choose"):

        @merge_method("ties", paper="", base="ignored")
        def other(*, weight: PerInput) -> Program:
            raise AssertionError


def test_a_module_may_be_imported_again(registry: dict[str, Method]) -> None:
    for _ in range(2):

        @merge_method("mine", paper="", base="ignored")
        def mine(*, weight: PerInput) -> Program:
            raise AssertionError

        assert registry["mine"].function is mine


# What authors of methods get wrong: the decorator's arguments, those of the function, and what is said of it.
IMPORTS = """
from typing import Annotated
from heterosis.merge.methods import PerInput, Program, Uniform, merge_method
from heterosis.merge.statistics import Statistics
"""
GOOD = "*, weight: PerInput"
KINDS = "its annotation must be PerInput (a number for each model), float, int or bool"
MISTAKES = [
    ("base='requird'", GOOD, "base: unknown role 'requird'; did you mean 'required'?"),
    ("inputs=2", GOOD, "inputs: must be (fewest, most), as (2, 2) or (1, None), but got 2"),
    ("inputs=(3, 2)", GOOD, "inputs: must be (fewest, most), as (2, 2) or (1, None), but got (3, 2)"),
    ("search={'wieght': Uniform(0, 1)}", GOOD, "search: unknown parameter 'wieght'; did you mean 'weight'?"),
    ("search={'weight': (0, 1)}", GOOD, "search: weight: must be Uniform(low, high), but got (0, 1)"),
    ("", "*, weight", f"weight: {KINDS}, but got nothing"),
    ("", "*, mode: str = 'sum'", f"mode: {KINDS}, but got str"),
    ("", "*, t: float | None = None", f"t: {KINDS}, but got float | None"),
    ("", "*, t: Annotated[float, 0, 1]", "t: its Annotated must have a Within(low, high), but got [0, 1]"),
    ("", "*, w: PerInput = 1.0", "w: its default must be one number in a tuple, as (1.0,), but got 1.0"),
    ("", "*, w: PerInput = (1, 2)", "w: its default must be one number in a tuple, as (1.0,), but got (1, 2)"),
    ("", "*, t: float = (1.0,)", "t: its default must be a number, but got (1.0,)"),
    ("", "*, n: int = 1.5", "n: its default must be a whole number, but got 1.5"),
    ("", "*, normalize: bool = 1", "normalize: its default must be True or False, but got 1"),
    ("", "weight: PerInput", "weight: must come after a `*`, as every parameter but the tensor's Statistics"),
    ("", "d: Statistics, e: Statistics", "e: must come after a `*`, as every parameter but the tensor's Stat"),
]


@pytest.mark.parametrize(("keys", "parameters", "fault"), MISTAKES, ids=[keys or own for keys, own, _ in MISTAKES])
def test_a_mistake_in_a_method_is_told(
    registry: dict[str, Method], tmp_path: Path, keys: str, parameters: str, fault: str
) -> None:
    before, file = dict(registry), tmp_path / "mine.py"
    arguments = ", ".join(filter(None, ("paper=''", "" if keys.startswith("base") else "base='ignored'", keys)))
    code = f"{IMPORTS}@merge_method('mine', {arguments})\ndef mine({parameters}) -> Program: ...\n"
    with pytest.raises(InputError) as caught:
        exec(compile(code, str(file), "exec"), {"__name__": "mine"})
    (line,) = caught.value.faults
    assert line.startswith(f"{file}: merge method 'mine': {fault}")
    assert registry == before


def test_all_mistakes_are_told_at_once(registry: dict[str, Method]) -> None:
    with pytest.raises(InputError) as caught:

        @merge_method("mine", paper="", base="no", inputs=0)  # type: ignore[arg-type]
        def of_a_method(*, weight: PerInput) -> Program:
            raise AssertionError

    with pytest.raises(InputError) as of_parameters:

        @merge_method("mine", paper="", base="ignored")
        def of_parameters_(*, weight, mode: str) -> Program:  # type: ignore[no-untyped-def]
            raise AssertionError

    assert [len(error.value.faults) for error in (caught, of_parameters)] == [2, 2]


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    base._discover.cache_clear()
    file = tmp_path / "broken.py"
    file.write_text("import nosuch\n")
    says = f"{file}: must be importable, but got ModuleNotFoundError: No module named 'nosuch'; mend it, or move"
    for _ in range(2):
        with pytest.raises(InputError, match=re.escape(says)):
            methods()
    file.unlink()
    assert methods()


def recipe_of_mine(folders: Sequence[Path]) -> Recipe:
    models = [InputModel(model=ModelRef(str(folder)), parameters={"weight": 0.5}) for folder in folders]
    return Recipe(merge_method="mine", models=models)


def test_what_is_no_program_is_told(registry: dict[str, Method], family: list[Path]) -> None:
    @merge_method("mine", paper="", base="ignored")
    def bound(*, weight: PerInput) -> Program:
        return combine.bind(weight)  # type: ignore[return-value]

    says = rf"{__file__}: merge method 'mine': must return a Program, but got a Bound; write Program\(formula.bind"
    with pytest.raises(InputError, match=says):
        build_plan(recipe_of_mine(family))


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_of_a_method_may_be_arrays(count: int, registry: dict[str, Method], family: list[Path]) -> None:
    @merge_method("mine", paper="", base="ignored")
    def fade(x: Statistics, *, weight: PerInput) -> Program:
        length = x.shape[-1]
        ramp = np.linspace(0.0, 1.0, length)
        return Program(combine.bind(tuple(w * ramp for w in weight), row_length=length))

    parents = [stored(folder) for folder in family[:count]]
    for name, merged in run(recipe_of_mine(family[:count])).items():
        total = sum(0.5 * parent[name].float() for parent in parents)
        expected = total * torch.linspace(0.0, 1.0, merged.shape[-1])
        torch.testing.assert_close(merged.float(), expected, rtol=1e-2, atol=1e-6)


@formula
def middle_of(i, x):  # type: ignore[no-untyped-def]
    return np.median(x)


@formula
def all_of(i, x):  # type: ignore[no-untyped-def]
    return x


@formula
def nothing_of(i, x):  # type: ignore[no-untyped-def]
    x[0] + x[1]


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (middle_of, "there is no median(UniTuple(float32 x 3))"),
        (all_of, "a formula must give a number, but got UniTuple(float32 x 3)"),
        (nothing_of, "a formula must give a number, but got none"),
    ],
)
def test_a_formula_that_cannot_be_compiled_is_named(
    wrong: Formula, cause: str, registry: dict[str, Method], family: list[Path]
) -> None:
    @merge_method("mine", paper="", base="ignored")
    def mine(*, weight: PerInput) -> Program:
        return Program(wrong.bind())

    says = re.escape(f"{__file__}: {wrong.function.__name__}: numba cannot compile it: {cause}; use")
    with pytest.raises(MergeError, match=says):
        run(recipe_of_mine(family))


def test_the_decorator_returns_a_callable_function() -> None:
    from heterosis.merge.methods.linear import linear

    assert linear(weight=(1.0, 3.0)).map.numbers == ((0.25, 0.75),)
    with pytest.raises(ValueError, match="sum of weights != 0"):
        linear(weight=(1.0, -1.0))
