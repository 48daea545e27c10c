"""Proposing candidates: an optimizer on one stage's space, made again from the record when a run goes on."""

import logging
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

from heterosis.evolve.optimizers import Detail, Optimizer, Vector
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.tally import leading
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.space.dimensions import Space, same_values

log = logging.getLogger("heterosis")


class Proposer:
    """Asks an optimizer for points, and tells it what came of them.

    Results are told as they come. In the ordered mode they are told in the order of asking, so that a proposal
    depends on the results of all but the ``ordered`` candidates asked last, whichever came first: any number of
    workers up to one more gives the same search.

    Args:
        stage: Number of the stage.
        space: Its space.
        optimizer: As it was when the stage began.
        record: The run's; what was asked and told in this stage is repeated.
        ordered: 0 for results as they come.

    Attributes:
        leaders: The best few results of all that the next proposal may depend on, best first; see `leading`.
    """

    def __init__(self, stage: int, space: Space, optimizer: Optimizer, record: Record, ordered: int = 0) -> None:
        self.stage, self.space = stage, space
        self._optimizer = optimizer
        # Optimizers compute little at a time, and have to share the cores with the workers: a second thread that
        # waits for a core makes a Gaussian process five times as slow.
        self._threads = ThreadpoolController()
        self._ordered = ordered
        self._asks: list[Ask] = []
        self._unknown: dict[int, Ask] = {}
        self._points: dict[int, Vector] = {}  # what the optimizer proposed, to the last bit
        self._told = 0
        self._waiting: dict[int, Trial] = {}  # results that are not told yet, by ask
        self.leaders: list[Trial] = []
        self._scored: dict[str, Trial] = {}  # by recipe
        for trial in record.trials:
            if trial.ask.kind != "search" or trial.ask.stage < stage:
                self._count_on(trial)
        self._replay(stage, record)

    @property
    def unknown(self) -> list[Ask]:
        """What was asked in this stage and the next proposal must not depend on; see `catch_up`."""
        return list(self._unknown.values())

    def catch_up(self) -> bool:
        """Tell the optimizer what the next proposal depends on; whether all of it is there."""
        for trial in self._due(len(self._asks) - self._ordered):
            if trial is None:
                return False
            self._inform(trial)
        return True

    def propose(self) -> Vector | None:
        """The next point; None while a result is missing that it depends on."""
        if not self.catch_up():
            return None
        with self._threads.limit(limits=1):
            return self._optimizer.ask()

    def adopt(self, ask: Ask, point: Vector) -> None:
        """Take a point as asked."""
        self._asks.append(ask)
        self._unknown[ask.number] = ask
        self._points[ask.number] = point

    def tell(self, trial: Trial) -> None:
        """Take in a candidate's result."""
        if self._ordered:
            self._waiting[trial.ask.number] = trial
        else:
            self._inform(trial)

    def mean(self) -> Vector | None:
        """What the optimizer would recommend after all results, which it is told now."""
        for trial in self._due(len(self._asks)):
            if trial is not None:
                self._inform(trial)
        with self._threads.limit(limits=1):
            return self._optimizer.mean()

    def scored(self, recipe: str) -> Trial | None:
        """What the next proposal may know of a recipe: of several results, that of most documents."""
        return self._scored.get(recipe)

    def _due(self, count: int) -> Iterator[Trial | None]:
        """Results of the first asks that are still to be told, None for one that has not come."""
        while self._ordered and self._told < count:
            trial = self._waiting.get(self._asks[self._told].number)
            yield trial
            if trial is None:
                return

    def _inform(self, trial: Trial) -> None:
        self._told += 1
        for waiting in (self._waiting, self._unknown):
            waiting.pop(trial.ask.number, None)
        with self._threads.limit(limits=1):
            inform(self._optimizer, self._points[trial.ask.number], trial)
        self._count_on(trial)

    def _count_on(self, trial: Trial) -> None:
        """Take in a result that all further proposals may depend on."""
        self.leaders = leading([*self.leaders, trial])
        known = self._scored.get(trial.ask.recipe)
        if trial.score is not None and (known is None or _worth(trial) > _worth(known)):
            self._scored[trial.ask.recipe] = trial

    def _replay(self, stage: int, record: Record) -> None:
        """Repeat the asks and tells of the record, in their order."""
        results = [t for t in record.trials if _is_of(t.ask, stage)]
        for _, ask in sorted(record.asks.items()):
            if not _is_of(ask, stage):
                continue
            while results and results[0].number < ask.after:
                self.tell(results.pop(0))
            point = self.propose()
            if point is None or not same_values(self.space.values(point), ask.values):
                log.warning(
                    "%s: the optimizer would propose another point today, as of another version; going on from "
                    "the record",
                    ask.name,
                )
                point = self.space.encode(ask.values)
            self.adopt(ask, point)
        for trial in results:
            self.tell(trial)


def inform(optimizer: Optimizer, x: Vector, trial: Trial) -> None:
    """Tell an optimizer a result, and what it is made of.

    Args:
        optimizer: Is told.
        x: The result's point.
        trial: The result.
    """
    single = len(trial.losses) == 1
    detail = Detail(trial.terms or trial.losses, trial.share) if single else None
    optimizer.tell(x, trial.losses or None, detail)


def _worth(trial: Trial) -> tuple[int, int]:
    """Of two results of one recipe the better known, or that asked first, whichever came first."""
    return trial.documents, -trial.ask.number


def _is_of(ask: Ask, stage: int) -> bool:
    return ask.kind == "search" and ask.stage == stage and not ask.promoted
