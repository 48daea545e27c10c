"""The streaming merge core: tensors and files, nothing of scoring or search.

recipe.py            the recipe language (mergekit's YAML)
recipe_rules.py      what must hold between its keys and documents
reference.py         which model is meant
faults.py            what is wrong with a mapping, in our words
yaml_file.py         strict YAML
parameters.py        a recipe's settings: gradients and filters, resolved for one tensor
sources.py           what a model to merge is: named tensors that can be read in parts
checkpoint.py        a model from a folder, a file or the Hub, or with an adapter
weights.py           the weight files of a folder
fetching.py          models from the Hub
hub.py               recipes pinned to its commits, publishing
files.py             what of a model folder may be opened, and how much is read; texts written in one step
safetensors_file.py  safetensors headers and reads, defensively
pickle_file.py       PyTorch's files, of which only tensors are unpickled
lora.py              adapters applied tensor by tensor while reading
layout.py            which layer a tensor's name speaks of
names.py             one model's names for another's tensors
modules.py           which tensors the modules of a recipe speak of
output_config.py     the output's config.json
grouping.py          which tensors of which models make each tensor of the output
contract.py          what a method asks of a recipe; unread.py: what its program says before any tensor is read
planner.py, plan.py  recipe -> one operation for each output tensor
stages.py            an earlier merge as an input, computed as it is read
tokenizer.py         the output's tokenizer
vocabulary.py        rows of embeddings in the order of its tokens
chat_template.py     chat templates: built in, or the most frequent
methods/             the merge methods, one file each
statistics.py        what a method may ask of a whole tensor
quantities.py        numbers for every element, such as magnitudes, by segments of the tensor
selection.py         the k largest values, exactly, in few passes
kernels/             compiled loops over blocks
workspace.py         buffers that threads reuse
reductions.py        what the candidates of a search have in common, shared by a machine's processes
computation.py       the arithmetic of one operation: a program, merged blocks; input_blocks.py: what it reads
finite.py            refusing merged values that cannot be used
executor.py          plan -> blocks, within a memory budget, on several threads; machine.py: its cores
sinks.py, writer.py  where blocks go: a live model, or safetensors shards
output_file.py       files written behind the merge, past the page cache
companions.py        config, tokenizer
card.py              the model card; discovery.py: of a recipe that a search found, how
quantised.py         quantised weights, recognised and refused
verification.py      a written model loaded, run and made to generate
inspection.py        a recipe's plan as a table, and what it takes
compatibility.py     whether models can be merged, and why not
distances.py         norms of task vectors and their angles
api.py               all of it: merge_models
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heterosis.merge.api import merge_models
    from heterosis.merge.checkpoint import Checkpoint, open_checkpoint
    from heterosis.merge.executor import MergeError, execute
    from heterosis.merge.plan import MergePlan, TensorOp
    from heterosis.merge.planner import build_plan
    from heterosis.merge.recipe import ModelRef, Recipe
    from heterosis.merge.reductions import Reductions
    from heterosis.merge.sinks import ModelSink

_HOME = {
    "Checkpoint": "checkpoint",
    "MergeError": "executor",
    "MergePlan": "plan",
    "ModelRef": "recipe",
    "ModelSink": "sinks",
    "Recipe": "recipe",
    "Reductions": "reductions",
    "TensorOp": "plan",
    "build_plan": "planner",
    "execute": "executor",
    "merge_models": "api",
    "open_checkpoint": "checkpoint",
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
