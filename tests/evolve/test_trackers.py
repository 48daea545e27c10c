"""Trackers: what they are told, and that nothing they do reaches the search. Stand-ins, and the real ones."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.watching import tracking
from heterosis.evolve.watching.trackers import TRACKERS, numbers_of

NAMES = sorted(TRACKERS)

# A client that writes down what it is told, and misbehaves as a file beside it says.
FAKE = """
import json, os, sys, time, types
from pathlib import Path

HERE = Path(__file__).parent

def note(what, **more):
    how = (HERE / "how").read_text() if (HERE / "how").exists() else ""
    if how == f"raise in {what}":
        raise ConnectionError("no such server\\n(tried 3 times)")
    if how == f"hang in {what}":
        time.sleep(1000)
    if how == f"exit in {what}":
        sys.exit(3)
    with (HERE / "told.jsonl").open("a") as file:
        file.write(json.dumps({"what": what} | more) + "\\n")
    print("told", flush=True)
"""
FAKES = {
    "wandb": FAKE + '''
class Run:
    def __init__(self, id):
        self.id, self.summary = id or "abc", self
    def log(self, numbers, step):
        note("log", step=step, numbers=numbers)
    def update(self, numbers):
        note("summary", numbers=numbers)
    def finish(self):
        note("end")

def init(id, config, name, **options):
    note("begin", id=id, config=config, name=name)
    return Run(id)
''',
    "mlflow": FAKE + '''
def set_experiment(name): ...
def start_run(run_id=None, run_name=None):
    note("begin", id=run_id, name=run_name)
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "abc"))
def log_params(config):
    note("config", config=config)
def log_metrics(numbers, step):
    note("log", step=step, numbers=numbers)
def end_run(status):
    note("end", status=status)
''',
}  # fmt: skip


class Client:
    """A stand-in for a client's package."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self._folder = name, folder
        (folder / f"{name}.py").write_text(FAKES[name])

    def misbehave(self, how: str) -> None:
        (self._folder / "how").write_text(how)

    def told(self, what: str) -> list[dict[str, Any]]:
        path = self._folder / "told.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [told for line in lines if (told := json.loads(line))["what"] == what]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    def make(name: str) -> Client:
        (tmp_path / name).mkdir()
        monkeypatch.syspath_prepend(tmp_path / name)
        path = [str(tmp_path / name), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
        return Client(tmp_path / name, name)

    return make


@pytest.fixture
def run(toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def go(*trackers: str, judge: Any = pools.hill, trials: int = 6, **pool: Any) -> dict[str, Any]:
        plain = toy_config(workers=1, racing=False, optimizer="random", trials=trials, log_to=list(trackers))
        config = EvolveConfig.parse(yaml.safe_dump(plain))
        return search(config, tmp_path / "run", make_pool=pools(judge, **pool))

    return go


def warnings_of(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "run/run.log").read_text().splitlines()
    return [line.split(" WARNING ")[1] for line in lines if " WARNING " in line]


@pytest.mark.parametrize("name", FAKES)
def test_a_run_is_told_and_continued(run: Any, client: Callable[..., Client], tmp_path: Path, name: str) -> None:
    told = client(name)
    run(name)
    summary = run(name, trials=9)

    steps = [entry for entry in told.told("log") if "documents" in entry["numbers"]]
    assert [entry["step"] for entry in steps] == list(range(9))
    rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
    assert [entry["numbers"]["score"] for entry in steps] == [float(row["score"]) for row in rows]
    assert [entry["numbers"]["best"] for entry in steps][-1] == max(float(row["score"]) for row in rows)
    assert steps[-1]["numbers"]["seconds/merge"] == float(rows[-1]["merge_s"])
    assert any(key.startswith("parameters/weight") for key in steps[-1]["numbers"])

    assert [(entry["id"], entry["name"]) for entry in told.told("begin")] in (
        [(None, "run"), ("abc", "run")],
        [(None, "run"), ("abc", None)],
    )
    configs = [entry["config"] for entry in told.told("begin") + told.told("config") if "config" in entry]
    assert str(configs[0]["seed"]) == "3"
    outcome = [entry["numbers"] for entry in told.told("log") + told.told("summary") if entry not in steps][-1]
    assert outcome["outcome/gain_over_best_parent"] == summary["gain_over_best_parent"]["holdout"]
    assert outcome["outcome/champion/holdout"] == summary["champion"]["holdout"]
    assert len(told.told("end")) == 2
    assert warnings_of(tmp_path) == []


@pytest.mark.parametrize(("how", "what"), [("raise", "begin"), ("exit", "log"), ("raise", "end")])
def test_a_client_that_fails_costs_a_line(
    run: Any, client: Callable[..., Client], tmp_path: Path, what: str, how: str
) -> None:
    told = client("wandb")
    told.misbehave(f"{how} in {what}")
    summary = run("wandb")
    assert (summary["status"], summary["trials"]["complete"]) == ("finished", 6)
    cause = "ConnectionError: no such server (tried 3 times)" if how == "raise" else "SystemExit: 3"
    assert warnings_of(tmp_path) == [f"wandb: switched off: {cause}; see wandb.log"]
    assert "Traceback" in (tmp_path / "run/wandb.log").read_text()
    if what == "log":
        (tmp_path / "wandb/how").unlink()
        run("wandb", trials=9)  # the next session tries again
        assert [entry["step"] for entry in told.told("log")] == list(range(9))


@pytest.mark.parametrize("what", ["begin", "log"])
def test_a_client_that_hangs_costs_a_line_and_leaves_no_process(
    run: Any, client: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    client("wandb").misbehave(f"hang in {what}")
    monkeypatch.setattr(tracking, "GRACE", 2.0)
    assert run("wandb")["status"] == "finished"
    assert warnings_of(tmp_path) == ["wandb: did not take in everything in time, and was ended"]
    assert not [
        p for p in psutil.Process().children(recursive=True) if "heterosis.evolve.watching.trackers" in p.cmdline()
    ]


def test_several_trackers_mind_their_own_business(run: Any, client: Callable[..., Client], tmp_path: Path) -> None:
    one, other = client("wandb"), client("mlflow")
    one.misbehave("raise in begin")
    run("wandb", "mlflow")
    assert len(other.told("end")) == 1
    assert [line.split(":")[0] for line in warnings_of(tmp_path)] == ["wandb"]


def test_a_refused_search_tells_nobody(run: Any, client: Callable[..., Client], tmp_path: Path) -> None:
    told = client("wandb")
    run("wandb")
    with pytest.raises(InputError, match="was made by another config"):
        search(EvolveConfig.load(tmp_path / "run/config.yaml").updated(seed=7), tmp_path / "run", log_to=["wandb"])
    assert len(told.told("begin")) == 1


def test_a_tracker_ends_with_its_driver(client: Callable[..., Client], tmp_path: Path) -> None:
    """Also when the driver is killed."""
    client("wandb")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom heterosis.evolve.watching.tracking import tracked\n"
        "with tracked(Path(sys.argv[1]), ['wandb']):\n    print('begun', flush=True)\n    time.sleep(1000)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=tmp_path)
    assert driver.stdout is not None
    driver.stdout.readline()
    (tracker,) = psutil.Process(driver.pid).children()
    driver.kill()
    driver.communicate()
    assert psutil.wait_procs([tracker], timeout=30)[1] == []


def test_what_is_not_installed_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"log_to: not installed: mlflow, wandb; pip install 'heterosis\[mlflow,wandb\]'"
    ):
        run("mlflow", "wandb")
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        InputError, match=r"log_to\[0\]: must be one of tensorboard, mlflow, wandb, but got 'wandbb'"
    ):
        run("wandbb")


def test_early_stops_and_failures_are_told_apart() -> None:
    common = {"documents": "8", "merge_s": "", "forward_s": "", "other_s": "", "weight": "", "method": "ties"}
    rows = [
        {"score": "0.5", "pruned": "0", **common},
        {"score": "0.7", "pruned": "1", **common, "weight": "0.25"},
        {"score": "", "pruned": "0", **common},
    ]
    assert list(numbers_of(rows)) == [
        {"documents": 8.0, "failed": 0.0, "score": 0.5, "best": 0.5},
        {"documents": 8.0, "failed": 0.0, "estimate": 0.7, "best": 0.5, "parameters/weight": 0.25},
        {"documents": 8.0, "failed": 1.0, "best": 0.5},
    ]


# --- the real ones ----------------------------------------------------------------------------------------------


def test_tensorboard_itself(run: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run("tensorboard")
    summary = run("tensorboard", trials=8)
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
    scores = events.Scalars("score")
    assert [event.step for event in scores] == list(range(8))
    assert [event.value for event in scores] == pytest.approx([float(row["score"]) for row in rows], rel=1e-6)
    assert events.Scalars("outcome/champion/holdout")[-1].value == pytest.approx(summary["champion"]["holdout"])
    assert warnings_of(tmp_path) == []


def test_mlflow_itself(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run("mlflow")
    run("mlflow", trials=8)
    (found,) = mlflow.MlflowClient(uri).search_runs(
        [mlflow.MlflowClient(uri).get_experiment_by_name("heterosis").experiment_id]
    )
    history = mlflow.MlflowClient(uri).get_metric_history(found.info.run_id, "score")
    assert sorted(metric.step for metric in history) == list(range(8))
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "3"
    assert "outcome/gain_over_best_parent" in found.data.metrics
    assert warnings_of(tmp_path) == []


def test_wandb_itself(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, where it writes files to send later."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run("wandb")
    run("wandb", trials=8)
    runs = list((tmp_path / "run/wandb").glob("offline-run-*"))
    ids = {folder.name.rpartition("-")[2] for folder in runs}
    assert ids == {json.loads((tmp_path / "run/.wandb.json").read_text())["id"]}
    assert all(list(folder.glob("*.wandb")) for folder in runs)
    assert warnings_of(tmp_path) == []
