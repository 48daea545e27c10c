"""The output's config.json: the donor's, made to agree with the tensors that are written."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from heterosis.merge.layout import embedding_name, is_head, layer_count_key
from heterosis.merge.plan import TensorOp

# (where the layers come from: the config of a model, from, to), for each slice
Taken = Sequence[tuple[Mapping[str, Any], int, int]]


def output_config(
    donor: Mapping[str, Any],
    ops: Mapping[str, TensorOp],
    *,
    donor_has_head: bool,
    layers: Mapping[str, tuple[int, Taken]],
    vocabulary_size: int | None,
) -> dict[str, Any]:
    """The donor's config with dtype, tied flag, layer counts and vocabulary size as they are in the output.

    Args:
        donor: Its config.json.
        ops: The output's tensors by name.
        donor_has_head: Whether the donor has an output projection of its own.
        layers: For every stack of layers that slices built: the donor's own number of layers, and what was taken.
        vocabulary_size: Rows of the embeddings, None where the vocabulary was left as it is.
    """
    config = copy.deepcopy(dict(donor))
    dtypes = {op.dtype for op in ops.values() if op.dtype.is_floating_point}
    if len(dtypes) == 1:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    _fix_tied(config, ops, donor_has_head)
    for stack, (count, taken) in layers.items():
        _fix_layers(config, stack, count, taken)
    if vocabulary_size is not None:
        for section in (config, config.get("text_config")):
            if isinstance(section, dict) and "vocab_size" in section:
                section["vocab_size"] = vocabulary_size
    return config


def _fix_tied(config: dict[str, Any], ops: Mapping[str, TensorOp], donor_has_head: bool) -> None:
    heads = [name for name in ops if is_head(name)]
    embedding = embedding_name(ops)
    if heads and config.get("tie_word_embeddings", True) and embedding:
        same = [s.identity for s in ops[embedding].inputs]
        config["tie_word_embeddings"] = all([s.identity for s in ops[head].inputs] == same for head in heads)
    elif not heads and donor_has_head:
        config["tie_word_embeddings"] = True  # the last slice's models have no head of their own


def _fix_layers(config: dict[str, Any], stack: str, count: int, taken: Taken) -> None:
    """Set the layer count, and let per-layer lists follow the layers that were taken."""
    path = layer_count_key(config, stack, count)
    if path is None:
        warnings.warn(f"config.json has no layer count that could be set for the slices of {stack}", stacklevel=2)
        return
    section = config if len(path) == 1 else config[path[0]]
    before = section[path[-1]]
    section[path[-1]] = sum(stop - start for _, start, stop in taken)
    if isinstance(section.get("layer_types"), list) and len(section["layer_types"]) == before:
        kinds: list[Any] = []
        for source, start, stop in taken:
            own = source if len(path) == 1 else source.get(path[0], {})
            kinds += own.get("layer_types", section["layer_types"])[start:stop]  # older configs say nothing
        section["layer_types"] = kinds
