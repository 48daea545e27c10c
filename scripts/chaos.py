"""A search on real Ray whose drivers, workers and nodes are killed at random moments, and what is left of it.

    python scripts/chaos.py --kills 100 --seed 0
    python scripts/chaos.py --kills 100 --seed 0 --postgresql     (stops and starts the database as well)
    python scripts/chaos.py --kills 6                             (in a minute and a half)

The workers are real Ray actors that score by formula and sleep a little. The search is ``ordered``, so the record
has to have the same content as that of a search that nobody disturbs. Kills are told on stderr, the verdict on
stdout; the exit code is 1 if anything was lost, changed, scored twice, different or left behind.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import ray
from chaos_run.cluster import Nodes, descendants, lasting, surround, workers
from chaos_run.content import Content, behind, causes, differences, lines_of, read_trials, scored_twice, told_twice
from chaos_run.database import URL, Database
from chaos_run.disturber import Disturber, plan
from chaos_run.formula import Formula
from search_bench.coverage import formula_place
from search_bench.ours import config_of
from search_bench.scoring import InProcessPool

from heterosis.evolve import search

SCRIPTS = Path(__file__).resolve().parent
RESERVE = 10  # of so many kills there is one more, as the search may end before the last
NODES, CPUS, WORKERS, ORDERED = 2, 2, 3, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="at least so many; a third of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the search, and of who is killed and when")
    parser.add_argument("--postgresql", action="store_true", help="keep the study on a server, started here")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills: must be at least 1")
    if options.postgresql and URL not in os.environ:
        server = str(SCRIPTS / "with_postgresql.sh")
        os.execvp("bash", ["bash", server, sys.executable, *sys.argv])  # which comes back here
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # a short name: Ray's sockets lie below it
    try:
        broken = run(folder, options)
    except BaseException:
        print(f"chaos: see {folder}", file=sys.stderr)
        raise
    if broken:
        print(f"verdict: {len(broken)} broken; see {folder}")
        return 1
    print("verdict: all invariants hold")
    shutil.rmtree(folder)
    return 0


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """Search twice, and compare. Returns what is broken."""
    temporary = surround(folder)
    config = write_config(folder, options)
    reference, rng = folder / "reference", random.Random(options.seed)
    begun = time.monotonic()
    search_undisturbed(config, reference)
    undisturbed, chunks = time.monotonic() - begun, lines_of(reference / "scores.jsonl")
    print(f"a search of {chunks} chunks of scores, undisturbed: {undisturbed:.0f} s", file=sys.stderr, flush=True)

    database = Database() if options.postgresql else None
    nodes = Nodes(NODES, CPUS)
    storage = [database.url] if database else []
    run_dir = folder / "run"
    command = [sys.executable, "-m", "chaos_run.session", str(config), str(run_dir), nodes.address, *storage]
    disturber = Disturber(folder, command, nodes, database, rng)
    begun = time.monotonic()
    try:
        kills = plan(options.kills + -(-options.kills // RESERVE), chunks, rng)
        disturber.go(kills, len(kills))
        disturbed = time.monotonic() - begun
        broken = [f"processes: a worker stays without a driver: {found}" for found in lasting(workers)]
    finally:
        disturber.close()
        nodes.shutdown()
    broken += [f"processes: left behind: {found}" for found in lasting(descendants)]

    trials = read_trials(run_dir, database.url if database else None)
    disturber.watch.look()
    disturber.watch.look_at_trials(trials)
    expected = Content.read(reference, read_trials(reference, None))
    found = Content.read(run_dir, trials)
    broken += disturber.faults
    broken += disturber.watch.faults
    broken += [*scored_twice(run_dir), *told_twice(trials), *behind(run_dir, trials)]
    broken += differences(expected, found)
    broken += list(left_behind(reference, run_dir, temporary, database is not None))
    if disturber.killed.total() < options.kills:
        broken.append(f"kills: {disturber.killed.total()} of {options.kills}: the search had come to its end")
    for line in account(disturber, database, found, (undisturbed, disturbed), options):
        print(line)
    for fault in broken:
        print(f"BROKEN  {fault}")
    return broken


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """A search of three weights over models that are hardly trained: its scores come from elsewhere."""
    changes: dict[str, Any] = {
        "documents": {"search": 16, "selection": 16, "holdout": 24},
        "trials": max(24, 3 * options.kills),
        "optimizer": {"name": "cma"},
        "ordered": ORDERED,
        "workers": WORKERS,
        "cpus_per_worker": 1,
    }
    path = folder / "config.yaml"
    with redirect_stdout(sys.stderr):
        place = formula_place(folder / "models")
    path.write_text(config_of(place, options.seed, changes).to_yaml())
    return path


def search_undisturbed(config: Path, run_dir: Path) -> None:
    """The same search in this process, a candidate at a time, without Ray."""
    search(config, run_dir, workers=1, make_pool=lambda setup, workers: InProcessPool(Formula()))


def left_behind(reference: Path, run_dir: Path, temporary: Path, elsewhere: bool) -> Iterator[str]:
    """Files that should not be there, or should."""
    expected = {p.name for p in reference.iterdir()} - ({"study.db"} if elsewhere else set())
    found = {p.name for p in run_dir.iterdir()} - {"attempts.jsonl"}
    for name in sorted(found ^ expected):
        yield f"files: {name} {'is left in' if name in found else 'is missing from'} the run folder"
    for path in temporary.iterdir():
        yield f"files: {path} is left behind"


def account(
    disturber: Disturber,
    database: Database | None,
    found: Content,
    seconds: tuple[float, float],
    options: argparse.Namespace,
) -> Iterator[str]:
    """What was done, and what came of it."""
    postgresql = " --postgresql" if options.postgresql else ""
    yield f"chaos.py --kills {options.kills} --seed {options.seed}{postgresql}"
    yield (
        f"cluster: Ray {ray.__version__}, {NODES} nodes beside the head, {WORKERS} workers; "
        f"{os.cpu_count()} cores in all"
    )
    counted = found.outcome["trials"]
    yield (
        f"search: {len(found.trials)} trials, {counted['pruned']} stopped early and {counted['failed']} failed; "
        f"{len(found.scores)} documents scored; {seconds[1]:.0f} s, undisturbed in one process {seconds[0]:.0f} s"
    )
    yield f"kills: {disturber.killed.total()}: {_counted(disturber.killed)}"
    if database:
        yield f"PostgreSQL: stopped {database.stops} times, for {database.seconds:.0f} s in all"
    yield f"sessions: {disturber.sessions.total()}: {_counted(disturber.sessions)}"
    yield f"attempts that came to nothing: {_counted(causes(disturber.run))}"
    yield f"spared: {disturber.spared} workers whose candidate had ended one already"
    yield f"looked at the record {disturber.watch.looks} times"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
