"""A merged folder is what it should be if transformers loads it, runs it, and it generates."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from heterosis.merge.computing.executor import MergeError
from heterosis.merge.models.tokenizer import ModelTokenizer
from heterosis.words import some

_T = TypeVar("_T")

_PROMPT = "The quick brown fox jumps over the lazy dog."
_PROMPT_TOKENS = 8
_NEW_TOKENS = 4
_REPORTS = {
    "missing_keys": "tensors that the model needs are missing",
    "unexpected_keys": "tensors are left over",
    "mismatched_keys": "tensors have other shapes than the config says",
    "error_msgs": "errors while loading",
}


def verify_folder(folder: Path, name: str) -> None:
    """Load a model folder as its users will, run a short prompt, and generate from it.

    The whole model is held in memory, in the dtype that it is stored in. No code of the folder is run.

    Args:
        folder: A model folder with a config.
        name: What messages call it.

    Raises:
        MergeError: If a tensor is missing, left over or of another shape, an output is not finite, or transformers
            cannot do one of these; one line.
    """

    def step(what: str, run: Callable[[], _T]) -> _T:
        try:
            return run()
        except Exception as error:  # transformers and the models' code raise anything
            reason = " ".join(str(error).replace(str(folder), name).split())[:300] or type(error).__name__
            raise MergeError(f"{name}: the merged model cannot be {what}: {reason}") from error

    with _quiet(), torch.random.fork_rng(devices=[]), torch.inference_mode():
        model = step("loaded", lambda: _load(folder))
        inputs = step("given a prompt", lambda: _inputs(model, ModelTokenizer.of_folder(folder)))
        output = step("run", lambda: _forward(model, inputs))
        if not bool(torch.isfinite(output).all()):
            raise MergeError(f"{name}: the merged model gives NaN or infinity; check the weights and the dtype")
        if model.can_generate():
            step("made to generate", lambda: _generate(model, inputs))


def _load(folder: Path) -> Any:
    """The model, with every tensor of the folder in its place.

    Raises:
        ValueError: If one is missing, left over or of another shape.
    """
    import transformers

    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"model_type {model_type!r} is unknown to transformers {transformers.__version__}; upgrade it, or "
            "leave out --verify if the model has code of its own, which is not run here"
        )
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    named = (getattr(transformers, name, None) for name in config.architectures or ())
    cls = next((cls for cls in named if cls is not None), transformers.AutoModelForCausalLM)
    model, report = cls.from_pretrained(
        folder, config=config, dtype="auto", output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    faults = []
    for key, says in _REPORTS.items():
        entries = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report[key])
        if entries:
            faults.append(f"{says}: {some(entries)}")
    if faults:
        raise ValueError("; ".join(faults))
    return model.eval()


def _inputs(model: Any, tokenizer: ModelTokenizer) -> dict[str, torch.Tensor]:
    """A short prompt: of text, or silence, or a black picture where the model takes those.

    Raises:
        ValueError: If the tokenizer knows tokens that the model has no row for, or the input is of another kind.
    """
    config, main = model.config, model.main_input_name
    if main == "input_ids":
        inputs = {"input_ids": _token_ids(model, tokenizer)}
    elif main == "input_features":
        inputs = {main: torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions, dtype=model.dtype)}
    elif main == "pixel_values":
        size, channels = config.image_size, config.num_channels
        height, width = size if isinstance(size, list | tuple) else (size, size)
        inputs = {main: torch.zeros(1, channels, height, width, dtype=model.dtype)}
    else:
        raise ValueError(f"its input is {main}, and no example of that can be made here")
    return inputs


def _token_ids(model: Any, tokenizer: ModelTokenizer) -> torch.Tensor:
    rows = int(model.get_input_embeddings().weight.shape[0])
    if tokenizer.folder is None:
        return torch.arange(min(rows, _PROMPT_TOKENS)).unsqueeze(0)
    ids = tokenizer.load()(_PROMPT)["input_ids"][:_PROMPT_TOKENS]
    if not ids:
        raise ValueError(f"its tokenizer finds no tokens in {_PROMPT!r}")
    if max(ids) >= rows:
        raise ValueError(f"its tokenizer gives the id {max(ids)}, but its embedding has {rows} rows")
    return torch.tensor([ids])


def _forward(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    more = {}
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        more["decoder_input_ids"] = torch.tensor([[0 if start is None else start]])
    output = model(**inputs, **more)
    logits = output.get("logits")
    result: torch.Tensor = output[0] if logits is None else logits
    return result


def _generate(model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    """Generate as its generation config says, so that this is tried too."""
    tokens = model.generate(**inputs, max_new_tokens=_NEW_TOKENS)
    if tokens.shape[-1] <= (0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[-1]):
        raise ValueError("no token came out")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, tables and advice: what matters is in our own message."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
