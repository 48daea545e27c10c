"""The search: baselines, then an optimizer's candidates stage by stage, then the finals."""

import logging
import warnings
from collections.abc import Collection, Sequence
from functools import partial

from heterosis.evolve.baselines import Baseline
from heterosis.evolve.budget import Spent
from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.faults import SearchFailed
from heterosis.evolve.judging.finals import Finals
from heterosis.evolve.judging.races import Races
from heterosis.evolve.judging.racing import missing
from heterosis.evolve.optimizers import Vector, recommends_a_point
from heterosis.evolve.proposals import Proposer
from heterosis.evolve.record.state import Shortlist
from heterosis.evolve.record.tally import distinct, leading
from heterosis.evolve.record.trial import Ask, Kind, Trial
from heterosis.evolve.scoring import Scoring
from heterosis.evolve.session import Session
from heterosis.evolve.stages import Stages
from heterosis.evolve.workers.dispatch import Job
from heterosis.evolve.workers.pool import DocumentIds, Pool

log = logging.getLogger("heterosis")

PATIENCE = 8  # failures before their rate says anything
MEAN_BUDGET = 20  # trials from which on the last is the optimizer's mean


class SearchLoop:
    """What a session searches, from wherever the sessions before it have come.

    Args:
        session: Says when to stop, and is told what happens.
        pool: The workers.
    """

    def __init__(self, session: Session, pool: Pool) -> None:
        run = session.run
        self._session, self._pool, self._run, self._config = session, pool, run, run.config
        self._record, self._referee = run.record, run.referee
        self._stages = Stages(run)
        self._scoring = Scoring(
            pool,
            run.record,
            run.referee,
            stopping=session.stopping,
            beat=session.beat,
            show=self._take_in,
        )
        self._races = Races(run.record, run.referee, self._score_on, self._report_on)
        self._tried, self._lost = 0, 0  # candidates of this session that came to an end, and to no score

    def search(self) -> Finals | None:
        """Search until a budget is spent; None if it is to stop before the finals are over.

        Finals that an earlier session has begun with the same budgets go on with their shortlist.

        Raises:
            SearchFailed: If candidates fail at a rate that shows that the set-up is wrong, or nothing can be said
                without what cannot be scored.
        """
        shortlist = self._run.state.shortlist
        if shortlist is None or shortlist.budgets != self._config.budgets:
            shortlist = self._find_shortlist()
        return None if shortlist is None else self._finals(shortlist)

    def _find_shortlist(self) -> Shortlist | None:
        """Search until a budget is spent, and settle who comes to the finals; None if it is to stop before."""
        state = self._run.state
        state.shortlist = None
        state.save()
        self._score_baselines()
        if self._session.stopping():  # where stages end is not decided before all baselines are asked
            return None
        ends = self._stages.ends(self._run.checked.expected_trials)
        spent: Spent | None = None
        for stage, end in enumerate(ends):
            spent = self._search_stage(stage, end, last=stage == len(ends) - 1)
            if self._session.stopping():
                return None
        self._check_candidates()
        state.spent = spent
        finalists = _numbers(self._session.budget.finalists())
        state.shortlist = Shortlist(asks=finalists, budgets=self._config.budgets)
        state.save()
        return state.shortlist

    # ------------------------------------------------------------------ baselines

    def _score_baselines(self) -> None:
        """Groups of baselines; the first meets all documents, the others race against the best before them.

        Then the parents race each other, till the best of them is known.
        """
        record = self._record
        failed = {trial.ask.number for trial in record.trials if trial.score is None}
        asked = {ask.name for ask in record.baselines.values() if ask.number not in failed}
        for place, group in enumerate(self._baseline_groups()):
            rivals = _numbers(record.tally.leaders[:1]) if place else []
            for baseline in group:
                room = baseline.name in record.baselines or record.counted < self._config.trials
                if baseline.name not in asked and room:
                    text = baseline.recipe.to_yaml()
                    record.ask(baseline.kind, baseline.name, text, {}, rivals=rivals)
            self._scoring.work(self._scoring.open_jobs("parent", "baseline"))
            if self._session.stopping():
                return
            self._check_parents()
        for text in self._referee.silent_tasks():
            warnings.warn(text, stacklevel=2)
            log.warning(text)
        self._races.parents()

    def _baseline_groups(self) -> list[list[Baseline]]:
        """The uniform merge, the parents, other recipes; the first two together where parents are needed whole.

        All together where there are workers for all of them: a race saves documents, but everybody waits for those
        who are raced against.
        """
        known = self._run.baselines
        uniform = [b for b in known if b.name == UNIFORM]
        parents = [b for b in known if b.kind == "parent"]
        others = [b for b in known if b not in uniform and b not in parents]
        if self._session.workers >= len(known) and not self._config.ordered:
            return [[*parents, *uniform, *others]]
        if self._referee.parents_meet_all:
            return [[*parents, *uniform], others]
        return [group for group in (uniform, parents, others) if group]

    def _check_parents(self) -> None:
        for ask in self._record.parents:
            trial = self._record.result(ask)
            if trial is not None and trial.score is None:
                raise SearchFailed(f"the parent {ask.name} cannot be scored: {trial.cause}")

    # ----------------------------------------------------------------- candidates

    def _search_stage(self, stage: int, end: int, *, last: bool) -> Spent | None:
        """Score a stage's candidates until ``end`` asks count; in the last, then the optimizer's mean.

        Returns:
            The budget that has ended them before.
        """
        record, budget = self._record, self._config.trials
        proposer = self._stages.proposer(stage)
        of_stage = [
            t for t in record.trials if t.ask.kind == "search" and t.ask.stage == stage and not t.ask.promoted
        ]
        self._session.stage(proposer.space, of_stage)
        with_mean = last and self._run.checked.expected_trials >= MEAN_BUDGET and self._has_mean(stage)
        limit = budget - with_mean if last else min(end, budget)
        left = [job for job in self._scoring.open_jobs("search") if job.ask.stage == stage]
        self._scoring.work(left, partial(self._next_job, proposer, limit, int(with_mean)), proposer.tell)
        promoted = self._referee.promoted
        spent = self._spent(1 + with_mean, promoted) if record.counted < limit else None
        self._scoring.work(self._scoring.open_jobs("mean"))
        if with_mean and record.counted < budget and not self._session.stopping():
            # What has no room for a candidate may have it for the mean.
            of_mean = self._spent(1, promoted)
            mean = proposer.mean() if of_mean is None else None
            if mean is not None:
                ask = self._ask("mean", "the optimizer's mean", proposer, mean, record.tally.leaders)
                self._scoring.work([self._scoring.job(ask)])
            spent = spent or of_mean
        if self._referee.samples and not self._session.stopping():
            self._session.phase("the best candidates meet all search documents")
            self._scoring.work(self._scoring.open_promotions(), self._next_promoted)
        return spent

    def _next_promoted(self) -> Job | None:
        """The next of the best of those that have met a sample of the documents, which is to meet all."""
        record, most = self._record, self._referee.promoted
        sampled = [t for t in record.trials if t.pruned and self._referee.is_sampled(t.ask)]
        ranked = distinct(sorted(sampled, key=lambda t: (t.losses, t.ask.number)))
        asked = {ask.recipe for ask in record.asks.values() if ask.promoted}
        rivals = record.tally.leaders
        if self._config.ordered:  # nothing depends on which of them comes to its end first
            rivals = leading(t for t in record.trials if not t.ask.promoted)
        else:
            most *= 2
        of = next((t.ask for t in ranked[:most] if t.ask.recipe not in asked), None)
        if of is None or self._session.stopping() or self._spent(0, promoted=1):
            return None
        ask = record.ask(
            of.kind, of.name, of.recipe, of.values, stage=of.stage, rivals=_numbers(rivals), promoted=True
        )
        record.copy_scores(of, ask, "search")
        return self._scoring.job(ask)

    def _has_mean(self, stage: int) -> bool:
        """Whether who proposes in a stage that has begun recommends a point in the end."""
        chosen, objectives = self._run.state.optimizers[stage], self._run.checked.objective.names
        return recommends_a_point(chosen.name, len(objectives))

    def _next_job(self, proposer: Proposer, limit: int, more: int) -> Job | None:
        """The next candidate; None for now, or where the budget has no room for it and ``more`` after it."""
        if self._record.counted >= limit or not proposer.catch_up():
            return None
        if self._session.stopping() or self._spent(1 + more, self._referee.promoted, proposer.unknown):
            return None
        point = proposer.propose()
        if point is None:
            return None
        ask = self._ask("search", f"candidate {len(self._record.asks)}", proposer, point, proposer.leaders)
        proposer.adopt(ask, point)
        return self._scoring.job(ask)

    def _ask(self, kind: Kind, name: str, proposer: Proposer, point: Vector, leaders: Sequence[Trial]) -> Ask:
        """Record a point as a candidate; of a recipe that was scored before, with its race and its scores."""
        space = proposer.space
        values = space.values(point)
        recipe = space.decode(values).to_yaml()
        twin = proposer.scored(recipe)
        rivals = twin.ask.rivals if twin else _numbers(leaders)
        ask = self._record.ask(kind, name, recipe, values, stage=proposer.stage, rivals=rivals)
        if twin:
            self._record.copy_scores(twin.ask, ask, "search")
        return ask

    def _spent(self, candidates: int, promoted: int, unknown: Collection[Ask] = ()) -> Spent | None:
        """The budget of which more candidates would leave too little for the finals; see `Budget.spent`."""
        session = self._session
        return session.budget.spent(session.seconds(), self._pool.size, candidates, promoted, unknown)

    def _take_in(self, trial: Trial) -> None:
        """Show a result, and stop if most candidates of this session fail.

        What was wrong in an earlier one may have been mended.
        """
        self._session.show(trial)
        if trial.ask.kind == "search":
            self._tried += 1
            self._lost += trial.score is None
        rate = self._config.failures.max_failure_rate
        if trial.score is None and self._lost >= PATIENCE and self._lost > rate * self._tried:
            raise SearchFailed(
                f"{self._lost} of {self._tried} candidates failed, more than failures.max_failure_rate of {rate}; "
                f"the last: {trial.cause}"
            )

    def _check_candidates(self) -> None:
        """Without any candidate's score, the finals would use up documents and say nothing of the search."""
        tried = [trial for trial in self._record.trials if trial.ask.is_candidate]
        if tried and all(trial.score is None for trial in tried):
            raise SearchFailed(
                f"all {len(tried)} candidates failed; the last: {tried[-1].cause}; once that is mended, the same "
                "command goes on with a larger budget"
            )

    # --------------------------------------------------------------------- finals

    def _finals(self, shortlist: Shortlist) -> Finals | None:
        """Compare a shortlist on selection documents; report the champion on held-out ones."""
        trials = {trial.ask.number: trial for trial in self._record.trials}
        self._session.phase(f"selection: {len(shortlist.asks)} finalists")
        return self._races.finals([trials[number] for number in shortlist.asks])

    def _report_on(self, champion: Ask) -> None:
        """Begin with the held-out documents; they were used before if it was for another champion."""
        self._session.phase("held-out documents: champion, parents and uniform")
        state = self._run.state
        state.holdout_reused |= state.reported not in (None, champion.number)
        state.reported = champion.number
        state.save()

    def _score_on(self, part: str, asks: Sequence[Ask], documents: DocumentIds | None = None) -> bool:
        """Score candidates on a part of the documents, or on some of it; False if the search is to stop."""
        wanted = documents or getattr(self._run.split, part)
        left = [(ask, missing(wanted, self._record.scores(ask, part))) for ask in asks]
        self._scoring.work([Job(ask, part, own) for ask, own in left if own])
        return not self._session.stopping()


def _numbers(trials: Sequence[Trial]) -> list[int]:
    """The asks that trials are of."""
    return [trial.ask.number for trial in trials]
