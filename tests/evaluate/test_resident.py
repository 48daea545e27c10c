import json
import math
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from heterosis.errors import InputError
from heterosis.evaluate import ModelMismatch, ResidentModel
from heterosis.merge.models.tokenizer import ModelTokenizer

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "phi3": {"pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}


def resident_of(folder: Path) -> ResidentModel:
    tokenizer = ModelTokenizer.of_folder(folder).load()
    config, generation = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "generation_config")
    )
    return ResidentModel(config, generation, folder, tokenizer)


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_written_in_place_it_computes_what_the_loaded_model_computes(
    architecture: str, save_model: Callable[..., Path]
) -> None:
    folder = save_model(architecture, **ARCHITECTURES[architecture])
    tensors = load_file(folder / "model.safetensors")
    resident = resident_of(folder)
    resident.check_names(shapes_of(tensors))
    for name, tensor in tensors.items():
        resident.parameters[name].copy_(tensor)

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.arange(1, 60)[None]
    with torch.inference_mode():
        assert torch.equal(resident.model(tokens).logits, loaded(tokens).logits)
    assert resident.checksum() == ResidentModel.from_folder(folder).checksum()
    assert not resident.model.training
    assert resident.logits_finite()


def test_tied_weights_are_one_tensor_under_two_names(llama: Path) -> None:
    resident = resident_of(llama)
    embedding, head = (resident.parameters[n] for n in ("model.embed_tokens.weight", "lm_head.weight"))
    assert embedding.data_ptr() == head.data_ptr() == resident.model.lm_head.weight.data_ptr()


def test_names_and_shapes_must_match(llama: Path) -> None:
    resident = resident_of(llama)
    shapes = shapes_of(load_file(llama / "model.safetensors"))
    assert "lm_head.weight" not in shapes
    resident.check_names(shapes)
    with pytest.raises(ModelMismatch, match=r"^model\.norm\.weight is missing$"):
        resident.check_names({name: shape for name, shape in shapes.items() if name != "model.norm.weight"})
    with pytest.raises(ModelMismatch, match=r"^model\.extra is not in the model$"):
        resident.check_names(shapes | {"model.extra": (1,)})
    with pytest.raises(ModelMismatch, match=r"^model\.norm\.weight is \[31\], but \[32\] in the model$"):
        resident.check_names(shapes | {"model.norm.weight": (31,)})
    with pytest.raises(
        ModelMismatch, match=r"^lm_head\.weight is tied to model\.embed_tokens\.weight in the model$"
    ):
        resident.check_names(shapes | {"lm_head.weight": shapes["model.embed_tokens.weight"]})


def test_an_architecture_whose_tensors_transformers_renames_takes_the_slower_path(
    save_model: Callable[..., Path],
) -> None:
    folder = save_model("gpt_neox")
    tensors = load_file(folder / "model.safetensors")
    with pytest.raises(
        ModelMismatch, match=r"^embed_out\.weight is not in the model; lm_head\.weight is missing$"
    ):
        resident_of(folder).check_names(shapes_of(tensors))
    assert torch.equal(ResidentModel.from_folder(folder).parameters["lm_head.weight"], tensors["embed_out.weight"])


def test_the_checksum_reads_the_live_parameters(llama: Path) -> None:
    resident = ResidentModel.from_folder(llama)
    before = resident.checksum()
    assert resident.checksum() == before
    for parameter in resident.model.parameters():  # any tensor changed as a merge changes it is noticed
        saved = parameter.clone()
        parameter.mul_(1.25)
        assert resident.checksum() != before
        parameter.copy_(saved)
    assert resident.checksum() == before


def test_nan_is_noticed(llama: Path) -> None:
    resident = ResidentModel.from_folder(llama)
    assert resident.logits_finite()
    resident.parameters["model.layers.1.mlp.up_proj.weight"][3, 3] = math.nan
    assert not resident.logits_finite()


@pytest.mark.parametrize(("fits", "found"), [(1, 1), (5, 4), (10**6, 1024)])
def test_the_largest_batch_is_what_the_memory_takes(
    llama: Path, monkeypatch: pytest.MonkeyPatch, fits: int, found: int
) -> None:
    resident = ResidentModel.from_folder(llama)
    asked: list[tuple[int, ...]] = []

    def forward(tokens: torch.Tensor) -> Any:
        asked.append(tuple(tokens.shape))
        if len(tokens) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return types.SimpleNamespace(logits=torch.zeros(1, 1, 4))

    monkeypatch.setattr(resident, "model", forward)
    forward.device = "cpu"  # type: ignore[attr-defined]
    assert resident.largest_batch(7) == found
    assert {length for _, length in asked} == {7}
    fits = 0
    with pytest.raises(MemoryError, match="a prompt of 7 tokens does not fit beside the model"):
        resident.largest_batch(7)


def test_lm_eval_gets_the_same_model_once(llama: Path) -> None:
    resident = ResidentModel.from_folder(llama)
    pointers = {name: tensor.data_ptr() for name, tensor in resident.parameters.items()}
    lm = resident.lm(batch_size=2)
    assert lm is resident.lm(batch_size=2)
    assert lm.model is resident.model
    assert {name: tensor.data_ptr() for name, tensor in resident.model.state_dict().items()} == pointers
    assert (lm.batch_size, resident.lm(4).batch_size) == (2, 4)


def test_the_donors_generation_config_is_used(save_model: Callable[..., Path]) -> None:
    folder = save_model()
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 9], "pad_token_id": 4}')
    assert resident_of(folder).model.generation_config.eos_token_id == [0, 9]


def test_compute_dtype_is_not_the_configs(save_model: Callable[..., Path]) -> None:
    config = json.loads((save_model() / "config.json").read_text()) | {"dtype": "bfloat16"}
    resident = ResidentModel(config, {}, save_model(), None)
    assert {tensor.dtype for tensor in resident.parameters.values()} == {torch.float32}


def test_unknown_architecture(llama: Path) -> None:
    with pytest.raises(InputError, match="model_type: 'lama' is unknown to transformers"):
        ResidentModel({"model_type": "lama"}, {}, llama, None)


def test_not_a_language_model(llama: Path) -> None:
    with pytest.raises(InputError, match="not a causal language model"):
        ResidentModel({"model_type": "vit"}, {}, llama, None)


def test_missing_tokenizer(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*")))
    with pytest.raises(InputError, match="tokenizer: the model has none"):
        ResidentModel.from_folder(folder)


def test_tensors_that_the_config_asks_for_are_not_made_up(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "more"))
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"asks for tensors that the model lacks: model\.layers\.\d\.\S+"):
        ResidentModel.from_folder(folder)
