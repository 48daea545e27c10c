"""What stands beside the tensors in a model folder: config, tokenizer, generation config, card, recipe."""

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from heterosis.merge.files import expanded, is_copied
from heterosis.merge.models.checkpoint import Checkpoint
from heterosis.merge.models.fetching import HUB_ID
from heterosis.merge.models.tokenizer import is_tokenizer_file
from heterosis.merge.output.card import model_card
from heterosis.merge.plan import GENERATION_CONFIG, MergePlan
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef

_NOT_COPIED = {"config.json", GENERATION_CONFIG, "adapter_config.json", "README.md"}


def companion_files(folder: Path) -> list[Path]:
    """Files of a model folder that a merge takes along: everything but weights, config, card and code."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name not in _NOT_COPIED
        and not path.name.endswith(".index.json")
        and is_copied(path)
    )


def write_companions(plan: MergePlan, recipe: Recipe, checkpoints: Collection[Checkpoint], folder: Path) -> None:
    """Write config.json, tokenizer, companion files, ``recipe.yaml`` and the model card into ``folder``.

    Args:
        plan: What was merged.
        recipe: The plan's, with the commits of its models.
        checkpoints: What was opened for it.
        folder: Where the weights are.
    """
    if plan.config:
        for path in companion_files(plan.donor.folder):
            if not is_tokenizer_file(path.name):
                shutil.copyfile(path, folder / path.name)
        plan.tokenizer.write(folder)
        for name, settings in (("config.json", plan.config), (GENERATION_CONFIG, plan.generation_config)):
            if settings:
                (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    places = {str(checkpoint.pinned): str(_placed(checkpoint)) for checkpoint in checkpoints}
    (folder / "recipe.yaml").write_text(recipe.to_yaml(places), encoding="utf-8")
    (folder / "README.md").write_text(model_card(plan, recipe, checkpoints), encoding="utf-8")


def _placed(checkpoint: Checkpoint) -> ModelRef:
    """A model as it is found from any folder, and never taken for one of the Hub: local ones by whole paths."""
    ref = checkpoint.pinned
    return replace(
        ref,
        path=ref.path if checkpoint.revision else _whole(ref.path),
        adapter=ref.adapter if checkpoint.adapter_revision or ref.adapter is None else _whole(ref.adapter),
    )


def _whole(path: str) -> str:
    whole = str(expanded(path).absolute())
    if "+" in whole or "@" in whole:  # the current folder has what a reference may not have
        return f"./{path}" if HUB_ID.fullmatch(path) else path
    return whole
