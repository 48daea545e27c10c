"""Every architecture that merging is shown on: tiny random transformers models, a base and two fine-tunes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 64
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GEMMA = {**TEXT, "head_dim": 8, "sliding_window": 8}
BERT = {**TEXT, "pad_token_id": 0, "type_vocab_size": 2}


def tokens(_: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[1, 5, 9, 33, 2, 7], [1, 60, 4, 4, 8, 11]])}


def translation(_: Any) -> dict[str, torch.Tensor]:
    return {**tokens(_), "decoder_input_ids": torch.tensor([[0, 3, 5], [0, 9, 2]])}


def speech(_: Any) -> dict[str, torch.Tensor]:
    audio = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(5))
    return {"input_features": audio, "decoder_input_ids": torch.tensor([[1, 3, 5]])}


def picture_and_text(_: Any) -> dict[str, torch.Tensor]:
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    return {"input_ids": torch.tensor([[1, 63, 63, 63, 63, 5, 7]]), "pixel_values": pixels}


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny model.

    Attributes:
        config: The name of transformers' config class.
        model: The name of its model class.
        settings: Of the config.
        inputs: What to run it on.
        stack: The path of the layers that slices take from; None where the model has several stacks.
        causal: Whether it is a causal language model.
    """

    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=lambda: dict(TEXT))
    inputs: Callable[[Any], dict[str, torch.Tensor]] = tokens
    stack: str | None = "model.layers"
    causal: bool = True


ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM"),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM"),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", {**TEXT, "head_dim": 8}),
    "gemma2": Architecture("Gemma2Config", "Gemma2ForCausalLM", GEMMA),
    "gemma3": Architecture("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
    "phi3": Architecture("Phi3Config", "Phi3ForCausalLM"),
    "gpt2": Architecture(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        stack="transformer.h",
    ),
    "gpt_neox": Architecture("GPTNeoXConfig", "GPTNeoXForCausalLM", stack="gpt_neox.layers"),
    "mixtral": Architecture(
        "MixtralConfig", "MixtralForCausalLM", {**TEXT, "num_local_experts": 3, "num_experts_per_tok": 2}
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**TEXT, "head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    ),
    "mamba": Architecture(
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 3},
        stack="backbone.layers",
    ),
    "bert": Architecture("BertConfig", "BertForMaskedLM", BERT, stack="bert.encoder.layer", causal=False),
    "roberta": Architecture(
        "RobertaConfig", "RobertaForMaskedLM", BERT, stack="roberta.encoder.layer", causal=False
    ),
    "t5": Architecture(
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCAB,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        inputs=translation,
        stack=None,
        causal=False,
    ),
    "whisper": Architecture(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "vocab_size": VOCAB,
            "num_mel_bins": 8,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_source_positions": 20,
            "max_target_positions": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "decoder_start_token_id": 1,
        },
        inputs=speech,
        stack=None,
        causal=False,
    ),
    "llava": Architecture(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
                "projection_dim": 16,
            },
            "image_token_id": 63,
            "vision_feature_layer": -1,
        },
        inputs=picture_and_text,
        stack=None,
        causal=False,
    ),
    "gemma3_vision": Architecture(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**GEMMA},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 63,
            "boi_token_index": 61,
            "eoi_token_index": 62,
        },
        inputs=picture_and_text,
        stack=None,
        causal=False,
    ),
}


def save(
    folder: Path, name: str, seed: int, parent: Path | None = None, noise: float = 0.05, **changes: Any
) -> Path:
    architecture = ARCHITECTURES[name]
    settings = getattr(transformers, architecture.config)(**{**architecture.settings, **changes})
    model = getattr(transformers, architecture.model)(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + (p.ndim == 1))
    model.save_pretrained(folder)
    return folder
