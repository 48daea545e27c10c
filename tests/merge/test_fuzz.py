"""A short fuzz of all that reads others' files: only `InputError` comes out, soon and in little memory.

``FUZZ=100 pytest tests/merge/test_fuzz.py`` takes a hundred times as many examples, and other ones each time.
"""

import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from heterosis.errors import InputError
from heterosis.merge.models.chat_template import chosen_template, folder_template
from heterosis.merge.models.checkpoint import Checkpoint, open_checkpoint
from heterosis.merge.models.safetensors_file import SafetensorsFile
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe

MakeLlama = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore")  # of what is odd but usable
FACTOR = int(os.environ.get("FUZZ", "1"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples * FACTOR, derandomize=FACTOR == 1, deadline=None, suppress_health_check=health
    )


@pytest.fixture(scope="module", autouse=True)
def _bounds() -> Iterator[None]:
    """Neither hours nor gigabytes: what the inputs say of themselves is far more than what they are."""

    def end(*_: object) -> None:
        raise TimeoutError("an input keeps the program busy")

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(300 * FACTOR)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**20  # KiB


def accepted(read: Callable[[], Any]) -> Any:
    """What is read; None where it is refused in lines that say so."""
    try:
        return read()
    except InputError as error:
        faults = error.faults
    assert faults
    assert all(fault.isprintable() and 0 < len(fault) <= 5000 for fault in faults)
    return None


def read_all(checkpoint: Checkpoint) -> None:
    for source in checkpoint.tensors.values():
        source.read(0, torch.Size(source.shape).numel(), torch.empty(source.shape, dtype=torch.float32).view(-1))


# --- inputs -----------------------------------------------------------------------------------------------------

# What breaks parsers: brackets, ends of texts, numbers of every size, references, tags.
# fmt: off
_PIECES = [
    b"", b"{", b"}", b"[", b"]", b'"', b",", b":", b": ", b"\n", b"\n- ", b"---\n", b"\0", b"\xff", b"\\u0000",
    b"\\ud800", b"null", b"true", b"-1", b"0", b"1e999", b".nan", b"99999999999999999999", b"9223372036854775807",
    b"&a ", b"*a", b"<<: ", b"!!python/name:os ", b"? ", b"| ", b"%YAML 1.1\n", b"#", b"'", b"1:30:00",
    b"2024-13-45",
]
# fmt: on
edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.sampled_from(_PIECES) | st.binary(max_size=3),
    ),
    min_size=1,
    max_size=5,
)


def edited(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Bytes with pieces cut out and others put in their place."""
    for where, cut, piece in changes:
        at = int(where * len(content))
        content = content[:at] + piece + content[at + cut :]
    return content


def structures(keys: list[str], values: list[Any]) -> st.SearchStrategy[Any]:
    """Anything that JSON can say, with words that the reader knows among it."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(max_size=5)
        | st.sampled_from(values)
    )
    names = st.sampled_from(keys) | st.text(max_size=5)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
        max_leaves=12,
    )


def with_changes(base: dict[str, Any], keys: list[str], values: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping that is right, but for some of its entries."""
    wrong = st.dictionaries(st.sampled_from(keys), structures(keys, values), min_size=1, max_size=3)
    return wrong.map(lambda changes: base | changes)


# --- safetensors ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    tensors = {"a.0.w": torch.ones(3, 4), "b": torch.arange(5), "empty": torch.ones(0, 2), "s": torch.tensor(1.0)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path.read_bytes()


def open_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    file = accepted(lambda: SafetensorsFile(path))
    if file is None:
        return
    for source in file.tensors().values():
        count = torch.Size(source.shape).numel()
        assert count * source.dtype.itemsize <= len(content)
        source.read(0, count, torch.empty(count, dtype=source.dtype))
    file.close()


@fuzz(300)
@given(changes=edits, whole=st.booleans())
def test_bytes_of_a_header(
    small: bytes, tmp_path: Path, changes: list[tuple[float, int, bytes]], whole: bool
) -> None:
    length = struct.unpack("<Q", small[:8])[0]
    if whole:
        content = edited(small, changes)
    else:  # as long as it says
        text = edited(small[8 : 8 + length], changes)
        content = struct.pack("<Q", len(text)) + text + small[8 + length :]
    open_bytes(content, tmp_path / "x.safetensors")


# Counts that are nearly right, and what is none.
counts = st.lists(
    st.integers(0, 8) | st.sampled_from([-1, 2**63, 2**70, 1.0, 0.5, True, None, "2", [], {}, float("inf")]),
    max_size=3,
)
fields = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "I64"]) | counts,
        "shape": counts,
        "data_offsets": st.integers(0, 16).map(lambda end: [0, end]) | counts,
    }
)
_FIELDS = ["dtype", "shape", "data_offsets", "__metadata__", "w"]
_VALUES: list[Any] = ["F32", "U8", "BOOL", [0, 4], [4, 8], [1], [], [0], [2, 2], 4, {"format": "pt"}]


@fuzz(300)
@given(
    header=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        fields
        | with_changes({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, _FIELDS, _VALUES)
        | structures(_FIELDS, _VALUES),
        max_size=3,
    )
    | structures(_FIELDS, _VALUES),
    size=st.integers(0, 16),
)
def test_structures_as_headers(tmp_path: Path, header: Any, size: int) -> None:
    text = json.dumps(header).encode()
    open_bytes(struct.pack("<Q", len(text)) + text + bytes(size), tmp_path / "x.safetensors")


# --- PyTorch files ----------------------------------------------------------------------------------------------


@fuzz(100)
@given(changes=edits)
def test_bytes_of_a_pytorch_file(tmp_path: Path, changes: list[tuple[float, int, bytes]]) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3, 4), "b": torch.arange(5)}, path)
    path.write_bytes(edited(path.read_bytes(), changes))
    checkpoint = accepted(lambda: open_checkpoint(str(path)))
    if checkpoint is not None:
        read_all(checkpoint)
        checkpoint.close()


# --- recipes ----------------------------------------------------------------------------------------------------

RECIPE = b"""
name: first
merge_method: ties
base_model: {model: {path: org/base, revision: v1}}
modules:
  text_decoder:
    slices:
      - sources: [{model: &x org/a, layer_range: [0, 2]}, {model: org/b+me/lora@main, layer_range: [1, 3]}]
        parameters: {weight: [0, 0.5, 2e-1], density: [{filter: mlp, value: 0.5}, {value: 1}]}
  vision_tower: {models: [{model: *x}, {model: org/c, parameters: {weight: 1}}]}
tokenizer:
  source: union
  tokens: {<x>: {source: {kind: model_token, model: *x, token_id: 7}, force: true}, <y>: {source: {kind: zero}}}
  pad_to_multiple_of: 64
chat_template: chatml
dtype: bfloat16
heterosis: {seed: 7}
---
merge_method: linear
models: [{model: first}, {model: *y, parameters: &p {weight: 1}}, {model: org/d, parameters: {<<: *p}}]
""".replace(b"*y", b"org/e")


def parse(text: str) -> None:
    recipe = accepted(lambda: Recipe.parse(text))
    if recipe is not None:
        assert Recipe.parse(recipe.to_yaml()) == recipe


@fuzz(250)
@given(changes=edits)
def test_bytes_of_a_recipe(tmp_path: Path, changes: list[tuple[float, int, bytes]]) -> None:
    (tmp_path / "recipe.yaml").write_bytes(edited(RECIPE, changes))
    recipe = accepted(lambda: Recipe.load(tmp_path / "recipe.yaml"))
    if recipe is not None:
        assert Recipe.parse(recipe.to_yaml()) == recipe


_KEYS = [*Recipe.model_fields, "weight", "model", "lora", "path", "revision", "sources", "layer_range", "tokens"]
_KEYS += ["source", "kind", "force", "token", "token_id", "filter", "value", "pad_to_multiple_of", "seed"]
_WORDS: list[Any] = [
    "a",
    "b+c",
    "a@v",
    [0, 2],
    "union",
    "zero",
    "model_token",
    "float32",
    [{"model": "a"}],
    "auto",
]
_WORDS += [{"model": "a", "layer_range": [0, 1]}, [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]]


@fuzz(250)
@given(recipe=with_changes({"merge_method": "linear", "models": [{"model": "a"}]}, _KEYS, _WORDS))
def test_structures_as_recipes(recipe: dict[str, Any]) -> None:
    parse(yaml.safe_dump(recipe, sort_keys=False))


@fuzz(200)
@given(
    text=st.lists(
        st.sampled_from(["{{", "}}", "{%", "%}", " for m in messages ", " endfor ", " if ", "9**9", "|center(9)"])
        | st.text(max_size=5),
        max_size=12,
    ).map("".join)
)
def test_templates(text: str) -> None:
    accepted(lambda: chosen_template(f"{{{{ messages[0].content }}}}{text}", []))


# --- model folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(make_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models ``base`` and ``a``, to be spoilt and mended."""
    root = tmp_path_factory.mktemp("fuzz")
    base = make_llama("fuzz-base", seed=0)
    shutil.copytree(base, root / "base")
    shutil.copytree(make_llama("fuzz-a", seed=1, noise_from=base), root / "a")
    return root


def plan(root: Path, **keys: Any) -> Any:
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": [{"model": str(root / "a")}, {"model": str(root / "base")}],
        "parameters": {"weight": 0.5},
    }
    return accepted(lambda: build_plan(Recipe.model_validate(recipe | keys)))


_CONFIG = ["num_hidden_layers", "tie_word_embeddings", "layer_types", "text_config", "vocab_size", "model_type"]
_CONFIG += ["quantization_config", "encoder", "vision_config", "torch_dtype", "eos_token_id", "architectures"]


@fuzz(80)
@given(data=st.data(), sliced=st.booleans())
def test_structures_as_configs(folders: Path, data: st.DataObject, sliced: bool) -> None:
    path = folders / "a/config.json"
    original = path.read_text()
    path.write_text(
        json.dumps(data.draw(with_changes(json.loads(original), _CONFIG, [2, "llama", ["full_attention"] * 2])))
    )
    taken = [{"sources": [{"model": str(folders / "a"), "layer_range": [0, 2]}]}] * 2
    try:
        plan(folders, **({"models": None, "slices": taken} if sliced else {}))
    finally:
        path.write_text(original)


@fuzz(80)
@given(data=st.data())
def test_structures_as_indices(tmp_path: Path, folders: Path, data: st.DataObject) -> None:
    folder = tmp_path / "sharded"
    if not folder.exists():
        shutil.copytree(folders / "a", folder)
        (folder / "model.safetensors").rename(folder / "1.safetensors")
    names = list(SafetensorsFile(folder / "1.safetensors").entries)
    values = [
        "1.safetensors",
        "2.safetensors",
        "..",
        "/",
        "",
        "config.json",
        "../1.safetensors",
        "./1.safetensors",
    ]
    listed = dict.fromkeys(names, "1.safetensors")
    index = {"weight_map": data.draw(with_changes(listed, names, values))}
    index = data.draw(st.just(index) | with_changes(index, ["weight_map", "metadata"], values))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = accepted(lambda: open_checkpoint(str(folder)))
    if checkpoint is not None:
        checkpoint.close()


_ADAPTER = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "modules_to_save"]
_ADAPTER += ["peft_type", "init_lora_weights", "fan_in_fan_out", "bias", "use_dora", "base_model_name_or_path"]


@fuzz(150)
@given(
    config=with_changes(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4},
        _ADAPTER,
        [2, "LORA", ".*", "(a|b)+", "q_proj", {"q_proj": 2}, {"(a*)*": 2}, {"[": 1}, {".*q": "x"}, "gaussian"],
    )
)
def test_structures_as_adapter_configs(tmp_path: Path, folders: Path, config: dict[str, Any]) -> None:
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    if not (tmp_path / "adapter_model.safetensors").exists():
        factors = {f"{path}.lora_A.weight": torch.ones(2, 16), f"{path}.lora_B.weight": torch.ones(16, 2)}
        save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    checkpoint = accepted(lambda: open_checkpoint(f"{folders / 'a'}+{tmp_path}"))
    if checkpoint is not None:
        read_all(checkpoint)
        checkpoint.close()


@fuzz(80)
@given(
    content=structures(
        ["chat_template", "name", "template"], ["default", "{{ x }}", [{"name": "default", "template": "{{ x }}"}]]
    ).map(json.dumps)
    | st.text(max_size=20),
    name=st.sampled_from(["tokenizer_config.json", "chat_template.json", "chat_template.jinja"]),
)
def test_structures_as_tokenizer_configs(tmp_path: Path, content: str, name: str) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    template = accepted(lambda: folder_template(tmp_path))
    assert template is None or isinstance(template, str)
