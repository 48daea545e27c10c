"""The search for merge recipes, and its workers.

config.py      a search's config file (mergekit-evolve's, and more); config_values.py: its kinds of values
genome.py      its section on models, methods and depth; ranges.py: where each parameter is searched
space.py       config -> named numbers and choices <-> recipes; dimensions.py: coordinates and the unit cube;
               genes.py: which parameters; depth.py: over which layers; inverse.py: recipes read back
paths.py       layers of models, in which order <-> slices recipes; path_encodings.py: how values stand for
               paths; path_config.py: the config's section on them
baselines.py   the recipes to beat, and where they lie in a space
optimizers/    who proposes candidates, one file each
objective.py   what is maximised, from per-document scores; racing.py: which documents come when; referee.py:
               what a candidate meets next, and what its scores amount to
statistics.py  paired intervals
draft.py       a first config for models and tasks, for ``heterosis init``
preflight.py   what can be refused before anything starts; resources.py: workers, memory, disk, time;
               rehearsal.py: one candidate, tried; inspection.py: all of it, for ``heterosis inspect``
contamination.py  a warning when a published benchmark or a test split is searched on
worker.py      merges a candidate into a live model and scores it
pool.py        what the driver needs of its workers; cluster.py: these as Ray actors; timeouts.py: how long their
               work may take; machine.py: where they are
trial.py       a candidate that was asked for, and what came of it
record.py      asks, scores and trials, durably; tally.py: what these amount to; storage.py: the same as an Optuna
               study, also where its storage is away for a while
scoring.py     candidates meet documents and become trials; dispatch.py: keeps the workers busy; who is tried
               again, and who is given up
faults.py      what ends a session, in one line
folder.py      the run folder and its lock; lease.py: a claim that other machines see; files.py: what is in it;
               state.py: what a run keeps for its later sessions
driver.py      from a config and options to a session; run.py: what all sessions of a run work on
session.py     one session: its workers, and what others see of it; signals.py: what Ctrl-C does; logs.py: where
               messages go
loop.py        the search: baselines, candidates stage by stage, finals
stages.py      where stages end, who proposes in them; proposals.py: asking an optimizer, and again from the record
warm_start.py  recipes of earlier searches
finals.py      the shortlist, and what the finals found; races.py: how parents and finalists are compared;
               budget.py: how much may be spent before
progress.py    the run on a terminal, live or in lines; standing.py: where it stands, read from its folder;
               pulse.py: what the driver does at the moment
trackers.py    what TensorBoard, MLflow and Weights & Biases are told; tracking.py: by processes of their own
summary.py     what came of a run, in numbers and words; export.py: recipes of trials; table.py: trials.csv;
               outcome.py: all files that a run leaves
report/        a run as one HTML page
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heterosis.evolve.config import EvolveConfig
    from heterosis.evolve.driver import search
    from heterosis.evolve.space import SearchSpace

_HOME = {"EvolveConfig": "config", "SearchSpace": "space", "search": "driver"}

__all__ = ["EvolveConfig", "SearchSpace", "search"]


def __getattr__(name: str) -> Any:
    # Lazily, so that importing the package loads neither torch nor ray.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
