"""Merge models into a folder: plan, check the disk, execute, publish."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from heterosis.errors import InputError
from heterosis.merge.checkpoint import open_checkpoint
from heterosis.merge.companions import tokenizer_donor, write_companions
from heterosis.merge.executor import DEFAULT_MEMORY_LIMIT, THREAD_MINIMUM, available_cores, execute
from heterosis.merge.plan import MergePlan, build_plan
from heterosis.merge.recipe import Recipe
from heterosis.merge.writer import DEFAULT_SHARD_SIZE, SafetensorsSink, check_free, published_folder


def merge_models(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    shard_size: int = DEFAULT_SHARD_SIZE,
    seed: int | None = None,
    overwrite: bool = False,
    announce: Callable[[MergePlan], None] | None = None,
) -> Path:
    """Run a recipe and write the merged model as a Hugging Face model folder.

    Args:
        recipe: A recipe, or the path of one.
        out: The folder to write; it appears complete or not at all.
        threads: Tensors worked on at the same time; None takes one for each core.
        memory_limit: Bytes of buffers.
        shard_size: Bytes of a safetensors file at most.
        seed: Replaces the recipe's random seed.
        overwrite: Replace ``out`` if it exists.
        announce: Called with the plan before anything is written.

    Returns:
        The folder.

    Raises:
        InputError: If the recipe cannot be run as given, or the folder cannot be written.
        MergeError: If a merged tensor has NaN or infinity.
    """
    origin = "" if isinstance(recipe, Recipe) else str(recipe)
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if seed is not None:
        loaded = loaded.model_copy(update={"heterosis": {**loaded.heterosis, "seed": seed}})
    folder = Path(out).absolute()
    check_free(folder, overwrite)
    if memory_limit < THREAD_MINIMUM:
        least, got = (f"{size / 2**20:.0f} MiB" for size in (THREAD_MINIMUM, memory_limit))
        raise InputError(f"--memory-limit: must be at least {least}, but got {got}")
    with ExitStack() as models:
        plan = build_plan(loaded, lambda ref: models.enter_context(open_checkpoint(ref)), origin=origin)
        tokenizer_donor(plan)
        if any(folder.resolve() == checkpoint.folder.resolve() for checkpoint in plan.checkpoints.values()):
            raise InputError(f"{out}: is one of the models that are merged; choose another folder")
        if announce:
            announce(plan)
        _check_disk(plan, folder)
        with published_folder(folder, overwrite=overwrite) as partial:
            sink = SafetensorsSink(partial, plan.ops, shard_size)
            try:
                execute(plan, sink, threads=threads or available_cores(), memory_limit=memory_limit)
                sink.finish()
            finally:
                sink.close()
            write_companions(plan, partial)
    return Path(out)


def _check_disk(plan: MergePlan, out: Path) -> None:
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < plan.bytes_written:
        raise InputError(
            f"{out}: the merged model takes {plan.bytes_written / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are "
            "free; make room or choose another disk"
        )
