"""What a run has on record: what has changed in it that must not, and what it must be equal to."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from heterosis.evolve.record.files import ASKS
from heterosis.evolve.record.record import ATTEMPTS, RESULTS, SCORES, read_asks
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.storage import study_url
from heterosis.evolve.record.summary_file import read_summary
from heterosis.evolve.record.trial import Attempt

NOT_COMPARED = ("seconds", "environment", "outcome")  # of the summary; the last has the number of a trial
SHOWN = 160  # characters of a value in a line


@dataclass(frozen=True)
class Content:
    """What a run came to, without what the order of the results decides, and times.

    Attributes:
        asks: Candidates by number, but for how many results were known when they were asked.
        scores: Of single documents, by candidate, part of the split, task and document.
        trials: Results by candidate.
        outcome: Champion, finalists, parents and the rest of the summary, and the champion's recipe.
    """

    asks: Mapping[int, Mapping[str, Any]]
    scores: Mapping[tuple[int, str, str, str], Mapping[str, float]]
    trials: Mapping[int, Mapping[str, Any]]
    outcome: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, trials: Sequence[FrozenTrial]) -> "Content":
        """The content of a finished run and its study."""
        asks = {ask.number: asdict(ask) for ask in read_asks(folder)}
        for ask in asks.values():
            del ask["after"]
        told = {trial.user_attrs["ask"]: _result(trial) for trial in trials}
        summary = read_summary(folder)
        asked = {trial.number: trial.user_attrs["ask"] for trial in trials}
        outcome = {key: value for key, value in summary.items() if key not in NOT_COMPARED}
        outcome["champion"] = {**summary["champion"], "trial": asked[summary["champion"]["trial"]]}
        outcome["finalists"] = [{**f, "trial": asked[f["trial"]]} for f in summary["finalists"]]
        recipe = yaml.safe_load((folder / "best.yaml").read_text(encoding="utf-8"))
        del recipe["heterosis"]["search"]  # what the summary says as well, with the number of the trial
        outcome["recipe"] = recipe
        return cls(asks, dict(_documents(folder)), told, outcome)


def differences(expected: Content, found: Content) -> Iterator[str]:
    """What differs, a line for each kind of content."""
    for what in ("asks", "scores", "trials", "outcome"):
        ours, theirs = getattr(found, what), getattr(expected, what)
        keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        if keys:
            there, wanted = (str(of.get(keys[0]))[:SHOWN] for of in (ours, theirs))
            yield f"{what}: {len(keys)} of {len(theirs)} differ; {keys[0]} is {there}, and not {wanted}"


def scored_twice(folder: Path) -> list[str]:
    """Documents that are scored more than once for a candidate."""
    counted = Counter(key for key, _ in _documents(folder))
    return [f"{SCORES}: {key} is there {count} times" for key, count in counted.items() if count > 1]


def told_twice(trials: Sequence[FrozenTrial]) -> list[str]:
    """Candidates that have more than one result."""
    counted = Counter(trial.user_attrs["ask"] for trial in trials)
    return [f"study: candidate {ask} has {count} results" for ask, count in counted.items() if count > 1]


def behind(folder: Path, trials: Sequence[FrozenTrial]) -> list[str]:
    """Whether the study of a finished run has other results than the run folder."""
    known, told = [line["ask"] for line in _lines(folder / RESULTS)], [t.user_attrs["ask"] for t in trials]
    return [] if known == told else [f"study: has {len(told)} results, but not those {len(known)} of {RESULTS}"]


def read_trials(folder: Path, storage: str | None) -> list[FrozenTrial]:
    """The trials of a run's study, if it has begun."""
    study = RunState.load(folder).study
    url = storage or study_url(folder)
    if not study or (storage is None and not (folder / "study.db").exists()):
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return list(optuna.load_study(study_name=study, storage=url).get_trials(deepcopy=False))
    except KeyError:  # the study is not made yet
        return []


class Watch:
    """Looks at a record again and again: what was once there stays as it was.

    Attributes:
        looks: How often it has looked.
        faults: What has changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = dict.fromkeys((ASKS, SCORES, ATTEMPTS, RESULTS), b"")
        self._trials: list[Any] = []
        self.looks, self.faults = 0, list[str]()

    def look(self) -> None:
        """Look at the files, also while they are written."""
        self.looks += 1
        for name, before in self._lines.items():
            path = self._folder / name
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]  # a torn line was never acted upon
            if not whole.startswith(before):
                self.faults.append(f"{name}: lines that were there have changed or are gone")
            self._lines[name] = whole

    def look_at_trials(self, trials: Sequence[FrozenTrial]) -> None:
        """Look at what was read of the study."""
        found = [(trial.number, trial.params, _result(trial)) for trial in trials]
        if found[: len(self._trials)] != self._trials:
            self.faults.append(f"study: of {len(self._trials)} trials, some have changed or are gone")
        self._trials = found


def in_doubt(folder: Path) -> tuple[set[int], int]:
    """Candidates that have ended a worker since their last result, and the most attempts of one since then.

    A second such end is rightly taken for a candidate's own doing, as are five attempts of any kind.
    """
    met = Counter((number, part) for number, part, _, _ in dict(_documents(folder)))
    attempts = [Attempt(**line) for line in _lines(folder / ATTEMPTS)]
    since = [a for a in attempts if a.met == met[a.ask, a.part]]
    most = Counter((a.ask, a.part) for a in since).values()
    return {a.ask for a in since if a.blamed}, max(most, default=0)


def lines_of(path: Path) -> int:
    """How many whole lines a file has; none if it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def causes(folder: Path) -> Counter[str]:
    """Attempts that came to nothing, by the beginning of their causes."""
    return Counter(line["cause"].partition(":")[0] for line in _lines(folder / ATTEMPTS))


def _result(trial: FrozenTrial) -> dict[str, Any]:
    """What was told of a candidate, but for the times."""
    result = {key: value for key, value in trial.user_attrs["result"].items() if key != "seconds"}
    return {**result, "state": trial.state.name, "cause": trial.user_attrs.get("cause"), "values": trial.values}


def _documents(folder: Path) -> Iterator[tuple[tuple[int, str, str, str], Mapping[str, float]]]:
    for line in _lines(folder / SCORES):
        for task, scored in line["scores"]["documents"].items():
            for document, values in scored.items():
                yield (line["ask"], line["part"], task, document), values


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    content = path.read_bytes() if path.exists() else b""
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        yield json.loads(line)
