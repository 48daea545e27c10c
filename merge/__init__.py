"""The streaming merge core: tensors and files, nothing of scoring or search.

Each folder imports from those above it.

kernels/          compiled loops over blocks
statistics/       what a method may ask of a whole tensor
methods/          the merge methods, one file each
recipe/           the recipe language: mergekit's YAML
models/           models as lazy tensors: checkpoints, adapters, tokenizers
computing/        plan -> merged blocks, within a memory budget, on several threads
planning/         recipe -> plan
output/           a merged model's folder: shards, config, tokenizer, card

api.py            all of it: merge_models
plan.py           a plan: one operation for each output tensor
formulas.py       functions of elements that numba compiles
inspection.py     a recipe's plan as a table, and what it takes
compatibility.py  whether models can be merged, and why not
distances.py      norms of task vectors and their angles
hub.py            recipes pinned to the Hub's commits, publishing

workspace.py      buffers that threads reuse
files.py          what of a model folder may be opened, and how much is read; texts written in one step
yaml_file.py      strict YAML
machine.py        the cores of a process
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heterosis.merge.api import merge_models
    from heterosis.merge.computing.executor import MergeError, execute
    from heterosis.merge.computing.sinks import ModelSink
    from heterosis.merge.models.checkpoint import Checkpoint, open_checkpoint
    from heterosis.merge.plan import MergePlan, TensorOp
    from heterosis.merge.planning.planner import build_plan
    from heterosis.merge.recipe.recipe import ModelRef, Recipe
    from heterosis.merge.statistics.reductions import Reductions

_HOME = {
    "Checkpoint": "models.checkpoint",
    "MergeError": "computing.executor",
    "MergePlan": "plan",
    "ModelRef": "recipe.recipe",
    "ModelSink": "computing.sinks",
    "Recipe": "recipe.recipe",
    "Reductions": "statistics.reductions",
    "TensorOp": "plan",
    "build_plan": "planning.planner",
    "execute": "computing.executor",
    "merge_models": "api",
    "open_checkpoint": "models.checkpoint",
}

__all__ = [
    "Checkpoint",
    "MergeError",
    "MergePlan",
    "ModelRef",
    "ModelSink",
    "Recipe",
    "Reductions",
    "TensorOp",
    "build_plan",
    "execute",
    "merge_models",
    "open_checkpoint",
]


def __getattr__(name: str) -> Any:
    # Lazily, so that importing the package does not load torch.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
