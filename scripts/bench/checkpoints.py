"""Checkpoints of Llama shapes with random weights: a base, fine-tunes or adapters of it, and recipes for them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

# (hidden, intermediate, layers, vocabulary) by the bytes of a model in bfloat16
SHAPES = {
    "10MB": (192, 512, 4, 8000),
    "100MB": (512, 1408, 12, 16000),
    "270MB": (768, 2048, 14, 32000),
    "1.1GB": (1536, 4096, 18, 32000),
    "2.2GB": (2048, 5632, 22, 32000),
    "4.1GB": (2048, 5632, 44, 32000),  # twice the layers
    "8GB": (3072, 8192, 39, 32000),
}
WEIGHTED = {"weight": 0.4}
TRIMMED = {"weight": 0.4, "density": 0.5}
# method -> (number of fine-tunes, 0 for any number; parameters for each; parameters for the merge; whether there
# is a base)
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any], bool]] = {
    "passthrough": (1, {}, {}, False),
    "linear": (0, WEIGHTED, {}, False),
    "slerp": (1, {}, {"t": 0.4}, True),
    "nuslerp": (2, WEIGHTED, {}, False),
    "multislerp": (0, WEIGHTED, {}, False),
    "karcher": (0, {}, {}, False),
    "task_arithmetic": (0, WEIGHTED, {}, True),
    "ties": (0, TRIMMED, {}, True),
    "dare_linear": (0, TRIMMED, {}, True),
    "dare_ties": (0, TRIMMED, {}, True),
    "della": (0, TRIMMED, {}, True),
    "della_linear": (0, TRIMMED, {}, True),
    "breadcrumbs": (0, TRIMMED, {}, True),
    "breadcrumbs_ties": (0, TRIMMED, {}, True),
    "sce": (0, {}, {"select_topk": 0.5}, True),
    "model_stock": (0, {}, {}, True),
    "nearswap": (1, {}, {"t": 0.001}, True),
    "arcee_fusion": (1, {}, {}, True),
    "ram": (0, {}, {}, True),
    "ramplus_tl": (0, {}, {}, True),
}
BASE_AMONG_MODELS = ("slerp", "nearswap", "arcee_fusion")
RANK = 16
SHARDS = 4


@dataclass(frozen=True)
class Setting:
    """One merge, and how it is run."""

    method: str
    size: str = "2.2GB"
    parents: int = 3
    threads: int = 1
    dtype: str = "bfloat16"
    memory_limit: int = 0  # MiB; 0 for the default
    lora: bool = False
    sharded: bool = False

    @property
    def tunes(self) -> int:
        """How many fine-tunes are merged: ``parents``, if the method leaves the choice."""
        return METHODS[self.method][0] or self.parents


def model_bytes(size: str) -> int:
    return 2 * sum(map(prod, shapes(size).values()))


def shard_bytes(setting: Setting) -> int | None:
    return model_bytes(setting.size) // SHARDS if setting.sharded else None


def shapes(size: str) -> Shapes:
    hidden, inner, layers, vocabulary = SHAPES[size]
    kv = hidden // 8
    named: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        named |= {
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    return named | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


# --- making them ------------------------------------------------------------------------------------------------


def make_models(folder: Path, setting: Setting) -> list[Path]:
    """The base, then the fine-tunes or adapters; what is missing is made, and stays for the next time."""
    home = folder / setting.size
    models = home / "sharded" if setting.sharded else home
    made = []
    for k in range(setting.tunes + 1):
        if k and setting.lora:
            made.append(home / f"adapter{k}")
            _make_adapter(made[-1], setting.size, k)
        else:
            made.append(models / (f"tune{k}" if k else "base"))
            _make_model(made[-1], setting, k)
    return made


def _make_model(folder: Path, setting: Setting, k: int) -> None:
    """Normal weights of deviation 0.02; in the ``k``-th fine-tune, changed by a tenth of it."""
    hidden, inner, layers, vocabulary = SHAPES[setting.size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    if _holds(folder / "config.json", config):
        return
    import torch

    numbers = {name: i for i, name in enumerate(shapes(setting.size))}

    def weight(name: str, shape: tuple[int, ...]) -> "Tensor":
        value = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(numbers[name]))
        if k:
            value += 0.002 * torch.randn(shape, generator=torch.Generator().manual_seed(1000 * k + numbers[name]))
        return value.bfloat16()

    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_split(shapes(setting.size), shard_bytes(setting)))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if setting.sharded:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": model_bytes(setting.size)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        _save(folder / name, shard, "BF16", weight)
    (folder / "config.json").write_text(json.dumps(config))


def _make_adapter(folder: Path, size: str, k: int) -> None:
    """An adapter of all attention and MLP projections, whose product has a deviation of 0.002."""
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": kinds,
        "bias": "none",
    }
    if _holds(folder / "adapter_config.json", config):
        return
    import torch

    generator = torch.Generator().manual_seed(k)
    factors: Shapes = {}
    for name, shape in shapes(size).items():
        module = name.removesuffix(".weight")
        if module.endswith(kinds):
            factors[f"base_model.model.{module}.lora_A.weight"] = (RANK, shape[1])
            factors[f"base_model.model.{module}.lora_B.weight"] = (shape[0], RANK)
    deviation = (0.002 / 2 / RANK**0.5) ** 0.5  # of both factors
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter_model.safetensors"
    _save(path, factors, "F32", lambda name, shape: deviation * torch.randn(shape, generator=generator))
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _holds(path: Path, config: dict[str, Any]) -> bool:
    """Whether a checkpoint is complete, and of these shapes: its config is written last."""
    return path.exists() and json.loads(path.read_text()) == json.loads(json.dumps(config))


def _split(tensors: Shapes, limit: int | None) -> Iterator[Shapes]:
    shard: Shapes = {}
    size = 0
    for name, shape in tensors.items():
        if shard and limit and size + 2 * prod(shape) > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += 2 * prod(shape)
    yield shard


def _save(path: Path, tensors: Shapes, dtype: str, value: "Callable[[str, tuple[int, ...]], Tensor]") -> None:
    """Write safetensors, one tensor after the other: a whole model may not fit the memory."""
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + prod(shape) * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            file.write(value(name, shape).view(torch.uint8).numpy().data)


# --- what to merge ----------------------------------------------------------------------------------------------


def recipe(setting: Setting, models: list[Path]) -> dict[str, Any]:
    """The recipe for models from `make_models`; heterosis and mergekit both take it."""
    _, per_input, per_merge, has_base = METHODS[setting.method]
    base, *tunes = map(str, models)
    prefix = f"{base}+" if setting.lora else ""
    listed: list[dict[str, Any]] = [{"model": prefix + tune, "parameters": per_input} for tune in tunes]
    if setting.method in BASE_AMONG_MODELS:
        listed = [{"model": base}, *listed]
    data = {"merge_method": setting.method, "models": listed, "parameters": per_merge}
    data |= {"dtype": setting.dtype, "out_dtype": "bfloat16"}
    return data | ({"base_model": base} if has_base else {})


def input_files(setting: Setting, models: list[Path]) -> list[list[str]]:
    """The files of every input, each once; the first input is as large as the output."""
    base, *tunes = models
    needs_base = METHODS[setting.method][3] or setting.lora
    return [sorted(map(str, model.glob("*.safetensors"))) for model in ([base] if needs_base else []) + tunes]
