"""Which parameters mattered: Optuna's PED-ANOVA on the run's study.

It compares where the best quarter of the candidates lie with where all of them do, parameter by parameter. Unlike
fANOVA's forests it takes milliseconds, depends on no seed, and asks what decides among good candidates rather than
what ruins bad ones, which a search avoids after its first steps.
"""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from heterosis.evolve.logs import optuna_quietly
from heterosis.evolve.record.files import STUDY
from heterosis.evolve.record.storage import study_url
from heterosis.evolve.record.trial import Trial

TOP = 0.25
# Of the candidates that count; the evaluator's own advice is five of them in the best part.
LEAST = 20


@dataclass(frozen=True)
class Importance:
    """How much each parameter had to do with a candidate being among the best.

    Attributes:
        shares: By parameter, largest first; they sum to 1. Empty if it cannot be said.
        trials: How many candidates it was computed from.
        missing: Why it cannot be said; empty if it can.
    """

    shares: dict[str, float]
    trials: int
    missing: str = ""


def importance(folder: Path, study: str, trials: list[Trial], storage: str | None = None) -> Importance:
    """How much each parameter of some trials mattered.

    Args:
        folder: The run folder.
        study: The study's name.
        trials: Of one stage of the search, failed ones aside.
        storage: The study's Optuna storage URL, if it is not in the run folder.
    """
    n = len(trials)
    names = {name for trial in trials for name in trial.ask.values}
    if len(names) == 1:
        return Importance({}, n, "Only one parameter was searched.")
    if n < LEAST or not names:
        return Importance({}, n, f"Too few candidates to say: {n} with scores, and it takes {LEAST}.")
    if len({trial.score for trial in trials}) == 1:
        return Importance({}, n, "All candidates have the same score.")
    if storage is None and not (folder / STUDY).exists():
        return Importance({}, n, "The study is not in the run folder; give its --storage to the report.")
    try:
        theirs = optuna.load_study(study_name=study, storage=storage or study_url(folder))
        recorded = theirs.get_trials(deepcopy=False)
    except (ImportError, OptunaError, SQLAlchemyError, KeyError):  # whose texts may hold a password
        return Importance({}, n, "The study cannot be read from its storage.")
    scores = {trial.number: trial.score for trial in trials if trial.score is not None}
    with optuna_quietly():
        ours = optuna.create_study(direction="maximize")
    ours.add_trials([_complete(t, scores[t.number]) for t in recorded if t.number in scores])
    return Importance(get_param_importances(ours, evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP)), n)


def _complete(trial: FrozenTrial, score: float) -> FrozenTrial:
    """A trial with its score; of those that were stopped early it is an estimate, and good enough here."""
    return create_trial(
        state=TrialState.COMPLETE, value=score, params=trial.params, distributions=trial.distributions
    )
