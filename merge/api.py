"""Merge models into a folder: plan, check the disk, execute, publish."""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path

from heterosis.errors import InputError, check_count
from heterosis.merge.computing.executor import DEFAULT_MEMORY_LIMIT, THREAD_MINIMUM, execute
from heterosis.merge.files import expanded, nearest_existing
from heterosis.merge.hub import pin
from heterosis.merge.models.checkpoint import Checkpoint, OpenModels
from heterosis.merge.output.companions import write_companions
from heterosis.merge.output.writer import DEFAULT_SHARD_SIZE, SafetensorsSink, published_folder, refuse_occupied
from heterosis.merge.plan import MergePlan
from heterosis.merge.planning.planner import Names, build_plan
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef
from heterosis.merge.statistics.reductions import Reductions
from heterosis.words import size

# The part of the memory limit that may wait for the disk.
WAITING_SHARE = 16


def merge_models(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    shard_size: int = DEFAULT_SHARD_SIZE,
    seed: int | None = None,
    names: Names = "same",
    overwrite: bool = False,
    verify: bool = False,
    announce: Callable[[MergePlan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    origin: str = "",
    reductions: Reductions | None = None,
) -> Path:
    """Run a recipe and write the merged model as a Hugging Face model folder.

    Where the recipe's models are files of weights, it is a folder of safetensors files without a config.

    Args:
        recipe: A recipe, or the path of one.
        out: The folder to write, or for files of weights also a file ``*.safetensors``; it appears complete or
            not at all.
        threads: Tensors worked on at the same time; None takes one for each core.
        memory_limit: Bytes of buffers.
        shard_size: Bytes of a safetensors file at most.
        seed: Replaces the recipe's random seed.
        names: ``same``: all models must have the same tensors. ``union``: tensors that some models lack are
            merged from those that have them. ``intersection``: they are left out.
        overwrite: Replace ``out`` if it exists.
        verify: Load the result with transformers, run it and let it generate before ``out`` appears; this takes
            memory for the whole model.
        announce: Called with the plan before anything is written.
        progress: Called with the bytes written so far and those of all tensors, at first with 0; from any thread,
            but one call after the other.
        origin: What messages call a recipe that is no path.
        reductions: Where to keep what further merges of the same models need again.

    Returns:
        ``out``.

    Raises:
        InputError: If the recipe cannot be run as given, or the folder cannot be written.
        MergeError: If a merged tensor has NaN or infinity, or the result cannot be verified.
    """
    origin = origin if isinstance(recipe, Recipe) else str(recipe)
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if seed is not None:
        loaded = loaded.with_seed(seed)
    out = expanded(out)
    target = out.resolve()  # where a link leads to is replaced, not the link
    refuse_occupied(target, overwrite)
    if threads is not None:
        check_count("threads", threads)
    check_count("shard_size", shard_size)
    check_count("memory_limit", memory_limit)
    if memory_limit < THREAD_MINIMUM:
        least = f"{size(THREAD_MINIMUM)} ({THREAD_MINIMUM:,} bytes)"
        raise InputError(f"memory_limit: must be at least {least}, but got {memory_limit:,} bytes")
    with OpenModels() as models:
        plan = build_plan(loaded, models, names=names, origin=origin)
        _check_inputs(out, models.opened)
        if target.suffix == ".safetensors" and plan.config:
            raise InputError(f"{out}: must be a folder, as the models have configs; remove '.safetensors'")
        if verify and not plan.config:
            raise InputError("verify: needs models with a config, but got files of weights; leave it out")
        # What is written names the commits that were merged: it gives the same model when the Hub has moved on.
        pinned = pin(plan.recipe, models.opened.values())
        if announce:
            announce(plan)
        write_merge(
            plan,
            pinned,
            models.opened.values(),
            target,
            threads=threads,
            memory_limit=memory_limit,
            shard_size=shard_size,
            overwrite=overwrite,
            verify=str(out) if verify else None,
            progress=progress,
            reductions=reductions,
        )
    return out


def write_merge(
    plan: MergePlan,
    recipe: Recipe,
    checkpoints: Collection[Checkpoint],
    out: Path,
    *,
    threads: int | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    shard_size: int = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    verify: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    reductions: Reductions | None = None,
) -> None:
    """Execute a plan and write what `merge_models` writes.

    Args:
        plan: The plan.
        recipe: Its recipe, as the output shall have it.
        checkpoints: The models that were opened for it.
        out: The folder or file to write.
        threads: As of `merge_models`, as are all that are not described here.
        verify: What messages call the result, if it is to be verified.
    """
    _check_disk(plan, out)
    single = out.name if out.suffix == ".safetensors" else None
    with published_folder(out, overwrite=overwrite, file=single) as partial:
        limit = plan.bytes_written + 1 if single else shard_size
        waiting = memory_limit // WAITING_SHARE
        sink = SafetensorsSink(partial, plan.ops, limit, single or "model.safetensors", waiting, progress)
        with closing(sink):
            execute(
                plan,
                sink,
                threads=threads,
                memory_limit=memory_limit,
                waiting=waiting,
                reductions=reductions,
            )
            sink.finish()
        write_companions(plan, recipe, checkpoints, partial)
        if verify is not None:
            from heterosis.merge.output.verification import verify_folder  # imports transformers, which is slow

            verify_folder(partial, verify)


def _check_inputs(out: Path, models: Mapping[ModelRef, Checkpoint]) -> None:
    """Refuse to write over a model that is merged, or into one."""
    target = out.resolve()
    for ref, model in models.items():
        if any(path.resolve().is_relative_to(target) for path in (model.folder, *model.files)):
            raise InputError(f"{out}: is one of the models that are merged; choose another folder")
        # Files of weights lie among other things.
        for folder in (model.folder if model.config else None, model.adapter_folder):
            if folder and folder.resolve() in target.parents:
                raise InputError(f"{out}: is inside {ref}, which is merged; choose another folder")


def _check_disk(plan: MergePlan, out: Path) -> None:
    parent = nearest_existing(out.parent)
    disk = shutil.disk_usage(parent)
    if not disk.total or not os.access(parent, os.W_OK):  # /proc and its like have no bytes
        raise InputError(f"{out}: cannot be written: {parent} takes no new files; choose another place")
    if disk.free < plan.bytes_written:
        raise InputError(
            f"{out}: the merged model takes {size(plan.bytes_written)}, but only {size(disk.free)} are free; make "
            "room or choose another disk"
        )
