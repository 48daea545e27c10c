"""What stands beside the tensors in a model folder: config, tokenizer, generation config, card, recipe."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from heterosis.merge.files import is_copied
from heterosis.merge.models.checkpoint import Checkpoint
from heterosis.merge.models.tokenizer import is_tokenizer_file
from heterosis.merge.output.card import model_card
from heterosis.merge.plan import GENERATION_CONFIG, MergePlan
from heterosis.merge.recipe.recipe import Recipe

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
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(plan, recipe, checkpoints), encoding="utf-8")
