"""Tiny models for the matrix of recipes: an architecture's base and three fine-tunes of it, in any stored dtype.

A fine-tune's values depend on its name, the tensor's and the token's alone, so that the same model can be had with
other dtypes, heads and vocabularies.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch import Tensor

MODELS = ("base", "a", "b", "c")
TOKENS = 44
MORE_TOKENS = 3
EXPERTS = 3
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    **_SPECIAL,
}
_GPT2 = {"vocab_size": TOKENS, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, **_SPECIAL}
_T5 = {
    "vocab_size": TOKENS,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "feed_forward_proj": "gated-gelu",  # the one that mergekit knows
}


@dataclass(frozen=True)
class Architecture:
    """How a tiny model of an architecture is made, and what recipes say about it.

    Attributes:
        config: Name of transformers' config class.
        model: Name of its model class.
        settings: Of the config.
        part: A piece of the names of some layers' tensors, for filters.
        stack: What comes before the number of a layer.
        adapted: The name of modules that an adapter changes.
        modules: mergekit's names of its modules.
        untied: Which of the models have a head of their own.
    """

    config: str
    model: str
    settings: Mapping[str, Any]
    part: str = "mlp"
    stack: str = "layers"
    adapted: str = "q_proj"
    modules: tuple[str, ...] = ("default",)
    untied: frozenset[str] = field(default=frozenset())


_LLAMA = {**_TEXT, "tie_word_embeddings": True}
ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM", _LLAMA),
    "llama-untied": Architecture("LlamaConfig", "LlamaForCausalLM", _LLAMA, untied=frozenset(MODELS)),
    "llama-mixed": Architecture("LlamaConfig", "LlamaForCausalLM", _LLAMA, untied=frozenset("a")),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM", _TEXT, untied=frozenset(MODELS)),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM", _LLAMA),
    "qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "gemma2": Architecture("Gemma2Config", "Gemma2ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "gpt2": Architecture("GPT2Config", "GPT2LMHeadModel", _GPT2, stack="h", adapted="c_attn"),
    "gpt_neox": Architecture("GPTNeoXConfig", "GPTNeoXForCausalLM", _TEXT, untied=frozenset(MODELS)),
    "mixtral": Architecture(
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_TEXT, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
        part="experts",
        untied=frozenset(MODELS),
    ),
    "roberta": Architecture("RobertaConfig", "RobertaForMaskedLM", _TEXT, "output.dense", "layer", "query"),
    "t5": Architecture(
        "T5Config",
        "T5ForConditionalGeneration",
        _T5,
        "SelfAttention",
        "block",
        "q",
        ("encoder", "decoder", "shared"),
    ),
}

# Words of each model; those that are not the base's come last, and `c` has rows that no token has.
WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(TOKENS - 3))]
EXTRA = [f"extra{i}" for i in range(MORE_TOKENS)]
VOCABULARIES: dict[str, list[str]] = {
    "base": WORDS,
    "a": [*WORDS[:5], *WORDS[:4:-1], EXTRA[0], EXTRA[1]],
    "b": [*WORDS[:-2], EXTRA[1], EXTRA[2]],
    "c": WORDS,
}


class Zoo:
    """Model folders, made when asked for.

    Args:
        root: Where they are made.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def model(self, architecture: str, name: str, dtype: torch.dtype, *, spoken: bool = False) -> str:
        """A model's folder.

        Args:
            architecture: Its key in ``ARCHITECTURES``.
            name: One of ``MODELS``.
            dtype: Of the stored tensors.
            spoken: Whether it has a tokenizer, and a vocabulary of its own.
        """
        kind = str(dtype).removeprefix("torch.")
        folder = self._root / f"{architecture}-{name}-{kind}{'-spoken' * spoken}"
        if not folder.exists():
            self._make(folder, architecture, name, dtype, spoken)
        return str(folder)

    def adapted(self, architecture: str, name: str, dtype: torch.dtype) -> str:
        """The base with an adapter, as recipes refer to it."""
        folder = self._root / f"{architecture}-adapter-{name}"
        if not folder.exists():
            self._make_adapter(folder, architecture, name)
        return f"{self.model(architecture, 'base', dtype)}+{folder}"

    def _make(self, folder: Path, architecture: str, name: str, dtype: torch.dtype, spoken: bool) -> None:
        made = ARCHITECTURES[architecture]
        words = VOCABULARIES[name] if spoken else WORDS
        model = _build(made, tie_word_embeddings=name not in made.untied, vocab_size=len(words))
        rows = torch.tensor([(WORDS + EXTRA).index(word) for word in words])
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                shape = list(parameter.shape)
                vocabulary = shape[0] == len(words)
                if vocabulary:
                    shape[0] = len(WORDS + EXTRA)
                values = _values(key, shape, name)
                parameter.copy_(values[rows] if vocabulary else values)
        model.to(dtype).save_pretrained(folder)
        if architecture == "gpt_neox":
            _add_buffers(folder / "model.safetensors", dtype)
        if spoken:
            _save_tokenizer(folder, words)

    def _make_adapter(self, folder: Path, architecture: str, name: str) -> None:
        made = ARCHITECTURES[architecture]
        tensors = {}
        for key, module in _build(made).named_modules():
            if key.split(".")[-1] == made.adapted:
                out, into = module.weight.shape
                if made.adapted == "c_attn":  # stored as [in, out]
                    out, into = into, out
                prefix = f"base_model.model.{key}.lora"
                tensors[f"{prefix}_A.weight"] = _random(f"{key} A", [2, into], name)
                tensors[f"{prefix}_B.weight"] = 0.2 * _random(f"{key} B", [out, 2], name)
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 2,
            "target_modules": [made.adapted],
            "fan_in_fan_out": made.adapted == "c_attn",
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))


def _build(made: Architecture, **changes: Any) -> Any:
    config = getattr(transformers, made.config)(**{**made.settings, **changes})
    return getattr(transformers, made.model)(config)


def _random(key: str, shape: Sequence[int], salt: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{key} {salt}".encode())))


def _values(key: str, shape: Sequence[int], name: str) -> Tensor:
    values = 0.2 * _random(key, shape, "base") + (len(shape) == 1)
    return values if name == "base" else values + 0.1 * _random(key, shape, name)


def _add_buffers(path: Path, dtype: torch.dtype) -> None:
    """What old files of GPT-NeoX hold and mergekit requires; transformers 5 does not save it any more."""
    tensors = load_file(path)
    for layer in range(3):
        prefix = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{prefix}.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9).to(dtype)  # minus infinity in float16
        tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.tensor([1.0], dtype=dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def _save_tokenizer(folder: Path, words: Sequence[str]) -> None:
    tokenizer = Tokenizer(tokenizer_models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    config |= {"eos_token": "</s>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
