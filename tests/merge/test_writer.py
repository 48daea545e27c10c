"""The writer: the format byte for byte, the limits of shards, and folders that appear at once or not at all."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from heterosis.errors import InputError
from heterosis.merge.models.safetensors_file import DTYPES, SafetensorsFile
from heterosis.merge.output.writer import SAFETENSORS_DTYPES, SafetensorsSink, published_folder, refuse_occupied
from heterosis.merge.plan import TensorOp


def op_of(name: str, tensor: torch.Tensor) -> TensorOp:
    return TensorOp(name, tuple(tensor.shape), tensor.dtype, tensor.dtype, None, (), None, {}, ())


def write(folder: Path, tensors: dict[str, torch.Tensor], shard_size: int = 1 << 30, step: int = 2) -> list[str]:
    """Write tensors last first, in blocks, from several threads; returns the names of the files."""
    ops = [op_of(name, tensor) for name, tensor in tensors.items()]
    sink = SafetensorsSink(folder, ops, shard_size)

    def put(op: TensorOp) -> None:
        flat = tensors[op.name].reshape(-1)
        for start in range(0, len(flat), step):
            sink.write(op, start, flat[start : start + step].clone())
        sink.done(op)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(put, reversed(ops)))
    sink.finish()
    sink.close()
    return sorted(path.name for path in folder.iterdir())


def test_golden_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16), "a": torch.tensor([3], dtype=torch.int32)}
    assert write(tmp_path, tensors) == ["model.safetensors"]
    header = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},'
        b'"a":{"dtype":"I32","shape":[1],"data_offsets":[4,8]}}'
    )
    padded = header + b" " * (-len(header) % 8)
    expected = len(padded).to_bytes(8, "little") + padded + bytes.fromhex("803f 00c0 03000000")
    assert (tmp_path / "model.safetensors").read_bytes() == expected


def test_whatever_can_be_read_can_be_written(tmp_path: Path) -> None:
    assert {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()} == DTYPES
    tensors = {name: torch.tensor([[0, 1], [1, 0]]).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"none": torch.empty(0, 3), "scalar": torch.tensor(5.0)}
    write(tmp_path, tensors)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k].double(), t.double()) and read[k].dtype == t.dtype for k, t in tensors.items())
    assert SafetensorsFile(tmp_path / "model.safetensors").entries.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([4, 4, 8], 16, [[0, 1, 2]]),
        ([4, 4, 8], 15, [[0, 1], [2]]),
        ([4, 4, 8], 8, [[0, 1], [2]]),  # the second tensor fills the shard exactly
        ([4, 4, 8], 7, [[0], [1], [2]]),
        ([4, 4, 8], 1, [[0], [1], [2]]),  # every tensor alone is larger
        ([8, 4, 4], 8, [[0], [1, 2]]),
        ([0, 4], 4, [[0, 1]]),
    ],
)
def test_shards(sizes: Sequence[int], limit: int, expected: list[list[int]], tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((size // 4,), float(i)) for i, size in enumerate(sizes)}
    files = write(tmp_path, tensors, limit)
    if len(expected) == 1:
        assert files == ["model.safetensors"]
        return
    names = [f"model-{i + 1:05d}-of-{len(expected):05d}.safetensors" for i in range(len(expected))]
    assert files == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    for name, held in zip(names, expected, strict=True):
        read = load_file(tmp_path / name)
        assert sorted(read) == [f"t{i}" for i in held]
        assert all(torch.equal(read[k], tensors[k]) for k in read)
        assert all(index["weight_map"][k] == name for k in read)


def test_every_file_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino) or fsync(descriptor)
    )
    write(tmp_path, {f"t{i}": torch.ones(4) for i in range(3)}, shard_size=16)
    assert {path.stat().st_ino for path in tmp_path.glob("*.safetensors")} <= set(flushed)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files")
@pytest.mark.parametrize("taken", [None, "model-00003-of-00003.safetensors"])
def test_no_file_stays_open(taken: str | None, tmp_path: Path) -> None:
    """Neither of a sink that is closed, nor of one that could not be made."""
    ops = [op_of(f"t{i}", torch.ones(4)) for i in range(3)]
    if taken:
        (tmp_path / taken).touch()
        with pytest.raises(FileExistsError):
            SafetensorsSink(tmp_path, ops, 16)
    else:
        sink = SafetensorsSink(tmp_path, ops, 16)
        assert len(open_in(tmp_path)) == 3
        sink.close()
    assert not open_in(tmp_path)


def open_in(folder: Path) -> list[str]:
    """Files of a folder that this process holds open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(f"{folder}/")]


def test_a_forgotten_tensor_is_no_finished_file(tmp_path: Path) -> None:
    sink = SafetensorsSink(tmp_path, [op_of("a", torch.ones(2))])
    with pytest.raises(AssertionError, match=r"not written: \['a'\]"):
        sink.finish()
    sink.close()


def test_what_is_taken_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    a, b = torch.arange(10.0), torch.ones(3, dtype=torch.bfloat16)
    with closing(
        SafetensorsSink(tmp_path, [op_of("a", a), op_of("b", b)], progress=lambda *how: told.append(how))
    ) as sink:
        sink.write(op_of("a", a), 0, a[:4])
        sink.write(op_of("b", b), 0, b)
        sink.write(op_of("a", a), 4, a[4:])
    assert told == [(0, 46), (16, 46), (22, 46), (46, 46)]


# --- publishing -------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with published_folder(out) as partial:
        (partial / "file").write_text("x")
        assert not out.exists()
    assert names(tmp_path) == ["new", "new/out", "new/out/file"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads which file a descriptor is of")
def test_all_that_appears_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        flushed.append(os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), tmp_path))

    def recorded_rename(path: Path, target: Path) -> Path:
        flushed.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    with published_folder(tmp_path / "new" / "deep" / "out") as partial:
        (partial / "config.json").write_text("{}")
        (partial / "templates" / "more").mkdir(parents=True)
        (partial / "templates" / "more" / "a.jinja").write_text("a")
        written = {os.path.relpath(path, tmp_path) for path in (partial, *partial.rglob("*"))}
    at = flushed.index("renamed")
    assert set(flushed[:at]) == written
    assert set(flushed[at + 1 :]) == {"new/deep", "new", "."}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_nothing_and_touches_nothing(
    error: type[BaseException], exists: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "model.safetensors").write_text("old")

    def publish() -> None:
        with published_folder(out, overwrite=exists) as partial:
            (partial / "file").write_text("x")
            raise error

    with pytest.raises(error):
        publish()
    assert names(tmp_path) == (["out", "out/model.safetensors"] if exists else [])


def test_overwriting_replaces_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("old")
    with published_folder(out, overwrite=True) as partial:
        (partial / "file").write_text("x")
    assert names(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupted_exchange_leaves_the_old_or_the_new(
    step: int, single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / ("out.safetensors" if single else "out")
    if single:
        out.write_text("old")
    else:
        out.mkdir()
        (out / "model.safetensors").write_text("old")
    rename = Path.rename
    renamed: list[Path] = []

    def interrupted(path: Path, target: Path) -> Path:
        renamed.append(rename(path, target))
        if len(renamed) == step:
            raise KeyboardInterrupt
        return renamed[-1]

    def publish() -> None:
        with published_folder(out, overwrite=True, file="model.safetensors" if single else None) as partial:
            (partial / "model.safetensors").write_text("new")

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish()
    assert (out if single else out / "model.safetensors").read_text() == ("old" if step == 1 else "new")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("own", [False, True])  # the number of the process, as in each new container
def test_what_a_killed_exchange_took_away_is_put_back(own: bool, tmp_path: Path) -> None:
    out, replaced = tmp_path / "out", tmp_path / f".out.replaced-{os.getpid() if own else 2**31 - 1}"
    replaced.mkdir()
    (replaced / "model.safetensors").write_text("old")
    with pytest.raises(InputError, match="out: exists already"), published_folder(out):
        raise AssertionError
    assert names(tmp_path) == ["out", "out/model.safetensors"]
    out.rename(replaced)
    with pytest.raises(KeyboardInterrupt), published_folder(out, overwrite=True):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out", "out/model.safetensors"]


def test_an_exchange_that_somebody_is_at_is_left_to_them(tmp_path: Path) -> None:
    """Their number may be nobody's here, as in another container; what they have merged is locked."""
    partial, replaced = (tmp_path / f".out.{what}-{2**31 - 1}" for what in ("partial", "replaced"))
    partial.mkdir()
    replaced.mkdir()
    held = os.open(partial, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with published_folder(tmp_path / "out") as mine:
        (mine / "new").touch()
    os.close(held)
    assert names(tmp_path) == [partial.name, replaced.name, "out", "out/new"]


def test_of_several_that_were_taken_away_the_last_is_put_back(tmp_path: Path) -> None:
    copies = [tmp_path / f".out.replaced-{2**31 - number}" for number in (2, 1, 3)]
    for copy, content in zip(copies, ("old", "older", "oldest"), strict=True):
        copy.mkdir()
        (copy / "model.safetensors").write_text(content)
    while copies[0].stat().st_ctime_ns <= copies[2].stat().st_ctime_ns:  # the clock of files has steps
        copies[0].chmod(0o755)
    with pytest.raises(InputError, match="out: exists already"), published_folder(tmp_path / "out"):
        raise AssertionError
    assert names(tmp_path) == ["out", "out/model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_text() == "old"


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    for out, overwrite, message in [
        ("out", False, "out: exists already; choose another folder, or pass --overwrite"),
        ("file", False, "file: exists already; choose another folder, or pass --overwrite"),
        ("file", True, "file: is not a model folder"),
        ("file/out", False, "file/out: cannot be created: "),
    ]:
        with pytest.raises(InputError, match=message), published_folder(tmp_path / out, overwrite=overwrite):
            raise AssertionError
    assert names(tmp_path) == ["file", "out", "out/mine"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with published_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("x")
    assert names(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize("single", [False, True])
def test_what_came_there_in_the_meantime_is_not_replaced(single: bool, tmp_path: Path) -> None:
    out = tmp_path / ("out.safetensors" if single else "out")

    def publish() -> None:
        with published_folder(out, file="file" if single else None) as partial:
            (partial / "file").write_text("x")
            if single:
                out.write_text("precious")
            else:
                out.mkdir()
                (out / "thesis.tex").write_text("precious")

    with pytest.raises(InputError, match="exists already"):
        publish()
    assert (out if single else out / "thesis.tex").read_text() == "precious"
    assert names(tmp_path) == (["out.safetensors"] if single else ["out", "out/thesis.tex"])


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path):
        with pytest.raises(InputError, match="is the current folder"), published_folder(out, overwrite=True):
            raise AssertionError


def test_a_folder_that_holds_more_than_a_model_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "additional_chat_templates").mkdir(parents=True)
    for name in ("config.json", "vocab.bpe", "LICENSE", "recipe.yaml", "README.md"):
        (out / name).touch()
    with pytest.raises(InputError, match="out: is not a model folder, so it is not overwritten"):
        refuse_occupied(out, overwrite=True)
    (out / "model-00001-of-00001.safetensors").touch()
    refuse_occupied(out, overwrite=True)
    for name in ("thesis.tex", "train.py", ".gitattributes", "tokenizer_code.py"):
        (out / name).touch()
        with pytest.raises(InputError, match=rf"out: holds what no merge writes \({name}\), which would be lost"):
            refuse_occupied(out, overwrite=True)
        (out / name).unlink()
    for name in ("checkpoint-500", "data.json"):
        (out / name).mkdir()
        with pytest.raises(InputError, match=rf"out: holds what no merge writes \({name}\), which would be lost"):
            refuse_occupied(out, overwrite=True)
        (out / name).rmdir()
    monkeypatch.chdir(out / "additional_chat_templates")
    with pytest.raises(InputError, match="out: holds the current folder, which cannot be replaced"):
        refuse_occupied(out, overwrite=True)


def test_a_place_below_a_file_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/deep/out: cannot be created: .*/file is a file; choose another"):
        refuse_occupied(tmp_path / "file" / "deep" / "out", overwrite=False)


def test_a_name_that_leaves_no_room_for_those_beside_it_is_refused_beforehand(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(f"..replaced-{os.getpid()}")
    for name in ("a" * (longest + 1), "é" * (longest // 2 + 1), "a" * 1000, "a" * 1000 + "/out"):
        says = f"{name}: cannot be created: File name too long; choose another place or name"
        with pytest.raises(InputError, match=says):
            refuse_occupied(tmp_path / name, overwrite=False)
    out = tmp_path / ("a" * longest)
    for text in ("old", "new"):
        with published_folder(out, overwrite=True) as partial:
            (partial / "model.safetensors").write_text(text)
    assert names(tmp_path) == [out.name, f"{out.name}/model.safetensors"]
    assert (out / "model.safetensors").read_text() == "new"


def test_where_a_disk_is_mounted_is_refused_beforehand() -> None:
    with pytest.raises(InputError, match="/proc: is where a disk is mounted"), published_folder(Path("/proc")):
        raise AssertionError


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EFBIG, "--shard-size"), (errno.EROFS, "choose another")],
)
def test_a_failed_write_names_the_place_and_the_remedy(number: int, remedy: str, tmp_path: Path) -> None:
    says = f"out: cannot be written: .*; .*{remedy}"
    with pytest.raises(InputError, match=says), published_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="cannot read"), published_folder(tmp_path / "out"):
        raise OSError(errno.EIO, "cannot read")
    assert names(tmp_path) == []


def test_what_killed_merges_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living, own = ended.pid, os.getppid(), os.getpid()
    kept = [f".out.partial-{living}", f".out.replaced-{living}", f".other.partial-{dead}", f"out.partial-{dead}"]
    kept += [f".out.partial-{dead}x", f".out.more.partial-{dead}", ".out.partial-1234567890"]
    gone = [f".out.{what}-{number}" for what in ("partial", "replaced") for number in (dead, own)]
    (tmp_path / "out").mkdir()
    for name in (*kept, *gone):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    # Its number is nobody's here, but somebody holds it.
    held = os.open(tmp_path / kept[-1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with published_folder(tmp_path / "out"):
        left = sorted(p.name for p in tmp_path.iterdir())
    os.close(held)
    assert left == sorted(["out", *kept, f".out.partial-{own}"])


def test_the_folder_that_is_being_filled_is_held(tmp_path: Path) -> None:
    with published_folder(tmp_path / "out") as partial:
        descriptor = os.open(partial, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
