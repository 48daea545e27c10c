"""PEFT LoRA adapters: the low-rank product is added to the base's values while they are read.

Notation: W' = W + s B A with B ``[out, r]``, A ``[r, in]`` and s = alpha / r, or alpha / sqrt(r) with rslora.
https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2312.03732
"""

import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heterosis.errors import InputError, few
from heterosis.merge.kernels import add_low_rank_product, add_rounded
from heterosis.merge.models.layout import is_head
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.models.weights import Weights
from heterosis.merge.workspace import Workspace, as_array
from heterosis.words import brief, some

Matrix = np.ndarray[tuple[int, int], np.dtype[Any]]

# Settings of adapter_config.json that leave the merged weights alone. Any other that is set is refused: peft
# gains variants with every release, and one that we do not know would be merged wrongly.
# fmt: off
_HARMLESS = frozenset(
    {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out",
        "bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern",
        "rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "qalora_group_size",
        "runtime_config", "ensure_weight_tying",
    }
)
# fmt: on
_REASONS = {
    "use_dora": "DoRA also rescales the weights",
    "trainable_token_indices": "it replaces single rows of the embeddings",
    "target_parameters": "it targets bare parameters instead of modules",
    "layer_replication": "it changes the number of layers",
    "lora_bias": "it also changes biases",
    "alora_invocation_tokens": "it is only active after certain tokens",
}
_REMEDY = "merge it with peft's merge_and_unload first"
_RESIZED = f"adapters that resize the vocabulary are not supported; {_REMEDY}"
_TIED = "its head is tied to the embedding; merge the adapter into it with PEFT first"
# The others (pissa, olora, corda, loftq, lora_ga) also change the base's weights when they are loaded.
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
# What makes matching take time that is exponential in a pattern's length, or of a high power in the path's.
_REPETITION = re.compile(r"[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_LONGEST_PATH = 200
_PREFIXES = ("model.", "transformer.", "language_model.", "gpt_neox.")
_INPUT_EMBEDDINGS = frozenset({"embed_tokens", "wte", "embed_in", "word_embeddings"})
_OUTPUT_EMBEDDINGS = frozenset({"lm_head", "embed_out"})
# Modules that store their weight as [in, out] (transformers' Conv1D): peft goes by the module's class, and
# overrides fan_in_fan_out accordingly. Only for square weights does the shape not tell.
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

# Of each thread. The allocator would give every block memory of its own, and keep much of it: up to a gigabyte.
_WORKSPACE = Workspace()


class LoraTensor:
    """A base tensor plus its share of an adapter (a `TensorSource`)."""

    exact = False  # sums are of float32 or float64

    def __init__(
        self, base: TensorSource, a: TensorSource, b: TensorSource, scaling: float, transposed: bool
    ) -> None:
        """Wrap a base tensor.

        Args:
            base: W, ``[rows, cols]``.
            a: A, ``[r, in]``.
            b: B, ``[out, r]``.
            scaling: s.
            transposed: Whether W is stored as ``[in, out]``.
        """
        self.name = base.name
        self.shape = base.shape
        self.dtype = base.dtype
        self.identity: Hashable = ("lora", base.identity, a.identity, b.identity, scaling, transposed)
        self.resident_bytes = 4 * (math.prod(a.shape) + math.prod(b.shape))
        self.base, self._a, self._b = base, a, b
        self._scaling, self._transposed = scaling, transposed
        self._factors: dict[torch.dtype, tuple[Matrix, Matrix]] = {}

    def view(self, start: int, stop: int) -> Tensor | None:
        """None: the sum is nowhere."""
        return None

    def read(self, start: int, stop: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` with flat elements ``[start, stop)``: base, widened, plus product.

        Computed in float64 for a float64 ``out``, else in float32.
        """
        if out.dtype == self.dtype == torch.bfloat16 and out.is_contiguous():
            base = _WORKSPACE.buffer("base", stop - start, torch.bfloat16)
            self.base.read(start, stop, base)
            self.read_onto(start, base, out)
            return
        wide = out.dtype in (torch.float32, torch.float64) and out.is_contiguous()
        work = out if wide else _WORKSPACE.buffer("sum", stop - start, torch.float32)
        self.base.read(start, stop, work)
        self.add_delta(start, work)
        if work is not out:
            out.copy_(work)

    def read_onto(self, start: int, base: Tensor, out: Tensor) -> None:
        """What reading gives, of the base's values from ``start`` on, in bfloat16 as is ``out``."""
        product = _WORKSPACE.buffer("product", out.numel(), torch.float32)
        product.numpy().fill(0)
        self.add_delta(start, product)
        add_rounded(as_array(base), product.numpy(), as_array(out))

    def add_delta(self, start: int, out: Tensor) -> None:
        """Add the product's flat elements from ``start`` on to the 1-D ``out``, float32 or float64."""
        # Not a cached_property: until 3.12 those of all tensors share a lock. Threads that meet compute the same.
        if (factors := self._factors.get(out.dtype)) is None:
            factors = self._factors[out.dtype] = self._load(out.dtype)
        add_low_rank_product(out.numpy(), start, *factors)

    def _load(self, dtype: torch.dtype) -> tuple[Matrix, Matrix]:
        """(left, right) with left @ right = the scaled product, laid out as W is."""
        a, b = _read_matrix(self._a, dtype), _read_matrix(self._b, dtype)
        left, right = (a.T, b.T) if self._transposed else (b, a)
        return (left * self._scaling).contiguous().numpy(), right.contiguous().numpy()


def _read_matrix(source: TensorSource, dtype: torch.dtype) -> Tensor:
    flat = torch.empty(math.prod(source.shape), dtype=dtype)
    source.read(0, len(flat), flat)
    return flat.view(source.shape)


class _FullCopy:
    """An adapter's full copy of a base tensor, under the base's name (a `TensorSource`)."""

    def __init__(self, name: str, source: TensorSource) -> None:
        self.name = name
        self.shape = source.shape
        self.dtype = source.dtype
        self.exact = source.exact
        self.identity = source.identity
        self.read = source.read
        self.view = source.view


@dataclass
class _Module:
    """What an adapter holds for one module."""

    factors: dict[str, TensorSource] = field(default_factory=dict)  # keys: A, B
    is_embedding: bool = False


class Adapter:
    """An open PEFT adapter folder.

    Attributes:
        files: adapter_config.json and the weights.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], weights: Weights) -> None:
        """Take over the opened weights.

        Raises:
            InputError: With a line for everything in the config that cannot be merged.
        """
        self.folder = folder
        self.files = [folder / "adapter_config.json", *weights.paths]
        self._config = config
        self._weights = weights
        faults = [f"{folder}/adapter_config.json: {fault}" for fault in self._config_faults()]
        if faults:
            raise InputError(*faults)

    def close(self) -> None:
        self._weights.close()

    def apply(self, base: Mapping[str, TensorSource], model_config: Mapping[str, Any]) -> dict[str, TensorSource]:
        """The tensors that the adapter changes, by the base's names.

        Raises:
            InputError: With a line for every tensor that does not fit, or that would be left over.
        """
        modules: dict[str, _Module] = {}
        left_over: dict[str, TensorSource] = {}
        faults: list[str] = []
        for key, source in self._weights.tensors.items():
            path = key.removeprefix("base_model.model.")
            match = _FACTOR.fullmatch(path)
            if match is None:
                left_over[path] = source
                continue
            module = modules.setdefault(match[1], _Module())
            if (other := module.factors.setdefault(match[3], source)) is not source:
                faults.append(f"{key}: is the same factor as {other.name}; save the adapter with one of them")
            module.is_embedding |= match[2] is not None
        faults += self._left_over_faults(left_over)
        if not modules and not faults:
            faults.append("holds no LoRA tensors; is this a LoRA adapter of PEFT?")
        changed: dict[str, TensorSource] = {}
        unplaced = []
        # Embeddings that were trained on, or resized, come as a full copy, which peft loads over the base's.
        for path, source in {} if faults else left_over.items():
            name = _find(path.removesuffix(".weight").removesuffix(".base_layer"), base)
            if name is None or not path.endswith(".weight"):
                unplaced.append(path)
            elif not source.dtype.is_floating_point:
                faults.append(f"{name}: must be floating, but got {source.dtype} in the adapter")
            elif source.shape != base[name].shape:
                faults.append(f"{name}: the adapter replaces {_dims(base[name])} by {_dims(source)}: {_RESIZED}")
            else:
                changed[name] = _FullCopy(name, source)
        for path, module in modules.items():
            leaf = path.rpartition(".")[2]
            if leaf in _INPUT_EMBEDDINGS | _OUTPUT_EMBEDDINGS and _is_tied(base, model_config):
                faults.append(
                    f"{path}: input and output embeddings of this model are one tensor (tied), so a change to one "
                    "would change the other; train the adapter without this module"
                )
                continue
            name = _find(path, base)
            if name is None:
                unplaced.append(path)
                continue
            try:
                changed[name] = self._tensor(path, module, changed.get(name, base[name]), model_config)
            except ValueError as error:
                faults.append(f"{path}: {error}")
        if unplaced:
            tied = all(is_head(f"{path.removesuffix('.weight')}.weight") for path in unplaced)
            remedy = _TIED if tied else "is the adapter for another model?"
            faults.insert(0, f"the base model has no such tensors: {some(unplaced, 5)}; {remedy}")
        if faults:
            raise InputError(*few([f"{self.folder}: {fault}" for fault in faults]))
        return changed

    def _tensor(
        self, path: str, module: _Module, base: TensorSource, model_config: Mapping[str, Any]
    ) -> LoraTensor:
        if module.factors.keys() != {"A", "B"}:
            raise ValueError(f"must have lora_A and lora_B, but has only lora_{next(iter(module.factors))}")
        a, b = module.factors["A"], module.factors["B"]
        if len(a.shape) == len(b.shape) == 4:
            raise ValueError("LoRA on convolutions is not supported; train the adapter without this module")
        if not (len(a.shape) == len(b.shape) == len(base.shape) == 2):
            raise ValueError(f"must be matrices, but got A {_dims(a)}, B {_dims(b)} for a weight {_dims(base)}")
        if not all(source.dtype.is_floating_point for source in (a, b, base)):
            raise ValueError(f"must be floating, but got A {a.dtype}, B {b.dtype} for a weight of {base.dtype}")
        rank, scaling = self._rank_and_scaling(path)
        if not a.shape[0] == b.shape[1] == rank:
            raise ValueError(f"the rank must be {rank} (adapter_config.json), but got A {_dims(a)}, B {_dims(b)}")
        stored_as = {False: (b.shape[0], a.shape[1]), True: (a.shape[1], b.shape[0])}
        fitting = [transposed for transposed, shape in stored_as.items() if shape == base.shape]
        if not fitting or (module.is_embedding and True not in fitting):
            raise ValueError(f"shapes must match, but got A {_dims(a)}, B {_dims(b)} for a weight {_dims(base)}")
        if module.is_embedding:
            return LoraTensor(base, a, b, scaling, True)
        if len(fitting) == 1:
            return LoraTensor(base, a, b, scaling, fitting[0])
        if str(model_config.get("model_type")) in _CONV1D_MODELS:
            return LoraTensor(base, a, b, scaling, path.rpartition(".")[2] in _CONV1D)
        return LoraTensor(base, a, b, scaling, bool(self._config.get("fan_in_fan_out")))

    def _rank_and_scaling(self, path: str) -> tuple[int, float]:
        rank = _by_pattern(self._config.get("rank_pattern"), path, self._config.get("r", 8))
        alpha = _by_pattern(self._config.get("alpha_pattern"), path, self._config.get("lora_alpha", 8))
        if type(rank) is not int or not 1 <= rank < 2**31:
            raise ValueError(f"the rank must be a whole number >= 1, but got {brief(rank)}")
        if not isinstance(alpha, int | float) or not -1e38 <= alpha <= 1e38:
            raise ValueError(f"lora_alpha must be a finite number, but got {brief(alpha)}")
        return rank, alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _config_faults(self) -> Iterator[str]:
        kind = self._config.get("peft_type")
        if kind != "LORA":
            yield f"peft_type must be 'LORA', but got {brief(kind)}; {_REMEDY}"
            return
        for key, value in self._config.items():
            if value and key not in _HARMLESS:
                reason = f": {_REASONS[key]}" if key in _REASONS else ""
                yield f"{key} is not supported{reason}; {_REMEDY}"
        init = self._config.get("init_lora_weights", True)
        if init not in _PLAIN_INITS:
            yield (
                f"init_lora_weights {brief(init)} is not supported: it changes the base's weights too; save "
                "the adapter converted to plain LoRA (peft's path_initial_model_for_weight_conversion)"
            )
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = self._config.get(key) or {}
            if not isinstance(patterns, dict):
                yield f"{key} must be a mapping, but got {brief(patterns)}"
                continue
            for pattern in patterns:
                repetitions = len(_REPETITION.findall(pattern))
                if repetitions > 2 or pattern.count("|") > 16 or _REPEATED_GROUP.search(pattern):
                    yield (
                        f"{key}: {brief(pattern)} could take forever to match; write at most two of * + ? {{ "
                        "and none of them after a group, or write the modules out"
                    )
                    continue
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as error:
                    yield f"{key}: {brief(pattern)} is no regular expression: {error}"

    def _left_over_faults(self, left_over: Mapping[str, TensorSource]) -> Iterator[str]:
        """What tensors other than LoRA's factors say about the adapter, where they cannot be merged."""
        if any("lora_magnitude_vector" in path for path in left_over):
            yield f"DoRA is not supported: it also rescales the weights; {_REMEDY}"
        elif any(re.search(r"lora_(embedding_)?[AB]\b.*\.bias$", path) for path in left_over):
            yield f"lora_bias is not supported: {_REASONS['lora_bias']}; {_REMEDY}"
        elif left_over and self._config.get("modules_to_save"):
            names = self._config["modules_to_save"]
            shown = ", ".join(map(str, names)) if isinstance(names, list) else brief(names)
            yield f"modules_to_save is not supported ({shown}); {_REMEDY}"
        elif any(path.endswith(".bias") for path in left_over):
            yield f"trained biases are not supported (bias must be 'none'); {_REMEDY}"


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Peft's rule: the first pattern that matches the whole path, or what follows a dot in it."""
    if patterns and len(path) > _LONGEST_PATH:
        raise ValueError(f"a name of more than {_LONGEST_PATH} characters is not matched to patterns of ranks")
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _find(module: str, base: Mapping[str, TensorSource]) -> str | None:
    """The base's name for a module's weight: checkpoints may lack or have the prefix of a headless model."""
    shortened = [module.removeprefix(prefix) for prefix in _PREFIXES]
    for candidate in (module, *shortened, *(prefix + module for prefix in _PREFIXES)):
        if f"{candidate}.weight" in base:
            return f"{candidate}.weight"
    return None


def _is_tied(base: Mapping[str, TensorSource], model_config: Mapping[str, Any]) -> bool:
    has_head = any(name.removesuffix(".weight").rpartition(".")[2] in _OUTPUT_EMBEDDINGS for name in base)
    text = model_config.get("text_config")
    flags = [section.get("tie_word_embeddings") for section in (model_config, text) if isinstance(section, dict)]
    return not has_head or True in flags


def _dims(source: TensorSource) -> str:
    return str(list(source.shape))
