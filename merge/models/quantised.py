"""Quantised weights: recognised by config and header, and refused, since a merge of them is not what it seems.

Merging means arithmetic on weights. Quantised ones are integers with scales beside them, and nothing here widens
them, not even where that were exact: whoever dequantises knows then that the merge is one of rounded weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heterosis.errors import InputError
from heterosis.merge.models.sources import TensorSource

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)  # others are refused wherever they are read
_CONFIGS = ("quantization_config", "compression_config")  # the second is an early compressed-tensors


@dataclass(frozen=True)
class Scheme:
    """A way to quantise.

    Attributes:
        name: As people call it.
        dequantised: How transformers loads such a model dequantised; None where it does not.
    """

    name: str
    dequantised: str | None = None


def _loaded_with(config: str) -> str:
    return f"from_pretrained(MODEL, quantization_config={config}(dequantize=True))"


# By quant_method in config.json; transformers knows more of them, which are named as the config does.
_SCHEMES = {
    "gptq": Scheme("GPTQ"),
    "awq": Scheme("AWQ"),
    "bitsandbytes": Scheme("bitsandbytes", "from_pretrained(MODEL).dequantize()"),
    "fp8": Scheme("FP8", _loaded_with("FineGrainedFP8Config")),
    "fbgemm_fp8": Scheme("FBGEMM FP8"),
    "compressed-tensors": Scheme("compressed-tensors", _loaded_with("CompressedTensorsConfig")),
    "hqq": Scheme("HQQ"),
    "mxfp4": Scheme("MXFP4", _loaded_with("Mxfp4Config")),
    "gguf": Scheme("GGUF", "from_pretrained(FOLDER, gguf_file=FILE)"),
}

# Endings of tensor names that no scheme but one uses. The first that is found counts: AWQ has no .g_idx.
_ENDINGS = (
    (".g_idx", "gptq"),
    (".qweight", "awq"),
    (".qzeros", "awq"),
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".W_q", "hqq"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "fp8"),
)


def refuse_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config.json that declares quantised weights.

    Raises:
        InputError: If it does; one line that names the scheme and the remedy.
    """
    for found in _declared(config):
        method = str(found.get("quant_method") or "").lower()
        if not method and (found.get("load_in_4bit") or found.get("load_in_8bit")):
            method = "bitsandbytes"
        scheme = _SCHEMES.get(method, Scheme(method))
        bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else found.get("bits")
        size = f" ({bits} bit)" if scheme.name and isinstance(bits, int) else ""
        raise InputError(f"{file}: the model is quantised{_with(scheme)}{size}; {_remedy(scheme)}")


def refuse_tensors(where: Path, tensors: Mapping[str, TensorSource], what: str = "model") -> None:
    """Refuse tensors that are quantised, whatever a config says.

    Args:
        where: The folder or file, for the message.
        tensors: By name.
        what: What they are, for the message.

    Raises:
        InputError: If one is; one line that names the tensor, the scheme and the remedy.
    """
    for ending, method in _ENDINGS:
        name = next((name for name in tensors if name.endswith(ending)), None)
        if name is not None:
            scheme = _SCHEMES[method]
            raise InputError(f"{where}: {name}: the {what} is quantised{_with(scheme)}; {_remedy(scheme)}")
    for name, source in tensors.items():
        blocks = name.removesuffix("_blocks")
        if blocks != name and source.dtype == torch.uint8 and f"{blocks}_scales" in tensors:
            scheme = _SCHEMES["mxfp4"]
            raise InputError(f"{where}: {name}: the {what} is quantised{_with(scheme)}; {_remedy(scheme)}")
        integers = not source.dtype.is_floating_point and f"{name}_scale" in tensors
        if source.dtype in _FLOAT8 or integers:
            kind = str(source.dtype).removeprefix("torch.") if integers else "float8"
            raise InputError(f"{where}: {name}: the {what} is quantised to {kind}; {_remedy(Scheme(''))}")


def refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file, or a folder that holds some.

    Raises:
        InputError: If it is one.
    """
    files = [path] if path.suffix.lower() == ".gguf" else sorted(path.glob("*.gguf"))
    if files:
        raise InputError(f"{files[0]}: the weights are in GGUF, mostly quantised; {_remedy(_SCHEMES['gguf'])}")


def _declared(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The quantisation that a config declares for the model, or for a part of it."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            if key in _CONFIGS:
                yield value
            else:
                yield from _declared(value)


def _with(scheme: Scheme) -> str:
    return f" with {scheme.name}" if scheme.name else ""


def _remedy(scheme: Scheme) -> str:
    text = "merge the original weights instead"
    if scheme.dequantised is None:
        return f"{text}, as it is not dequantised here"
    return (
        f"{text}, or dequantise it first with transformers, which is not done here even where it is exact: "
        f"AutoModelForCausalLM.{scheme.dequantised}.save_pretrained(OUT)"
    )
