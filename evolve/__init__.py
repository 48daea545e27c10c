"""The search for merge recipes, and its workers.

Each folder imports from those above it.

optimizers/    who proposes candidates, one file each
config/        a search's config file: mergekit-evolve's, and more
space/         what is searched: config -> named numbers and choices <-> recipes
record/        what a run keeps, durably, in its folder
workers/       who scores candidates: Ray actors, and how they are kept busy
judging/       from scores of documents to who is better: objective, races, finals
preflight/     what can be refused before anything starts, and what a search takes
results/       what a run leaves: summary, table, recipes
watching/      a run on a terminal, and in trackers
report/        a run as one HTML page

driver.py      from a config and options to a session
run.py         what all sessions of a run work on
session.py     one session: its workers, and what others see of it
loop.py        the search: baselines, candidates stage by stage, finals
stages.py      where stages end, and who proposes in them
proposals.py   asking an optimizer, and again from the record
scoring.py     candidates meet documents and become trials
budget.py      how much may be spent before the finals
baselines.py   the recipes to beat, and where they lie in a space
warm_start.py  recipes of earlier searches

faults.py      what ends a session, in one line
signals.py     what Ctrl-C does
logs.py        where messages go
machine.py     which machine this is
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heterosis.evolve.config import EvolveConfig
    from heterosis.evolve.driver import search
    from heterosis.evolve.record.summary_file import Summary
    from heterosis.evolve.space.space import SearchSpace

_HOME = {
    "EvolveConfig": "config",
    "SearchSpace": "space.space",
    "Summary": "record.summary_file",
    "search": "driver",
}

__all__ = ["EvolveConfig", "SearchSpace", "Summary", "search"]


def __getattr__(name: str) -> Any:
    # Lazily, so that importing the package loads neither torch nor ray.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
