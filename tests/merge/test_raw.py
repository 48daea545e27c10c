"""Files of weights without a model folder: what is merged, what is refused, and what mergekit makes of them."""

import json
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heterosis import cli
from heterosis.errors import InputError
from heterosis.merge import api
from heterosis.merge.api import merge_models
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.methods import methods
from heterosis.merge.recipe.recipe import Recipe

Tensors = dict[str, torch.Tensor]
Names = Literal["same", "union", "intersection"]


def random_tensors(seed: int, names: str = "abc", dtype: torch.dtype = torch.float32) -> Tensors:
    """A matrix, a vector, a single number and an empty tensor for each letter, and integers."""
    tensors: Tensors = {"steps": torch.tensor(7), "ids": torch.arange(5)}
    for name in names:  # of a letter's own, whatever other letters there are
        generator = torch.Generator().manual_seed(1000 * seed + ord(name))
        shapes = {"w": (70, 61), "b": (61,), "scale": (), "empty": (0, 3)}
        for part, shape in shapes.items():
            tensors[f"{name}.{part}"] = torch.randn(shape, generator=generator).to(dtype)
    return tensors


def save(path: Path, tensors: Mapping[str, Any]) -> str:
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path)
    else:
        torch.save(tensors, path)
    return str(path)


def recipe_of(files: list[str], method: str = "linear", base: str | None = None, **keys: Any) -> Recipe:
    spec = methods()[method]
    settings = {"weight": 0.6, "density": 0.5, "t": 0.3, "scale": 0.9}
    return Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": base,
            "models": [{"model": file} for file in files],
            "parameters": {name: value for name, value in settings.items() if name in spec.parameters},
            **keys,
        }
    )


def faults_of(recipe: Recipe, out: Path, names: Names = "same") -> tuple[str, ...]:
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError) as caught:
        merge_models(recipe, out, names=names)
    assert sorted(out.parent.iterdir()) == before
    return caught.value.faults


def assert_same(got: Tensors, expected: Tensors) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        scale = float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 1.0
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-6 * scale)


# --- what comes out ---------------------------------------------------------------------------------------------


def test_into_one_file_or_a_folder(tmp_path: Path) -> None:
    a, b = random_tensors(1), random_tensors(2)
    recipe = recipe_of([save(tmp_path / "a.safetensors", a), save(tmp_path / "b.safetensors", b)])
    expected = {n: (a[n] + b[n]) / 2 if t.is_floating_point() else t for n, t in a.items()}
    file = merge_models(recipe, tmp_path / "out.safetensors", shard_size=1000)  # a file is one, whatever its size
    assert_same(load_file(file), expected)
    folder = merge_models(recipe, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors", "recipe.yaml"]
    assert_same(load_file(folder / "model.safetensors"), expected)
    assert Recipe.load(folder / "recipe.yaml") == recipe
    shards = merge_models(recipe, tmp_path / "shards", shard_size=20_000)
    listed = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(listed.values())) > 1
    assert_same({n: load_file(shards / listed[n])[n] for n in listed}, expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("method", sorted(methods()))
def test_every_method_takes_numbers_vectors_and_empty_tensors(method: str, tmp_path: Path) -> None:
    spec = methods()[method]
    base = random_tensors(0, "a")
    files = []
    for i in (1, 2):
        noise = random_tensors(i, "a")
        tensors = {n: t + 0.1 * noise[n] if t.is_floating_point() else t for n, t in base.items()}
        files.append(save(tmp_path / f"{i}.safetensors", tensors))
    count = (spec.inputs[1] or 2) - (spec.base == "input")
    first = None if spec.base == "ignored" else save(tmp_path / "0.safetensors", base)
    out = merge_models(recipe_of(files[:count], method, first), tmp_path / "out.safetensors")
    merged = load_file(out)
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in base.items()}
    assert all(t.isfinite().all() for t in merged.values())
    assert not torch.equal(merged["a.w"], base["a.w"])
    assert torch.equal(merged["ids"], base["ids"])


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.safetensors", random_tensors(i)) for i in (1, 2)]
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert faults_of(recipe_of(files), out) == (
        f"{out}: exists already; choose another folder, or pass --overwrite",
    )
    assert out.read_text() == "precious"
    merge_models(recipe_of(files), out, overwrite=True)
    assert "a.w" in load_file(out)
    with pytest.raises(InputError, match="is one of the models that are merged"):
        merge_models(recipe_of([*files, str(out)]), out, overwrite=True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(files[0])
    before = Path(files[0]).read_bytes()
    with pytest.raises(InputError, match="is one of the models that are merged"):
        merge_models(recipe_of([str(link), files[1]]), Path(files[0]), overwrite=True)
    assert Path(files[0]).read_bytes() == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_read(
    overwrite: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    out.mkdir()
    with pytest.raises(InputError, match="is a folder, but the merge would be a file"):
        merge_models(recipe_of(["no/model"]), out, overwrite=overwrite)
    assert list(tmp_path.rglob("*")) == [out]


def test_failures_leave_nothing(tmp_path: Path) -> None:
    bad = random_tensors(1)
    bad["b.w"][3, 3] = torch.nan
    files = [save(tmp_path / "a.safetensors", bad), save(tmp_path / "b.safetensors", random_tensors(2))]
    before = sorted(tmp_path.iterdir())
    for out in ("out", "out.safetensors"):
        with pytest.raises(MergeError, match=r"^b\.w: the merged tensor has NaN or infinity"):
            merge_models(recipe_of(files), tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_folder_does_not_fit_into_a_file(tmp_path: Path, make_llama: Any) -> None:
    folder = str(make_llama("raw-folder", seed=0))
    assert faults_of(recipe_of([folder]), tmp_path / "out.safetensors") == (
        f"{tmp_path / 'out.safetensors'}: must be a folder, as the models have configs; remove '.safetensors'",
    )


# --- what goes in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_every_kind_of_file_beside_another(suffix: str, tmp_path: Path) -> None:
    a, b = random_tensors(1), random_tensors(2, dtype=torch.bfloat16)
    files = [save(tmp_path / f"a{suffix}", a), save(tmp_path / "b.safetensors", b)]
    merged = load_file(merge_models(recipe_of(files), tmp_path / "out.safetensors"))
    assert_same(merged, {n: (a[n] + b[n].float()) / 2 if t.is_floating_point() else t for n, t in a.items()})


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_nested_state_dict(key: str, tmp_path: Path) -> None:
    tensors = random_tensors(1)
    alone = save(tmp_path / "alone.pt", {key: tensors})
    among = save(tmp_path / "among.pt", {"epoch": 3, key: OrderedDict(tensors), "optimizer": {"lr": 0.1}})
    with pytest.warns(UserWarning, match=f"among.pt: only '{key}' is merged; it also holds epoch, optimizer"):
        out = merge_models(recipe_of([alone, among]), tmp_path / "out.safetensors")
    assert_same(load_file(out), tensors)


def test_parameters_and_odd_layouts_are_values(tmp_path: Path) -> None:
    values = torch.arange(24.0).view(4, 6)
    tensors = {"p": torch.nn.Parameter(values), "t": values.T, "s": values[:, ::2], "part": values[1:3]}
    out = merge_models(recipe_of([save(tmp_path / "a.pt", tensors)]), tmp_path / "out.safetensors")
    assert_same(load_file(out), {name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def test_what_looks_like_a_tied_head_or_a_mask_is_an_ordinary_tensor(tmp_path: Path) -> None:
    # Without a config nobody says that heads are tied, or that h.0.attn.bias is a mask that nobody reads.
    a = {
        "embed_tokens.weight": torch.ones(4, 2),
        "lm_head.weight": torch.ones(4, 2),
        "h.0.attn.bias": torch.ones(3),
    }
    b = {"embed_tokens.weight": torch.zeros(4, 2)}
    files = [save(tmp_path / "a.safetensors", a), save(tmp_path / "b.safetensors", b)]
    assert set(faults_of(recipe_of(files), tmp_path / "out")) == {
        f"{name}: missing in {files[1]}, but {files[0]} has it; pass --tensor-union or --tensor-intersection"
        for name in ("lm_head.weight", "h.0.attn.bias")
    }
    union = load_file(merge_models(recipe_of(files), tmp_path / "u.safetensors", names="union"))
    assert_same(union, a | {"embed_tokens.weight": torch.full((4, 2), 0.5)})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint64])
def test_integers_must_agree(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([1, 0, 1]).to(dtype)
    files = [save(tmp_path / f"{i}.pt", {"n": values.clone(), "x": torch.ones(1)}) for i in range(2)]
    merged = load_file(merge_models(recipe_of(files), tmp_path / "out.safetensors"))["n"]
    assert (merged.dtype, merged.tolist()) == (dtype, values.tolist())
    other = save(tmp_path / "other.pt", {"n": torch.tensor([0, 0, 1]).to(dtype), "x": torch.ones(1)})
    with pytest.raises(MergeError, match="n: a tensor of integers must be the same in all models, but it differs"):
        merge_models(recipe_of([files[0], other]), tmp_path / "other.safetensors")
    for wrong in (torch.int64, torch.float32):
        file = save(tmp_path / "wrong.pt", {"n": torch.tensor([1, 0, 1]).to(wrong), "x": torch.ones(1)})
        names = [str(kind).removeprefix("torch.") for kind in (dtype, wrong)]
        assert faults_of(recipe_of([files[0], file]), tmp_path / "x.safetensors") == (
            f"n: must be floating in all models, or of one dtype, but got {names[0]} in {files[0]} and {names[1]} "
            f"in {file}; save it in one dtype",
        )


def test_slices_take_layers_of_raw_files_too(tmp_path: Path) -> None:
    a, b = ({f"h.{i}.w": torch.full((2,), 10.0 * k + i) for i in range(3)} for k in (1, 2))
    files = [save(tmp_path / "a.safetensors", a), save(tmp_path / "b.safetensors", b)]
    taken = [(files[0], [0, 2]), (files[1], [2, 3])]
    slices = [{"sources": [{"model": file, "layer_range": layers}]} for file, layers in taken]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    merged = load_file(merge_models(recipe, tmp_path / "out.safetensors"))
    assert {n: t.tolist() for n, t in merged.items()} == {"h.0.w": [10, 10], "h.1.w": [11, 11], "h.2.w": [22, 22]}


# --- names that some files lack ---------------------------------------------------------------------------------


def test_same_union_and_intersection(tmp_path: Path) -> None:
    a, b = random_tensors(1, "ab"), random_tensors(2, "bc")
    recipe = recipe_of([save(tmp_path / "a.safetensors", a), save(tmp_path / "b.pt", b)])
    faults = faults_of(recipe, tmp_path / "out")
    assert all("missing in" in fault for fault in faults[:-1])
    assert faults[-1] == "... and 4 more faults"
    both = {n: (a[n] + b[n]) / 2 for n in a.keys() & b.keys() if n.startswith("b.")}
    both |= {"steps": a["steps"], "ids": a["ids"]}
    one = {n: t for tensors in (a, b) for n, t in tensors.items() if n[:2] in ("a.", "c.")}
    assert_same(load_file(merge_models(recipe, tmp_path / "u.safetensors", names="union")), both | one)
    assert_same(load_file(merge_models(recipe, tmp_path / "i.safetensors", names="intersection")), both)


@pytest.mark.parametrize(
    ("names", "hint"), [("intersect", "did you mean 'intersection'?"), (None, "valid: intersection, same, union")]
)
def test_an_unknown_choice_of_names_is_refused(tmp_path: Path, names: Any, hint: str) -> None:
    files = [save(tmp_path / f"{name}.safetensors", {"w": torch.ones(2)}) for name in "ab"]
    assert faults_of(recipe_of(files), tmp_path / "out", names) == (f"names: unknown choice {names!r}; {hint}",)


def test_a_union_needs_the_base(tmp_path: Path) -> None:
    base = save(tmp_path / "base.safetensors", {"x": torch.zeros(2), "only": torch.ones(2)})
    tuned = save(tmp_path / "a.safetensors", {"x": torch.ones(2), "new": torch.ones(2)})
    recipe = recipe_of([tuned], "task_arithmetic", base)
    assert faults_of(recipe, tmp_path / "out", "union") == (
        f"new: missing in the base model {base}, which task_arithmetic needs",
    )
    merged = load_file(merge_models(recipe, tmp_path / "i.safetensors", names="intersection"))
    assert_same(merged, {"x": torch.full((2,), 0.6)})


def test_an_intersection_of_nothing(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{name}.safetensors", {name: torch.ones(1)}) for name in "ab"]
    assert faults_of(recipe_of(files), tmp_path / "out", "intersection") == (
        "the output would have no tensors; check the layer ranges",
    )


@pytest.mark.parametrize(("flags", "count"), [(["-u"], 14), (["--tensor-intersection"], 6)])
def test_the_command_line(
    flags: list[str],
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [save(tmp_path / f"{names}.safetensors", random_tensors(1, names)) for names in ("ab", "bc")]
    recipe_of(files).dump(tmp_path / "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    for arguments, code in [(flags, 0), ([], 2), (["-u", "-i"], 2)]:
        monkeypatch.setattr(sys, "argv", ["heterosis", "merge", "recipe.yaml", "out.safetensors", *arguments])
        try:
            with warnings.catch_warnings():  # main() sets up warnings for a process of its own
                cli.main()
            got: object = 0
        except SystemExit as exit_:
            got = exit_.code
        assert got == code, capsys.readouterr().err
        if code == 0:
            assert len(load_file("out.safetensors")) == count
            Path("out.safetensors").unlink()
        assert not Path("out.safetensors").exists()


# --- what is refused --------------------------------------------------------------------------------------------


class _Code:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"w": torch.ones(1), "x": _Code()}, "refused: it holds other Python objects than tensors"),
        ({"w": torch.ones(1), "x": bytearray(9)}, "refused: it holds a bytearray"),
        ({"w": torch.ones(1), "x": 3}, "x: must be an ordinary dense tensor"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w: must be an ordinary dense tensor"),
        ({"w": torch.ones(1, device="meta")}, "w: must be an ordinary dense tensor"),
        (
            lambda: {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},  # warns
            "w: must be an ordinary dense tensor",
        ),
        (
            {"w": torch.ones(1).expand(10**12)},
            "w: [1000000000000] takes 4,000,000,000,000 bytes, but the file holds 4",
        ),
        (
            {"w": torch.ones(2, dtype=torch.complex64)},
            "w: torch.complex64 is not supported; save it as one of float",
        ),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "w: the model is quantised to float8"),
        ({3: torch.ones(1)}, "names of tensors must be texts, but got 3"),
        ({"__metadata__": torch.ones(1)}, "names of tensors must be texts, but got '__metadata__'"),
        ([torch.ones(1)], "must map names to tensors, but holds a list"),
        (torch.ones(3), "must map names to tensors, but holds a Tensor"),
        (torch.nn.Linear(2, 2), "refused: it holds other Python objects than tensors"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings(
    "ignore:.*quantize:DeprecationWarning", "ignore:.*quantized:UserWarning", "ignore:TypedStorage:UserWarning"
)
def test_refused(content: Any, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.pt", content() if isinstance(content, FunctionType) else content)
    faults = faults_of(recipe_of([path]), tmp_path / "out.safetensors")
    assert len(faults) == 1
    assert faults[0].startswith(f"{path}: {fault}")
    assert capsys.readouterr().out == ""  # nothing ran


def test_old_pickles_and_other_files(tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    torch.save({"w": torch.ones(1)}, old, _use_new_zipfile_serialization=False)
    text = tmp_path / "text.bin"
    text.write_text("no weights")
    for path in (old, text):
        (fault,) = faults_of(recipe_of([str(path)]), tmp_path / "out")
        assert fault.startswith(f"{path}: cannot be read as PyTorch weights: must be a zip archive, as torch.save")
    (fault,) = faults_of(recipe_of([f"{old}@main"]), tmp_path / "out")
    assert fault.startswith(f"{old}: must be a model folder, but is a file")
    (fault,) = faults_of(recipe_of([str(tmp_path / "none.pt")]), tmp_path / "out")
    assert fault.startswith(f"{tmp_path / 'none.pt'}: no such model folder")


def test_nothing_is_written_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save(tmp_path / f"{i}.safetensors", random_tensors(i)) for i in (1, 2)]
    monkeypatch.setattr(api.shutil, "disk_usage", lambda _: SimpleNamespace(free=10, total=100))
    (fault,) = faults_of(recipe_of(files), tmp_path / "out.safetensors")
    assert "the merged model takes" in fault


# --- parity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "method"),
    [
        ("same", "ties"),
        ("same", "linear"),
        ("union", "linear"),
        ("union", "task_arithmetic"),
        ("intersection", "slerp"),
        ("intersection", "task_arithmetic"),
    ],
)
def test_mergekit_pytorch_gives_the_same(names: Names, method: str, tmp_path: Path) -> None:
    raw = pytest.importorskip("mergekit.scripts.merge_raw_pytorch")
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions

    letters = ["ab", "ab", "ab"] if names == "same" else ["abc", "ab", "a"]
    files = []
    for i, held in enumerate(letters):
        tensors = {n: t for n, t in random_tensors(i, held).items() if not n.endswith("empty")}
        files.append(save(tmp_path / f"{i}.safetensors", tensors))
    spec = methods()[method]
    base = None if spec.base == "ignored" else files[0]
    recipe = recipe_of(files[: 2 if spec.base == "input" else 3], method, base)
    ours = load_file(merge_models(recipe, tmp_path / "ours.safetensors", names=names))
    config = raw.RawPyTorchMergeConfig.model_validate(yaml.safe_load(recipe.to_yaml()))
    options = MergeOptions(quiet=True)
    flags = (names == "union", names == "intersection")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = raw.plan_flat_merge(config, str(tmp_path / "theirs"), *flags, options)
        Executor(tasks, math_device="cpu", storage_device="cpu").execute()
    theirs = load_file(tmp_path / "theirs/model.safetensors")
    assert len(ours) == {"same": 8, "union": 11, "intersection": 8 if method == "slerp" else 5}[names]
    assert_same(ours, theirs)
