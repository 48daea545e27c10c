"""The record of a run: who was asked what, and what came of it. Only the driver writes it.

Five places, in the order of writing:

* ``asks.jsonl``: every candidate, with its recipe and the number of results known when it was handed to a worker;
* ``attempts.jsonl``: attempts to score a candidate that came to nothing, and what happened;
* ``scores.jsonl``: the scores of every document of a candidate, chunk by chunk, before they are used, and its
  answers to held-out documents;
* ``results.jsonl``: what came of each candidate, in the order of their coming;
* an Optuna study, for other programs: a finished trial for each result, in the same order, each in one
  transaction. Optuna takes several queries for each parameter, so this is done while the driver waits for its
  workers; what the study lacks after a crash is written by the next session.

Scores are on the disk before they are used, and asks before whatever refers to them; results before the asks that
come after them, and before the study has them. What a power cut takes with it are asks that nothing came of yet,
and results whose scores are there. So with many workers the driver waits for the disk once a candidate, not three
times.

Repeating the asks and tells in their recorded order rebuilds an optimizer.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from heterosis.errors import InputError
from heterosis.evaluate.scores import Scores
from heterosis.evolve.faults import disk_faults
from heterosis.evolve.record.files import ASKS, RESTORE
from heterosis.evolve.record.storage import StudyWriter
from heterosis.evolve.record.tally import Tally
from heterosis.evolve.record.trial import Ask, Attempt, Kind, Trial
from heterosis.evolve.space.dimensions import Dimension, Value

SCORES = "scores.jsonl"
ATTEMPTS = "attempts.jsonl"
RESULTS = "results.jsonl"

BEHIND = 100  # results that the study may lack while there is other work


class Record:
    """The record of one run.

    Args:
        folder: The run folder.
        storage: Optuna storage URL.
        study_name: The study's name there.
        dimensions: Of all stages of the search that are known.
        objectives: How many losses a result has.
        guard: Called before anything is written; raises if this is not the one driver any more.
        wait_on: As of `StudyWriter`.

    Attributes:
        study: Where results go for other programs.
        trials: The results, in the order of their coming.
        tally: What they amount to.
        baselines: The last ask of each baseline, parents among them, by name; one that failed is asked again in a
            later session.

    Raises:
        InputError: If the storage cannot be used, or a file lacks what another one, or the study, rests on.
    """

    def __init__(
        self,
        folder: Path,
        storage: str,
        study_name: str,
        dimensions: Iterable[Dimension],
        objectives: int = 1,
        *,
        guard: Callable[[], None] = lambda: None,
        wait_on: Callable[[str], bool] = lambda reason: True,
    ) -> None:
        self.study = StudyWriter(folder, storage, study_name, dimensions, objectives, wait_on)
        self._folder, self._guard = folder, guard
        # Files with lines that may not be on the disk yet, as a session that was killed may have left them.
        self._unwritten = {name for name in (ASKS, RESULTS) if (folder / name).exists()}
        self._written_asks = 0  # that are on the disk
        self.asks: dict[int, Ask] = {}
        self.baselines: dict[str, Ask] = {}
        self._again = 0  # asks of baselines and candidates that were asked before
        for ask in read_asks(folder):
            self._take_ask(ask)
        self._scores = read_scores(folder)
        self._met: dict[tuple[str, str], int] = {}  # documents of a part, by recipe
        self._documents = 0
        for number, part in self._scores:
            self._count_documents(_asked(folder, self.asks, number, SCORES), part)
        self.attempts = list(_read_attempts(folder))
        self.trials: list[Trial] = []
        self.tally = Tally()
        self._told: dict[int, Trial] = {}
        for trial in _results(folder, self.asks):
            if self.met(trial.ask, "search") < trial.documents:
                number = trial.ask.number
                raise InputError(
                    f"{folder / SCORES}: lacks scores of candidate {number}, which {RESULTS} has; {RESTORE}"
                )
            self._take(trial)
        if self.study.written > len(self.trials):
            raise InputError(
                f"{folder / RESULTS}: the study has {self.study.written} results, but this file only "
                f"{len(self.trials)}; {RESTORE}"
            )

    def _take_ask(self, ask: Ask) -> None:
        self.asks[ask.number] = ask
        self._again += ask.promoted or ask.name in self.baselines
        if not ask.is_candidate:
            self.baselines[ask.name] = ask

    def _take(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._told[trial.ask.number] = trial
        self.tally.add(trial)

    def _count_documents(self, ask: Ask, part: str) -> None:
        known, now = self.met_by(ask.recipe, part), self.met(ask, part)
        if now > known:
            self._met[ask.recipe, part] = now
            self._documents += now - known

    @property
    def counted(self) -> int:
        """How many asks the budget of trials counts: who is asked again is one."""
        return len(self.asks) - self._again

    @property
    def open_asks(self) -> list[Ask]:
        """Candidates without a result, in the order of asking."""
        return [ask for number, ask in sorted(self.asks.items()) if number not in self._told]

    @property
    def parents(self) -> list[Ask]:
        """The last ask of each parent."""
        return [ask for ask in self.baselines.values() if ask.kind == "parent"]

    def ask(
        self,
        kind: Kind,
        name: str,
        recipe: str,
        values: Mapping[str, Value],
        *,
        stage: int = 0,
        rivals: Sequence[int] = (),
        promoted: bool = False,
    ) -> Ask:
        """Record a candidate that is handed out; see `Ask`."""
        ask = Ask(
            len(self.asks), kind, name, recipe, dict(values), len(self.trials), stage, tuple(rivals), promoted
        )
        self._append(ASKS, asdict(ask))
        self._take_ask(ask)
        return ask

    def add_attempt(self, ask: Ask, part: str, cause: str, *, blamed: bool) -> None:
        """Keep that an attempt to score a candidate came to nothing."""
        attempt = Attempt(ask.number, part, self.met(ask, part), cause, blamed)
        self._append_about(ask, ATTEMPTS, asdict(attempt))
        self._write_out(ATTEMPTS)
        self.attempts.append(attempt)

    def copy_scores(self, source: Ask, ask: Ask, part: str) -> None:
        """Take over the scores that the same recipe was given when it was asked before."""
        assert source.recipe == ask.recipe
        scores = self.scores(source, part)
        assert scores is not None
        self._add_scores(ask, part, scores, same_as=source.number)

    def add_scores(self, ask: Ask, part: str, scores: Scores, checksum: str | None = None) -> None:
        """Keep the scores of some of a candidate's documents of one part of the split.

        Args:
            ask: The candidate.
            part: Of the split.
            scores: Of documents that were not scored before.
            checksum: Of the live model that they were scored with.

        Raises:
            ValueError: If a document is scored already.
        """
        self._add_scores(ask, part, scores, **({"checksum": checksum} if checksum else {}))

    def _add_scores(self, ask: Ask, part: str, scores: Scores, **more: object) -> None:
        _keep(self._scores, (ask.number, part), scores)
        self._count_documents(ask, part)
        line = {"ask": ask.number, "part": part, "scores": json.loads(scores.to_json())}
        self._append_about(ask, SCORES, line | more)
        self._write_out(SCORES)

    def scores(self, ask: Ask, part: str) -> Scores | None:
        """What :meth:`add_scores` kept, of all chunks together."""
        return self._scores.get((ask.number, part))

    def met(self, ask: Ask, part: str) -> int:
        """How many documents of a part a candidate has met."""
        scores = self._scores.get((ask.number, part))
        return scores.count if scores else 0

    def met_by(self, recipe: str, part: str) -> int:
        """How many documents of a part the candidates of one recipe have met, or the one that has met most."""
        return self._met.get((recipe, part), 0)

    def documents_scored(self) -> int:
        """Documents of all parts, counted once for every recipe."""
        return self._documents

    def result(self, ask: Ask) -> Trial | None:
        """What came of a candidate, if that is known."""
        return self._told.get(ask.number)

    def tell(
        self,
        ask: Ask,
        score: float | None,
        losses: tuple[float, ...] = (),
        *,
        terms: tuple[float, ...] = (),
        cause: str | None = None,
        pruned: bool = False,
        documents: int = 0,
        share: float = 1.0,
        seconds: Mapping[str, float] | None = None,
    ) -> Trial:
        """Record a candidate's result: score, losses and terms, or the cause of its failure."""
        assert (score is None) == (cause is not None) == (not losses)
        times = {k: round(v, 4) for k, v in (seconds or {}).items()}
        at = round(time.time(), 3)
        told = Trial(len(self.trials), ask, score, cause, times, losses, pruned, documents, share, terms, at)
        line = {name: getattr(told, name) for name in _RESULT}
        self._append_about(ask, RESULTS, {"ask": ask.number, **line})
        self._take(told)
        if self.study.written + BEHIND < len(self.trials):
            self.write_study()
        return told

    def write_study(self) -> bool:
        """Write the next result to the study, if there is one; whether there are more.

        Raises:
            RunStopped: If the storage is away for too long.
        """
        behind = self.trials[self.study.written : self.study.written + 1]
        # A stage that begins from the results of the one before is not known until it is reached again.
        if not behind or not self.study.takes(behind[0]):
            return False
        self._write_out(RESULTS)
        self._guard()
        self.study.add(behind[0])
        return self.study.written < len(self.trials)

    def _append_about(self, ask: Ask, name: str, line: Mapping[str, Any]) -> None:
        """Add a line that refers to a candidate."""
        if ask.number >= self._written_asks:
            self._write_out(RESULTS)
            self._write_out(ASKS)
            self._written_asks = len(self.asks)
        self._append(name, line)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        self._guard()
        with disk_faults(self._folder):
            _append(self._folder / name, line)
        self._unwritten.add(name)

    def _write_out(self, name: str) -> None:
        """Wait until all lines of a file are on the disk."""
        if name in self._unwritten:
            self._guard()
            with disk_faults(self._folder), (self._folder / name).open("rb") as file:
                os.fsync(file.fileno())
            self._unwritten.remove(name)


# What a line of results has beside the ask's number.
_RESULT = [f.name for f in fields(Trial) if f.name not in ("number", "ask")]


def read_asks(folder: Path) -> Iterator[Ask]:
    """The candidates of a run folder, in the order of asking."""
    for number, line in _read_lines(path := folder / ASKS):
        with _undamaged(path, number):
            first = line.pop("incumbent", None)  # of versions without further rivals
            rivals = line.pop("rivals", [] if first is None else [first])
            ask = Ask(**line, rivals=tuple(rivals))
            _require(ask.number == number)
        yield ask


def _read_attempts(folder: Path) -> Iterator[Attempt]:
    for number, line in _read_lines(path := folder / ATTEMPTS):
        with _undamaged(path, number):
            attempt = Attempt(**line)
        yield attempt


def read_scores(folder: Path) -> dict[tuple[int, str], Scores]:
    """The scores of a run folder, all chunks together, by the ask's number and the part of the split."""
    found: dict[tuple[int, str], Scores] = {}
    for number, line in _read_lines(path := folder / SCORES):
        with _undamaged(path, number):
            _keep(found, (line["ask"], line["part"]), Scores.from_json(json.dumps(line["scores"])))
    return found


def read_trials(folder: Path) -> list[Trial]:
    """The results of a run folder, in the order of their coming.

    Raises:
        InputError: If a file lacks what another one rests on.
    """
    return list(_results(folder, {ask.number: ask for ask in read_asks(folder)}, "restore the file"))


def _results(folder: Path, asks: Mapping[int, Ask], remedy: str = RESTORE) -> Iterator[Trial]:
    told: set[int] = set()
    for number, line in _read_lines(path := folder / RESULTS):
        with _undamaged(path, number):
            ask = _asked(folder, asks, line.pop("ask"), RESULTS, remedy)
            _require(ask.number not in told)
            losses, terms = tuple(line.pop("losses")), tuple(line.pop("terms", ()))
            trial = Trial(number, ask, losses=losses, terms=terms, **line)
        told.add(ask.number)
        yield trial


def _asked(folder: Path, asks: Mapping[int, Ask], number: int, name: str, remedy: str = RESTORE) -> Ask:
    """The candidate that a line of a file is about. It was on the disk before the line was."""
    if number not in asks:
        raise InputError(f"{folder / ASKS}: lacks candidate {number}, which {name} has; {remedy}")
    return asks[number]


def _keep(found: dict[tuple[int, str], Scores], key: tuple[int, str], scores: Scores) -> None:
    known = found.get(key)
    found[key] = known.merged(scores) if known else scores


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line. What a crash left of the line before it is cut off."""
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() and not _ends_whole(file):
            file.truncate(_whole_lines(path))
        file.write(data)


def _ends_whole(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The whole lines of a file, with their numbers from 0; a torn last one was never acted upon.

    Raises:
        InputError: If the file cannot be read, or a line is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; {RESTORE}") from error
    for number, text in enumerate(content[: content.rfind(b"\n") + 1].splitlines()):
        with _undamaged(path, number):
            line = json.loads(text)
        yield number, line


@contextmanager
def _undamaged(path: Path, number: int) -> Iterator[None]:
    """Name the line that cannot be made into what it stands for."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: line {number + 1} is damaged; {RESTORE}") from error


def _require(fits: bool) -> None:
    """Refuse a line that does not fit those before it."""
    if not fits:
        raise ValueError
