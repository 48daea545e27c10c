"""Optimizers behind one ask/tell interface; every file of this package is found and registered by itself.

base.py         the contract and the registry
auto.py         which optimizer suits a search
cma_es.py       CMA-ES
cmawm.py        CMA-ES with margin, for cubes with levels
generations.py  collects results into generations for these two
gp.py           Bayesian optimization with Gaussian processes
nsga.py         NSGA-II and NSGA-III, for several and for many objectives
random.py       uniform random points, the control
sampling.py     asks and tells a sampler of Optuna, for gp.py, nsga.py and tpe.py
sobol.py        Sobol points, a control that is more even
startup.py      where a model of the loss begins, and what a failure counts as; for gp.py and sampling.py
surrogates/     models of the loss, for gp.py
tpe.py          tree-structured Parzen estimator
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from heterosis.errors import InputError, did_you_mean
from heterosis.evolve.optimizers.auto import choose_optimizer
from heterosis.evolve.optimizers.base import (
    OPTIMIZERS,
    Axis,
    Detail,
    Limits,
    Optimizer,
    OptimizerFactory,
    Vector,
    optimizer,
)

__all__ = [
    "Axis",
    "Detail",
    "Limits",
    "Optimizer",
    "OptimizerFactory",
    "Vector",
    "choose_optimizer",
    "get_optimizer",
    "is_model_based",
    "optimizer",
    "optimizer_names",
    "recommends_a_point",
]


@cache
def _discover() -> None:
    """Imports every module beside this one, which registers what it holds."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def optimizer_names(objectives: int = 1) -> tuple[str, ...]:
    """The names of all optimizers that take so many objectives, in alphabetical order."""
    _discover()
    return tuple(sorted(name for name, entry in OPTIMIZERS.items() if objectives == 1 or entry.multi_objective))


def is_model_based(name: str) -> bool:
    """Whether an optimizer learns as much from any known point as from one that it has proposed."""
    _discover()
    return OPTIMIZERS[name].model_based


def recommends_a_point(name: str, objectives: int) -> bool:
    """Whether an optimizer of so many objectives has a mean."""
    _discover()
    return OPTIMIZERS[name].recommends and objectives == 1


def get_optimizer(name: str) -> OptimizerFactory:
    """The factory registered under ``name``.

    Raises:
        InputError: If there is none; the message gives the nearest name.
    """
    if name not in optimizer_names():
        raise InputError(f"unknown optimizer {name!r}{did_you_mean(name, optimizer_names())}")
    return OPTIMIZERS[name].factory
