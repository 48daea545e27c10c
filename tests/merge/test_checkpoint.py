"""Checkpoints: every way that weights are stored reads the same, and what is broken says so in one line."""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import struct
import sys
import threading
from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.models import weights as weights_module
from heterosis.merge.models.checkpoint import Checkpoint, open_checkpoint
from heterosis.merge.models.safetensors_file import DTYPES, SafetensorsFile
from heterosis.merge.recipe.recipe import ModelRef

MakeLlama = Callable[..., Path]


def read_all(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    result = {}
    for name, source in checkpoint.tensors.items():
        out = torch.empty(torch.Size(source.shape).numel(), dtype=dtype or source.dtype)
        source.read(0, len(out), out)
        result[name] = out.view(source.shape)
    return result


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def fault_of(ref: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(ref if isinstance(ref, ModelRef) else str(ref))
    assert all("\n" not in fault for fault in caught.value.faults)
    return str(caught.value)


@pytest.fixture
def folder(make_llama: MakeLlama, tmp_path: Path) -> Path:
    """A fresh copy of a single-file model."""
    return Path(shutil.copytree(make_llama("checkpoint", seed=0, dtype=torch.float32), tmp_path / "model"))


@pytest.fixture
def sharded(make_llama: MakeLlama, tmp_path: Path) -> Path:
    """A fresh copy of a model in several shards."""
    made = make_llama("checkpoint-sharded", seed=0, dtype=torch.float32, max_shard_size="8KB")
    return Path(shutil.copytree(made, tmp_path / "sharded"))


# --- the ways that weights are stored ---------------------------------------------------------------------------


def test_single_sharded_and_pickled_weights_read_the_same(folder: Path, sharded: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    (folder / "pytorch_model.bin").write_bytes(b"ignored beside safetensors")
    with open_checkpoint(str(folder)) as single, open_checkpoint(ModelRef(str(sharded))) as shards:
        assert_same(read_all(single), expected)
        assert_same(read_all(shards), expected)
        assert single.config["model_type"] == "llama"
        assert single.folder == folder
        assert single.revision is None
        assert list(single.tensors) == sorted(expected)
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    with open_checkpoint(str(folder)) as pickled:
        assert_same(read_all(pickled), expected)
    names = sorted(expected)
    torch.save({name: expected[name] for name in names[:3]}, folder / "a.bin")
    torch.save({name: expected[name] for name in names[3:]}, folder / "b.bin")
    (folder / "pytorch_model.bin").unlink()
    index = {"weight_map": {name: "a.bin" if i < 3 else "b.bin" for i, name in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(str(folder)) as pickled:
        assert_same(read_all(pickled), expected)


def test_a_tensor_saved_transposed_reads_in_row_order(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.arange(6.0).view(2, 3).T}, folder / "pytorch_model.bin")
    with open_checkpoint(str(folder)) as checkpoint:
        assert read_all(checkpoint)["w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


PERMUTED = [
    ((), ()),
    ((1, 1), (1, 0)),
    ((0, 4), (1, 0)),
    ((5, 7), (1, 0)),
    ((1, 5, 7), (2, 0, 1)),
    ((3, 4, 5), (2, 0, 1)),
]


@pytest.mark.parametrize(("shape", "order"), PERMUTED, ids=str)
def test_any_part_of_a_tensor_saved_permuted_is_read(
    shape: tuple[int, ...], order: tuple[int, ...], folder: Path
) -> None:
    (folder / "model.safetensors").unlink()
    values = torch.arange(float(math.prod(shape))).view(shape).permute(order)
    torch.save({"w": values}, folder / "pytorch_model.bin")
    with open_checkpoint(str(folder)) as checkpoint:
        source, flat = checkpoint.tensors["w"], values.flatten()
        for start, stop in combinations_with_replacement(range(len(flat) + 1), 2):
            out = torch.empty(stop - start)
            source.read(start, stop, out)
            assert torch.equal(out, flat[start:stop])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_tensors_saved_transposed_do_not_stay_in_memory(folder: Path) -> None:
    def resident() -> int:
        return int(re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

    (folder / "model.safetensors").unlink()
    torch.save({f"w{k}": torch.zeros(1024, 2048).T for k in range(8)}, folder / "pytorch_model.bin")  # 64 MiB
    with open_checkpoint(str(folder)) as checkpoint:
        out, before = torch.empty(1024), resident()
        for source in checkpoint.tensors.values():
            source.read(0, 1024, out)
        assert resident() - before < 16 * 1024**2


def test_identity_and_contents(folder: Path, sharded: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    with open_checkpoint(str(folder)) as a, open_checkpoint(str(link)) as b, open_checkpoint(str(sharded)) as c:
        name = "model.embed_tokens.weight"
        assert a.tensors[name].identity == b.tensors[name].identity
        assert a.tensors[name].identity != c.tensors[name].identity
        assert a.tensors[name].identity != a.tensors["model.norm.weight"].identity
        assert a.contents == b.contents != c.contents
        manifest = "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in sorted(sharded.glob("*.safetensors"))
        )
        assert c.contents.weights == hashlib.sha256(manifest.encode()).hexdigest()
        before, contents, written = a.tensors[name].identity, a.contents, a.written
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with open_checkpoint(str(copy)) as checkpoint:
        assert checkpoint.contents == contents  # and not places
        (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with open_checkpoint(str(copy)) as checkpoint:
        assert checkpoint.contents.weights == contents.weights
        assert checkpoint.contents.settings != contents.settings
    weights = load_file(folder / "model.safetensors")
    weights[name][0, 0] += 1
    save_file(weights, folder / "model.safetensors")
    with open_checkpoint(str(folder)) as changed:
        assert changed.contents.weights != contents.weights
        assert changed.written != written
        assert changed.tensors[name].identity != before


def test_a_closed_checkpoint_reads_nothing(folder: Path) -> None:
    with open_checkpoint(str(folder)) as checkpoint:
        source = checkpoint.tensors["model.norm.weight"]
    with pytest.raises(ValueError, match="closed"):
        source.read(0, 16, torch.empty(16))


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_read(name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    values = torch.tensor([0, 1, 1, 0, 1, 1, 1]) if name == "BOOL" else torch.tensor([0, 1, 2, 3, 5, 8, 13])
    tensor = values.to(dtype)
    # A one-byte tensor before it, so that the data is not aligned.
    save_file({"a": torch.zeros(1, dtype=torch.uint8), "b": tensor}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    source = file.tensors()["b"]
    assert source.dtype == dtype
    for target in (dtype, torch.float32, torch.float64):
        out = torch.empty(5, dtype=target)
        source.read(1, 6, out)
        assert out.to(torch.float64).tolist() == values[1:6].tolist()
        strided = torch.zeros(10, dtype=target)
        source.read(1, 6, strided[::2])
        assert strided[::2].to(torch.float64).tolist() == values[1:6].tolist()
    source.read(3, 3, torch.empty(0))
    file.close()


def write_file(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_bytes_that_are_no_booleans_become_booleans(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, {"b": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\x00\x02\xff")
    file = SafetensorsFile(path)
    out = torch.empty(3, dtype=dtype)
    file.tensors()["b"].read(0, 3, out)
    file.close()
    assert out.to(torch.float32).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("begin", "size", "fault"),
    [
        (3, 7, "b: leaves a gap before it: begins at byte 3 of the data, expected 2"),
        (1, 5, "b: overlaps"),
        (2, 6, ""),
    ],
)
def test_tensors_follow_each_other(tmp_path: Path, begin: int, size: int, fault: str) -> None:
    path = tmp_path / "x.safetensors"
    first = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    second = {"dtype": "U8", "shape": [4], "data_offsets": [begin, begin + 4]}
    write_file(path, {"__metadata__": {"format": "pt"}, "b": second, "a": first}, bytes(size))
    if not fault:
        SafetensorsFile(path).close()
        return
    with pytest.raises(InputError, match=fault):
        SafetensorsFile(path)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=6), chunk=st.sampled_from([64, 1000, 1 << 22]))
def test_any_blocks_read_the_same(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], chunk: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "x.safetensors"
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"w": tensor}, path)
    file = SafetensorsFile(path)
    out = torch.empty(5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heterosis.merge.models.safetensors_file._CHUNK_BYTES", chunk)
        bounds = [0, *sorted(cuts), 5000]
        for start, stop in pairwise(bounds):
            file.tensors()["w"].read(start, stop, out[start:stop])
    file.close()
    assert torch.equal(out, tensor.float())


def test_threads_share_a_file(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    wrong = []
    with open_checkpoint(str(folder)) as checkpoint:

        def work() -> None:
            for _ in range(20):
                got = read_all(checkpoint, torch.float64)
                wrong.extend(name for name in got if not torch.equal(got[name], expected[name].double()))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# --- hostile and broken files -----------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Any], bytes], tuple[Any, bytes]]) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = change(json.loads(content[8 : 8 + length]), content[8 + length :])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


NORM = "model.norm.weight"


def edit(**fields: Any) -> Callable[[dict[str, Any], bytes], tuple[Any, bytes]]:
    def change(header: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        header[NORM] = {**header[NORM], **fields}
        return header, data

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda h, d: (h, d[:-1]), "truncated: the tensors need"),
        (lambda h, d: (h, d + b"x"), "1 bytes after the last tensor belong to none"),
        (lambda h, d: (b"[]", d), "the header must be a JSON object"),
        (lambda h, d: (b"{", d), "not valid JSON"),
        (lambda h, d: (b"\xff", d), "not valid JSON"),
        (lambda h, d: (b"[" * 200_000, d), "not valid JSON"),
        (lambda h, d: (b'{"a": 1, "a": 2}', d), "key 'a' is given twice"),
        (lambda h, d: (h | {"extra": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, d), "overlaps"),
        (lambda h, d: ({k: v for k, v in h.items() if k != NORM}, d), None),
        (edit(data_offsets=[4, 0]), "data_offsets must be [begin, end]"),
        (edit(data_offsets=[-64, 0]), "data_offsets must be [begin, end]"),
        (edit(data_offsets=[True, 64]), "data_offsets must be [begin, end]"),
        (edit(data_offsets=[0, 2**60], shape=[2**58]), "gap"),
        (edit(shape=[17]), "F32 [17] takes 68 bytes, but data_offsets span 64"),
        (edit(shape=[-16]), "shape must be a list of numbers >= 0"),
        (edit(shape=16), "shape must be a list"),
        (edit(dtype="F4"), "dtype 'F4' is not supported"),
        (edit(dtype=[]), "dtype [] is not supported"),
        (edit(extra=1), "must have exactly dtype, shape and data_offsets"),
    ],
)
def test_malformed_headers(folder: Path, change: Any, fault: str | None) -> None:
    rewrite(folder, change)
    found = fault_of(folder)
    assert found.startswith(f"{folder}/model.safetensors: ")
    if fault == "gap":
        assert "overlaps" in found or "gap" in found or "truncated" in found
    elif fault is None:  # removing a tensor leaves a gap, or bytes at the end
        assert "gap" in found or "belong to none" in found
    else:
        assert fault in found


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "truncated: a safetensors file has at least 8 bytes, this has 0"),
        (b"\x01\x00", "truncated"),
        (struct.pack("<Q", 2**63), "not a safetensors file: the header would have"),
        (struct.pack("<Q", 1000) + b"{}", "truncated: the header needs 1,008 bytes, the file has 10"),
    ],
)
def test_files_too_short_for_a_header(folder: Path, content: bytes, fault: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert fault in fault_of(folder)


def test_a_file_cut_while_open_is_an_error_not_garbage(folder: Path) -> None:
    with open_checkpoint(str(folder)) as checkpoint:
        os.truncate(folder / "model.safetensors", 4096)
        with pytest.raises(InputError, match="it changed while it was read"):
            read_all(checkpoint)


@pytest.mark.parametrize("target", ["../other/model.safetensors", "/etc/passwd", "a/../../x.safetensors", "", "."])
def test_an_index_cannot_leave_its_folder(sharded: Path, target: str) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][NORM] = target
    index.write_text(json.dumps(content))
    found = fault_of(sharded)
    assert "must be a file inside the model folder" in found or (target == "." and "there is no file" in found)


def test_an_index_must_agree_with_its_shards(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    files = sorted(set(original["weight_map"].values()))

    def fault_with(change: Callable[[dict[str, str]], None]) -> str:
        content = json.loads(json.dumps(original))
        change(content["weight_map"])
        index.write_text(json.dumps(content))
        return fault_of(sharded)

    other = next(file for file in files if file != original["weight_map"][NORM])
    assert f"{NORM}: listed in {other}, but held by" in fault_with(lambda listed: listed.update({NORM: other}))
    assert "ghost: listed in" in fault_with(lambda listed: listed.update(ghost=files[0]))
    assert f"{NORM}: held by" in fault_with(lambda listed: listed.pop(NORM) and None)
    assert "there is no file 'model-9.safetensors'" in fault_with(
        lambda listed: listed.update(x="model-9.safetensors")
    )
    assert "weight_map must map" in fault_with(lambda listed: listed.clear())
    index.write_text("{")
    assert "not valid JSON" in fault_of(sharded)


def test_two_shards_with_one_tensor(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(file for file in index.values() if file != index[NORM])
    save_file({**load_file(sharded / other), NORM: torch.ones(16)}, sharded / other)
    assert f"{NORM}: held by both" in fault_of(sharded)


class _Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_pickles_run_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"w": torch.ones(2), "x": _Payload()}, path)
    assert "refused: it holds other Python objects than tensors" in fault_of(folder)
    assert not (folder / "executed").exists()
    path.write_bytes(pickle.dumps({"w": 1}))
    assert fault_of(folder).startswith(f"{path}: ")
    torch.save({"w": 3}, path)
    assert "w: must be an ordinary dense tensor" in fault_of(folder)
    torch.save([torch.ones(1)], path)
    assert "must map names to tensors, but holds a list" in fault_of(folder)
    path.write_bytes(b"PK\x03\x04 nonsense")
    assert "cannot be read as PyTorch weights" in fault_of(folder)


def test_folders_that_are_no_models(folder: Path, tmp_path: Path) -> None:
    missing = fault_of(tmp_path / "nowhere")
    assert missing.endswith("no such model folder; give a local folder, or a Hub id such as org/name")
    assert fault_of("./nowhere").endswith(f" (looked in the current folder, {Path.cwd()})")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text("{}")
    assert fault_of(tmp_path / "lora").endswith(f"is a LoRA adapter, not a model; write BASE+{tmp_path / 'lora'}")
    assert "is a file; give the folder" in fault_of(folder / "config.json")
    assert "is a local folder, which has no revisions" in fault_of(f"{folder}@main")
    assert "model: must be path" in fault_of("a@b@c")
    unknown = "no home folder of ~nosuchuser is known; write the whole path"
    assert fault_of("~nosuchuser/x") == f"~nosuchuser/x: {unknown}"
    assert fault_of(f"{folder}+~nosuchuser") == f"~nosuchuser: {unknown}"
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert "has no weights; expected one of model.safetensors," in fault_of(folder)
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for change, fault in [
        ({"quantization_config": {"bits": 4}}, "the model is quantised"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "the model is quantised"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        assert fault in fault_of(folder)
    (folder / "config.json").write_text("[]")
    assert "must be a JSON object" in fault_of(folder)
    (folder / "config.json").unlink()
    assert "has no config.json; is this a model folder?" in fault_of(folder)


def test_float8_weights_are_refused(folder: Path) -> None:
    save_file({"w": torch.ones(4).to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    assert "w: the model is quantised to float8" in fault_of(folder)


# --- the Hub ----------------------------------------------------------------------------------------------------


def test_a_hub_id_offline_is_one_line() -> None:
    found = fault_of("nobody/no-such-model-xyz@main")
    assert found.startswith(
        "nobody/no-such-model-xyz@main: not a local folder, and cannot be fetched from the Hub: "
    )


def test_a_misspelt_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/math-7b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fault_of("org/maht-7b").endswith("; did you mean the folder 'org/math-7b'?")
    assert "did you mean" not in fault_of("org/other")


def test_weights_opened_before_a_fault_are_closed(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[SafetensorsFile] = []

    class Recorded(SafetensorsFile):
        def __init__(self, path: Path, mapped: bool = False) -> None:
            super().__init__(path, mapped)
            opened.append(self)

    monkeypatch.setattr(weights_module, "SafetensorsFile", Recorded)
    last = sorted(sharded.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    fault_of(sharded)
    assert opened
    assert all(file._file.closed for file in opened)


def test_opening_reads_headers_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise AssertionError("read tensors while opening")

    monkeypatch.setattr(os, "preadv", refuse)
    with open_checkpoint(str(folder)) as checkpoint:
        assert checkpoint.resident_bytes == 0
