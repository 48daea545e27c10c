"""The output's config.json: the donor's, made to agree with the tensors that are written."""

import copy
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from heterosis.merge.models.layout import embedding_name, is_head, layer_count_key
from heterosis.merge.plan import TensorOp
from heterosis.words import first_line

# Lists of the indices of layers.
LISTS_OF_LAYERS: tuple[str, ...] = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "hybrid_layer_ids")
LISTS_OF_LAYERS += ("attn_layer_indices", "cross_attention_layers", "rope_scaling_layers", "window_block_indexes")
# Lists that may happen to be as long as the model is deep, but have no entry for each layer.
_NOT_BY_LAYER = re.compile("token|architectures|limit|multipliers|image_size|patch_size|aspect_ratios")
# Model types whose layers are all alike: to have transformers say so takes seconds.
ALIKE = ("llama", "mistral", "mixtral", "gemma", "phi3", "gpt2", "gpt_neox")
# (where the layers come from: the config of a model, from, to), for each slice
Taken = Sequence[tuple[Mapping[str, Any], int, int]]


def output_config(
    donor: Mapping[str, Any],
    ops: Mapping[str, TensorOp],
    *,
    donor_has_head: bool,
    layers: Mapping[str, tuple[int, Taken]],
    vocabulary_size: int | None,
    token_ids: Mapping[str, Any],
) -> dict[str, Any]:
    """The donor's config with dtype, tied flag, layer counts and vocabulary size as they are in the output.

    Args:
        donor: Its config.json.
        ops: The output's tensors by name.
        donor_has_head: Whether the donor has an output projection of its own.
        layers: For every stack of layers that is not the donor's: its own number of layers, and what was taken.
        vocabulary_size: Rows of the embeddings, None where the vocabulary was left as it is.
        token_ids: Special tokens' ids, where the tokenizer is not the donor's.
    """
    config = copy.deepcopy(dict(donor))
    dtypes = {op.dtype for op in ops.values() if op.dtype.is_floating_point}
    if len(dtypes) == 1:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    _fix_tied(config, ops, donor_has_head)
    for stack, (count, taken) in layers.items():
        _fix_layers(config, stack, count, taken)
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            section.update({key: value for key, value in token_ids.items() if key in section})
            if vocabulary_size is not None and "vocab_size" in section:
                section["vocab_size"] = vocabulary_size
    return config


def _fix_tied(config: dict[str, Any], ops: Mapping[str, TensorOp], donor_has_head: bool) -> None:
    if "t5" in str(config.get("model_type")):  # there it says whether outputs are scaled
        return
    heads = [name for name in ops if is_head(name)]
    sections = [config, *([config["text_config"]] if isinstance(config.get("text_config"), dict) else [])]
    for section in sections:
        if section is not config and "tie_word_embeddings" not in section:
            continue
        if heads and section.get("tie_word_embeddings", True) and embedding_name(ops):
            section["tie_word_embeddings"] = False
        elif not heads and donor_has_head:
            section["tie_word_embeddings"] = True  # the last slice's models have no head of their own


def _fix_layers(config: dict[str, Any], stack: str, count: int, taken: Taken) -> None:
    """Set the layer count, and let lists with an entry for each layer follow the layers that were taken."""
    path = layer_count_key(config, stack, count)
    if path is None:
        warnings.warn(f"config.json has no layer count that could be set for {stack}", stacklevel=2)
        return
    *outer, key = path
    section = _section(config, outer)
    if config.get("is_encoder_decoder") and "num_layers" in section:  # T5 may leave out that both are as long
        section.setdefault("num_decoder_layers", section["num_layers"])
        key = "num_decoder_layers" if "decoder" in stack else key
    before, after = section[key], sum(stop - start for _, start, stop in taken)
    section[key] = after
    if "encoder" in stack and section.get("num_hidden_layers") == before:  # Whisper's second name for it
        section["num_hidden_layers"] = after
    own = [(_section(source, outer), start, stop) for source, start, stop in taken]
    for name, values in list(section.items()):
        if name in LISTS_OF_LAYERS and isinstance(values, list):
            section[name] = _renumbered(name, values, own)
        elif isinstance(values, list) and len(values) == before and not _NOT_BY_LAYER.search(name):
            section[name] = [x for s, start, stop in own for x in s.get(name, values)[start:stop]]
    _write_implied_lists(section, own)


def _section(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    return config.get(path[0], config) if path else config  # a text model may fit into a multimodal one


def _renumbered(name: str, donors: Sequence[int], taken: Taken) -> list[int]:
    """Indices of layers, as they are in the output."""
    result: list[int] = []
    offset = 0
    for source, start, stop in taken:
        result += [offset + i - start for i in source.get(name, donors) if start <= i < stop]
        offset += stop - start
    return result


def _write_implied_lists(section: dict[str, Any], taken: Taken) -> None:
    """Say what configs leave to a rule over indices, where the rule no longer gives it.

    Every other layer of Gemma 2 slides its window, five of six in Gemma 3, and every fourth of Llama 4 has no
    rotation: a layer that moves would change. Often no key of the config hints at the rule, as in ModernBERT.
    """
    implied = _implied_lists(section)
    sources = {id(source): source for source, _, _ in taken}
    lists = {key: _implied_lists(source) for key, source in sources.items()}
    parts = [(lists[id(source)], start, stop) for source, start, stop in taken]
    for name, values in implied.items():
        if name in LISTS_OF_LAYERS:
            moved = _renumbered(name, values, parts)
        else:
            moved = [value for lists, start, stop in parts for value in lists.get(name, ())[start:stop]]
            if len(moved) != len(values):
                continue
        if moved != values:
            section[name] = moved


def _implied_lists(section: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Lists of layers, and lists with an entry for each, that transformers adds to a config that has none."""
    kind = section.get("model_type")
    if kind in ALIKE:
        return {}

    import transformers  # seconds

    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        return {}
    plain = json.loads(json.dumps(section), object_hook=_special_float)
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # of anything that an architecture's checks refuse
        warnings.warn(
            f"config.json: transformers cannot read it ({first_line(error)}), so rules over its layers are left "
            "as they are",
            stacklevel=2,
        )
        return {}
    layers = getattr(config, "num_hidden_layers", None)
    return {
        name: list(values)
        for name, values in vars(config).items()
        if isinstance(values, list | tuple)
        and not section.get(name)
        and (name in LISTS_OF_LAYERS or (len(values) == layers and not _NOT_BY_LAYER.search(name)))
    }


def _special_float(entry: dict[str, Any]) -> Any:
    """A number that JSON does not have, as transformers writes it."""
    return float(entry["__float__"]) if entry.keys() == {"__float__"} else entry
