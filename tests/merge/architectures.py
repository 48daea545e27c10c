"""Tiny random models of every architecture that merging is shown on: a base, and fine-tunes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ..conftest import build_tokenizer

VOCAB = 64
Inputs = dict[str, torch.Tensor]

_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    **_SPECIAL,
}
# A window shorter than the inputs, so that a layer with the wrong kind of attention shows.
_TYPES = ["sliding_attention", "full_attention"]
_GEMMA = {**_TEXT, "head_dim": 8, "sliding_window": 3, "layer_types": _TYPES}
_BERT = {**_TEXT, "pad_token_id": 0, "type_vocab_size": 2}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def _tokens() -> Inputs:
    return {"input_ids": torch.tensor([[1, 5, 9, 33, 2, 7], [1, 60, 4, 4, 8, 11]])}


def _translation() -> Inputs:
    return {**_tokens(), "decoder_input_ids": torch.tensor([[0, 3, 5], [0, 9, 2]])}


def _speech() -> Inputs:
    return {"input_features": _random(1, 8, 40), "decoder_input_ids": torch.tensor([[1, 3, 5]])}


def _picture() -> Inputs:
    ids = torch.tensor([[1, 63, 63, 63, 63, 5, 7]])
    # Gemma 3 tells by the types where the picture is.
    return {"input_ids": ids, "pixel_values": _random(1, 3, 8, 8), "token_type_ids": (ids == 63).long()}


def _patches() -> Inputs:
    """The same as Qwen2-VL takes it: one row for each patch."""
    ids = torch.tensor([[1, 62, 63, 63, 63, 63, 61, 5]])
    grid = torch.tensor([[1, 2, 2]])
    pixels = _random(4, 48)
    kinds = (ids == 63).int()
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny model.

    Attributes:
        config: Name of transformers' config class.
        model: Name of its model class.
        settings: Of the config.
        inputs: What to run it on.
        stacks: For each stack of layers that slices can take from: its path in a loaded model, and the attribute
            of the config that counts it. More than one are named by modules.
        causal: Whether it is a causal language model.
    """

    config: str
    model: str
    settings: Mapping[str, Any]
    inputs: Callable[[], Inputs] = _tokens
    stacks: Mapping[str, tuple[str, str]] | None = None
    causal: bool = True


def _stack(path: str, count: str = "num_hidden_layers") -> dict[str, tuple[str, str]]:
    return {"": (path, count)}


_LAYERS = _stack("model.layers")
ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", "LlamaForCausalLM", _TEXT, stacks=_LAYERS),
    "mistral": Architecture("MistralConfig", "MistralForCausalLM", _TEXT, stacks=_LAYERS),
    "qwen2": Architecture("Qwen2Config", "Qwen2ForCausalLM", _TEXT, stacks=_LAYERS),
    "qwen3": Architecture("Qwen3Config", "Qwen3ForCausalLM", {**_TEXT, "head_dim": 8}, stacks=_LAYERS),
    "gemma2": Architecture("Gemma2Config", "Gemma2ForCausalLM", _GEMMA, stacks=_LAYERS),
    "gemma3": Architecture("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA, stacks=_LAYERS),
    "phi3": Architecture("Phi3Config", "Phi3ForCausalLM", _TEXT, stacks=_LAYERS),
    "gpt2": Architecture(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **_SPECIAL},
        stacks=_stack("transformer.h", "n_layer"),
    ),
    "gpt_neox": Architecture("GPTNeoXConfig", "GPTNeoXForCausalLM", _TEXT, stacks=_stack("gpt_neox.layers")),
    "mixtral": Architecture(
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_TEXT, "num_local_experts": 3, "num_experts_per_tok": 2},
        stacks=_LAYERS,
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**_TEXT, "head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
        stacks=_LAYERS,
    ),
    "mamba": Architecture(
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, **_SPECIAL},
        stacks=_stack("backbone.layers"),
    ),
    "bert": Architecture(
        "BertConfig", "BertForMaskedLM", _BERT, stacks=_stack("bert.encoder.layer"), causal=False
    ),
    "roberta": Architecture(
        "RobertaConfig", "RobertaForMaskedLM", _BERT, stacks=_stack("roberta.encoder.layer"), causal=False
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
        _translation,
        {"encoder": ("encoder.block", "num_layers"), "decoder": ("decoder.block", "num_decoder_layers")},
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
            "decoder_start_token_id": 1,
            **_SPECIAL,
        },
        _speech,
        {
            "encoder": ("model.encoder.layers", "encoder_layers"),
            "decoder": ("model.decoder.layers", "decoder_layers"),
        },
        causal=False,
    ),
    "llava": Architecture(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **_TEXT},
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
            "image_token_id": 63,
            "vision_feature_layer": -1,
        },
        _picture,
        causal=False,
    ),
    "gemma3_vision": Architecture(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": _GEMMA,
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 63,
            "boi_token_index": 61,
            "eoi_token_index": 62,
        },
        _picture,
        causal=False,
    ),
    "qwen2_vl": Architecture(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {
                **_TEXT,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 3,
                "embed_dim": 16,
                "hidden_size": 16,
                "num_heads": 2,
                "mlp_ratio": 1,
                "patch_size": 4,
                "spatial_merge_size": 1,
                "temporal_patch_size": 1,
            },
            "image_token_id": 63,
            "vision_start_token_id": 62,
            "vision_end_token_id": 61,
            "video_token_id": 60,
        },
        _patches,
        causal=False,
    ),
}
MULTIMODAL = ("llava", "gemma3_vision", "qwen2_vl")


def build(name: str, seed: int = 0, noise: float = 0.05, **changes: Any) -> Any:
    """A transformers model: the base for seed 0, else a fine-tune of it.

    Args:
        name: Of the architecture.
        seed: Of the noise that tells the fine-tune from the base.
        noise: Its standard deviation.
        changes: Other settings of the config.
    """
    made = ARCHITECTURES[name]
    model = getattr(transformers, made.model)(getattr(transformers, made.config)(**{**made.settings, **changes}))
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # tied ones come once
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=start) + (parameter.ndim == 1))
            if seed:
                parameter.add_(noise * torch.randn(parameter.shape, generator=own))
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Save it as a folder, with a tokenizer if it is made of words alone."""
    model.save_pretrained(folder, **options)
    if getattr(model.config, "vocab_size", None) == VOCAB:
        build_tokenizer(VOCAB).save_pretrained(folder)
    return folder


def load(folder: Path, name: str) -> Any:
    """A model folder as transformers loads it, in float32.

    Raises:
        AssertionError: If a tensor was missing, left over or of another shape.
    """
    model, report = getattr(transformers, ARCHITECTURES[name].model).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    return model.eval()


def logits(model: Any, name: str) -> torch.Tensor:
    with torch.inference_mode():
        return model(**ARCHITECTURES[name].inputs()).logits  # type: ignore[no-any-return]
