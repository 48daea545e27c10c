"""Wrong or malicious input: exit code 2, one line that says what to do, bounded time and memory, no output."""

import json
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heterosis import cli
from heterosis.merge.models.chat_template import chosen_template

MakeLlama = Callable[..., Path]
Header = dict[str, Any]
Break = Callable[[dict[str, object], Path], None]

NORM = "model.norm.weight"
QUERY = "model.layers.0.self_attn.q_proj"
HEALTHY = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a", "parameters": {"weight": 0.5, "density": 0.5}}],
    "dtype": "float32",
}


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    """End a test that waits for a pipe or computes forever; nothing here takes a hundredth of this time."""

    def end(*_: object) -> None:
        raise TimeoutError("the input keeps the program busy")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def workshop(make_llama: MakeLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the models ``base`` and ``a``, as the current one."""
    base = make_llama("hostile-base", seed=0)
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(make_llama("hostile-a", seed=1, noise_from=base), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():  # main() sets up warnings for a process of its own
        yield tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["heterosis", *arguments])
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code
    return 0


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def broken(recipe: dict[str, object], folder: Path) -> None:
        content = load_file(folder / "a/model.safetensors")
        change(content)
        save_file(content, folder / "a/model.safetensors")

    return broken


def file(name: str, change: Callable[[bytes], bytes]) -> Break:
    def broken(recipe: dict[str, object], folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return broken


def header(change: Callable[[Header], object], more: bytes = b"") -> Break:
    """Rewrite the header of a's weights: ``change`` edits it, or returns what to write instead."""

    def broken(recipe: dict[str, object], folder: Path) -> None:
        content = (folder / "a/model.safetensors").read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        fields = json.loads(content[8 : 8 + length])
        text = change(fields)
        data = text if isinstance(text, bytes) else json.dumps(fields).encode()
        whole = struct.pack("<Q", len(data)) + data + content[8 + length :] + more
        (folder / "a/model.safetensors").write_bytes(whole)

    return broken


def entry(**fields: object) -> Break:
    """Change what the header says of the norm, the last tensor of the file or nearly so."""
    return header(lambda h: h[NORM].update(fields))


def replaced(name: str, make: Callable[[Path], object]) -> Break:
    """Put something else in the place of a file."""

    def broken(recipe: dict[str, object], folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return broken


def linked(name: str, target: str) -> Break:
    return replaced(name, lambda path: path.symlink_to(target))


def text(name: str, content: str) -> Break:
    return replaced(name, lambda path: path.write_text(content))


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the address of a socket is short
        server.bind(path.name)
        os.chdir(path.parent.parent)


def sharded(change: Callable[[dict[str, str], Path], object]) -> Break:
    """Two shards with an index, whose weight_map ``change`` edits."""

    def broken(recipe: dict[str, object], folder: Path) -> None:
        a = folder / "a"
        content = load_file(a / "model.safetensors")
        names = sorted(content)
        parts = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
        for file_name, held in parts.items():
            save_file({name: content[name] for name in held}, a / file_name)
        (a / "model.safetensors").unlink()
        listed = {name: file_name for file_name, held in parts.items() for name in held}
        change(listed, a)
        (a / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))

    return broken


def pickled(content: object) -> Break:
    """Weights in a PyTorch file: bytes as they are, or anything that torch.save takes."""

    def broken(recipe: dict[str, object], folder: Path) -> None:
        (folder / "a/model.safetensors").unlink()
        path = folder / "a/pytorch_model.bin"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)

    return broken


def deflated(recipe: dict[str, object], folder: Path) -> None:
    """A PyTorch file of a few hundred kilobytes that unpacks to a thousand times as much."""
    pickled({"w": torch.ones(1)})(recipe, folder)
    path = folder / "a/pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            for _ in range(16):
                member.write(bytes(2**24))
        archive.writestr("archive/version", "3")


def adapted(config: dict[str, object], **factors: torch.Tensor) -> Break:
    """An adapter on a; dots in names are written as double underscores."""

    def broken(recipe: dict[str, object], folder: Path) -> None:
        (folder / "lora").mkdir()
        standard = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
        (folder / "lora/adapter_config.json").write_text(json.dumps(standard | config))
        path = "base_model__model__model__layers__0__self_attn__q_proj__lora_"
        named = {f"{path}A__weight": torch.ones(2, 16), f"{path}B__weight": torch.ones(16, 2)} | factors
        save_file(
            {name.replace("__", "."): t for name, t in named.items()}, folder / "lora/adapter_model.safetensors"
        )
        recipe["models"] = [{"model": "a+lora", "parameters": {"weight": 0.5}}]

    return broken


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def key(**changes: object) -> Break:
    return lambda recipe, folder: recipe.update(changes)


def slices(*ranges: tuple[str, list[int]]) -> Break:
    listed = [{"sources": [{"model": model, "layer_range": layers} for model, layers in ranges]}]

    def broken(recipe: dict[str, object], folder: Path) -> None:
        del recipe["models"]
        recipe.update(slices=listed, parameters={"weight": 1})

    return broken


CASES: dict[str, tuple[Break, str]] = {
    "method": (key(merge_method="tyes"), "recipe.yaml: merge_method: unknown method 'tyes'; did you mean 'ties'?"),
    "parameter": (
        key(parameters={"densty": 0.5}),
        "recipe.yaml: parameters.densty: unknown parameter of 'ties'; did you mean 'density'?",
    ),
    "key": (key(dtpye="float32"), "recipe.yaml: dtpye: unknown key; did you mean 'dtype'?"),
    "no base": (key(base_model=None), "recipe.yaml: base_model: ties needs one; name the model that"),
    "base": (key(base_model="bsae"), "recipe.yaml: bsae: no such model folder; give a local folder, or"),
    "dtype": (key(dtype="bfloat"), "recipe.yaml: dtype: unknown dtype 'bfloat'; did you mean 'bfloat16'?"),
    "seed": (key(heterosis={"seed": -1}), "recipe.yaml: heterosis.seed: must be a whole number in [0, 2**64)"),
    "text": (
        lambda recipe, folder: recipe.update(models=[{"model": "a", "parameters": {"weight": "much"}}]),
        "recipe.yaml: models[0].parameters.weight: must be a number, but got 'much'",
    ),
    "no weight": (lambda recipe, folder: recipe.update(models=[{"model": "a"}]), "a: ties needs 'weight', but no"),
    "range": (
        slices(("base", [0, 2]), ("a", [1, 3])),
        "`stop <= layers` must hold, but got [1, 3] of the 2 layers of",
    ),
    "reversed": (slices(("base", [0, 1]), ("a", [2, 1])), "must satisfy `0 <= from <= to`, but got [2, 1]"),
    "lengths": (slices(("base", [0, 2]), ("a", [0, 1])), "must all have equally many layers, but got 2, 1"),
    "tokenizer": (
        key(tokenizer_source="c"),
        "recipe.yaml: tokenizer_source: c: no such model folder; give a local folder, or a Hub id",
    ),
    "shape": (
        tensors(lambda t: t.update({NORM: torch.ones(17)})),
        f"recipe.yaml: {NORM}: shapes must match, but got [17] in a and [16] in base; merge one architecture only",
    ),
    "transposed": (
        tensors(lambda t: t.update({NORM: torch.ones(1, 16)})),
        f"recipe.yaml: {NORM}: shapes must match, but got [1, 16] in a and [16] in base",
    ),
    "missing": (tensors(lambda t: t.pop(NORM)), f"recipe.yaml: {NORM}: missing in a, but base has it"),
    "extra": (
        tensors(lambda t: t.update({"model.extra": torch.ones(1)})),
        "recipe.yaml: model.extra: missing in base, but a has it",
    ),
    "truncated": (file("a/model.safetensors", lambda b: b[:-1]), "model.safetensors: truncated: the tensors need"),
    "emptied": (
        file("a/model.safetensors", lambda b: b""),
        "model.safetensors: truncated: a safetensors file has",
    ),
    "config": (file("a/config.json", lambda b: b[:-9]), "a/config.json: "),
    "quantised": (
        file(
            "a/config.json", lambda b: json.dumps({**json.loads(b), "quantization_config": {"bits": 4}}).encode()
        ),
        "a/config.json: the model is quantised; merge the original weights instead",
    ),
    "no weights": (
        lambda recipe, folder: (folder / "a/model.safetensors").unlink(),
        "a: has no weights; expected one of model.safetensors",
    ),
}


def wrote(text: str) -> Break:
    """A recipe that is not what YAML gives: the test writes nothing over it."""

    def broken(recipe: dict[str, object], folder: Path) -> None:
        recipe.clear()
        (folder / "recipe.yaml").write_bytes(text.encode("latin-1"))

    return broken


def bomb() -> str:
    levels = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghijklmnop")]
    return "\n".join(["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", *levels])


def merge_key_bomb() -> str:
    levels = [f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}" for a, b in pairwise("abcdefghijklmnop")]
    return "\n".join(["a: &a {x: 1}", *levels])


MINIMAL = "merge_method: linear\nmodels: [{model: base}]\n"
TAIL = "a/model.safetensors: "
# What people and attackers do to files: how, and how the one line of the answer begins.
HOSTILE: dict[str, tuple[Break, str]] = {
    # safetensors: the header
    "header of nothing": (
        file("a/model.safetensors", lambda b: bytes(8) + b[8:]),
        f"{TAIL}not a safetensors file: ",
    ),
    "header beyond the file": (
        file("a/model.safetensors", lambda b: struct.pack("<Q", 10**7) + b[8:]),
        f"{TAIL}truncated: the header needs 10,000,008 bytes, the file has",
    ),
    "header of exabytes": (
        file("a/model.safetensors", lambda b: b"\xff" * 8 + b[8:]),
        f"{TAIL}not a safetensors file: the header would have 18,446,744,073,709,551,615 bytes",
    ),
    "header above the limit": (
        file("a/model.safetensors", lambda b: struct.pack("<Q", 100_000_001) + b[8:]),
        f"{TAIL}not a safetensors file: the header would have 100,000,001 bytes, the limit is 100,000,000",
    ),
    "header not JSON": (
        header(lambda h: b"{'a': 1}"),
        f"{TAIL}not a safetensors file: the header is not valid JSON",
    ),
    "header not UTF-8": (
        header(lambda h: b'{"\xff": 1}'),
        f"{TAIL}not a safetensors file: the header is not valid",
    ),
    "header a list": (header(lambda h: b"[]"), f"{TAIL}not a safetensors file: the header must be a JSON object"),
    "header too deep": (
        header(lambda h: b"[" * 10**6),
        f"{TAIL}not a safetensors file: the header is not valid JSON",
    ),
    "header with a number of many digits": (
        header(lambda h: b'{"a": ' + b"1" * 10**6 + b"}"),
        f"{TAIL}not a safetensors file: the header is not valid JSON",
    ),
    "names given twice": (
        header(lambda h: b"{" + b'"a": 1,' * 50_000 + b'"b": 2}'),
        f"{TAIL}not a safetensors file: the header is not valid JSON: key 'a' is given twice",
    ),
    "metadata of numbers": (
        header(lambda h: h.update(__metadata__={"format": 3})),
        f"{TAIL}not a safetensors file: __metadata__ must map texts to texts",
    ),
    # safetensors: tensors
    "tensor cut off": (file("a/model.safetensors", lambda b: b[:-1]), f"{TAIL}truncated: the tensors need"),
    "bytes of no tensor": (
        file("a/model.safetensors", lambda b: b + b"x"),
        f"{TAIL}1 bytes after the last tensor",
    ),
    "overlap": (
        header(lambda h: h.update(zz={"dtype": "U8", "shape": [4], "data_offsets": [2, 6]})),
        f"{TAIL}zz: overlaps the tensor before it: begins at byte 2 of the data, expected 2,048",
    ),
    "gap": (
        header(lambda h: h.pop("model.embed_tokens.weight") and None),
        f"{TAIL}model.layers.0.input_layernorm.weight: leaves",
    ),
    "offsets beyond the file": (
        header(lambda h: h.clear() or h.update(zz={"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]})),
        f"{TAIL}truncated: the tensors need 1,125,899,906,842,624 bytes of data, the file has",
    ),
    "negative offsets": (entry(data_offsets=[-32, 0]), f"{TAIL}{NORM}: data_offsets must be [begin, end]"),
    "offsets of 2**70": (entry(data_offsets=[0, 2**70]), f"{TAIL}{NORM}: data_offsets must be [begin, end]"),
    "offsets that are floats": (
        entry(data_offsets=[0.0, 32.0]),
        f"{TAIL}{NORM}: data_offsets must be [begin, end]",
    ),
    "offsets reversed": (entry(data_offsets=[32, 0]), f"{TAIL}{NORM}: data_offsets must be [begin, end]"),
    "three offsets": (entry(data_offsets=[0, 16, 32]), f"{TAIL}{NORM}: data_offsets must be [begin, end]"),
    "unknown dtype": (entry(dtype="F4"), f"{TAIL}{NORM}: dtype 'F4' is not supported; save it as one of F64"),
    "dtype a mapping": (entry(dtype={}), f"{TAIL}{NORM}: dtype {{}} is not supported"),
    "too few bytes for the shape": (
        entry(shape=[17]),
        f"{TAIL}{NORM}: BF16 [17] takes 34 bytes, but data_offsets",
    ),
    "shape that overflows": (entry(shape=[2**62, 2**62]), f"{TAIL}{NORM}: BF16 [4611686018427387904, 46116860184"),
    "shape above int64": (
        entry(shape=[0, 2**63], data_offsets=[0, 0]),
        f"{TAIL}{NORM}: shape must be a list of num",
    ),
    "shape of truths": (
        entry(shape=[True, 16]),
        f"{TAIL}{NORM}: shape must be a list of numbers >= 0, but got [True",
    ),
    "too many dimensions": (
        entry(shape=[1] * 10**5 + [16]),
        f"{TAIL}{NORM}: shape must have at most 64 dimensions",
    ),
    "unknown field": (entry(offset=3), f"{TAIL}{NORM}: must have exactly dtype, shape and data_offsets"),
    "name with a terminal code": (
        header(lambda h: h.update({"\x1b[2J\n": {}})),
        f"{TAIL}\\x1b[2J\\n: must have exactly dtype, shape",
    ),
    "zero-sized where others are not": (
        tensors(lambda t: t.update({NORM: torch.ones(0)})),
        f"{NORM}: shapes must match, but got [0] in a and [16] in base",
    ),
    "integers for floats": (
        tensors(lambda t: t.update({NORM: torch.ones(16, dtype=torch.int64)})),
        f"{NORM}: must be floating in all models, or of one dtype, but got int64 in a and bfloat16",
    ),
    "layer of too large a number": (
        tensors(lambda t: t.update({f"model.layers.{'9' * 5000}.w": torch.ones(1)})),
        "model.layers.99999",
    ),
    # settings and numbers
    "NaN in a model": (
        tensors(lambda t: t[NORM].fill_(torch.nan)),
        f"{NORM}: the merged tensor has NaN or infinity, as a has; use another model",
    ),
    "a pointer in place of weights": (
        text("a/model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        "a/model.safetensors: is only a pointer of Git LFS to the weights; run `git lfs pull` in its folder",
    ),
    "infinity in a model": (
        tensors(lambda t: t["model.embed_tokens.weight"][3].fill_(torch.inf)),
        "model.embed_tokens.weight: the merged tensor has NaN or infinity",
    ),
    "weight that is no number": (
        key(parameters={"weight": float("nan")}),
        "parameters.weight: must be a finite number, but got nan",
    ),
    "infinite weight": (
        key(parameters={"weight": [1, float("-inf")]}),
        "parameters.weight[1]: must be a finite number, but got -inf",
    ),
    "weight beyond float32": (
        key(models=[{"model": "a", "parameters": {"weight": 1e300}}]),
        "model.",  # whichever tensor is the first
    ),
    "density above one": (
        key(models=[{"model": "a", "parameters": {"weight": 1, "density": 1.1}}]),
        "models[0].parameters.density: `0 <= density <= 1` must hold, but got density=1.1",
    ),
    "density below zero": (
        key(models=[{"model": "a", "parameters": {"weight": 1, "density": [0.5, -0.1]}}]),
        "models[0].parameters.density[1]: `0 <= density <= 1` must hold, but got density=-0.1",
    ),
    "layers up to 10**18": (
        wrote(
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1000000000000000000]}]}]"
        ),
        "slices[0].sources[0].layer_range: `stop <= layers` must hold, but got [0, 10000000000000000",
    ),
    "no layers": (
        slices(("base", [1, 1]), ("a", [1, 1])),
        "slices: must take at least one layer, but all ranges are empty",
    ),
    # the index
    "index that climbs out": (
        sharded(lambda listed, a: listed.update({NORM: "../base/model.safetensors"})),
        "a/model.safetensors.index.json: weight_map: '../base/model.safetensors' must be a file inside",
    ),
    "index to an absolute path": (
        sharded(lambda listed, a: listed.update({NORM: str(a.parent / "base/model.safetensors")})),
        "a/model.safetensors.index.json: weight_map: '/",
    ),
    "index through a folder and out": (
        sharded(lambda listed, a: listed.update({NORM: "x/../../base/model.safetensors"})),
        "a/model.safetensors.index.json: weight_map: 'x/../../base/model.safetensors' must be a file inside",
    ),
    "index with NUL": (
        sharded(lambda listed, a: listed.update({NORM: "1.safetensors\0"})),
        "a/model.safetensors.index.json: weight_map: '1.safetensors\\x00' must be a file inside the model folder",
    ),
    "index to no file": (
        sharded(lambda listed, a: listed.update({NORM: "3.safetensors"})),
        "a/model.safetensors.index.json: weight_map: there is no file '3.safetensors'; download the model again",
    ),
    "index to a pipe": (
        sharded(lambda listed, a: (os.mkfifo(a / "3.safetensors"), listed.update({NORM: "3.safetensors"}))),
        "a/model.safetensors.index.json: weight_map: there is no file '3.safetensors'",
    ),
    "index of a tensor that is not there": (
        sharded(lambda listed, a: listed.update(ghost="1.safetensors")),
        "a/model.safetensors.index.json: ghost: listed in 1.safetensors, but held by no file",
    ),
    "index without a tensor": (
        sharded(lambda listed, a: listed.pop(NORM) and None),
        f"a/model.safetensors.index.json: {NORM}: held by",
    ),
    "index of numbers": (
        sharded(lambda listed, a: listed.update({NORM: 3})),  # type: ignore[dict-item]
        "a/model.safetensors.index.json: weight_map must map names of tensors to files",
    ),
    "two files with one tensor": (
        sharded(lambda listed, a: shutil.copyfile(a / "1.safetensors", a / "2.safetensors")),
        "a: model.",
    ),
    # files that are none
    "pipe for weights": (
        replaced("a/model.safetensors", os.mkfifo),
        f"{TAIL}must be an ordinary file, but is a pipe",
    ),
    "folder for weights": (
        replaced("a/model.safetensors", Path.mkdir),
        f"{TAIL}must be an ordinary file, but is a folder",
    ),
    "device for weights": (
        linked("a/model.safetensors", "/dev/zero"),
        f"{TAIL}must be an ordinary file, but is a pi",
    ),
    "socket for weights": (
        replaced("a/model.safetensors", listening),
        f"{TAIL}must be an ordinary file, but is a pi",
    ),
    "pipe for config.json": (
        replaced("a/config.json", os.mkfifo),
        "a/config.json: must be an ordinary file, but is",
    ),
    "device for config.json": (
        linked("a/config.json", "/dev/zero"),
        "a/config.json: must be an ordinary file, but",
    ),
    "weights linked in a circle": (
        linked("a/model.safetensors", "model.safetensors"),
        "a: has no weights; expected one of model.safetensors",
    ),
    "config.json linked in a circle": (
        linked("a/config.json", "config.json"),
        "a/config.json: cannot be read: Too m",
    ),
    "folder linked in a circle": (
        lambda recipe, folder: (shutil.rmtree(folder / "a"), (folder / "a").symlink_to("a")),
        "a: no such model folder",
    ),
    "link to another's file": (
        linked("base/special_tokens_map.json", "/etc/hostname"),
        "base/special_tokens_map.json: must not be a link out of the model folder; replace it by the file itself",
    ),
    "link to a file above": (
        linked("base/LICENSE", "../recipe.yaml"),
        "base/LICENSE: must not be a link out of the model folder",
    ),
    "model with NUL in its name": (
        key(models=[{"model": "a\0", "parameters": {"weight": 1}}]),
        "a\\x00: no such model folder",
    ),
    "model with a line break in its name": (
        key(models=[{"model": "a\nb", "parameters": {"weight": 1}}]),
        "a\\nb: no such model folder",
    ),
    # pickles
    "pickle that runs code": (
        pickled({"w": torch.ones(1), "x": _Code()}),
        "a/pytorch_model.bin: refused: it holds other Python objects than tensors, and loading those can run code",
    ),
    "bare pickle that runs code": (
        pickled(pickle.dumps(_Code())),
        "a/pytorch_model.bin: cannot be read as PyTorch weights: must be a zip archive",
    ),
    "pickle with a bytearray": (
        pickled({"x": bytearray(9)}),
        "a/pytorch_model.bin: refused: it holds a bytearray",
    ),
    "tensor of a petabyte in four bytes": (
        pickled({"w": torch.ones(1).expand(2**48)}),
        "a/pytorch_model.bin: w: [281474976710656] takes 1,125,899,906,842,624 bytes, but the file holds 4",
    ),
    "archive that unpacks to a thousand times its size": (
        deflated,
        "a/pytorch_model.bin: refused: archive/data.pkl is compressed, as torch.save never does",
    ),
    "archive cut off": (
        pickled(b"PK\x03\x04" + bytes(100)),
        "a/pytorch_model.bin: cannot be read as PyTorch weights: must be a zip archive",
    ),
    # config, tokenizer, chat template
    "config not JSON": (text("a/config.json", "{"), "a/config.json: not valid JSON"),
    "config a list": (text("a/config.json", "[]"), "a/config.json: must be a JSON object, but got list"),
    "config too deep": (text("a/config.json", '{"a":' * 10**5), "a/config.json: not valid JSON: "),
    "config too deep to copy": (
        text("base/config.json", json.dumps({"num_hidden_layers": 2}).replace("2", "[" * 400 + "]" * 400)),
        "base/config.json: not valid JSON: nested more than 100 levels deep",
    ),
    "tokenizer config not JSON": (
        lambda recipe, folder: (
            text("base/tokenizer_config.json", "{")(recipe, folder),
            recipe.update(chat_template="chatml"),
        ),
        "base/tokenizer_config.json: not valid JSON: ",
    ),
    "generation config a list": (
        lambda recipe, folder: (
            text("base/generation_config.json", "[]")(recipe, folder),
            recipe.update(tokenizer_source="a"),
        ),
        "base/generation_config.json: must be a JSON object, but got list",
    ),
    "config not UTF-8": (
        file("a/config.json", lambda b: b + b"\xff"),
        "a/config.json: must be UTF-8 text, but byte",
    ),
    "tokenizer not JSON": (
        lambda recipe, folder: (
            text("a/tokenizer.json", "{")(recipe, folder),
            recipe.update(tokenizer_source="a"),
        ),
        "a: the tokenizer cannot be loaded: ",
    ),
    "template not UTF-8": (
        lambda recipe, folder: (
            file("base/chat_template.jinja", lambda b: b + b"\xff")(recipe, folder),
            recipe.update(chat_template="auto"),
        ),
        "base/chat_template.jinja: must be UTF-8 text, but byte",
    ),
    "template not Jinja": (
        key(chat_template="{% for m in messages %}{{ m }}"),
        "chat_template: must be valid Jinja, but in line 1 got: Unexpected end of template",
    ),
    "template with a filter of its own": (
        key(chat_template="{{ messages | map('x') | shell }}"),
        "chat_template: must be valid Jinja, but in line 1 got: No filter named 'shell'",
    ),
    "template too deep": (
        key(chat_template="{{ " + "(" * 10**4 + "1" + ")" * 10**4 + " }}"),
        "chat_template: must be valid Jinja, but is nested too deep",
    ),
    # adapters
    "adapter config not JSON": (
        lambda recipe, folder: (
            adapted({})(recipe, folder),
            text("lora/adapter_config.json", "LORA")(recipe, folder),
        ),
        "lora/adapter_config.json: not valid JSON",
    ),
    "adapter of no rank": (
        adapted({"r": 0}),
        f"lora: {QUERY}: the rank must be a whole number >= 1, but got 0",
    ),
    "adapter of another rank": (
        adapted({"r": 10**30}),
        f"lora: {QUERY}: the rank must be a whole number >= 1, but got 1000000",
    ),
    "adapter with alpha beyond floats": (
        adapted({"lora_alpha": 10**400}),
        f"lora: {QUERY}: lora_alpha must be a finite number, but got 10000000",
    ),
    "adapter with infinite factors": (
        adapted(
            {"lora_alpha": 1e38},
            base_model__model__model__layers__0__self_attn__q_proj__lora_A__weight=torch.full((2, 16), 1e38),
        ),
        f"{QUERY}.weight: the merged tensor has NaN or infinity",
    ),
    "adapter with a pattern that takes forever": (
        adapted({"rank_pattern": {"(a+)+b": 1}}),
        "lora/adapter_config.json: rank_pattern: '(a+)+b' could take forever to match",
    ),
    "adapter with patterns of the wrong kind": (
        adapted({"alpha_pattern": 7}),
        "lora/adapter_config.json: alpha_pattern must be a mapping, but got 7",
    ),
    "adapter whose names lead elsewhere": (
        adapted({}, **{"base_model__model__/../../etc__lora_A__weight": torch.ones(2, 16)}),
        "lora: the base model has no such tensors: /../../etc; is the adapter for another model?",
    ),
    "adapter for other shapes": (
        adapted({}, base_model__model__model__layers__0__self_attn__q_proj__lora_B__weight=torch.ones(8, 2)),
        f"lora: {QUERY}: shapes must match, but got A [2, 16], B [8, 2] for a weight [16, 16]",
    ),
    # the recipe
    "recipe of bytes": (wrote("\xff\xfe\x00\x01"), "must be UTF-8 text, but byte 0 is not"),
    "recipe of control characters": (wrote("a: \x01"), "not valid YAML: "),
    "recipe too large": (wrote(MINIMAL + "#" * 10**6), "must be at most 1,000,000 bytes"),
    "recipe too deep": (wrote("[" * 10**5), "line 1: nested more than 32 levels deep"),
    "recipe of too many entries": (
        wrote("a: [" + "1, " * 200_000 + "]"),
        "line 1: must have at most 100,000 entries",
    ),
    "recipe with a tag": (
        wrote("a: !!python/object/apply:os.mkdir [executed]"),
        "line 1: tags such as '!!python/object/apply:os.mkdir' are not accepted; write plain values",
    ),
    "recipe with an alias bomb": (
        wrote(bomb()),
        "must have at most 100,000 entries with its aliases",
    ),
    "recipe with a bomb of merge keys": (
        wrote(merge_key_bomb()),
        "must have at most 100,000 entries",
    ),
    "recipe that contains itself": (wrote("a: &a [*a]"), "line 1: an alias contains itself"),
    "recipe with a number in base 60": (
        wrote(MINIMAL + "dtype: " + "1:" * 400_000 + "1"),
        "line 3: a number has at most 100 digits",
    ),
    "recipe of 101 documents": (
        wrote("---\n".join([MINIMAL] * 101)),
        "must have at most 100 documents, but has 101",
    ),
    "recipe whose stages go in a circle": (
        wrote(
            "name: x\nmerge_method: linear\nmodels: [{model: y}]\n---\n"
            "name: y\nmerge_method: linear\nmodels: [{model: x}]\n"
        ),
        "stages must not need each other in a circle, but got x -> y -> x",
    ),
    "recipe that is a folder": (
        lambda recipe, folder: (recipe.clear(), (folder / "recipe.yaml").mkdir()),
        "must be a recipe file, but is a folder; name the YAML file",
    ),
}


@pytest.mark.parametrize("case", [*CASES, *HOSTILE])
def test_one_line_code_two_and_no_folder(
    case: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dict(HEALTHY)
    damage, expected = (CASES | HOSTILE)[case]
    damage(recipe, workshop)
    if recipe:
        (workshop / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(path.name for path in workshop.iterdir())
    code = run(monkeypatch, "merge", "recipe.yaml", "out")
    output = capsys.readouterr()
    # Numbers are found wanting only while they are merged, when the plan was already shown.
    lines = [line for line in output.err.splitlines() if "parameters: reading" not in line]
    assert code == 2, output.err
    assert output.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("heterosis: ")
    assert expected in lines[0]
    assert case in CASES or lines[0].split("recipe.yaml: ")[-1].removeprefix("heterosis: ").startswith(expected)
    assert sorted(path.name for path in workshop.iterdir()) == before  # no output, nothing partial, nothing run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["merge", "nowhere.yaml", "out"], "nowhere.yaml"),
        (["merge", "recipe.yaml", "base"], "base: exists already; choose another folder, or pass --overwrite"),
        (["merge", "recipe.yaml", "recipe.yaml/out"], "recipe.yaml/out: cannot be created"),
        (["merge", "recipe.yaml", "out", "--memory-limit", "much"], "must be a size such as 512MiB"),
        (
            ["merge", "recipe.yaml", "out", "--memory-limit", "16777215"],
            "must be at least 16 MiB (16,777,216 bytes), but got 16,777,215 bytes",
        ),
        (["merge", "recipe.yaml", "out", "--threads", "0"], "threads"),
        (["merge", "recipe.yaml"], "Missing argument 'out'"),
        (["inspect", "recipe.yaml", "a"], "recipe.yaml: must stand alone"),
        (["inspect", "a", "--distances"], "add --base MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(
    arguments: list[str],
    expected: str,
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(HEALTHY))
    before = sorted(path.name for path in workshop.iterdir())
    code = run(monkeypatch, *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if " tensors, " not in line]
    assert code == 2, lines
    assert len(lines) == 1
    assert lines[0].startswith("heterosis: ")
    assert expected in lines[0]
    assert sorted(path.name for path in workshop.iterdir()) == before


def test_there_are_many_hostile_inputs() -> None:
    assert len(HOSTILE) >= 100
    assert not CASES.keys() & HOSTILE.keys()


# What reads, computes or allocates without end if it is not stopped.
GREEDY = (
    "header of exabytes",
    "offsets beyond the file",
    "device for config.json",
    "device for weights",
    "tensor of a petabyte in four bytes",
    "archive that unpacks to a thousand times its size",
    "recipe with an alias bomb",
    "recipe with a bomb of merge keys",
    "recipe with a number in base 60",
)


def test_memory_and_time_are_bounded(workshop: Path) -> None:
    """In a process of its own, whose limits end it: a tenth of this machine's memory, and a minute for each."""
    for i, case in enumerate(GREEDY):
        for name in ("base", "a"):
            shutil.copytree(workshop / name, workshop / f"{i}/{name}")
        recipe = dict(HEALTHY)
        HOSTILE[case][0](recipe, workshop / str(i))
        if recipe:
            (workshop / f"{i}/recipe.yaml").write_text(yaml.safe_dump(recipe))
    code = f"""
import os, resource, sys
import heterosis.merge.api
from heterosis import cli
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for i in range({len(GREEDY)}):
    resource.setrlimit(resource.RLIMIT_CPU, (60 * (i + 1), resource.RLIM_INFINITY))
    os.chdir(f"{workshop}/{{i}}")
    sys.argv = ["heterosis", "merge", "recipe.yaml", "out"]
    try:
        cli.main()
    except SystemExit as exit_:
        print(exit_.code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=workshop, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["2"] * len(GREEDY)), done.stderr


def test_templates_are_not_computed() -> None:
    # Compiling one would, for what is constant in it; this is valid Jinja, and whoever renders it waits.
    template = "{{ 9 ** 9 ** 9 ** 9 }}{{ 'x' * 10 ** 15 }}{{ 'x' | center(10 ** 15) }}"
    assert chosen_template(template, []) == template


def test_cards_and_licences_of_any_kind_neither_hang_nor_matter(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(HEALTHY))
    os.mkfifo(workshop / "a/README.md")
    os.mkfifo(workshop / "a/LICENSE")
    for i, card in enumerate(
        ["---" + "\n" * 10**6, f"---\n{bomb()}\n---\n", "---\nlicense: !!str mit\n---\n", "\0"]
    ):
        (workshop / "base/README.md").write_text(card)
        assert run(monkeypatch, "merge", "recipe.yaml", f"out{i}") == 0, capsys.readouterr().err


# --- links that are fine ----------------------------------------------------------------------------------------


def test_links_of_the_hub_s_cache_and_to_weights_anywhere(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = workshop / "hub/models--org--base"
    blobs, snapshot = cached / "blobs", cached / "snapshots/0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (workshop / "base/LICENSE").write_text("free")
    for i, path in enumerate(sorted((workshop / "base").iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    # A model folder put together by hand: weights from elsewhere, a link that leads nowhere, and one inside.
    (workshop / "a/model.safetensors").rename(workshop / "elsewhere")
    (workshop / "a/model.safetensors").symlink_to(workshop / "elsewhere")
    (workshop / "a/notes.txt").symlink_to("../nowhere")
    (workshop / "a/more.json").symlink_to("config.json")
    recipe = HEALTHY | {"base_model": str(snapshot)}
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run(monkeypatch, "merge", "recipe.yaml", "out") == 0, capsys.readouterr().err
    assert (workshop / "out/LICENSE").read_text() == "free"
    assert not any(path.is_symlink() for path in (workshop / "out").iterdir())
    # Beside the snapshots the cache holds nothing that a snapshot could link to.
    (cached / "token.txt").write_text("secret")
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to("../../token.txt")
    assert run(monkeypatch, "merge", "recipe.yaml", "again") == 2
    assert "LICENSE: must not be a link out of the model folder" in capsys.readouterr().err


def test_the_healthy_recipe_merges_and_shows_its_plan(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(HEALTHY))
    assert run(monkeypatch, "inspect", "recipe.yaml", "--full") == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("model.") for line in shown) == 2 * 9 + 2
    assert any(line.split() == [NORM, "16", "float32", "ties", "a", "base"] for line in shown)
    assert any(line.startswith("everywhere: weight=0.5 density=0.5 ") for line in shown)
    assert run(monkeypatch, "merge", "recipe.yaml", "out") == 0
    assert capsys.readouterr().out == "out\n"
    assert (workshop / "out/model.safetensors").is_file()
