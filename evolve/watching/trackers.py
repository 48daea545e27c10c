"""TensorBoard, MLflow and Weights & Biases: each is told of a run by a process of its own, which runs this module.

The process reads the run folder, as ``heterosis status`` does, and passes on what is new, until its standard input
is closed, by the driver or by its end. What a client raises, prints or waits for stays within that process.
"""

import json
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import yaml

from heterosis.evaluate.splits import PARTS
from heterosis.evolve.record.files import SUMMARY
from heterosis.evolve.record.summary_file import Gain, Summary
from heterosis.evolve.record.trial import TIMES
from heterosis.evolve.results.table import read_table
from heterosis.merge.files import write_text

LOOK = 2.0  # seconds between two looks into the run folder

Numbers: TypeAlias = Mapping[str, float]


class Tracker(Protocol):
    """A client, made for a run folder with its config; with an id, it goes on with the run of that id.

    Attributes:
        id: What finds the same run again.
    """

    id: str

    def __init__(self, folder: Path, id: str | None, config: Mapping[str, Any]) -> None: ...

    def log(self, trial: int, numbers: Numbers) -> None: ...

    def end(self, numbers: Numbers, status: str) -> None: ...


class TensorBoard:
    """Event files in the run folder; ``tensorboard --logdir runs`` shows those of many runs."""

    def __init__(self, folder: Path, id: str | None, config: Mapping[str, Any]) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(folder / "tensorboard")
        self.id = "tensorboard"
        if id is None:
            text = yaml.safe_dump(dict(config), sort_keys=False)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, trial: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, trial)
        self._writer.flush()

    def end(self, numbers: Numbers, status: str) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, 0)
        self._writer.close()


class MLflow:
    """A run of the experiment ``MLFLOW_EXPERIMENT_NAME``, heterosis by default, at ``MLFLOW_TRACKING_URI``."""

    def __init__(self, folder: Path, id: str | None, config: Mapping[str, Any]) -> None:
        self._client = import_module("mlflow")
        self._client.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "heterosis"))
        run = self._client.start_run(run_id=id) if id else self._client.start_run(run_name=folder.name)
        self.id = str(run.info.run_id)
        if id is None:
            self._client.log_params({_plain(key): str(value)[:500] for key, value in _flat(config)})

    def log(self, trial: int, numbers: Numbers) -> None:
        self._client.log_metrics({_plain(name): value for name, value in numbers.items()}, step=trial)

    def end(self, numbers: Numbers, status: str) -> None:
        self.log(0, numbers)
        self._client.end_run("FINISHED" if status == "finished" else "KILLED")


class WandB:
    """A run of the project ``WANDB_PROJECT``, heterosis by default; wandb reads its other settings as ever."""

    def __init__(self, folder: Path, id: str | None, config: Mapping[str, Any]) -> None:
        self._run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "heterosis"),
            name=folder.name,
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        self.id = str(self._run.id)

    def log(self, trial: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=trial)

    def end(self, numbers: Numbers, status: str) -> None:
        self._run.summary.update({**numbers, "status": status})
        self._run.finish()


TRACKERS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def follow(folder: Path, name: str) -> None:
    """Tell a tracker of a run, what it was told in earlier sessions left out, until standard input ends.

    Args:
        folder: The run folder.
        name: Of the tracker.
    """
    place = folder / f".{name}.json"
    told: dict[str, Any] = {"id": None, "trials": 0}
    if place.exists():
        told = json.loads(place.read_text(encoding="utf-8"))
    tracker: Tracker | None = None
    ended = False
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], LOOK)[0])
        if tracker is None:
            if not (folder / SUMMARY).exists():  # the driver has not begun
                continue
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            tracker = TRACKERS[name](folder, told["id"], config)
            told["id"] = tracker.id
            write_text(place, json.dumps(told) + "\n")
        rows = read_table(folder)
        for trial, numbers in enumerate(numbers_of(rows)):
            if trial >= told["trials"]:
                tracker.log(trial, numbers)
        if len(rows) > told["trials"]:
            told["trials"] = len(rows)
            write_text(place, json.dumps(told) + "\n")
    if tracker is not None:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        tracker.end(outcome_numbers(summary), summary["status"])


def numbers_of(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, float]]:
    """What is told of each trial, from the table of trials."""
    best: float | None = None
    for row in rows:
        numbers = {"documents": float(row["documents"]), "failed": float(not row["score"])}
        if row["score"]:
            score = float(row["score"])
            if row["pruned"] == "1":
                numbers["estimate"] = score
            else:
                numbers["score"] = score
                best = score if best is None else max(best, score)
        if best is not None:
            numbers["best"] = best
        numbers |= {f"seconds/{key}": float(row[f"{key}_s"]) for key in TIMES if row[f"{key}_s"]}
        parameters = list(row)[list(row).index("other_s") + 1 :]
        yield numbers | {f"parameters/{name}": n for name in parameters if (n := _number(row[name])) is not None}


def outcome_numbers(summary: Summary) -> dict[str, float]:
    """What is told at the end: the champion's scores, and its gains with their intervals."""
    champion = summary["champion"]
    numbers = {f"champion/{part}": champion[part] if champion else None for part in PARTS}
    gains: dict[str, Gain | None] = {
        "gain_over_best_parent": summary.get("gain_over_best_parent"),
        "gain_over_uniform": summary.get("gain_over_uniform"),
    }
    for key, gain in gains.items():
        if gain:
            numbers |= {key: gain["holdout"], f"{key}/low": gain["ci95"][0], f"{key}/high": gain["ci95"][1]}
    return {f"outcome/{name}": float(value) for name, value in numbers.items() if value is not None}


def _number(text: str) -> float | None:
    """A parameter's value; None for a choice's, and where a trial is no point of the space."""
    try:
        return float(text)
    except ValueError:
        return None


def _plain(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _flat(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def main() -> None:
    """Follow a run folder: ``python -m heterosis.evolve.watching.trackers NAME FOLDER``."""
    name, folder = sys.argv[1:]
    for signum in (signal.SIGINT, signal.SIGTERM):  # for the driver, which tells when it is over
        signal.signal(signum, lambda *_: None)
    try:
        follow(Path(folder), name)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
        os._exit(1)  # without what the client does at exit, for which it may wait


if __name__ == "__main__":
    main()
