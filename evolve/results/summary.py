"""What came of a run and of its trials: the numbers of summary.json, and words for people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import PARTS
from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.judging.finals import Finals
from heterosis.evolve.record.files import front_recipe
from heterosis.evolve.record.summary_file import (
    Champion,
    Finalist,
    Gain,
    GainOverParent,
    OfFront,
    PartScores,
    Status,
    Summary,
)
from heterosis.evolve.record.trial import TIMES, Ask, Trial

if TYPE_CHECKING:  # it opens models and tasks, which whoever reads a summary does not need
    from heterosis.evolve.run import Run

# What a run can come to.
Conclusion: TypeAlias = Literal["empty", "unfinished", "parent", "baseline", "better", "unclear", "worse"]


class Results:
    """What a run has come to so far, read from its record.

    Args:
        run: The run.
        champion: The best so far, or of the finals; None before there is any.
        finals: None before they are over.
    """

    def __init__(self, run: "Run", champion: Trial | None, finals: Finals | None) -> None:
        self._run, self._champion, self._finals = run, champion, finals
        self._record, self._referee = run.record, run.referee
        self._sizes = {part: run.split.size(part) for part in PARTS}

    def summary(self, status: Status, stopped: str | None) -> Summary:
        """All of it.

        Args:
            status: ``running``, ``stopped`` or ``finished``.
            stopped: Why, if it was.
        """
        config, state = self._run.config, self._run.state
        tally, baselines = self._record.tally, self._record.baselines
        objective = self._referee.judge("search").objective
        spent = {key: round(tally.seconds.get(key, 0.0), 3) for key in TIMES}
        found: Summary = {
            "status": status,
            "stopped": stopped,
            "objective": {
                task: {"metric": objective.metrics[task], "weight": w, "lower_is_better": task in objective.lower}
                for task, w in objective.weights.items()
            },
            "maximised": {"kind": objective.kind, "constraints": dict(objective.constraints)},
            "trials": {
                "complete": tally.complete,
                "pruned": tally.pruned,
                "failed": tally.failed,
                "budget": config.trials,
            },
            "champion": self._of_champion(),
            "parents": {ask.name: self._of(ask) for ask in baselines.values() if ask.kind == "parent"},
            "baselines": {ask.name: self._of(ask) for ask in baselines.values() if ask.kind == "baseline"},
            "gain_over_best_parent": self._gain_over_best_parent(),
            "gain_over_uniform": self._gain_over_uniform(),
            "gains_by_task": self._gains_by_task(),
            "violated": self._violated(),
            "finalists": self._finalists(),
            "front": self._front(),
            "documents": {
                "search": self._sizes["search"],
                "selection": self._sizes["selection"],
                "holdout": self._sizes["holdout"],
                "scored": self._record.documents_scored(),
                "holdout_reused": state.holdout_reused,
                "budget": config.max_documents,
            },
            "failures": dict(tally.causes),
            "optimizers": {
                str(stage): chosen.model_dump(exclude={"limits"}) for stage, chosen in state.optimizers.items()
            },
            "ended_by": state.spent,
            "seconds": {
                "total": round(state.seconds, 1),
                "merge": spent["merge"],
                "forward": spent["forward"],
                "other": spent["other"],
                "budget": config.hours and config.hours * 3600,
            },
            "environment": state.environment,
            "outcome": "",
        }
        return {**found, "outcome": outcome_sentence(found)}

    def _of(self, ask: Ask) -> PartScores:
        """Scores on every part, and on which of them a race ended before all documents were met."""
        found = {part: self._score(ask, part) for part in PARTS}
        early = [
            part for part in PARTS if found[part] is not None and self._record.met(ask, part) < self._sizes[part]
        ]
        return {
            "search": found["search"],
            "selection": found["selection"],
            "holdout": found["holdout"],
            "estimated": early,
            "by_task": self._means(ask),
        }

    def _means(self, ask: Ask) -> dict[str, dict[str, float]]:
        """The mean of each task's metric on the documents of each part that were met."""
        found: dict[str, dict[str, float]] = {}
        for part in PARTS:
            if scores := self._record.scores(ask, part):
                for task, key in self._referee.judge("search").objective.metrics.items():
                    if scores.values(task, key):
                        found.setdefault(task, {})[part] = round(scores.mean(task, key), 6)
        return found

    def _score(self, ask: Ask, part: str) -> float | None:
        if part == "search":
            trial = self._record.result(ask)
            found = trial.score if trial and trial.complete else None
            if trial and trial.pruned and ask.kind == "parent":  # it may have met more documents since
                found = self._referee.result(ask).verdict.score
        elif part == "selection" and self._finals and len(self._finals.finalists) == 1:
            return None  # nobody was compared: who is alone meets a few documents, to see that it can
        else:
            scores = self._record.scores(ask, part)
            judged = scores and self._referee.can_judge(part)
            found = self._referee.judge(part).score(scores) if scores and judged else None
        return None if found is None else round(found, 6)

    def _of_champion(self) -> Champion | None:
        if self._champion is None:
            return None
        return {"trial": self._champion.number, "name": self._champion.ask.name, **self._of(self._champion.ask)}

    def _gain_over_best_parent(self) -> GainOverParent | None:
        best = self._finals.best_parent.ask if self._finals else None
        gain = self._gain(best)
        return {"parent": best.name, **gain} if best and gain else None

    def _gain_over_uniform(self) -> Gain | None:
        """None where the champion is the uniform merge."""
        uniform = self._record.baselines.get(UNIFORM)
        return None if self._champion is not None and self._champion.ask == uniform else self._gain(uniform)

    def _gain(self, other: Ask | None) -> Gain | None:
        """By how much the champion beats another on the held-out documents, with its interval."""
        mine = self._record.scores(self._champion.ask, "holdout") if self._champion else None
        theirs = self._record.scores(other, "holdout") if other else None
        if mine is None or theirs is None or not self._referee.can_judge("holdout"):
            return None
        interval = self._referee.judge("holdout").difference(mine, theirs)
        return {
            "holdout": round(interval.mean, 6),
            "ci95": [round(interval.low, 6), round(interval.high, 6)],
        }

    def _gains_by_task(self) -> dict[str, float] | None:
        """The champion's gains on the held-out documents."""
        if (scores := self._held_out) is None:
            return None
        return {task: round(gain, 6) for task, gain in self._referee.judge("holdout").gains(scores).items()}

    def _violated(self) -> list[str]:
        """The constraints that it breaks there."""
        scores = self._held_out
        return [] if scores is None else self._referee.judge("holdout").violated(scores)

    @property
    def _held_out(self) -> Scores | None:
        return self._record.scores(self._champion.ask, "holdout") if self._champion and self._finals else None

    def _finalists(self) -> list[Finalist]:
        finalists = self._finals.finalists if self._finals else ()
        return [{"trial": f.trial.number, "selection": round(f.selection, 6)} for f in finalists]

    def _front(self) -> list[OfFront]:
        """The front's trials, with their gains on the selection documents."""
        rows: list[OfFront] = []
        for trial in self._finals.front if self._finals else ():
            scores = self._record.scores(trial.ask, "selection")
            assert scores is not None
            gains = {t: round(gain, 6) for t, gain in self._referee.judge("selection").gains(scores).items()}
            rows.append({"trial": trial.number, "recipe": front_recipe(trial.number), "gains": gains})
        return rows


def label(trial: Trial) -> str:
    """What a trial is called: the number under which it is exported, or its name if it is a baseline."""
    return f"trial {trial.number}" if trial.ask.is_candidate else trial.ask.name


def describe_result(trial: Trial) -> str:
    """A trial's result in a few words."""
    if trial.score is None:
        return f"failed: {trial.cause}"
    return f"about {trial.score:z.4f} on {trial.documents} documents" if trial.pruned else f"{trial.score:z.4f}"


def conclusion_of(summary: Summary) -> Conclusion:
    """What came of a run: who the champion is, and whether it beats the best parent beyond doubt."""
    gain, champion = summary.get("gain_over_best_parent"), summary.get("champion")
    if champion is None:
        return "empty"
    if gain is None:
        return "unfinished"
    if champion["name"] in summary["parents"]:
        return "parent"
    if champion["name"] in summary["baselines"]:
        return "baseline"
    low, high = gain["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def gains_of(summary: Summary) -> Iterator[tuple[str, str, Gain]]:
    """The champion's gains held out: over the best parent, whose name follows, and the uniform merge.

    Over itself there is none.
    """
    parent, champion = summary.get("gain_over_best_parent"), summary.get("champion")
    if parent and champion and parent["parent"] != champion["name"]:
        yield "best parent", parent["parent"], parent
    if uniform := summary.get("gain_over_uniform"):
        yield "uniform merge", "", uniform


def outcome_sentence(summary: Summary) -> str:
    """What came of a run, in a sentence."""
    kind, gain, champion = conclusion_of(summary), summary.get("gain_over_best_parent"), summary.get("champion")
    if champion is None:
        return "No candidate has been scored yet."
    if gain is None:
        return (
            f"Unfinished: the best so far is trial {champion['trial']} with {champion['search']:z.4f} in search."
        )
    low, high = gain["ci95"]
    interval = f"95 % interval {low:+z.4f} to {high:+z.4f}"
    against = f"{gain['holdout']:+z.4f} ({interval}) against the best parent, {gain['parent']}"
    broken = summary.get("violated")
    more = _better_parent(summary, champion["name"] if kind == "parent" else gain["parent"])
    more += f" It breaks the constraint on {', '.join(broken)} there." if broken else ""
    more += " Held-out documents were used before." if summary["documents"].get("holdout_reused") else ""
    if kind == "parent":
        other = "" if gain["parent"] == champion["name"] else f", which is not the best one in search: {against}"
        return f"No signal: the search found nothing better than the parent {champion['name']}{other}.{more}"
    if kind == "baseline":
        return f"No signal: the search found nothing better than the {champion['name']} merge, {against}.{more}"
    conclusion = {
        "better": "beats the best parent on held-out documents",
        "worse": "is worse than the best parent on held-out documents",
        "unclear": "cannot be told from the best parent on held-out documents",
    }[kind]
    return f"Trial {champion['trial']} {conclusion}: {against}.{more}"


def _better_parent(summary: Summary, named: str) -> str:
    """A sentence where another parent than the one that is named is the best on the held-out documents."""
    held_out = {
        name: found["holdout"] for name, found in summary["parents"].items() if found["holdout"] is not None
    }
    if named not in held_out:
        return ""
    best = max(held_out, key=held_out.__getitem__)
    if round(held_out[best], 4) <= round(held_out[named], 4):
        return ""
    scores = f"{held_out[best]:z.4f}, {named} {held_out[named]:z.4f}"
    return f" On held-out documents {best} is the better parent: {scores}."


def closing_table(summary: Summary) -> list[tuple[str, str, str, str]]:
    """Rows of name, search, selection and held-out score: parents, other baselines, champion.

    A score with a ``~`` is that of some of the documents, as a race was decided by these.
    """

    def cells(name: str, results: PartScores) -> tuple[str, str, str, str]:
        early = results.get("estimated", ())
        search, selection, holdout = (
            "" if results.get(part) is None else f"{'~' if part in early else ''}{results[part]:z.4f}"
            for part in PARTS
        )
        return name, search, selection, holdout

    rows = [cells(name, r) for name, r in summary["parents"].items()]
    # Those that were stopped early have estimates only.
    rows += [cells(name, r) for name, r in summary["baselines"].items() if r["search"] is not None]
    champion = summary["champion"]
    if champion:
        title = "champion" if summary["status"] == "finished" else "best so far"
        rows.append(cells(f"{title}: trial {champion['trial']}", champion))
    return rows
