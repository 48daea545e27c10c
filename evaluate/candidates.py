"""Put a merge plan into a live model: in place where possible, through a folder where not."""

import json
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.evaluate.resident import ModelMismatch, ResidentModel
from heterosis.evaluate.room import held_folder, room_for, sweep
from heterosis.merge import MergePlan, ModelSink, Recipe, Reductions, build_plan, execute
from heterosis.merge.api import write_merge
from heterosis.merge.models.checkpoint import OpenModels
from heterosis.merge.models.layout import OBSOLETE
from heterosis.merge.models.names import aligned


class _Make(NamedTuple):
    """What a live model is made of. Recipes that are alike in this go into the same one."""

    config: dict[str, Any]
    generation_config: dict[str, Any]
    folder: Path
    tokenizer: Hashable
    tensors: set[str]

    @classmethod
    def of(cls, plan: MergePlan) -> "_Make":
        names = {op.name for op in plan.ops}
        return cls(plan.config, plan.generation_config, plan.donor.folder, plan.tokenizer.identity, names)

    def shares_tokenizer(self, other: "_Make") -> bool:
        return (self.folder, self.tokenizer) == (other.folder, other.tokenizer)


class CandidateLoader:
    """Loads one recipe after another, keeping the checkpoints open and the live model in memory.

    Args:
        device: Where the model lives.
        threads: Of the merge, and of torch in this process; None leaves both as they are.
        reductions: What merges over the same models have in common; None keeps nothing.

    Attributes:
        open: Opens the models.
    """

    def __init__(
        self, device: str = "cpu", threads: int | None = None, reductions: Reductions | None = None
    ) -> None:
        self._device = device
        self._threads = threads
        self._reductions = reductions
        self.open = OpenModels(mapped=True)
        self._resident: ResidentModel | None = None
        self._sink: ModelSink | None = None
        self._make: _Make | None = None  # the live model's
        self._through_folders: _Make | None = None  # of models that no live one takes

    def load(self, recipe: Recipe, origin: str = "") -> ResidentModel:
        """The live model with a recipe's tensors in it; valid until the next call.

        Raises:
            InputError: If the recipe cannot be run.
            MergeError: If a merged tensor has NaN or infinity.
            MemoryError: If a model that has to go through a folder has no room for it.
        """
        plan = build_plan(recipe, self.open, origin=origin)
        make = _Make.of(plan)
        if make == self._through_folders:
            return self._load_from_folder(plan)
        if self._resident is None or self._make != make:
            # Layers come and go along a path; the tokenizer, whose loading takes as long as all the rest, stays.
            stays = self._make is not None and self._make.shares_tokenizer(make)
            tokenizer = self._resident.tokenizer if self._resident and stays else plan.tokenizer.load()
            self._resident = self._sink = None
            self._resident = ResidentModel(
                plan.config,
                plan.generation_config,
                plan.donor.folder,
                tokenizer,
                device=self._device,
                threads=self._threads,
            )
            self._make = make
        parameters = self._resident.parameters
        live = aligned((op.name for op in plan.ops), parameters)
        ops = [op for op in plan.ops if live[op.name] in parameters or not op.name.endswith(OBSOLETE)]
        try:
            self._resident.check_names({live[op.name]: op.shape for op in ops})
        except ModelMismatch:
            self._resident = self._sink = None
            self._through_folders = make
            sweep()
            return self._load_from_folder(plan)
        if self._sink is None:
            self._sink = ModelSink({op.name: parameters[live[op.name]] for op in ops})
        execute(replace(plan, ops=tuple(ops)), self._sink, threads=self._threads, reductions=self._reductions)
        return self._resident

    def _load_from_folder(self, plan: MergePlan) -> ResidentModel:
        """Through transformers' own loader, for models whose tensors it renames or fuses."""
        with merged_folder(plan, self.open, threads=self._threads, reductions=self._reductions) as folder:
            return ResidentModel.from_folder(folder, device=self._device)


@contextmanager
def merged_folder(
    plan: MergePlan, models: OpenModels, *, threads: int | None, reductions: Reductions | None
) -> Iterator[Path]:
    """The folder of a merge, which goes at the end.

    Args:
        plan: The merge.
        models: Those that were opened for it, perhaps among others.
        threads: Of the merge; None for one on each core.
        reductions: What merges over the same models have in common.

    Raises:
        MergeError: If a merged tensor has NaN or infinity.
        MemoryError: If there is no room for it.
    """
    with held_folder(room_for(plan.bytes_written)) as held:
        folder = held / "merge"
        write_merge(plan, plan.recipe, models.opened.values(), folder, threads=threads, reductions=reductions)
        yield folder


def copy_recipe(model: str) -> Recipe:
    """The recipe that gives a model as it is."""
    return Recipe.parse(f"merge_method: passthrough\nmodels:\n- model: {json.dumps(model)}\n", model)
