"""One live model whose parameters are overwritten in place, candidate after candidate."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers.initialization import no_init_weights

from heterosis.errors import InputError
from heterosis.merge.models.tokenizer import ModelTokenizer
from heterosis.words import some

PROMPT = "The quick brown fox jumps over the lazy dog: 17 + 25 ="
SAMPLES = 64  # elements per tensor in a checksum
MOST_DOUBLINGS = 10  # of a batch; larger ones than 1024 gain nothing


class ModelMismatch(RuntimeError):
    """A plan's tensors are not those of the live model: it cannot be overwritten in place.

    That is so where transformers renames, fuses or drops tensors while it loads a checkpoint. Write the
    merge to a folder and score it with `ResidentModel.from_folder`.
    """


class ResidentModel:
    """A transformers language model in memory, by default without any weights yet.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer, of transformers.
        parameters: Every tensor that a checkpoint of this model may hold, by its name there, sharing memory
            with the live model. Tied tensors are there under each of their names.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any],
        donor_folder: Path,
        tokenizer: Any,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Build the model from its config; the values of its parameters are undefined until written.

        Args:
            config: Of the merged model.
            generation_config: Likewise; empty for that of the architecture.
            donor_folder: Which messages name.
            tokenizer: Of transformers.
            device: Where to compute, in float32.
            threads: For all of torch in this process; None leaves that as it is.

        Raises:
            InputError: If transformers does not know the architecture.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        model_type = config.get("model_type")
        if model_type not in transformers.CONFIG_MAPPING:
            raise InputError(
                f"{donor_folder}/config.json: model_type: {model_type!r} is unknown to transformers "
                f"{transformers.__version__}; upgrade it, or use a model that needs no code of its own"
            )
        settings = transformers.CONFIG_MAPPING[model_type].from_dict(dict(config))
        try:
            # Without random numbers that the first candidate overwrites: 0.02 s instead of 5.5 s for 135 M
            # parameters. Buffers that no checkpoint holds (rotary frequencies) are computed as ever.
            with no_init_weights(), torch.device(device):
                model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        except ValueError as error:
            raise InputError(f"{donor_folder}/config.json: not a causal language model: {error}") from error
        model.tie_weights()
        if generation_config:
            model.generation_config = transformers.GenerationConfig.from_dict(dict(generation_config))
        self._adopt(model, tokenizer)

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        """Load a merged model with transformers' own loader: slower, but right for every architecture.

        Raises:
            InputError: If it lacks tensors that its config asks for, or a tokenizer.
        """
        resident = cls.__new__(cls)
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        if missing := sorted(loaded["missing_keys"]):  # which transformers has made up
            raise InputError(
                f"config.json asks for tensors that the model lacks: {some(missing)}; correct one of them"
            )
        resident._adopt(model.to(device), ModelTokenizer.of_folder(folder).load())
        return resident

    def _adopt(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.parameters: dict[str, torch.Tensor] = dict(model.state_dict())
        self._lms: dict[tuple[int | str, int | None], Any] = {}

    def check_names(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Check that writing these tensors overwrites exactly the whole model.

        Args:
            shapes: Name and shape of each tensor that will be written.

        Raises:
            ModelMismatch: If one is left over, missing (unless it is tied to one that is there), of another
                shape, or tied to another in the list: as a checkpoint, these two would not be tied.
        """
        faults = [f"{name} is not in the model" for name in shapes if name not in self.parameters]
        written: dict[int, str] = {}
        for name, shape in shapes.items():
            if (parameter := self.parameters.get(name)) is None:
                continue
            if tuple(parameter.shape) != tuple(shape):
                faults.append(f"{name} is {list(shape)}, but {list(parameter.shape)} in the model")
            if (other := written.setdefault(parameter.data_ptr(), name)) != name:
                faults.append(f"{name} is tied to {other} in the model")
        faults += [
            f"{name} is missing"
            for name, parameter in self.parameters.items()
            if parameter.data_ptr() not in written
        ]
        if faults:
            raise ModelMismatch(some(faults, between="; "))

    def checksum(self) -> str:
        """A hash of a fixed sample of every tensor, read from the live model: it shows that a swap happened."""
        return checksum_of(self.model.state_dict().items())

    def logits_finite(self) -> bool:
        """Whether the model's outputs on a short prompt are finite.

        One forward pass; a merge gone wrong shows up here, where generated text would only look poor.
        """
        tokens = self.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = self.model(tokens.to(self.model.device)).logits
        return bool(torch.isfinite(logits).all())

    def largest_batch(self, tokens: int) -> int:
        """How many prompts of so many tokens one forward pass can take, with the likelihoods of all their tokens.

        Doubled from one until the device is out of memory.

        Raises:
            MemoryError: If it cannot take one.
        """
        fitting = 0
        with torch.inference_mode():
            for size in (2**n for n in range(MOST_DOUBLINGS + 1)):
                batch = torch.zeros((size, tokens), dtype=torch.long, device=self.model.device)
                try:
                    torch.log_softmax(self.model(batch).logits, dim=-1)
                except torch.OutOfMemoryError:
                    break
                fitting = size
        torch.cuda.empty_cache()  # does nothing without one
        if not fitting:
            raise MemoryError(f"a prompt of {tokens} tokens does not fit beside the model")
        return fitting

    def lm(self, batch_size: int | str, max_length: int | None = None) -> Any:
        """The model as lm-eval sees it, made once for each batch size."""
        from heterosis.evaluate.harness import make_lm  # lm-eval takes seconds to import

        key = (batch_size, max_length)
        if key not in self._lms:
            self._lms[key] = make_lm(self.model, self.tokenizer, batch_size, max_length)
        return self._lms[key]


def checksum_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A hash of a fixed sample of every tensor, by name."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda entry: entry[0]):
        step = max(1, tensor.numel() // SAMPLES)
        sample = tensor.reshape(-1)[::step][:SAMPLES].contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
