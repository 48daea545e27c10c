"""Where a tensor sits in a model, read from its name: in which stack of layers, at which index, or outside."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heterosis.merge.models.sources import TensorSource

_LAYER = re.compile(r"^(?P<stack>.*?)\.?(?<![^.])(?P<index>[0-9]{1,9})\.(?P<rest>.+)$")
_LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_DECODER_KEYS = ("num_decoder_layers", "decoder_layers")
_ENCODER_KEYS = ("encoder_layers", "num_layers")
_EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "shared.weight",
    "tok_embeddings.weight",
    "backbone.embeddings.weight",
)
_HEAD_NAMES = (
    "lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "proj_out.weight",
    "lm_head.decoder.weight",
    "predictions.decoder.weight",
)
_HEAD_BIAS_NAMES = (
    "lm_head.bias",
    "embed_out.bias",
    "proj_out.bias",
    "predictions.bias",
    "lm_head.decoder.bias",
    "predictions.decoder.bias",
)
# What else may have a row for each token, in single architectures: known by its number of rows as well.
_VOCABULARY_NAMES = (
    *("decoder.weight", "decoder.bias"),
    *("generator_lm_head.weight", "generator_lm_head.bias"),
    *("vocab_projector.weight", "vocab_projector.bias"),
    *("output_projection.weight", "output_projection.bias"),
    *("lm_head.linear.weight", "lm_head.linear.bias"),
    *("output_layer.weight", "output_layer.bias", "output.bias"),
)
_FIRST = re.compile(
    r"embed|\bwte\b|\bwpe\b|\bshared\b|\bconv\d?\b|pre_layrnorm|layernorm_pre|\bln_pre\b|\bpatch_conv\b"
    r"|\bproject_in\b|relative_attention_bias"
)
_LAST = re.compile(r"\bembedding_norm\b")  # LFM2's final norm
# Buffers that old checkpoints hold and that no current model reads; dropped where not all inputs have them.
MASKED = (".attn.masked_bias", ".attention.masked_bias")  # always: in float16 they are minus infinity
OBSOLETE = (
    *("rotary_emb.inv_freq", ".attn.bias", ".attention.bias", *MASKED),
    "embeddings.position_ids",
)
# What the first layer holds for all layers of its stack: T5's relative positions.
_OF_THE_STACK = "relative_attention_bias.weight"


@dataclass(frozen=True)
class Place:
    """A layer tensor: ``{stack}.{index}.{rest}``."""

    stack: str
    index: int
    rest: str

    def name_at(self, index: int) -> str:
        return f"{self.stack}.{index}.{self.rest}" if self.stack else f"{index}.{self.rest}"


def place_of(name: str) -> Place | None:
    """The place of a tensor in a layer; None outside. The first number in a name is its layer."""
    match = _LAYER.match(name)
    return Place(match["stack"], int(match["index"]), match["rest"]) if match else None


def stack_sizes(names: Iterable[str]) -> dict[str, int]:
    """The number of layers of every stack."""
    sizes: dict[str, int] = {}
    for name in names:
        if place := place_of(name):
            sizes[place.stack] = max(sizes.get(place.stack, 0), place.index + 1)
    return sizes


def layer_count_key(
    config: Mapping[str, Any], stack: str = "", count: int | None = None
) -> tuple[str, ...] | None:
    """The path of config.json's layer count.

    Args:
        config: The content of config.json. Multimodal models keep the count in a section of each part's own.
        stack: Which stack of layers is meant, the main one by default.
        count: How many layers it has, to tell one key from another.
    """
    sections: tuple[str, ...] = ("", "text_config", "decoder", "encoder")
    if any(word in stack for word in ("vision", "visual")):
        sections = ("vision_config",)
    elif "audio" in stack:
        sections = ("audio_config",)
    keys: tuple[str, ...] = _LAYER_COUNT_KEYS
    if "decoder" in stack:
        keys = (*_DECODER_KEYS, *keys)
    elif "encoder" in stack:
        keys = (*_ENCODER_KEYS, *keys)
    for section in sections:
        values = config.get(section) if section else config
        if not isinstance(values, Mapping):
            continue
        for key in keys:
            if isinstance(values.get(key), int) and count in (None, values[key]):
                return (section, key) if section else (key,)
    return None


def main_stack(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The stack that slices speak of: the one as long as the config says, else the longest."""
    sizes = stack_sizes(names)
    count = _layer_count(config, "")
    matching = [stack for stack, size in sizes.items() if size == count]
    if len(matching) == 1:
        return matching[0]
    return max(sizes, key=lambda stack: sizes[stack], default=None)


def layer_counts(names: Collection[str], config: Mapping[str, Any]) -> dict[str, int]:
    """The number of layers of every stack, of the main one no more than the config counts.

    What follows these predicts tokens after the next one.
    """
    sizes, main = stack_sizes(names), main_stack(names, config)
    if main is not None and layer_count_key(config, main, sizes[main]) is None:
        sizes[main] = min(sizes[main], _layer_count(config, main) or sizes[main])
    return sizes


def _layer_count(config: Mapping[str, Any], stack: str) -> int | None:
    """How many layers the config counts in a stack; None if it does not."""
    path = layer_count_key(config, stack)
    if path is None:
        return None
    *outer, key = path
    return int(config[outer[0]][key] if outer else config[key])


def of_the_stack(names: Iterable[str]) -> set[str]:
    """Tensors that stand in the first layer of a stack, but belong to all of it, and stay there."""
    held = [(name, place) for name in names if name.endswith(_OF_THE_STACK) and (place := place_of(name))]
    of_layers = {place.stack for _, place in held if place.index > 0}  # UMT5: each layer has its own
    return {name for name, place in held if place.stack not in of_layers}


def rivals(sizes: Mapping[str, int], stack: str | None) -> list[str]:
    """Stacks that might be meant as well as ``stack``: no shorter ones, and a decoder's encoder."""
    if stack is None:
        return []
    parts = set(stack.split("."))
    halves = {half for half, other in (("encoder", "decoder"), ("decoder", "encoder")) if other in parts}
    least = max(2, sizes[stack])
    return [
        other
        for other, size in sizes.items()
        if other != stack and (size >= least or not halves.isdisjoint(other.split(".")))
    ]


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers stands before them (embeddings) rather than behind (norm, head)."""
    is_last = _LAST.search(name) or _is_one_of(name, _HEAD_NAMES + _HEAD_BIAS_NAMES)
    return bool(_FIRST.search(name)) and not is_last


def is_head(name: str) -> bool:
    """Whether this is the output projection, which may be tied to the embedding."""
    return _is_one_of(name, _HEAD_NAMES)


def embedding_name(names: Iterable[str]) -> str | None:
    """The input embedding that a tied head repeats."""
    return next((name for name in names if _is_one_of(name, _EMBEDDING_NAMES)), None)


def embedding_rows(tensors: Mapping[str, TensorSource]) -> int | None:
    """How many rows a model's input embedding has; None where no tensor has the name of one."""
    name = embedding_name(tensors)
    return None if name is None else tensors[name].shape[0]


def tied_to(name: str, names: Iterable[str]) -> str | None:
    """Which of a model's tensors stands in for one that it lacks, since it was saved once for both, if any does.

    A head repeats the embedding (where the config says so), encoder and decoder share theirs, and BERT's head has
    its bias under two names.
    """
    held = set(names)
    if _is_one_of(name, _HEAD_NAMES + _EMBEDDING_NAMES):
        return embedding_name(sorted(held))
    if _is_one_of(name, _HEAD_BIAS_NAMES):
        outer = name.removesuffix(".bias").removesuffix(".decoder")
        return next((twin for twin in (f"{outer}.bias", f"{outer}.decoder.bias") if twin in held), None)
    return None


def is_vocabulary(name: str, shape: Sequence[int], rows: int | None) -> bool:
    """Whether a tensor has a row for each token: ``rows`` is what `embedding_rows` says of the model."""
    known = _EMBEDDING_NAMES + _HEAD_NAMES + _HEAD_BIAS_NAMES + _VOCABULARY_NAMES
    return _is_one_of(name, known) and len(shape) > 0 and shape[0] == rows


def _is_one_of(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a tensor outside the layers has one of these names, under whatever path."""
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings)) and place_of(name) is None
