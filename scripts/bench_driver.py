"""What many workers ask of the driver, how busy they are, and what their memory does.

    python scripts/bench_driver.py --cost --json FILE          (the driver's time for a candidate; minutes)
    python scripts/bench_driver.py --utilisation --json FILE   (64 workers that sleep, threads or Ray actors)
    python scripts/bench_driver.py --memory --json FILE        (real workers; minutes)
    python scripts/bench_driver.py --json FILE --tables        (measures nothing)

The first two search on models that are only formulas; those of the third have random weights. Times are on the
wall and, as other programs may run beside, of the driver's process on the processor.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.circumstances import circumstances
from driver_bench import cost, memory, utilisation

COUNTS = (100, 1_000, 10_000)
SURROGATES = {"tpe": (100, 1_000), "gp": (100,)}  # which look at all results for each proposal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cost", action="store_true", help="measure the driver's time for a candidate")
    parser.add_argument("--utilisation", action="store_true", help="measure how busy sleeping workers are")
    parser.add_argument("--memory", action="store_true", help="measure the memory of real workers")
    parser.add_argument(
        "--optimizers", nargs="+", default=["random", "cma"], help="also tpe and gp, with fewer trials"
    )
    parser.add_argument("--counts", nargs="+", type=int, help="trials at which the driver's time is read")
    parser.add_argument("--trials", type=int, default=768, help="of a search with sleeping workers")
    parser.add_argument("--workers", type=int, default=64, help="that sleep")
    parser.add_argument("--actors", action="store_true", help="these are Ray's actors; else they are threads")
    parser.add_argument(
        "--no-study", action="store_true", help="do not write the study while the cost is measured"
    )
    parser.add_argument("--candidates", type=int, default=500, help="over which a worker's memory is followed")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/search-bench"), help="of models that are formulas"
    )
    parser.add_argument("--models", type=Path, default=Path("runs/bench"), help="of models with random weights")
    parser.add_argument(
        "--runs", type=Path, help="where run folders are made: a disk, for which the driver waits, or not"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw results, appended to")
    parser.add_argument("--tables", action="store_true", help="measure nothing; print the tables of --json")
    options = parser.parse_args()
    if options.runs:
        options.runs.mkdir(parents=True, exist_ok=True)
    if options.tables:
        if options.json is None:
            parser.error("--tables needs --json")
        lines = [json.loads(text) for text in options.json.read_text().splitlines()]
    else:
        lines = []
        for line in measurements(options):
            lines.append(line | circumstances())
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print("\n".join(tables(lines)))


def measurements(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.cost:
        for optimizer in options.optimizers:
            counts = options.counts or SURROGATES.get(optimizer, COUNTS)
            study = not options.no_study
            yield from cost.measure(optimizer, sorted(counts), options.folder, options.runs, study=study)
    if options.utilisation:
        for optimizer in options.optimizers:
            yield utilisation.measure(
                optimizer, options.trials, options.workers, options.folder, actors=options.actors
            )
    if options.memory:
        yield memory.growth(options.folder, options.models, options.candidates)
        for size in (memory.SMALL, memory.LARGE):
            yield memory.sharing(size, options.folder, options.models)


def tables(lines: list[dict[str, Any]]) -> Iterator[str]:
    kinds = {
        ("driver",): cost.cost_table,
        ("utilisation",): utilisation.utilisation_table,
        ("growth", "sharing"): memory.memory_tables,
    }
    for kind, table in kinds.items():
        if found := [line for line in lines if line["what"] in kind]:
            yield from table(found)
            yield ""


if __name__ == "__main__":
    main()
