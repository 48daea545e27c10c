"""Where a tensor sits in a model, read from its name: in which stack of layers, at which index, or outside."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"^(?P<stack>.*?)\.?(?<![^.])(?P<index>\d+)\.(?P<rest>.+)$")
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
_FIRST = re.compile(r"embed|\bwte\b|\bwpe\b|\bshared\b")


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
    vision = any(word in stack for word in ("vision", "visual"))
    sections = ("vision_config", "audio_config") if vision else ("", "text_config", "decoder", "encoder")
    keys = _LAYER_COUNT_KEYS
    if "decoder" in stack:
        keys = (*_DECODER_KEYS, *keys)
    elif "encoder" in stack:
        keys = (*_ENCODER_KEYS, *keys)
    for section in sections:
        values = config if not section else config.get(section)
        for key in keys if isinstance(values, Mapping) else ():
            if isinstance(values.get(key), int) and count in (None, values[key]):
                return (section, key) if section else (key,)
    return None


def main_stack(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The stack that slices speak of: the one as long as the config says, else the longest."""
    sizes = stack_sizes(names)
    path = layer_count_key(config)
    if path:
        count = config[path[0]] if len(path) == 1 else config[path[0]][path[1]]
        matching = [stack for stack, size in sizes.items() if size == count]
        if len(matching) == 1:
            return matching[0]
    return max(sizes, key=lambda stack: sizes[stack], default=None)


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers stands before them (embeddings) rather than behind (norm, head)."""
    return bool(_FIRST.search(name)) and not _is_one_of(name, _HEAD_NAMES + _HEAD_BIAS_NAMES)


def is_head(name: str) -> bool:
    """Whether this is the output projection, which may be tied to the embedding."""
    return _is_one_of(name, _HEAD_NAMES)


def embedding_name(names: Iterable[str]) -> str | None:
    """The input embedding that a tied head repeats."""
    return next((name for name in names if _is_one_of(name, _EMBEDDING_NAMES)), None)


def is_vocabulary(name: str, shape: Sequence[int], rows: int) -> bool:
    """Whether a tensor has a row for each token: ``rows`` is the number of rows of the model's embedding."""
    known = _EMBEDDING_NAMES + _HEAD_NAMES + _HEAD_BIAS_NAMES
    return _is_one_of(name, known) and len(shape) > 0 and shape[0] == rows


def _is_one_of(name: str, endings: tuple[str, ...]) -> bool:
    """Whether a tensor outside the layers has one of these names, under whatever path."""
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings)) and place_of(name) is None
