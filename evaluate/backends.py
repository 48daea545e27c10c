"""Other scorers than the resident model: model classes of lm-eval that load each candidate from a folder."""

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from heterosis.evaluate.candidates import merged_folder
from heterosis.evaluate.resident import PROMPT, checksum_of
from heterosis.evaluate.room import sweep
from heterosis.merge import Recipe, Reductions, build_plan
from heterosis.merge.models.checkpoint import OpenModels

ANSWER = " 42"  # to the prompt


class BackendModel:
    """A merge that one of lm-eval's model classes has loaded. What a worker asks of a `ResidentModel`, it has too.

    Attributes:
        tokenizer: The backend's; None if it has none.
        model: The torch module that makes the forward passes; None if the backend keeps it to itself.
    """

    def __init__(self, lm: Any, asked: tuple[int | str, int | None], checksum: str) -> None:
        self._lm, self._asked, self._checksum = lm, asked, checksum
        self.tokenizer = getattr(lm, "tokenizer", None)
        model = getattr(lm, "model", None)
        self.model = model if isinstance(model, torch.nn.Module) else None

    def lm(self, batch_size: int | str, max_length: int | None = None) -> Any:
        """The model as lm-eval sees it; it was loaded for one batch size and one length."""
        assert (batch_size, max_length) == self._asked
        return self._lm

    def logits_finite(self) -> bool:
        """Whether the likelihood of a short text is finite."""
        from heterosis.evaluate.harness import likelihood_finite  # lm-eval takes seconds to import

        return likelihood_finite(self._lm, PROMPT, ANSWER)

    def checksum(self) -> str:
        """As a resident model's, of the folder that was loaded."""
        return self._checksum


class BackendLoader:
    """Merges one recipe after another into a folder, and has a backend load it.

    A folder is there from its merge until the backend has loaded it. The model before is given back first.

    Args:
        backend: A model class of lm-eval, by its name there.
        args: Its arguments.
        batch_size: Requests in one forward pass, as the backend takes it.
        max_length: Longest prompt in tokens; None for the model's own.
        device: Where the model lives, if the backend asks.
        threads: Of the merge, and of torch in this process; None leaves both as they are.
        reductions: What merges over the same models have in common; None keeps nothing.

    Attributes:
        open: Opens the models.
    """

    def __init__(
        self,
        backend: str,
        args: Mapping[str, Any],
        *,
        batch_size: int | str = 16,
        max_length: int | None = None,
        device: str = "cpu",
        threads: int | None = None,
        reductions: Reductions | None = None,
    ) -> None:
        self._backend, self._args, self._device = backend, args, device
        self._asked = batch_size, max_length
        self._threads, self._reductions = threads, reductions
        self.open = OpenModels(mapped=True)
        if threads is not None:
            torch.set_num_threads(threads)
        sweep()

    def load(self, recipe: Recipe, origin: str = "") -> BackendModel:
        """The merge that a recipe describes, loaded; nobody else may hold the one before.

        Raises:
            InputError: If the recipe cannot be run.
            MergeError: If a merged tensor has NaN or infinity.
            MemoryError: If there is no room for the folder.
        """
        from heterosis.evaluate.harness import load_lm

        gc.collect()  # backends have cycles, and processes that end with their model
        torch.cuda.empty_cache()
        plan = build_plan(recipe, self.open, origin=origin)
        with merged_folder(plan, self.open, threads=self._threads, reductions=self._reductions) as folder:
            batch_size, max_length = self._asked
            lm = load_lm(self._backend, self._args, folder, batch_size, max_length, self._device)
            return BackendModel(lm, self._asked, checksum_of(_tensors(folder)))


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a folder where they lie: of each, only what is looked at is read."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = file.keys()
            for name in names:
                yield name, file.get_tensor(name)
