"""What stands beside the tensors in a model folder: config, tokenizer, generation config, card, recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

from heterosis.merge.plan import MergePlan
from heterosis.merge.recipe import Recipe
from heterosis.merge.tokenizer import is_tokenizer_file

_COPIED = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm"}
_NOT_COPIED = {"config.json", "adapter_config.json", "README.md"}


def companion_files(folder: Path) -> list[Path]:
    """Files of a model folder that a merge takes along: everything but weights, config, card and code."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name not in _NOT_COPIED
        and not path.name.endswith(".index.json")
        and (path.suffix in _COPIED or path.name.upper().startswith(("LICENSE", "NOTICE")))
    )


def write_companions(plan: MergePlan, recipe: Recipe, folder: Path) -> None:
    """Write config.json, tokenizer, companion files, ``recipe.yaml`` and the model card into ``folder``.

    Args:
        plan: What was merged.
        recipe: The plan's, with the commits of its models.
        folder: Where the weights are.
    """
    if plan.config:
        for path in companion_files(plan.donor.folder):
            if not is_tokenizer_file(path.name):
                shutil.copyfile(path, folder / path.name)
        plan.tokenizer.write(folder)
        (folder / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(recipe), encoding="utf-8")


def model_card(recipe: Recipe) -> str:
    """The model card: what was merged, how, and the recipe to run it again."""
    models = [str(ref) for ref in recipe.original_models()]
    # Hub models alone have commits; the folders of this machine mean nothing to others.
    refs = recipe.original_models()
    parts = [*((ref.path, ref.revision) for ref in refs), *((ref.adapter, ref.adapter_revision) for ref in refs)]
    hub_ids = dict.fromkeys(name for name, commit in parts if commit)
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["heterosis", "merge"]}
    lines = ["---"]
    if hub_ids:
        lines += ["base_model:", *(f"- {name}" for name in hub_ids)]
    lines += [f"library_name: {front['library_name']}", "tags:", *(f"- {tag}" for tag in front["tags"]), "---", ""]
    lines += [
        f"# Merge of {len(models)} models",
        "",
        f"Made by heterosis with the method `{recipe.merge_method}` from:",
        "",
        *(f"- {name}" for name in models),
        "",
        "The recipe; `heterosis merge recipe.yaml OUT` runs it again:",
        "",
        "```yaml",
        recipe.to_yaml().rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)
