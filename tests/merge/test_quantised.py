"""Quantised models are refused in one line that names the scheme and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.models.checkpoint import open_checkpoint

LAYER = "model.layers.0.mlp.up_proj"
ORIGINAL = "merge the original weights instead"


@pytest.fixture
def folder(make_llama: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_llama("unquantised", seed=0), tmp_path / "model"))


def fault_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(path))
    (fault,) = caught.value.faults
    assert "\n" not in fault
    assert ORIGINAL in fault
    return fault


def declare(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def store(folder: Path, **tensors: torch.Tensor) -> None:
    """Put tensors of the layer in place of its weight."""
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(LAYER)}
    new = {f"{LAYER}.{name.replace('__', '.')}": tensor.clone() for name, tensor in tensors.items()}
    save_file(kept | new, path)


DECLARED = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "with GPTQ (4 bit)", None),
    "awq": ({"quant_method": "awq", "bits": 4}, "with AWQ (4 bit)", None),
    "bnb 4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "with bitsandbytes (4 bit)", "dequantize()"),
    "bnb 8": ({"load_in_8bit": True}, "with bitsandbytes (8 bit)", "dequantize()"),
    "fp8": ({"quant_method": "fp8"}, "with FP8;", "FineGrainedFP8Config(dequantize=True)"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "with FBGEMM FP8;", None),
    "compressed": ({"quant_method": "compressed-tensors"}, "with compressed-tensors;", "CompressedTensorsConfig"),
    "hqq": ({"quant_method": "hqq"}, "with HQQ;", None),
    "mxfp4": ({"quant_method": "mxfp4"}, "with MXFP4;", "Mxfp4Config(dequantize=True)"),
    "another": ({"quant_method": "aqlm"}, "with aqlm;", None),
    "unnamed": ({"bits": 4}, "the model is quantised;", None),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_config_tells(folder: Path, name: str) -> None:
    declared, says, how = DECLARED[name]
    for key in ("quantization_config", "compression_config"):
        for keys in ({key: declared}, {"text_config": {key: declared}}):
            declare(folder, quantization_config=None, compression_config=None, text_config=None)
            declare(folder, **keys)
            fault = fault_of(folder)
            assert fault.startswith(f"{folder}/config.json: the model is quantised")
            assert says in fault
            assert (how or "not dequantised here") in fault


def test_what_a_remedy_names_is_there() -> None:
    """The classes and arguments are transformers' own."""
    import inspect

    import transformers

    for _, _, how in DECLARED.values():
        if how is not None and "Config" in how:
            parameters = inspect.signature(getattr(transformers, how.partition("(")[0])).parameters
            assert "dequantize" in parameters
    assert callable(transformers.PreTrainedModel.dequantize)


def test_an_empty_declaration_is_none(folder: Path) -> None:
    declare(folder, quantization_config=None)
    open_checkpoint(str(folder)).close()
    declare(folder, quantization_config={})
    open_checkpoint(str(folder)).close()


WORDS = torch.ones(4, 4, dtype=torch.int32)
BYTES = WORDS.to(torch.uint8)
FLOAT8 = torch.ones(4, 4).to(torch.float8_e4m3fn)
SCALE = torch.ones(4)
STORED = {
    "gptq": ({"qweight": WORDS, "qzeros": WORDS, "scales": SCALE, "g_idx": WORDS}, "g_idx", "with GPTQ"),
    "awq": ({"qweight": WORDS, "qzeros": WORDS, "scales": SCALE}, "qweight", "with AWQ"),
    "bnb 4": ({"weight": BYTES, "weight__absmax": SCALE}, "weight.absmax", "with bitsandbytes"),
    "bnb 8": ({"weight": BYTES.to(torch.int8), "SCB": SCALE}, "SCB", "with bitsandbytes"),
    "fp8": ({"weight": FLOAT8, "weight_scale_inv": SCALE}, "weight_scale_inv", "with FP8"),
    "fbgemm": ({"weight": FLOAT8, "weight_scale": SCALE}, "weight", "to float8"),
    "bare fp8": ({"weight": FLOAT8.view(torch.uint8).view(torch.float8_e5m2)}, "weight", "to float8"),
    "int8": ({"weight": BYTES.to(torch.int8), "weight_scale": SCALE}, "weight", "to int8"),
    "packed": ({"weight_packed": WORDS, "weight_scale": SCALE}, "weight_packed", "with compressed-tensors"),
    "hqq": ({"W_q": BYTES, "scale": SCALE}, "W_q", "with HQQ"),
    "mxfp4": ({"weight_blocks": BYTES, "weight_scales": BYTES}, "weight_blocks", "with MXFP4"),
}


@pytest.mark.parametrize("name", STORED)
def test_tensors_tell(folder: Path, name: str) -> None:
    tensors, culprit, says = STORED[name]
    store(folder, **tensors)
    fault = fault_of(folder)
    assert fault.startswith(f"{folder}: {LAYER}.{culprit}: the model is quantised {says}")
    file = folder / "model.safetensors"
    assert fault_of(file).startswith(f"{file}: {LAYER}.{culprit}: the model is quantised {says}")


def test_similar_names_are_ordinary(folder: Path) -> None:
    store(folder, weight=torch.ones(4, 4), weight_scale=SCALE, scales=SCALE, some_blocks=torch.ones(2))
    open_checkpoint(str(folder)).close()


def test_gguf(folder: Path) -> None:
    file = folder / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    open_checkpoint(str(folder)).close()  # beside weights it is a second copy
    says = "the weights are in GGUF, mostly quantised"
    assert fault_of(file).startswith(f"{file}: {says}")
    (folder / "model.safetensors").unlink()
    assert fault_of(folder).startswith(f"{file}: {says}")
    (folder / "config.json").unlink()
    fault = fault_of(folder)
    assert fault.startswith(f"{file}: {says}")
    assert "gguf_file=FILE" in fault
