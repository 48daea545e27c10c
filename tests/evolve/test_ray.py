"""Real Ray workers and real tiny models: a whole run, a worker that dies, a driver that is killed."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.record.record import read_asks
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.workers.cluster import RayPool
from heterosis.evolve.workers.pool import Evaluation, Failure, Setup
from heterosis.evolve.workers.timeouts import TimeLimit
from heterosis.merge.methods import base, methods

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_ray_stays() -> Iterator[None]:
    yield
    ray.shutdown()
    assert not ray_processes(os.getpid())


def ray_processes(parent: int) -> list[str]:
    """Ray's processes among a process's children, and theirs."""
    children: dict[int, list[int]] = {}
    commands = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            commands[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [parent]
    while todo:
        for child in children.get(todo.pop(), []):
            todo.append(child)
            found.append(commands[child])
    return [command for command in found if "ray" in command]


class KillOnce:
    """Progress that lets whichever worker scores next die, until two have died or one candidate has failed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.trials: list[Trial] = []

    def begin(self, *_: Any) -> None: ...
    def phase(self, text: str) -> None: ...
    def end(self) -> None: ...

    def trial(self, trial: Trial, *_: Any) -> None:
        self.trials.append(trial)
        if len(self.trials) == 4:
            self.marker.touch()
        if trial.cause:
            self.marker.unlink()


def test_a_run_survives_a_worker_that_dies(
    toy_config: Callable[..., dict[str, Any]], toy_tasks: Path, tmp_path: Path
) -> None:
    config = EvolveConfig.parse(
        yaml.safe_dump(
            toy_config(tasks=["toy_deadly"], trials=9, workers=1, racing=False, failures={"max_failure_rate": 1.0})
        )
    )
    progress = KillOnce(toy_tasks / "die")
    try:
        summary = search(config, tmp_path / "run", progress=progress)
    finally:
        progress.marker.unlink(missing_ok=True)
    assert summary["status"] == "finished"
    assert summary["trials"] == {"complete": 8, "pruned": 0, "failed": 1, "budget": 9}
    (cause,) = summary["failures"]
    assert cause.startswith("the worker died: ")
    assert [t.ask.number for t in progress.trials] == list(range(9))
    assert progress.trials[4].cause == cause
    log = (tmp_path / "run/run.log").read_text()
    assert log.count("trying again") == 1
    assert summary["seconds"]["forward"] > 0
    assert not ray.is_initialized()


@pytest.fixture
def setup(toy_config: Callable[..., dict[str, Any]]) -> Setup:
    from heterosis.evolve.preflight.preflight import preflight

    checked = preflight(EvolveConfig.parse(yaml.safe_dump(toy_config(tasks=["toy_deadly"]))))
    return Setup(checked.config, checked.split)


def finish(pool: RayPool) -> list[tuple[object, Evaluation | Failure]]:
    """Everything that the pool was given."""
    finished: list[tuple[object, Evaluation | Failure]] = []
    while pool.free < pool.size:
        finished += pool.wait(timeout=1.0)
    return finished


def test_the_pool(
    setup: Setup, toy_models: dict[str, Path], toy_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is given as workers fall free; death and time limits cost one piece of work, not the next one's."""
    monkeypatch.chdir(Path(__file__).parents[2])  # whose folder `evaluate` Ray puts on the workers' path
    recipe = f"merge_method: passthrough\nmodels: [{{model: {toy_models['ann']}}}]\n"

    def evaluate_package(worker: Any) -> str:
        import evaluate

        return str(evaluate.__file__)

    one, *three = setup.split.search["toy_deadly"][:4]
    documents = {"toy_deadly": three}
    marker = toy_tasks / "die"
    pool = RayPool(setup, 2)
    try:
        assert finish(pool) == []
        assert (pool.size, pool.free) == (2, 2)
        assert "site-packages" in ray.get(pool._free[0].__ray_call__.remote(evaluate_package))
        assert pool.wait(timeout=0.1) == []
        pool.submit("a", recipe, documents)
        assert pool.free == 1
        pool.submit("b", recipe, {"toy_deadly": [one]})
        results = dict(finish(pool))
        assert pool.free == 2
        assert all(isinstance(result, Evaluation) for result in results.values()), results
        assert list(results["a"].scores.documents["toy_deadly"]) == three  # type: ignore[union-attr]

        marker.touch()
        pool.submit("c", recipe, documents)
        ((key, died),) = finish(pool)
        marker.unlink()
        assert key == "c"
        assert isinstance(died, Failure)
        assert died.retry
        for key in ("d", "e"):  # at once, while the worker is being started again
            pool.submit(key, recipe, documents)
        after = dict(finish(pool))
        assert all(isinstance(result, Evaluation) for result in after.values()), after
        assert after["d"].scores == results["a"].scores  # type: ignore[union-attr]

        pool._limit = TimeLimit(1, 1e-9)
        pool.submit("f", recipe, documents)
        ((key, late),) = pool.wait(timeout=0)
        assert isinstance(late, Failure)
        assert late.retry
        assert "time limit" in late.cause
        pool._limit = TimeLimit(1)
        assert finish(pool) == []  # until another worker has taken its place
        pool.submit("g", recipe, documents)
        pool.submit("h", recipe, documents)
        assert all(isinstance(result, Evaluation) for _, result in finish(pool))
    finally:
        marker.unlink(missing_ok=True)
        pool.close()


METHOD = """
from heterosis.merge.methods import PerInput, Program, Uniform, formula, merge_method

@formula
def mixed(i, d, weight):
    return weight[0] * d[0] + weight[1] * d[1]

@merge_method("mymix", paper="", base="required", inputs=(2, 2), search={"weight": Uniform(0.0, 1.5)})
def mymix(*, weight: PerInput) -> Program:
    return Program(mixed.bind(weight))
"""


def test_a_method_of_ones_own_is_there_in_workers(
    toy_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in the folder where the search is started, a checkout, as Python finds it when called there."""
    monkeypatch.setattr(base, "_METHODS", {**methods()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mymix.py").write_text(METHOD)
    Path("evaluate").symlink_to(Path(__file__).parents[2] / "evaluate")
    importlib.import_module("mymix")
    config = toy_config({"merge_method": "mymix"}, trials=6, workers=1)
    summary = search(EvolveConfig.parse(yaml.safe_dump(config)), "run")
    assert (summary["status"], summary["trials"]["failed"], summary["failures"]) == ("finished", 0, {})


def heterosis(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "heterosis.cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_after(results: int, run: Path, process: subprocess.Popen[str], signum: signal.Signals) -> list[str]:
    """Send a signal once there are so many results. Returns the lines of results when the process has ended."""
    scores, deadline = run / "scores.jsonl", time.monotonic() + 120
    while not scores.exists() or scores.read_bytes().count(b"\n") < results:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)
    process.communicate(timeout=60)
    return scores.read_text().splitlines()


def test_a_stopped_or_killed_driver_is_continued(
    toy_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(toy_config(trials=22, workers=2, tasks=["toy_choice"])))
    command = ("evolve", config, "--run-dir", run)

    process = heterosis(*command, cwd=tmp_path)
    before = stop_after(5, run, process, signal.SIGTERM)
    assert process.returncode == 130
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"

    process = heterosis(*command, cwd=tmp_path)
    before = stop_after(len(before) + 5, run, process, signal.SIGKILL)
    assert json.loads((run / "summary.json").read_text())["status"] == "running"

    process = heterosis(*command, cwd=tmp_path)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "held out" in output
    summary = json.loads((run / "summary.json").read_text())
    trials = summary["trials"]
    assert (trials["complete"] + trials["pruned"], trials["failed"], trials["budget"]) == (22, 0, 22)
    asks = [ask.number for ask in read_asks(run)]
    assert asks == list(range(22))
    told = Counter(int(row["ask"]) for row in csv.DictReader((run / "trials.csv").open()))
    assert told == Counter(asks)
    lines = (run / "scores.jsonl").read_text().splitlines()
    assert lines[: len(before) - 1] == before[:-1]
    scored = Counter(
        (line["ask"], line["part"], task, document)
        for line in map(json.loads, lines)
        for task, documents in line["scores"]["documents"].items()
        for document in documents
    )
    assert set(scored.values()) == {1}
