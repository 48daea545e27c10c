"""The stages of a search: where each ends, who proposes in it, and from where."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from heterosis.evolve.baselines import NOTHING_DROPPED
from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.optimizers import Limits, Optimizer, Vector, choose_optimizer, get_optimizer, is_model_based
from heterosis.evolve.proposals import Proposer, inform
from heterosis.evolve.record.state import ChosenOptimizer
from heterosis.evolve.record.tally import best_of
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.run import Run
from heterosis.evolve.space.dimensions import Space, Value
from heterosis.merge import Recipe

log = logging.getLogger("heterosis")


class Stages:
    """The stages of one run.

    What depends on the budget, where stages end and which optimizers they have, is chosen when it is first needed
    and kept in the run's state: a run that is extended keeps it, and its last stage goes on.

    Args:
        run: Whose they are.
    """

    def __init__(self, run: Run) -> None:
        checked = run.checked
        self._config, self._checked, self._spaces = run.config, checked, list(checked.spaces)
        section = run.config.genome.layer_paths
        self._count = len(self._spaces) + (section is not None and section.after is not None)
        self._objectives = len(checked.objective.names)
        self._points = {b.name: b.values for b in run.baselines if b.values is not None}
        self._record, self._referee, self._state = run.record, run.referee, run.state

    def ends(self, budget: int) -> list[int]:
        """How many asks are counted when each stage ends: equal shares of what the baselines leave."""
        if self._state.stage_ends is None:
            first, count = self._record.counted, self._count
            self._state.stage_ends = [first + (budget - first) * (k + 1) // count for k in range(count)]
            self._state.save()
        return self._state.stage_ends

    def proposer(self, stage: int) -> Proposer:
        """Who proposes in a stage, as it was after the recorded asks and tells."""
        known = self._known(stage)
        if stage == len(self._spaces):
            self._append_paths()
        optimizer = self._optimizer(stage, *self._starts(stage, known))
        for trial in self._told(stage, known):
            values = self._values(trial, stage)
            if values is not None:
                inform(optimizer, self._spaces[stage].encode(values), trial)
        return Proposer(stage, self._spaces[stage], optimizer, self._record, self._config.ordered)

    def _told(self, stage: int, known: Sequence[Trial]) -> Sequence[Trial]:
        """What an optimizer is told when its stage begins: first the baselines; later all, if it has a model."""
        if stage == 0:
            return known
        if not is_model_based(self._state.optimizers[stage].name):
            return []
        return [t for t in self._before(stage) if t.ask.kind == "search" or t.ask.name in self._points]

    def _append_paths(self) -> None:
        """Layer paths after parameters go through the best merge before, be it a baseline."""
        best = best_of(self._before(len(self._spaces)))
        assert best is not None, "the uniform merge meets all documents"
        paths = self._checked.paths_after(Recipe.parse(best.ask.recipe, best.ask.name))
        assert paths is not None
        self._spaces.append(paths)
        self._record.study.add_dimensions(paths.dimensions)

    def _optimizer(self, stage: int, start: Vector, *others: Vector) -> Optimizer:
        settings, axes = self._config.optimizer, self._spaces[stage].axes
        chosen, ends = self._state.optimizers, self._state.stage_ends
        if stage not in chosen:
            assert ends is not None, "it is known where stages end"
            planned = ends[stage] - (ends[stage - 1] if stage else self._record.counted)
            name, why = settings.name, "as asked"
            if name == "auto":
                name, why = choose_optimizer(axes, self._objectives, planned)
            chosen[stage] = ChosenOptimizer(name=name, why=why, planned=planned, limits=self._limits())
            self._state.save()
            log.info("optimizer: %s: %s", name, why)
        return get_optimizer(chosen[stage].name)(
            axes=axes,
            objectives=self._objectives,
            initial=start,
            seed=int(np.random.SeedSequence([self._config.seed, stage]).generate_state(1)[0]),
            sigma0=settings.sigma0,
            popsize=settings.popsize,
            budget=chosen[stage].planned,
            limits=chosen[stage].limits,
            others=others,
        )

    def _limits(self) -> tuple[Limits | None, ...]:
        """Between what the loss's terms lie, by the baselines' scores."""
        found = (self._record.scores(ask, "search") for ask in self._record.baselines.values())
        scores = [own for own in found if own is not None]
        return self._referee.limits(scores)

    def _known(self, stage: int) -> list[Trial]:
        """The results of points that a stage may start from: baselines that its space can express, and candidates
        of the stages before.

        Only what was known when its first candidate was asked counts, so that a resumed run starts alike.
        """
        scored = self._before(stage)
        if stage == 0:
            return [t for t in scored if t.ask.name in self._points]
        before = stage - 1
        candidates = [t for t in scored if t.complete and t.ask.is_candidate and t.ask.stage == before]
        return [*self._known(before), *candidates]

    def _before(self, stage: int) -> list[Trial]:
        """Candidates with a score when a stage's first candidate was asked, or now, in the order of asking."""
        asks = self._record.asks.values()
        count = next((ask.after for ask in asks if ask.kind == "search" and ask.stage == stage), None)
        scored = [t for t in self._record.trials[:count] if t.score is not None]
        return sorted(scored, key=lambda t: t.ask.number)

    def _starts(self, stage: int, known: Sequence[Trial]) -> list[Vector]:
        """The best point known, and the best other one.

        A search begins at a parent only if that is clearly better than uniform. One that is to begin at random
        has neither.
        """
        initial = self._spaces[stage].initial
        if stage == 0 and self._config.random_init:
            return [initial]
        ranked = self._ranked(known)
        found = [point for trial in ranked if (point := self._point(trial, stage)) is not None]
        if not found or (ranked[0].ask.kind == "parent" and not self._is_clear(ranked[0], stage)):
            found.insert(0, initial)
        start, *rest = found
        return [start, *[other for other in rest if not np.array_equal(other, start)][:1]]

    def _point(self, trial: Trial, stage: int) -> Vector | None:
        """Where to begin around a result.

        A baseline that is a sum drops nothing, which says nothing of how much a search had better drop.
        """
        space, values = self._spaces[stage], self._values(trial, stage)
        if values is None:
            return None
        usual = not trial.ask.is_candidate and self._drops_nothing(values, space)
        return np.where(usual, space.initial, space.encode(values))

    def _ranked(self, known: Sequence[Trial]) -> list[Trial]:
        """The best first: by what an optimizer is told, where some have met a sample of the documents only; else
        those that were stopped come after all others.
        """
        if self._referee.samples:
            return sorted(known, key=lambda t: (t.losses, t.ask.number))
        return sorted(known, key=lambda t: (not t.complete, t.rank))

    @staticmethod
    def _drops_nothing(values: Mapping[str, Value], space: Space) -> list[bool]:
        """Of each dimension, whether it is one that drops entries, and drops none."""
        return [NOTHING_DROPPED.get(d.parameter) == values[d.name] for d in space.dimensions]

    def _values(self, trial: Trial, stage: int) -> Mapping[str, Value] | None:
        """A result's point in a stage's space."""
        if not trial.ask.is_candidate:
            own, of = self._points[trial.ask.name], 0
        else:
            own, of = dict(trial.ask.values), trial.ask.stage
        values: Mapping[str, Value] | None = own
        for k in range(of + 1, stage + 1):
            values = values and self._spaces[k].refine(values, self._spaces[k - 1])
        return values

    def _is_clear(self, parent: Trial, stage: int) -> bool:
        """Whether a parent was clearly better than the uniform merge when a stage began."""
        uniform = next((trial.ask for trial in self._before(stage) if trial.ask.name == UNIFORM), None)
        scores = [self._record.scores(ask, "search") for ask in (parent.ask, uniform) if ask]
        if len(scores) < 2 or scores[0] is None or scores[1] is None:
            return False
        return self._referee.judge("search").difference(scores[0], scores[1]).low > 0
