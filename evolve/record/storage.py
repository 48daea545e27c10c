"""The Optuna study of a run: each result is added exactly once, also where the storage is away for a while."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as NoConnection

from heterosis.errors import InputError
from heterosis.evolve.faults import RunStopped, sqlite_fault
from heterosis.evolve.record.files import STUDY
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.space.dimensions import Dimension
from heterosis.words import first_line

log = logging.getLogger("heterosis")

PATIENCE = 600.0  # seconds without the storage before the session ends
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before another attempt; each is twice the one before
# What may pass: connections lost or refused, a server that restarts or is read-only for the moment, locks.
_PASSING = (OperationalError, InterfaceError, InternalError, NoConnection)


def study_url(folder: Path) -> str:
    """The Optuna storage URL of a run folder's own study."""
    return str(URL.create("sqlite", database=str(folder.resolve() / STUDY)))


class StudyWriter:
    """Writes results to a study.

    Args:
        folder: The run folder, for messages.
        url: Optuna storage URL.
        name: The study's name.
        dimensions: Of all stages of the search that are known.
        objectives: How many values a trial has.
        wait_on: Asked every second while the storage is away, with what is the matter; False ends the waiting.

    Attributes:
        written: How many results it has.

    Raises:
        InputError: If the storage cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        name: str,
        dimensions: Iterable[Dimension],
        objectives: int,
        wait_on: Callable[[str], bool],
    ) -> None:
        self._folder, self._secrets, self._wait_on = folder, _secrets(url), wait_on
        self._distributions: dict[str, BaseDistribution] = {}
        self.add_dimensions(dimensions)
        try:
            self._study: Study = optuna.create_study(
                storage=url, study_name=name, directions=["maximize"] * objectives, load_if_exists=True
            )
            self.written = len(self._study.get_trials(deepcopy=False))
        except (ImportError, SQLAlchemyError, StorageInternalError) as error:
            if url == study_url(folder):
                damaged = any(type(cause) is DatabaseError for cause in _causes(error))  # and of no other kind
                remedy = "remove it, it is written again" if damaged else "see to it, the same command continues"
                raise InputError(f"{folder / STUDY}: cannot be opened: {self._reason(error)}; {remedy}") from error
            raise InputError(
                f"--storage: the study cannot be opened: {self._reason(error)}; give a URL that Optuna can use, "
                "such as sqlite:////folder/study.db"
            ) from error

    def add_dimensions(self, dimensions: Iterable[Dimension]) -> None:
        """Make more dimensions known, of a stage whose space was not known before."""
        self._distributions |= {d.name: _distribution(d) for d in dimensions}

    def takes(self, trial: Trial) -> bool:
        """Whether a result's dimensions are known."""
        return trial.ask.values.keys() <= self._distributions.keys()

    def add(self, trial: Trial) -> None:
        """Add a result, and wait for a storage that is away.

        Raises:
            RunStopped: If it stays away, or if the wait is ended.
        """
        frozen = self._frozen(trial)
        begun, pause, first = time.monotonic(), FIRST_PAUSE, True
        while True:
            try:
                if first or not self._is_there(frozen):
                    self._study.add_trial(frozen)
                break
            except (SQLAlchemyError, StorageInternalError) as error:
                if fault := sqlite_fault(self._folder, error):
                    raise fault from error
                if not any(isinstance(cause, _PASSING) for cause in _causes(error)):
                    raise
                self._wait(pause, PATIENCE - (time.monotonic() - begun), self._reason(error), error)
                pause, first = min(2 * pause, LONGEST_PAUSE), False
        if not first:
            log.info("the storage is there again after %.0f s", time.monotonic() - begun)
        self.written += 1

    def _frozen(self, trial: Trial) -> FrozenTrial:
        """A result as Optuna knows it."""
        ask, score = trial.ask, trial.score
        # Each attribute costs a query.
        result = {name: getattr(trial, name) for name in ("score", "losses", "seconds", "documents")}
        attributes: dict[str, Any] = {"ask": ask.number, "name": ask.name, "result": result}
        if trial.cause is not None:
            attributes["cause"] = trial.cause
        frozen = create_trial(
            state=TrialState.FAIL if score is None else TrialState.PRUNED if trial.pruned else TrialState.COMPLETE,
            values=[-loss for loss in trial.losses] or None,
            params=dict(ask.values),
            distributions={name: self._distributions[name] for name in ask.values},
            user_attrs=attributes,
        )
        frozen.datetime_complete = datetime.fromtimestamp(trial.at)
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=trial.took)
        return frozen

    def _is_there(self, trial: FrozenTrial) -> bool:
        """Whether the attempt before was carried out, though its answer was lost."""
        later = self._study.get_trials(deepcopy=False)[self.written :]
        assert len(later) < 2, "the driver alone writes to its study"
        attributes = json.loads(json.dumps(trial.user_attrs))
        return any(t.user_attrs == attributes for t in later)

    def _wait(self, seconds: float, left: float, reason: str, error: Exception) -> None:
        text = f"the storage cannot be reached: {reason}"
        log.warning("%s; trying again in %.1f s", text, seconds)
        until = time.monotonic() + seconds
        while left > 0 and (going := self._wait_on(text)) and time.monotonic() < until:
            time.sleep(min(1.0, seconds))
        if left <= 0 or not going:
            raise RunStopped(f"--storage: {text}; see to it, then the same command continues") from error

    def _reason(self, error: BaseException) -> str:
        """What the innermost error says, without the URL or its password."""
        *_, last = _causes(error)
        reason = first_line(getattr(last, "orig", None) or last)
        for secret in self._secrets:
            reason = reason.replace(secret, "the URL")
        return reason


def _distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and of whatever it was made the cause in turn."""
    while error is not None:
        yield error
        if isinstance(error, SQLAlchemyError):  # what lies below is the database's own
            return
        error = error.__cause__


def _secrets(url: str) -> list[str]:
    found = [url]
    with suppress(ArgumentError, ValueError):
        password = make_url(url).password
        found += [str(password)] if password else []
    return found
