"""What stands beside the tensors in a model folder: config, tokenizer, generation config, card, recipe."""

import json
import shutil
from pathlib import Path
from typing import Any

from heterosis.errors import InputError
from heterosis.merge.checkpoint import Checkpoint
from heterosis.merge.plan import MergePlan
from heterosis.merge.recipe import ModelRef

_COPIED = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm"}
_NOT_COPIED = {"config.json", "adapter_config.json", "README.md"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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


def tokenizer_donor(plan: MergePlan) -> Checkpoint:
    """The model whose tokenizer the output gets, by the recipe's ``tokenizer_source``.

    Raises:
        InputError: If the source is no model of the recipe, or a union of different vocabularies is asked for.
    """
    source = plan.recipe.tokenizer_source
    if source in (None, "base"):
        return plan.donor
    if source == "union":
        vocabularies = {ref: _vocabulary(c) for ref, c in plan.checkpoints.items()}
        mine = _vocabulary(plan.donor)
        for ref, vocabulary in vocabularies.items():
            if vocabulary is not None and mine is not None and vocabulary != mine:
                raise InputError(
                    f"tokenizer_source: a union needs equal vocabularies, but those of {plan.recipe.donor} and "
                    f"{ref} differ; name one model whose tokenizer fits all"
                )
        return plan.donor
    ref = ModelRef.parse(source)
    if ref not in plan.checkpoints:
        raise InputError(
            f"tokenizer_source: {source} is not one of the recipe's models; write union, base or a model"
        )
    return plan.checkpoints[ref]


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Token to id of a fast tokenizer; None where there is no tokenizer.json."""
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data.get("model", {}).get("vocab", {})
    tokens = dict(vocabulary) if isinstance(vocabulary, dict) else {t[0]: i for i, t in enumerate(vocabulary)}
    tokens.update({t["content"]: t["id"] for t in data.get("added_tokens", [])})
    return tokens


def _is_tokenizer(path: Path) -> bool:
    """Whether a companion file belongs to the tokenizer, its chat template included."""
    prefixes = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
    return path.name.startswith(prefixes) or path.name in (*_TOKENIZER_FILES, "merges.txt")


def write_companions(plan: MergePlan, folder: Path) -> None:
    """Write config.json, companion files, ``recipe.yaml`` and the model card into ``folder``."""
    donor = tokenizer_donor(plan)
    files = [path for path in companion_files(plan.donor.folder) if donor is plan.donor or not _is_tokenizer(path)]
    if donor is not plan.donor:
        files += filter(_is_tokenizer, companion_files(donor.folder))
    for path in files:
        shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(plan.recipe.to_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(plan), encoding="utf-8")


def model_card(plan: MergePlan) -> str:
    """The model card: what was merged, how, and the recipe to run it again."""
    recipe = plan.recipe
    models = [str(ref) for ref in recipe.referenced_models()]
    hub_ids = [
        ref.path for ref in recipe.referenced_models() if ref.path.count("/") == 1 and not Path(ref.path).exists()
    ]
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
