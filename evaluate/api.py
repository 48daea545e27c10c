"""Score one model, or the merge that a recipe describes, with lm-eval tasks."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from heterosis.errors import InputError, check_count
from heterosis.evaluate.candidates import CandidateLoader, copy_recipe
from heterosis.evaluate.harness import TaskSet
from heterosis.evaluate.scores import Metric, Scores, TaskSpec
from heterosis.evaluate.splits import Sizes, split_documents
from heterosis.merge import Recipe
from heterosis.merge.machine import check_device


def evaluate_model(
    model: str | os.PathLike[str] | Recipe,
    tasks: str | TaskSpec | Sequence[str | TaskSpec],
    *,
    include_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores, dict[str, Metric]]:
    """Score a model, or a recipe merged in memory, on lm-eval tasks.

    Args:
        model: A model (folder, Hub id, ``base+adapter``), a recipe, or the path of a ``.yaml`` one.
        tasks: Names, or specs that choose a metric; or one of them.
        include_path: Folders with task YAML, or one of them.
        limit: Documents per task, drawn at random by ``seed``; None for all.
        num_fewshot: Examples in each prompt; None for the task's own number.
        batch_size: Requests in one forward pass.
        max_length: Tokens of the longest prompt; None for the model's own.
        apply_chat_template: Ask in the form of a chat.
        fewshot_as_multiturn: In a chat, give few-shot examples as turns of their own.
        system_instruction: Goes before every prompt; in a chat as its system message.
        seed: Of the documents drawn and of few-shot examples.
        device: Where to compute.
        progress: Called with the requests answered so far and all of them, at first with 0.

    Returns:
        The scores of every document, and the metric of each task that is reported first.

    Raises:
        InputError: If a model, recipe, task or metric cannot be used.
        MergeError: If the merge has NaN or infinity.
    """
    check_device(device)
    check_count("batch_size", batch_size)
    check_count("seed", seed, 0)
    if limit is not None:
        check_count("limit", limit)
    if num_fewshot is not None:
        check_count("num_fewshot", num_fewshot, 0)
    if max_length is not None:
        check_count("max_length", max_length)
    recipe, origin = _recipe(model)
    if not tasks:
        raise InputError("tasks: must name at least one task of lm-eval, or of include_path")
    task_set = TaskSet(tasks, include_path=include_path, num_fewshot=num_fewshot, seed=seed)
    groups = task_set.groups()
    if limit is None:
        documents = {task: list(range(len(names))) for task, names in groups.items()}
    else:
        sizes = {task: min(limit, len(names)) for task, names in groups.items()}
        documents = {
            task: split_documents({task: groups[task]}, Sizes(search=n, selection=0, holdout=0), seed).search[task]
            for task, n in sizes.items()
        }
    resident = CandidateLoader(device).load(recipe, origin)
    if apply_chat_template and not resident.tokenizer.chat_template:
        raise InputError(f"apply_chat_template: the tokenizer of {model} has no chat template; leave it out")
    lm = resident.lm(batch_size, max_length)
    task_set.build(
        documents,
        lm,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
    )
    return task_set.score(lm, documents, progress=progress), {task: task_set.metric(task) for task in groups}


def _recipe(model: str | os.PathLike[str] | Recipe) -> tuple[Recipe, str]:
    if isinstance(model, Recipe):
        return model, ""
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return Recipe.load(path), str(path)
    if path.is_file():
        raise InputError(f"{path}: neither a model folder nor a recipe (.yaml)")
    return copy_recipe(str(model)), ""  # messages name the model themselves
