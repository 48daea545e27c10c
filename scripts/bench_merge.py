"""Time and memory of merging, beside the floor (reading every input once, writing the output once) and mergekit.

    python scripts/bench_merge.py [--size 2.2GB] [--rounds 3] [--methods ties linear] [--mergekit] [--cold]
    python scripts/bench_merge.py --dtype float32 | --lora | --sharded | --memory-limit 64 | --parents 8 ...
    python scripts/bench_merge.py --grow --json growth.jsonl
    python scripts/bench_merge.py --json growth.jsonl --plot growth.svg
    python scripts/bench_merge.py --json speed.jsonl --tables

Makes checkpoints of Llama shapes in --folder, where they stay for the next time. Every measurement is a process
of its own, the programs take turns, and all write to the same place. A first round warms the page cache, and
compiles; it does not count. With --json every measurement becomes a line of that file, a run that was interrupted
goes on where it was, and tables and the plot can be made again. Use a new file for new code.

The floor is measured with one thread and with --threads, without fsync, which is timed apart; heterosis' time has
its fsync in it. Prints medians, and ratios to the floor of the same round. docs/speed.md says more.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.checkpoints import METHODS, SHAPES, Setting, input_files, make_models, model_bytes, recipe, shard_bytes
from bench.plot import GROWN, growth_plot
from bench.results import Results, growth_table, tables

PROGRAMS = Path(__file__).resolve().parent / "bench" / "programs.py"


def measure(program: str, setting: Setting, models: list[Path], out: Path) -> dict[str, float]:
    """Run a program in a process of its own.

    Returns:
        What it printed, and ``process``: seconds from its start to its exit, without what measuring alone took.

    Raises:
        RuntimeError: If it failed.
    """
    merge = {"recipe": recipe(setting, models), "out": str(out), "shard": shard_bytes(setting)}
    arguments: dict[str, Any]
    match program:
        case "floor" | "floor_1":
            threads = 1 if program == "floor_1" else setting.threads
            arguments = {"models": input_files(setting, models), "out": str(out), "threads": threads}
        case "heterosis" | "first":
            arguments = merge | {"threads": setting.threads, "memory_limit": setting.memory_limit}
        case "mergekit":
            arguments = merge
        case _:
            arguments = {}
    kind = {"floor_1": "floor", "first": "heterosis"}.get(program, program)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(setting.threads)}
    with tempfile.TemporaryDirectory() as empty:
        if program == "first":  # nothing is compiled yet
            environment["NUMBA_CACHE_DIR"] = empty
        command = [sys.executable, str(PROGRAMS), json.dumps({"program": kind, **arguments})]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        elapsed = time.perf_counter() - begun
    lines = re.findall(r"^measured: (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not lines:
        raise RuntimeError(f"{program}, {setting}: failed\n{done.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(lines[-1])
    return numbers | {"process": elapsed - numbers.get("clearing", 0) - numbers.get("fsync", 0)}


def programs(setting: Setting, turn: int, options: argparse.Namespace) -> list[str]:
    """What takes its turn in a round; every other round goes backwards."""
    if turn == 0:  # nothing of it counts
        return ["floor", "heterosis"]
    names = [*["floor_1"] * (setting.threads > 1 and not options.grow), "heterosis", "floor"]
    names += ["mergekit"] * (turn <= options.mergekit_rounds)
    names += ["torch", "first"] * options.cold
    return names if turn % 2 else names[::-1]


def run(settings: list[Setting], options: argparse.Namespace, results: Results) -> list[str]:
    """Measure what is not in the results yet; returns what failed."""
    out = options.folder / "scratch" / "out"
    failures = []
    try:
        # Sizes one after the other: the page cache may not hold two of them.
        for _, group in groupby(settings, key=lambda setting: setting.size):
            for turn, setting in _missing(list(group), options, results):
                models = make_models(options.folder, setting)
                if turn == 0 and options.mergekit_rounds:
                    _warm_mergekit(setting, options.folder, out)
                out.parent.mkdir(parents=True, exist_ok=True)
                for program in programs(setting, turn, options):
                    try:
                        numbers = measure(program, setting, models, out)
                    except RuntimeError as error:
                        print(error, file=sys.stderr, flush=True)
                        failures.append(f"{program} {setting.method}")
                        continue
                    results.add(setting, program, turn, numbers)
                    seconds = numbers.get("seconds", numbers["process"])
                    what = f"{setting.size} {setting.method}, {setting.parents} parents, {setting.threads} threads"
                    print(f"round {turn}: {what}: {program} {seconds:.2f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(out.parent, ignore_errors=True)
    return failures


def _warm_mergekit(setting: Setting, folder: Path, out: Path) -> None:
    """Run mergekit once, on the smallest models: some merges take minutes, and it is its code that has to warm."""
    small = replace(setting, size=next(iter(SHAPES)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with suppress(RuntimeError):
        measure("mergekit", small, make_models(folder, small), out)


def _missing(group: list[Setting], options: argparse.Namespace, results: Results) -> Iterator[tuple[int, Setting]]:
    """Rounds that are not complete; ratios are taken within a round, so all of it is measured again."""
    pending = {
        (turn, setting)
        for turn in range(1, options.rounds + 1)
        for setting in group
        if not all(results.has(setting, program, turn) for program in programs(setting, turn, options))
    }
    warm = {setting for _, setting in pending}
    for turn in range(options.rounds + 1):
        for setting in group:
            if (turn == 0 and setting in warm) or (turn, setting) in pending:
                yield turn, setting


def growing(options: argparse.Namespace) -> Iterator[Setting]:
    """Settings of all sizes, with 2 to 8 fine-tunes at one of them, that fit memory and disk."""
    threads = sorted({1, options.threads})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = options.grow_limit * 10**9 if options.grow_limit else 0.6 * memory
    free = shutil.disk_usage(
        next(p for p in (options.folder, *options.folder.absolute().parents) if p.exists())
    ).free
    for size in SHAPES:
        one = model_bytes(size)
        fitting = [n for n in (range(2, 9) if size == options.size else [3]) if (n + 2) * one <= limit]
        held = sum(path.stat().st_size for path in (options.folder / size).glob("*/*.safetensors"))
        needed = (max(fitting, default=0) + 2) * one - held  # with the base and the output
        if not fitting or needed > free:
            print(f"{size}: left out, its files do not fit the {'disk' if fitting else 'memory'}", file=sys.stderr)
            continue
        free -= max(needed, 0)
        for parents in fitting:
            for count in threads:
                for method in GROWN:
                    yield Setting(method, size, parents, count, options.dtype, options.memory_limit)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--size", choices=SHAPES, help="bytes of a model (2.2GB; with --grow, where parents vary: 270MB)"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="all that take --parents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parents", type=int, choices=range(2, 9), metavar="2-8", help="fine-tunes merged (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the arithmetic")
    parser.add_argument("--lora", action="store_true", help="inputs are the base and adapters of rank 16")
    parser.add_argument("--sharded", action="store_true", help="inputs and output in four shards")
    parser.add_argument("--memory-limit", type=int, default=0, metavar="MIB", help="0: the default")
    parser.add_argument("--mergekit", action="store_true", help="measure mergekit too")
    parser.add_argument(
        "--mergekit-rounds", type=int, metavar="N", help="rounds with mergekit (1 with --mergekit)"
    )
    parser.add_argument(
        "--cold", action="store_true", help="measure a run that has to compile, and importing torch"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw results, read and appended to")
    parser.add_argument("--tables", action="store_true", help="measure nothing; print the tables of --json")
    parser.add_argument(
        "--grow", action="store_true", help="measure how time grows with size, parents and threads"
    )
    parser.add_argument(
        "--grow-limit", type=float, metavar="GB", help="files of a merge at most (0.6 of the memory)"
    )
    parser.add_argument("--plot", type=Path, metavar="SVG", help="measure nothing; draw the growth in --json")
    options = parser.parse_args()
    if (options.tables or options.plot) and not (options.json and options.json.exists()):
        parser.error("--tables and --plot need --json with a file of results")
    fixed = [m for m in options.methods or () if METHODS[m][0]]
    if options.parents and fixed:
        parser.error(f"--parents: {', '.join(fixed)} take a fixed number of models; leave them out")
    if options.mergekit_rounds is None:
        options.mergekit_rounds = int(options.mergekit)
    results = Results(options.json)
    if options.plot:
        options.plot.write_text(growth_plot(results))
        return
    if options.size is None:
        options.size = "270MB" if options.grow else "2.2GB"
    failures: list[str] = []
    if options.tables:
        settings = results.settings()
    elif options.grow:
        settings = list(growing(options))
        failures = run(settings, options, results)
    else:
        methods = options.methods or [m for m in METHODS if not (options.parents and METHODS[m][0])]
        rest = (options.dtype, options.memory_limit, options.lora, options.sharded)
        settings = [Setting(m, options.size, options.parents or 3, options.threads, *rest) for m in methods]
        failures = run(settings, options, results)
    print("\n".join((growth_table if options.grow else tables)(results, settings)))
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
