"""Time of putting a candidate into a resident model, beside reading the parents' bytes and writing its own once.

    python scripts/bench_update.py [--size 2.2GB] [--candidates 5] [--methods ties linear] [--threads 2]

The parents are mapped, and what does not depend on the genome is kept, as in a search's worker: the first
candidate, which computes it, is printed apart. The live model is of float32, which workers compute in, or of
bfloat16. The floor is a loop over the same files, which stay mapped as the parents do, that combines their 16-bit
words and writes them as wide as the live model's, on as many threads. Checkpoints are those of bench_merge.py.
Prints medians and their ratio.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import torch
from bench.checkpoints import METHODS, Setting, make_models, recipe

from heterosis.merge import ModelSink, Recipe, Reductions, build_plan, execute, open_checkpoint
from heterosis.merge.recipe.reference import ModelRef

WORDS = {"float32": np.uint32, "bfloat16": np.uint16}  # by the live model's dtype


@numba.njit(nogil=True)
def combine(rows, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        word = rows[0][i]
        for j in range(1, len(rows)):
            word ^= rows[j][i]
        out[i] = word


def mapped(file: Path, size: int) -> np.ndarray:
    """So many 16-bit words of a file, where the system keeps them."""
    return np.memmap(file, np.uint16, "c", shape=(size,))


def floor(rows: tuple[np.ndarray, ...], words: np.ndarray, threads: int) -> float:
    """Seconds to read all rows and to write one."""
    parts = [slice(k * len(words) // threads, (k + 1) * len(words) // threads) for k in range(threads)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: combine(tuple(row[part] for row in rows), words[part]), parts))
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="2.2GB")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--live", choices=WORDS, default="float32", help="the model's dtype")
    options = parser.parse_args()
    print("| method | floor s | first s | candidate s | of the floor |\n| --- | --- | --- | --- | --- |")
    for method in options.methods:
        setting = Setting(method, options.size)
        models = make_models(options.folder, setting)
        opened = {}

        def open_model(ref: ModelRef, opened=opened):  # type: ignore[no-untyped-def]
            if ref not in opened:
                opened[ref] = open_checkpoint(ref, mapped=True)
            return opened[ref]

        plan = build_plan(Recipe.model_validate(recipe(setting, models)), open_model)
        live = {op.name: torch.zeros(op.shape, dtype=getattr(torch, options.live)) for op in plan.ops}
        files = [file for checkpoint in opened.values() for file in checkpoint.files]
        words = np.zeros(sum(op.numel for op in plan.ops), WORDS[options.live])
        rows = tuple(mapped(file, len(words)) for file in files)
        reductions, floors, times = Reductions(), [], []
        for _ in range(options.candidates + 1):
            floors.append(floor(rows, words, options.threads))
            begun = time.perf_counter()
            # A new sink holds nothing yet, so that the same numbers are merged again.
            execute(plan, ModelSink(live), threads=options.threads, reductions=reductions)
            times.append(time.perf_counter() - begun)
        ratio = statistics.median(t / f for t, f in zip(times[1:], floors[1:], strict=True))
        cells = statistics.median(floors[1:]), times[0], statistics.median(times[1:]), ratio
        print(f"| {method} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
