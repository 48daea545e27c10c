"""``verify`` passes what transformers loads, runs and generates with, and publishes nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.api import merge_models
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.output import verification
from heterosis.merge.output.verification import verify_folder
from heterosis.merge.recipe.recipe import Recipe

MakeLlama = Callable[..., Path]


def copy_of(folder: Path, out: Path, **keys: Any) -> Path:
    """A merge of one model: its copy, verified."""
    recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(folder)}]} | keys)
    return merge_models(recipe, out, verify=True)


@pytest.fixture(scope="session")
def llama(make_llama: MakeLlama) -> Path:
    return make_llama("verified", seed=0)


def test_a_merge_is_verified(make_llama: MakeLlama, llama: Path, tmp_path: Path) -> None:
    other = make_llama("verified-child", seed=1, noise_from=llama)
    models = [{"model": str(model), "parameters": {"weight": 1}} for model in (llama, other)]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})
    out = merge_models(recipe, tmp_path / "out", verify=True)
    assert (out / "model.safetensors").is_file()
    for path in tmp_path.glob("out/*token*"):
        path.unlink()
    verify_folder(out, "out")  # without a tokenizer


TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
WHISPER = {
    "vocab_size": 60,
    "d_model": 16,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 20,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
VIT = {**TINY, "image_size": 8, "patch_size": 4}
KINDS = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "bert": ("BertForMaskedLM", TINY),
    "roberta": ("RobertaForSequenceClassification", TINY),
    "t5": ("T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0}),
    "whisper": ("WhisperForConditionalGeneration", WHISPER),
    "vit": ("ViTForImageClassification", VIT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_models(kind: str, tmp_path: Path) -> None:
    name, settings = KINDS[kind]
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    cls(cls.config_class(**settings)).save_pretrained(tmp_path / kind)
    assert (copy_of(tmp_path / kind, tmp_path / "out") / "config.json").is_file()


def fault_of(folder: Path) -> str:
    with pytest.raises(MergeError) as caught:
        verify_folder(folder, "my/out")
    fault = str(caught.value)
    assert "\n" not in fault
    assert str(folder) not in fault
    assert fault.startswith("my/out: the merged model ")
    return fault


def change_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda folder: change_tensors(folder, lambda t: t.pop(NORM)),
        f"loaded: tensors that the model needs are missing: {NORM}",
    ),
    "left over": (
        lambda folder: change_tensors(folder, lambda t: t.update(spare=torch.ones(2))),
        "loaded: tensors are left over: spare",
    ),
    "more layers": (lambda folder: change_config(folder, num_hidden_layers=3), "are missing: model.layers.2."),
    "shape": (lambda folder: change_config(folder, intermediate_size=24), "loaded: "),
    "unknown": (lambda folder: change_config(folder, model_type="llamma"), "loaded: "),
    "code": (
        lambda folder: change_config(folder, model_type="own", auto_map={"AutoConfig": "code.Config"}),
        "loaded: model_type 'own' is unknown to transformers",
    ),
    "infinite": (
        lambda folder: change_tensors(folder, lambda t: t.update({NORM: torch.full_like(t[NORM], torch.inf)})),
        "gives NaN or infinity",
    ),
    "tokenizer": (
        lambda folder: (
            change_config(folder, vocab_size=2, pad_token_id=None, eos_token_id=None, bos_token_id=None),
            change_tensors(folder, lambda t: t.update({EMBEDDING: t[EMBEDDING][:2].clone()})),
        ),
        "given a prompt: its tokenizer gives the id 18, but its embedding has 2 rows",
    ),
    "generation config": (
        lambda folder: (folder / "generation_config.json").write_text('{"num_beams": -1}'),
        "made to generate: ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_in_one_line(llama: Path, tmp_path: Path, name: str) -> None:
    out = copy_of(llama, tmp_path / "out")
    broken, says = BROKEN[name]
    broken(out)
    assert says in fault_of(out)


def test_what_fails_is_not_published(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_forward", lambda model, inputs: torch.tensor([torch.nan]))
    with pytest.raises(MergeError, match=rf"^{tmp_path}/out: the merged model gives NaN or infinity"):
        copy_of(llama, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_files_of_weights_cannot_be_verified(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^verify: needs models with a config"):
        copy_of(llama / "model.safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_transformers_is_left_as_it_was(llama: Path, tmp_path: Path) -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    state = torch.get_rng_state()
    out = copy_of(llama, tmp_path / "out")
    change_config(out, num_hidden_layers=3)
    fault_of(out)
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled()
    assert torch.equal(torch.get_rng_state(), state)
