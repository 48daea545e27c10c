"""Any architecture: merged, loaded by transformers, run, and compared to a merge computed by other means."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from heterosis.errors import InputError
from heterosis.evaluate import CandidateLoader
from heterosis.merge import Recipe, merge_models
from heterosis.merge.models.layout import layer_count_key, of_the_stack, rivals, tied_to
from heterosis.merge.models.names import aligned
from heterosis.merge.planning.modules import candidates, module_of
from heterosis.merge.planning.output_config import ALIKE, LISTS_OF_LAYERS, output_config

from .architectures import ARCHITECTURES, MULTIMODAL, VOCAB, build, load, logits, save

pytestmark = pytest.mark.filterwarnings("ignore:.*tensors outside them:UserWarning")

State = dict[str, torch.Tensor]
Family = Callable[[str], list[Path]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Folders of an architecture's base and two fine-tunes."""
    root = tmp_path_factory.mktemp("architectures")

    def make(name: str) -> list[Path]:
        folders = [root / f"{name}-{seed}" for seed in range(3)]
        if not folders[0].exists():
            for seed, folder in enumerate(folders):
                save(build(name, seed), folder)
        return folders

    return make


def merged(recipe: Mapping[str, Any], out: Path) -> Path:
    return merge_models(Recipe.model_validate(dict(recipe)), out, threads=1)


def linear(*folders: Path, **keys: Any) -> dict[str, Any]:
    weights = (0.25, 0.75)
    models = [{"model": str(f), "parameters": {"weight": w}} for f, w in zip(folders, weights, strict=True)]
    return {"merge_method": "linear", "models": models, **keys}


def ties(base: Path, *folders: Path, **keys: Any) -> dict[str, Any]:
    return {**linear(*folders), "merge_method": "ties", "base_model": str(base), **keys}


def summed(states: Sequence[State]) -> State:
    """What `linear` gives."""
    return {n: (0.25 * x.double() + 0.75 * states[1][n].double()).float() for n, x in states[0].items()}


def elected(base: State, states: Sequence[State]) -> State:
    """What `ties` of density 1 gives: entries that agree with the sign of the sum, averaged by weight."""
    result = {}
    for name, start in base.items():
        deltas = torch.stack([state[name].double() - start.double() for state in states])
        weights = torch.tensor([0.25, 0.75], dtype=torch.float64).view(2, *[1] * start.ndim)
        sign = torch.where((weights * deltas).sum(0) >= 0, 1, -1)
        kept = weights * (deltas.sign() == sign)
        result[name] = (start.double() + (kept * deltas).sum(0) / kept.sum(0).clamp_min(1e-30)).float()
    return result


def assert_same_state(model: Any, expected: State) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def assert_merged(folder: Path, name: str, expected: State, model: Any = None) -> None:
    """The folder is the model of ``expected``; ``model`` is one to hold it, of other layers than usual."""
    reference = model if model is not None else build(name)
    reference.load_state_dict(expected)
    mine = load(folder, name)
    assert_same_state(mine, reference.state_dict())
    values = logits(mine, name)
    torch.testing.assert_close(values, logits(reference, name), rtol=1e-5, atol=1e-5)
    assert values.std() > 0.01, "says nothing"


def stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_merge_is_that_of_the_loaded_models(name: str, family: Family, tmp_path: Path) -> None:
    folders = family(name)
    base, *tuned = [load(folder, name).state_dict() for folder in folders]
    sums = merged(linear(*folders[1:]), tmp_path / "linear")
    assert stored_names(sums) == stored_names(folders[0])
    assert_merged(sums, name, summed(tuned))
    assert_merged(merged(ties(*folders), tmp_path / "ties"), name, elected(base, tuned))


# Which of the fine-tunes, from which layer to which.
TAKEN = ((1, 0, 2), (2, 1, 2), (2, 0, 1))


def taken_slices(folders: Sequence[Path]) -> list[dict[str, Any]]:
    return [
        {"sources": [{"model": str(folders[which]), "layer_range": [start, stop]}]} for which, start, stop in TAKEN
    ]


def restacked(states: Sequence[State], stacks: Sequence[str], shared: str = "relative_attention_bias") -> State:
    """The layers of ``TAKEN``; what precedes them is the first slice's, and what follows the last's."""
    result = {}
    home: dict[int, str] = {}
    for name, tensor in states[0].items():
        whose = home.setdefault(tensor.data_ptr(), name)
        first = any(word in whose for word in ("embed", "wte", "wpe", "conv", "shared", shared))
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack is None or shared in name:
            result[name] = states[TAKEN[0 if first else -1][0]][name]
            continue
        index, rest = name.removeprefix(f"{stack}.").split(".", 1)
        layers = [(which, layer) for which, start, stop in TAKEN for layer in range(start, stop)]
        for k, (which, layer) in enumerate(layers):
            if layer == int(index):
                result[f"{stack}.{k}.{rest}"] = states[which][name]
    return result


@pytest.mark.parametrize("name", [name for name, made in ARCHITECTURES.items() if made.stacks])
def test_layers_are_restacked(name: str, family: Family, tmp_path: Path) -> None:
    folders = family(name)
    stacks = ARCHITECTURES[name].stacks or {}
    slices = taken_slices(folders)
    recipe: dict[str, Any] = {"merge_method": "passthrough", "slices": slices}
    if len(stacks) > 1:
        recipe = {"merge_method": "passthrough", "modules": {part: {"slices": slices} for part in stacks}}
    out = merged(recipe, tmp_path / "out")
    changes: dict[str, Any] = {count: 4 for _, count in stacks.values()}
    types = ARCHITECTURES[name].settings.get("layer_types")
    if types:
        changes["layer_types"] = [types[0], types[1], types[1], types[0]]
    reference = build(name, **changes)
    states = [load(folder, name).state_dict() for folder in folders]
    expected = restacked(states, [path for path, _ in stacks.values()])
    if len(stacks) > 1:  # what no module holds is the donor's, here the first model's
        expected |= {
            n: states[1][n] for n in ("shared.weight", "lm_head.weight", "proj_out.weight") if n in expected
        }
    config = json.loads((out / "config.json").read_text())
    assert {count: config[count] for _, count in stacks.values()} == {count: 4 for _, count in stacks.values()}
    if "layer_types" in config:
        assert len(config["layer_types"]) == 4
    assert_merged(out, name, expected, reference)


# ----------------------------------------------------------------- modules


@pytest.mark.parametrize("name", MULTIMODAL)
def test_text_is_merged_and_vision_kept(name: str, family: Family, tmp_path: Path) -> None:
    folders = family(name)
    base, *tuned = [load(folder, name).state_dict() for folder in folders]
    recipe = ties(*folders)
    models = recipe.pop("models")
    recipe["modules"] = {"text_decoder": {"models": models}}
    with pytest.warns(UserWarning, match=r"tensors outside them \(.*vision_tower.*\) are copied from ") as warned:
        out = merged(recipe, tmp_path / "out")
    assert sum("tensors outside them" in str(warning.message) for warning in warned) == 1
    expected = elected(base, tuned)
    kept = {n: x for n, x in base.items() if any(part in n for part in ("vision", "visual", "projector"))}
    assert 0 < len(kept) < len(base)
    assert_merged(out, name, expected | kept)


def test_layers_of_a_text_module_are_restacked(family: Family, tmp_path: Path) -> None:
    name = "gemma3_vision"
    folders = family(name)
    modules = {
        "text_decoder": {"slices": taken_slices(folders)},
        "vision_tower": {"slices": [{"sources": [{"model": str(folders[2]), "layer_range": [0, 2]}]}]},
    }
    out = merged({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    sliding, full = "sliding_attention", "full_attention"
    assert config["text_config"]["num_hidden_layers"] == 4
    assert config["text_config"]["layer_types"] == [sliding, full, full, sliding]
    assert config["vision_config"]["num_hidden_layers"] == 2
    assert config["vision_config"]["image_size"] == 8
    stack = "model.vision_tower.encoder.layers"
    states = [load(folder, name).state_dict() for folder in folders]
    expected = restacked(states, ["model.language_model.layers"])
    for key, tensor in states[2].items():
        if "vision_tower" in key:
            expected[key] = tensor
    gone = [key for key in expected if "vision_tower" in key and ".layers.2." in key]
    assert gone, stack
    for key in gone:
        del expected[key]
    expected |= {key: states[1][key] for key in expected if "projector" in key}
    text = {**ARCHITECTURES[name].settings["text_config"], "num_hidden_layers": 4}
    text["layer_types"] = config["text_config"]["layer_types"]
    vision = {**ARCHITECTURES[name].settings["vision_config"], "num_hidden_layers": 2}
    assert_merged(out, name, expected, build(name, text_config=text, vision_config=vision))


def test_a_text_model_is_merged_into_a_multimodal_one(family: Family, tmp_path: Path) -> None:
    whole, text = family("llava")[0], family("llama")[1]
    parts = [{"model": str(f), "parameters": {"weight": w}} for f, w in ((whole, 0.25), (text, 0.75))]
    recipe = {"merge_method": "linear", "modules": {"text_decoder": {"models": parts}}}
    base, other = load(whole, "llava").state_dict(), load(text, "llama").state_dict()
    named = {key.replace("model.language_model.", "model."): key for key in base}
    words = {named[key]: tensor for key, tensor in other.items()}
    expected = base | summed([{key: base[key] for key in words}, words])
    assert_merged(merged(recipe, tmp_path / "out"), "llava", expected)


def test_a_module_that_no_tensor_belongs_to_is_refused(family: Family, tmp_path: Path) -> None:
    for name, wrong, has in (
        ("t5", "encodr", "decoder, encoder, shared"),
        ("llava", "audio_tower", "multi_modal_projector, text_decoder, vision_tower"),
    ):
        recipe = linear(*family(name)[1:])
        recipe["modules"] = {wrong: {"models": recipe.pop("models")}}
        with pytest.raises(InputError, match=rf"modules.{wrong}: .*has no such part; it has .*{has}"):
            merged(recipe, tmp_path / "out")


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_slices_of_several_stacks_name_the_module(name: str, family: Family, tmp_path: Path) -> None:
    recipe = {"merge_method": "passthrough", "slices": taken_slices(family(name))}
    with pytest.raises(InputError, match=r"several stacks of layers \(.*decoder.*encoder.*under modules"):
        merged(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "modules", "expected"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", ("text_decoder",), "text_decoder"),
        ("model.language_model.layers.0.mlp.up_proj.weight", ("text_decoder",), "text_decoder"),
        ("lm_head.weight", ("text_decoder", "vision_tower"), "text_decoder"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", ("text_decoder",), None),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", ("vision_tower",), "vision_tower"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", ("vision_model",), "vision_model"),
        ("model.visual.blocks.0.attn.qkv.weight", ("text_decoder", "vision_tower"), "vision_tower"),
        ("model.visual.merger.mlp.0.weight", ("text_decoder", "vision_tower"), None),
        ("visual.merger.mlp.0.weight", ("multi_modal_projector", "vision_tower"), "multi_modal_projector"),
        ("multi_modal_projector.linear_1.weight", ("text_decoder",), None),
        ("model.audio_tower.layers.0.fc1.weight", ("text_decoder",), None),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", ("encoder", "decoder"), "encoder"),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", ("encoder", "decoder"), "decoder"),
        ("shared.weight", ("encoder", "decoder"), None),
        ("shared.weight", ("encoder", "decoder", "shared"), "shared"),
        ("model.layers.0.mlp.up_proj.weight", ("default",), "default"),
    ],
)
def test_the_module_of_a_tensor(name: str, modules: tuple[str, ...], expected: str | None) -> None:
    assert module_of(name, modules) == expected


def test_candidates_for_modules() -> None:
    assert candidates(["model.embed_tokens.weight", "visual.blocks.0.norm1.weight"]) == [
        "text_decoder",
        "vision_tower",
    ]
    assert candidates(["model.encoder.layers.0.fc1.bias", "model.decoder.layer_norm.bias"]) == [
        "encoder",
        "decoder",
    ]


# ------------------------------------------------------------ heads and rows


@pytest.mark.parametrize("tied", [(True, True), (False, False), (True, False), (False, True)])
def test_heads(tied: tuple[bool, bool], tmp_path: Path) -> None:
    folders = [
        save(build("llama", seed, tie_word_embeddings=one), tmp_path / str(seed)) for seed, one in enumerate(tied)
    ]
    out = merged(linear(*folders), tmp_path / "out")
    assert ("lm_head.weight" in stored_names(out)) == (tied != (True, True))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == all(tied)
    states = [load(folder, "llama").state_dict() for folder in folders]
    assert_merged(out, "llama", summed(states), build("llama", tie_word_embeddings=all(tied)))


def test_rows_of_padding_survive(tmp_path: Path) -> None:
    folders = []
    for seed in range(2):
        model = build("llama", seed, vocab_size=VOCAB + 16, tie_word_embeddings=False)
        model.config.vocab_size = VOCAB  # so that `save` adds a tokenizer of fewer words than rows
        folders.append(save(model, tmp_path / str(seed)))
        config = json.loads((folders[-1] / "config.json").read_text())
        (folders[-1] / "config.json").write_text(json.dumps(config | {"vocab_size": VOCAB + 16}))
    states = [load(folder, "llama").state_dict() for folder in folders]
    expected = summed(states)
    reference = build("llama", vocab_size=VOCAB + 16, tie_word_embeddings=False)
    assert_merged(merged(linear(*folders), tmp_path / "plain"), "llama", expected, reference)
    aligned_too = merged(linear(*folders, tokenizer_source="union"), tmp_path / "union")
    assert_merged(aligned_too, "llama", expected, reference)


def test_a_t5_with_heads_keeps_the_flag_that_scales_its_outputs(family: Family, tmp_path: Path) -> None:
    folders = []
    for source in family("t5")[:2]:
        folder = shutil.copytree(source, tmp_path / source.name)
        tensors = load_file(folder / "model.safetensors")
        twin = {"lm_head.weight": tensors["shared.weight"].clone()}
        save_file(tensors | twin, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        del config["scale_decoder_outputs"]  # which only new files say
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(folder)
    out = merged(linear(*folders), tmp_path / "out")
    assert_merged(out, "t5", summed([load(folder, "t5").state_dict() for folder in folders]))


# ---------------------------------------------------------------- containers


def as_pickle(folder: Path, out: Path, change: Callable[[State], State] = lambda state: state) -> Path:
    """The model folder in the format of old: one PyTorch file, where tied tensors are under all their names."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(change(load_file(folder / "model.safetensors")), out / "pytorch_model.bin")
    return out


def test_shards_and_pickles_give_the_same(tmp_path: Path) -> None:
    models = [build("qwen2", seed) for seed in range(2)]
    folders = [save(model, tmp_path / str(seed)) for seed, model in enumerate(models)]
    sharded = save(models[0], tmp_path / "sharded", max_shard_size="5KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    pickled = as_pickle(folders[1], tmp_path / "pickled")
    plain = load_file(merged(linear(*folders), tmp_path / "plain") / "model.safetensors")
    other = load_file(merged(linear(sharded, pickled), tmp_path / "other") / "model.safetensors")
    assert plain.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())


def test_a_pickled_model_stays_tied(tmp_path: Path) -> None:
    folders = [save(build("llama", seed, tie_word_embeddings=True), tmp_path / str(seed)) for seed in range(2)]
    twice = [
        as_pickle(f, tmp_path / f"{f.name}-bin", lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"]})
        for f in folders
    ]
    for left, right in (twice, (twice[0], folders[1]), (folders[0], twice[1])):
        out = merged(linear(left, right), tmp_path / f"{left.name}-{right.name}")
        assert stored_names(out) == stored_names(folders[0])
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


# --------------------------------------------------------- names of old files


def without_prefix(folder: Path, out: Path, prefix: str, *extra: str) -> Path:
    """The model as a class without a head saved it, perhaps with tensors that are no longer used."""

    def rename(state: State) -> State:
        short = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        return short | {name: torch.ones(1, 1, 4, 4) for name in extra}

    return as_pickle(folder, out, rename)


def test_names_without_the_prefix_of_the_donor(family: Family, tmp_path: Path) -> None:
    base, one, two = family("gpt2")
    old = without_prefix(one, tmp_path / "old", "transformer.", "h.0.attn.bias", "h.1.attn.masked_bias")
    new = load_file(merged(ties(base, one, two), tmp_path / "new") / "model.safetensors")
    mixed = load_file(merged(ties(base, old, two), tmp_path / "mixed") / "model.safetensors")
    assert mixed.keys() == new.keys()
    assert all(torch.equal(tensor, mixed[name]) for name, tensor in new.items())
    expected = summed([load(folder, "gpt2").state_dict() for folder in (one, two)])
    out = merged(linear(old, two), tmp_path / "donor")
    assert stored_names(out) == {name.removeprefix("transformer.") for name in stored_names(two)}
    assert_merged(out, "gpt2", expected)


def test_names_are_aligned_with_the_donors() -> None:
    gpt2 = ["transformer.wte.weight", "transformer.h.0.ln_1.bias", "lm_head.weight"]
    short = ["wte.weight", "h.0.ln_1.bias", "lm_head.weight", "h.0.attn.bias"]
    assert aligned(short, gpt2) == {
        "wte.weight": "transformer.wte.weight",
        "h.0.ln_1.bias": "transformer.h.0.ln_1.bias",
        "lm_head.weight": "lm_head.weight",
        "h.0.attn.bias": "transformer.h.0.attn.bias",
    }
    assert aligned(gpt2, short) == {name: name.removeprefix("transformer.") for name in gpt2}
    assert aligned(["layers.0.a"], ["model.layers.0.a", "lm_head.weight"]) == {"layers.0.a": "model.layers.0.a"}
    vision = ["language_model.model.layers.0.a", "language_model.lm_head.weight", "vision_tower.layers.0.a"]
    saved = ["model.language_model.layers.0.a", "lm_head.weight", "model.vision_tower.layers.0.a"]
    assert list(aligned(saved, vision).values()) == vision
    assert list(aligned(vision, saved).values()) == saved


@pytest.mark.parametrize(
    ("names", "donor"),
    [
        (["model.layers.0.a", "lm_head.weight"], ["model.layers.0.a", "lm_head.weight"]),  # nothing to do
        (["layers.0.a"], ["model.layers.0.b"]),  # it would not help
        (["norm.a"], ["model.norm.a", "bert.norm.a"]),  # which?
        (["layers.0.a", "module.layers.0.a"], ["model.layers.0.a"]),  # two would be one
        (["encoder.layers.0.a"], ["decoder.layers.0.a"]),  # these are no wrappers
    ],
)
def test_names_that_stay(names: list[str], donor: list[str]) -> None:
    assert aligned(names, donor) == {name: name for name in names}


def test_tied_names() -> None:
    assert tied_to("lm_head.weight", ["model.embed_tokens.weight"]) == "model.embed_tokens.weight"
    assert tied_to("decoder.embed_tokens.weight", ["shared.weight"]) == "shared.weight"
    assert tied_to("cls.predictions.decoder.bias", ["cls.predictions.bias"]) == "cls.predictions.bias"
    assert tied_to("lm_head.bias", ["lm_head.decoder.bias"]) == "lm_head.decoder.bias"
    assert tied_to("model.norm.weight", ["model.embed_tokens.weight"]) is None
    assert tied_to("lm_head.weight", ["model.norm.weight"]) is None


def test_old_files_of_t5_and_bert_merge_with_new_ones(family: Family, tmp_path: Path) -> None:
    def t5(state: State) -> State:
        shared = state["shared.weight"]
        return state | dict.fromkeys(("encoder.embed_tokens.weight", "lm_head.weight"), shared)

    def bert(state: State) -> State:
        head = {
            "cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"],
            "cls.predictions.decoder.bias": state["cls.predictions.bias"],
        }
        return state | head | {"bert.embeddings.position_ids": torch.arange(64)[None]}

    for name, old in (("t5", t5), ("bert", bert)):
        _, one, two = family(name)
        pickled = as_pickle(one, tmp_path / name, old)
        expected = summed([load(folder, name).state_dict() for folder in (one, two)])
        assert_merged(merged(linear(pickled, two), tmp_path / f"{name}-1"), name, expected)
        swapped = summed([load(folder, name).state_dict() for folder in (two, one)])
        assert_merged(merged(linear(two, pickled), tmp_path / f"{name}-2"), name, swapped)


# -------------------------------------------------------------------- config


def of_slices(config: dict[str, Any], *taken: tuple[dict[str, Any], int, int], stack: str = "s") -> dict[str, Any]:
    count = layer_count_key(config, stack)
    assert count is not None
    layers = config[count[0]] if len(count) == 1 else config[count[0]][count[1]]
    return output_config(
        config, {}, donor_has_head=False, layers={stack: (layers, taken)}, vocabulary_size=None, token_ids={}
    )


def test_lists_with_an_entry_for_each_layer_follow_the_layers() -> None:
    donor = {
        "num_hidden_layers": 4,
        "layer_types": list("abcd"),
        "no_rope_layers": [1, 1, 1, 0],
        "intermediate_size": [10, 11, 12, 13],
        "mlp_only_layers": [0, 2],
        "eos_token_id": [5, 6, 7, 8],
        "suppress_tokens": [5, 6, 7, 8],
        "attn_layer_indices": [1, 2],
        "rope_scaling_layers": [0, 1, 2, 3],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
        "time_step_limit": [0.0, 1.0],
        "rope_scaling": {"long_factor": [1, 2, 3, 4]},
        "max_window_layers": 4,
    }
    other = {"num_hidden_layers": 6, "layer_types": list("uvwxyz"), "mlp_only_layers": [5]}
    other["rope_scaling_layers"] = [4]
    config = of_slices(donor, (donor, 0, 3), (other, 4, 6))
    assert config["num_hidden_layers"] == 5
    assert config["layer_types"] == list("abcyz")
    assert config["no_rope_layers"] == [1, 1, 1]  # the other's config says nothing of them
    assert config["mlp_only_layers"] == [0, 2, 4]
    assert config["rope_scaling_layers"] == [0, 1, 2, 3]
    assert config["attn_layer_indices"] == [1, 2]  # the other's are none of the donor's, read as they are
    assert config["intermediate_size"] == [10, 11, 12]
    unchanged = ("eos_token_id", "suppress_tokens", "time_step_limit", "rope_scaling", "max_window_layers")
    unchanged += ("supported_aspect_ratios",)
    assert {key: config[key] for key in unchanged} == {key: donor[key] for key in unchanged}
    assert donor["layer_types"] == list("abcd"), "the donor's own config must not be modified"


def test_layers_keep_their_kind_of_attention_where_the_config_gives_a_rule() -> None:
    sliding, full = "sliding_attention", "full_attention"
    gemma2 = {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 8}  # as its first version was
    assert of_slices(gemma2, (gemma2, 0, 1), (gemma2, 2, 4))["layer_types"] == [sliding, sliding, full]
    assert "layer_types" not in of_slices(gemma2, (gemma2, 0, 2), (gemma2, 0, 4))  # the rule still gives it
    gemma3 = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
    }
    assert of_slices(gemma3, (gemma3, 2, 5))["layer_types"] == [full, sliding, sliding]
    llama4 = {  # as it was published
        "model_type": "llama4_text",
        "num_hidden_layers": 8,
        "attention_chunk_size": 16,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [],
    }
    moved = of_slices(llama4, (llama4, 0, 2), (llama4, 3, 8))
    chunked = "chunked_attention"
    assert moved["layer_types"] == [chunked, chunked, full, chunked, chunked, chunked, full]
    assert moved["no_rope_layers"] == [1, 1, 0, 1, 1, 1, 0]
    assert moved["moe_layers"] == [1, 2, 4, 6]
    bamba = {"model_type": "bamba", "num_hidden_layers": 4, "attn_layer_indices": [1, 3], "attn_layer_period": 2}
    bamba["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    assert of_slices(bamba, (bamba, 1, 4))["attn_layer_indices"] == [0, 2]
    modernbert = {"model_type": "modernbert", "num_hidden_layers": 8}  # all of the rule is transformers' default
    assert of_slices(modernbert, (modernbert, 1, 5))["layer_types"] == [sliding, sliding, full, sliding]
    assert "layer_types" not in of_slices(modernbert, (modernbert, 3, 7))
    strange = {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 8, "hidden_size": "wide"}
    with pytest.warns(UserWarning, match="config.json: transformers cannot read it"):
        assert "layer_types" not in of_slices(strange, (strange, 1, 3))
    mistral = {"model_type": "mistral", "num_hidden_layers": 4, "sliding_window": 8}
    assert "layer_types" not in of_slices(mistral, (mistral, 1, 3))
    for kind in ("of its own", ["gemma2"]):
        unknown = {"model_type": kind, "num_hidden_layers": 4, "sliding_window": 8}
        assert "layer_types" not in of_slices(unknown, (unknown, 1, 3))


@pytest.mark.parametrize("kind", ALIKE)
def test_layers_that_count_as_alike_have_no_lists_of_their_own(kind: str) -> None:
    config = CONFIG_MAPPING[kind](num_hidden_layers=13)
    assert config.num_hidden_layers == 13
    lists = [name for name, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == 13]
    assert lists == []
    assert not vars(config).keys() & set(LISTS_OF_LAYERS)


@pytest.mark.parametrize(
    ("config", "stack", "expected"),
    [
        (
            {"num_layers": 2, "is_encoder_decoder": True},
            "decoder.block",
            {"num_layers": 2, "num_decoder_layers": 1},
        ),
        (
            {"num_layers": 2, "is_encoder_decoder": True},
            "encoder.block",
            {"num_layers": 1, "num_decoder_layers": 2},
        ),
        (
            {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2},
            "model.encoder.layers",
            {"encoder_layers": 1, "decoder_layers": 2, "num_hidden_layers": 1},
        ),
        (
            {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2},
            "model.decoder.layers",
            {"encoder_layers": 2, "decoder_layers": 1, "num_hidden_layers": 2},
        ),
        (
            {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2}},
            "model.visual.blocks",
            {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 1}},
        ),
        (
            {"text_config": {"num_hidden_layers": 2}, "audio_config": {"num_hidden_layers": 2}},
            "model.audio_tower.layers",
            {"text_config": {"num_hidden_layers": 2}, "audio_config": {"num_hidden_layers": 1}},
        ),
    ],
)
def test_the_layer_count_that_is_set(config: dict[str, Any], stack: str, expected: dict[str, Any]) -> None:
    made = of_slices(config, (config, 0, 1), stack=stack)
    assert {key: made[key] for key in expected} == expected


def test_a_layer_count_that_is_nowhere_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="has no layer count that could be set for s"):
        output_config(
            {"hidden_size": 4},
            {},
            donor_has_head=False,
            layers={"s": (2, [({}, 0, 1)])},
            vocabulary_size=None,
            token_ids={},
        )


def test_the_first_layers_tensor_of_a_whole_stack() -> None:
    t5 = [f"encoder.block.{i}.layer.0.q.weight" for i in range(2)]
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    assert of_the_stack([*t5, bias.format(0)]) == {bias.format(0)}
    assert of_the_stack([*t5, bias.format(0), bias.format(1)]) == set()
    assert rivals({"encoder.block": 2, "decoder.block": 3}, "encoder.block") == ["decoder.block"]
    assert rivals({"encoder.block": 2, "decoder.block": 3}, "decoder.block") == ["encoder.block"]
    assert rivals({"layers": 4, "vision.encoder.layers": 3}, "layers") == []
    assert rivals({"layers": 4, "vision.encoder.layers": 4}, "layers") == ["vision.encoder.layers"]


# --------------------------------------------------------------- live models


@pytest.mark.parametrize("name", [name for name, made in ARCHITECTURES.items() if made.causal])
def test_the_live_model_is_that_of_the_folder(name: str, family: Family, tmp_path: Path) -> None:
    base, one, two = family(name)
    loader = CandidateLoader(threads=1)
    first = loader.load(Recipe.model_validate(ties(base, one, two)))
    for i, recipe in enumerate((ties(base, two, one), ties(base, one, two), linear(one, two))):
        live = loader.load(Recipe.model_validate(recipe))
        loaded = load(merged(recipe, tmp_path / str(i)), name)
        assert_same_state(live.model, loaded.state_dict())
        torch.testing.assert_close(logits(live.model, name), logits(loaded, name))
        # transformers fuses experts while loading, and calls GPT-NeoX's head otherwise: no writing in place there.
        # Without a base the donor is another model.
        assert (live is first) == (name not in ("mixtral", "qwen3_moe", "gpt_neox") and i < 2)


def test_a_live_model_takes_names_without_their_prefix(family: Family, tmp_path: Path) -> None:
    old, two = without_prefix(family("gpt2")[1], tmp_path / "old", "transformer."), family("gpt2")[2]
    loader = CandidateLoader(threads=1)
    recipe = Recipe.model_validate(linear(old, two))
    live = loader.load(recipe)
    assert loader.load(recipe) is live
    assert_same_state(live.model, summed([load(folder, "gpt2").state_dict() for folder in (old, two)]))


@pytest.mark.parametrize(
    ("name", "buffer"),
    [("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"), ("gpt2", "transformer.h.0.attn.bias")],
)
def test_a_live_model_needs_no_buffers_that_it_does_not_read(
    name: str, buffer: str, family: Family, tmp_path: Path
) -> None:
    plain = family(name)
    old = [as_pickle(folder, tmp_path / folder.name, lambda s: s | {buffer: torch.ones(4)}) for folder in plain]
    loader = CandidateLoader(threads=1)
    live = loader.load(Recipe.model_validate(linear(*old[:2])))
    assert loader.load(Recipe.model_validate(ties(*old))) is live
    assert_same_state(live.model, CandidateLoader(threads=1).load(Recipe.model_validate(ties(*plain))).parameters)
