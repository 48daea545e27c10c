"""What candidates of a search have in common: kept once, shared by processes, and without any influence."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from heterosis.merge import ModelSink, Recipe, Reductions, build_plan, execute, open_checkpoint
from heterosis.merge.computing import computation
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.formulas import Formula
from heterosis.merge.kernels import Inputs
from heterosis.merge.models.checkpoint import Checkpoint
from heterosis.merge.recipe.reference import ModelRef
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.reductions import Cached, node_folder
from heterosis.merge.statistics.selection import Selection

KEPT = {
    "gram": ("slerp", "nuslerp", "multislerp", "karcher", "model_stock"),
    "count": ("ties", "breadcrumbs"),
    "ordered": ("ties", "breadcrumbs"),  # of the small tensor
}


def once(value: Cached) -> Callable[[], Cached]:
    calls = iter([value])
    return lambda: next(calls)


def refuse() -> Cached:
    raise AssertionError("was to be kept")


# --- keeping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.uint32])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 1)])
def test_an_array_is_made_once(tmp_path: Path, shared: bool, dtype: type, shape: tuple[int, ...]) -> None:
    value = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    reductions = Reductions(tmp_path / "kept" if shared else None)
    for make in (once(value), refuse):
        found = reductions.keep(("a", (1, 2)), make)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, value)
    assert reductions.keep(("a", (1, 3)), once(value + 1)).sum() == value.sum() + value.size
    reductions.close()


def test_what_is_read_of_an_array_is_read_once(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "kept"):
        reductions = Reductions(folder, budget=100)
        readings: list[int] = []

        def read(array: Cached, readings: list[int] = readings) -> float:
            readings.append(len(array))
            return float(array.sum())

        for make in (once(np.arange(5.0)), refuse):
            assert reductions.keep("small", make, read) == 10.0
        assert reductions.keep("large", once(np.ones(50)), read) == 50.0
        assert reductions.keep("large", once(np.ones(50)), read) == 50.0
        assert readings == [5, 50, 50], "what does not fit is read again, as it is made again"
        reductions.close()


def test_another_process_finds_it(tmp_path: Path) -> None:
    first = Reductions(tmp_path / "kept")
    first.keep("key", once(np.arange(5.0)))
    code = (
        "import sys, pathlib, numpy as np\n"
        "from heterosis.merge.statistics.reductions import Reductions\n"
        "kept = Reductions(pathlib.Path(sys.argv[1]))\n"
        "print(kept.keep('key', lambda: np.zeros(1)).tolist())\n"
        "kept.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "kept")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(done.stdout) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (tmp_path / "kept").exists(), "the other process has removed what this one uses"
    first.close()
    assert not (tmp_path / "kept").exists()


def test_what_does_not_fit_is_made_again() -> None:
    reductions = Reductions(budget=100)
    reductions.keep("small", once(np.zeros(5)))
    for k in range(2):
        assert reductions.keep("large", once(np.full(50, float(k))))[0] == k
    reductions.keep("small", refuse)


@pytest.mark.parametrize(("module", "name"), [(os, "open"), (fcntl, "flock")])
def test_a_folder_that_its_last_user_is_just_removing_is_made_anew(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Reductions(tmp_path / "kept")

    def after_its_end(*arguments: Any) -> Any:
        monkeypatch.undo()
        last.close()
        assert not (tmp_path / "kept").exists()
        return getattr(module, name)(*arguments)

    monkeypatch.setattr(module, name, after_its_end)
    first, second = Reductions(tmp_path / "kept"), Reductions(tmp_path / "kept")
    first.keep("key", once(np.zeros(2)))
    second.keep("key", refuse)
    first.close()
    assert (tmp_path / "kept").exists()
    second.close()
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_others_may_fill_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    folder.chmod(0o777)
    reductions = Reductions(folder)
    assert reductions.keep("key", once(np.zeros(2))).tolist() == [0.0, 0.0]
    assert not list(folder.iterdir())
    reductions.close()
    assert folder.exists()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "own")
    (tmp_path / "own").mkdir(mode=0o700)
    Reductions(link).keep("key", once(np.zeros(2)))
    assert not list((tmp_path / "own").iterdir())


@pytest.mark.parametrize("content", [b"", b"\1", b"\7" * 64, b"\0" * 32])
def test_a_file_that_is_damaged_is_made_again(tmp_path: Path, content: bytes) -> None:
    first = Reductions(tmp_path / "kept")
    first.keep("key", once(np.arange(9.0)))
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(content)
    again = Reductions(tmp_path / "kept")
    assert again.keep("key", once(np.arange(9.0)))[8] == 8
    first.close()
    again.close()


def test_the_folder_of_a_node_is_private() -> None:
    one, other = node_folder("/runs/a"), node_folder("/runs/b")
    assert one != other
    assert node_folder("/runs/a") == one
    reductions = Reductions(one)
    assert stat.S_IMODE(one.stat().st_mode) == 0o700
    reductions.close()
    assert not one.exists()


# --- candidates -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models in bfloat16; one tensor is larger than what is sorted, one odd, one of integers."""
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 301, generator=generator)
    paths = []
    for k in range(4):
        tensors = {
            "large": (base + 0.1 * k * torch.randn(300, 301, generator=generator)).bfloat16(),
            "odd": torch.randn(7, generator=generator).bfloat16(),
            "count": torch.tensor(3),
        }
        paths.append(folder / f"m{k}.safetensors")
        save_file(tensors, paths[-1])
    return paths


@pytest.fixture
def mapped() -> Iterator[Callable[[ModelRef], Checkpoint]]:
    opened: dict[ModelRef, Checkpoint] = {}

    def open_model(ref: ModelRef) -> Checkpoint:
        if ref not in opened:
            opened[ref] = open_checkpoint(ref, mapped=True)
        return opened[ref]

    yield open_model
    for checkpoint in opened.values():
        checkpoint.close()


def candidate(method: str, files: list[Path], density: float, **keys: Any) -> Recipe:
    base, *others = map(str, files)
    two = method in ("slerp", "nuslerp", "nearswap", "arcee_fusion")
    listed = [base, others[0]] if method in ("slerp", "nearswap", "arcee_fusion") else others[: 2 if two else 3]
    needs_base = method not in ("linear", "karcher", "multislerp", "passthrough", "nuslerp")
    numbers = {
        "slerp": {"t": density},
        "nearswap": {"t": 0.01},
        "karcher": {},
        "model_stock": {},
        "arcee_fusion": {},
    }
    own = numbers.get(method, {"weight": 0.3 + density})
    if method in ("ties", "breadcrumbs", "dare_ties", "della"):
        own |= {"density": density, "rescale": density > 0.5} | ({"epsilon": 0.05} if method == "della" else {})
    return Recipe.model_validate(
        {
            "merge_method": method,
            "models": [{"model": model} for model in listed],
            "parameters": own,
            "dtype": "bfloat16",
            **({"base_model": base} if needs_base else {}),
            **keys,
        }
    )


def merged(recipe: Recipe, live: torch.dtype | None = None, **options: Any) -> dict[str, torch.Tensor]:
    open_model = options.pop("open_model", open_checkpoint)
    plan = build_plan(recipe, open_model)
    tensors = {
        op.name: torch.zeros(op.shape, dtype=live if live and op.dtype.is_floating_point else op.dtype)
        for op in plan.ops
    }
    execute(plan, ModelSink(tensors), **options)
    return {name: tensor.to(op.dtype) for (name, tensor), op in zip(tensors.items(), plan.ops, strict=True)}


METHODS = (
    "linear",
    "task_arithmetic",
    "dare_ties",
    "della",
    "nearswap",
    "arcee_fusion",
    *KEPT["gram"],
    *KEPT["count"],
)


@pytest.mark.parametrize("live", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_the_same_bit_for_bit(
    method: str,
    dtype: str,
    live: torch.dtype,
    files: list[Path],
    mapped: Callable[[ModelRef], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(computation, "PLACED_BLOCK", 1000)
    reductions = Reductions(tmp_path / "kept")
    before = [load_file(file)["large"] for file in files]
    for density in (0.3, 0.6, 0.6):
        recipe = candidate(method, files, density, dtype=dtype, out_dtype="bfloat16")
        found = merged(recipe, live, open_model=mapped, reductions=reductions, threads=2)
        expected = merged(recipe, threads=1)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    reductions.close()
    for file, tensor in zip(files, before, strict=True):  # a parent that is mapped is never written to
        view = mapped(ModelRef(str(file))).tensors["large"].view(0, tensor.numel())
        assert view is not None
        assert torch.equal(view.view_as(tensor), tensor)


@pytest.mark.parametrize("live", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("broken", [False, True])
def test_copies_are_the_same_bit_for_bit(
    live: torch.dtype,
    broken: bool,
    files: list[Path],
    mapped: Callable[[ModelRef], Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Zeros keep their sign; NaN is found in the last block."""
    monkeypatch.setattr(computation, "WIDENED_BLOCK", 1000)
    tensors = load_file(files[0])
    tensors["large"].view(-1)[:9] = -0.0
    tensors["large"].view(-1)[-1] = torch.nan if broken else 1.0
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(file)}]})
    if broken:
        with pytest.raises(MergeError, match="large: the merged tensor has NaN or infinity"):
            merged(recipe, live, open_model=mapped, threads=2)
        return
    found = merged(recipe, live, open_model=mapped, threads=2)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, tensors[name]))), name


@pytest.mark.parametrize(("kind", "method"), [(kind, method) for kind, names in KEPT.items() for method in names])
def test_a_second_candidate_reduces_nothing_again(
    kind: str,
    method: str,
    files: list[Path],
    mapped: Callable[[ModelRef], Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    owner: type = Statistics if kind == "gram" else Selection
    inner = getattr(owner, f"_{kind}")

    def counted(self: object, *arguments: Any) -> Any:
        calls.append(kind)
        return inner(self, *arguments)

    monkeypatch.setattr(owner, f"_{kind}", counted)
    reductions = Reductions()
    made = []
    for density in (0.2, 0.4):
        calls.clear()
        merged(candidate(method, files, density), open_model=mapped, reductions=reductions)
        made.append(len(calls))
    assert made[0] > 0
    assert made[1] == 0


def sizes_above(least: float) -> Formula:
    """A quantity that holds a number of its own, which no key would tell of."""

    def size(i: Any, x: Any) -> Any:
        return max(abs(x[0]) - least, 0.0)

    return Formula(size)


@pytest.mark.parametrize("n", [100, 10_000])  # sorted, and counted
def test_quantities_that_keys_do_not_tell_apart_are_not_kept(n: int) -> None:
    values = np.linspace(-1, 1, n, dtype=np.float32)
    reductions = Reductions()
    for least in (0.25, 0.5):
        cache = reductions.of("tensor")
        of = Statistics(lambda *_: [(0, Inputs((values,)))], values.dtype, 1, (n,), ((0, 0),), cache=cache)
        expected = np.sort(np.maximum(abs(values) - np.float32(least), 0))[-n // 4]
        assert of.cut(sizes_above(least).bind(), n // 4).value == pytest.approx(expected, rel=1e-6)


def test_tensors_that_are_not_aligned_are_read(files: list[Path], tmp_path: Path) -> None:
    content = files[1].read_bytes()
    length = int.from_bytes(content[:8], "little")
    shifted = tmp_path / "shifted.safetensors"
    shifted.write_bytes(
        (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    )
    with open_checkpoint(str(shifted), mapped=True) as model:
        source = model.tensors["large"]
        assert source.view(0, 4) is None
        row = torch.empty(300 * 301, dtype=torch.bfloat16)
        source.read(0, len(row), row)
        assert torch.equal(row, load_file(files[1])["large"].flatten())
