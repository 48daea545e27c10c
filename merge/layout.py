"""Where a tensor sits in a model, read from its name: in which stack of layers, at which index, or outside."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(r"^(?P<stack>.*?)\.?(?<![^.])(?P<index>\d+)\.(?P<rest>.+)$")
_LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "shared.weight",
)
_HEAD_NAMES = ("lm_head.weight", "embed_out.weight", "output.weight")
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


def layer_count_key(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The path of config.json's layer count, which multimodal models keep in ``text_config``."""
    for key in _LAYER_COUNT_KEYS:
        if isinstance(config.get(key), int):
            return (key,)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        for key in _LAYER_COUNT_KEYS:
            if isinstance(text.get(key), int):
                return ("text_config", key)
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
    return bool(_FIRST.search(name))


def is_head(name: str) -> bool:
    """Whether this is the output projection, which may be tied to the embedding."""
    return name.endswith(_HEAD_NAMES) and place_of(name) is None


def embedding_name(names: Iterable[str]) -> str | None:
    """The input embedding that a tied head repeats."""
    return next((name for name in names if name.endswith(_EMBEDDING_NAMES) and place_of(name) is None), None)
