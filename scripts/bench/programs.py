"""One measurement, in a process of its own, which prints one line of numbers.

    python programs.py '{"program": "floor", "models": [["base.safetensors"], ...], "out": "merged", "threads": 2}'

Memory that a machine has not touched yet may be ten times as dear as pages that were just freed. So that all
programs get the same, each deletes what the one before it wrote after its imports, right before its clock starts.

What is measured: seconds; those of the processor (user, system); the peak of resident memory above that after the
imports; apart from them the imports, and fsync where a program leaves it out.
"""

import json
import mmap
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

CHUNK = 2**20
Numbers = dict[str, float]


@contextmanager
def measured(out: Path) -> Iterator[Numbers]:
    """Delete ``out``, then measure the block."""
    result: Numbers = {}
    begun = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    result["clearing"] = time.perf_counter() - begun
    resident, exact = _reset_peak()
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    yield result
    result["seconds"] = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_SELF)
    result["user"] = after.ru_utime - before.ru_utime
    result["system"] = after.ru_stime - before.ru_stime
    result["MiB"] = (_status("VmHWM") if exact else after.ru_maxrss / 1024) - resident


def _reset_peak() -> tuple[float, bool]:
    """Resident MiB from which the peak counts, and whether the kernel forgot earlier peaks."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS"), True
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, False


def _status(key: str) -> float:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) / 1024


def _sync(folder: Path) -> float:
    begun = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - begun


def floor(models: list[list[str]], out: Path, threads: int) -> Numbers:
    """Read all files of all models once, and write as many bytes as the first model has."""
    out_files = {file: out / Path(file).name for file in models[0]}
    # What is read and written at the same time: a chunk of each model.
    steps = list(zip_longest(*([chunk for file in model for chunk in _chunks(file)] for model in models)))
    sources = {file: os.open(file, os.O_RDONLY) for model in models for file in model}
    targets: dict[str, int] = {}

    def part(k: int) -> None:
        buffer = memoryview(mmap.mmap(-1, CHUNK))  # page-aligned
        for written, *others in steps[k::threads]:
            for file, start, length in filter(None, (*others, written)):
                os.preadv(sources[file], [buffer[:length]], start)
            if written:
                file, start, length = written
                os.pwrite(targets[file], buffer[:length], start)

    with measured(out) as result:
        out.mkdir()
        for file, path in out_files.items():
            targets[file] = os.open(path, os.O_RDWR | os.O_CREAT)
            os.truncate(targets[file], Path(file).stat().st_size)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))
    return result | {"fsync": _sync(out)}


def _chunks(file: str) -> Iterator[tuple[str, int, int]]:
    size = Path(file).stat().st_size
    for start in range(0, size, CHUNK):
        yield file, start, min(CHUNK, size - start)


def heterosis(recipe: Mapping[str, Any], out: Path, threads: int, memory_limit: int, shard: int | None) -> Numbers:
    begun = time.perf_counter()
    from heterosis.merge.api import merge_models
    from heterosis.merge.recipe.recipe import Recipe

    imports = time.perf_counter() - begun
    limits = {"memory_limit": memory_limit * 2**20, "shard_size": shard}
    given = {key: value for key, value in limits.items() if value}
    with measured(out) as result:
        merge_models(Recipe.model_validate(recipe), out, threads=threads, **given)
    return result | {"imports": imports}


def mergekit(recipe: Mapping[str, Any], out: Path, shard: int | None) -> Numbers:
    begun = time.perf_counter()
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    imports = time.perf_counter() - begun
    given = {"out_shard_size": shard} if shard else {}
    adapted = out / "adapted"  # where it keeps bases with adapters added, for the next merge
    options = MergeOptions(
        copy_tokenizer=False, quiet=True, write_model_card=False, lora_merge_cache=str(adapted), **given
    )
    with measured(out) as result:
        run_merge(MergeConfiguration.model_validate(recipe), str(out), options)
    return result | {"imports": imports, "fsync": _sync(out)}


def torch() -> Numbers:
    begun = time.perf_counter()
    import torch  # noqa: F401

    return {"imports": time.perf_counter() - begun}


PROGRAMS: dict[str, Callable[..., Numbers]] = {
    "floor": floor,
    "heterosis": heterosis,
    "mergekit": mergekit,
    "torch": torch,
}


def main() -> None:
    arguments = json.loads(sys.argv[1])
    program = PROGRAMS[arguments.pop("program")]
    if "out" in arguments:
        arguments["out"] = Path(arguments["out"])
    print("measured:", json.dumps(program(**arguments)))


if __name__ == "__main__":
    main()
