"""heterosis: the evolutionary merge-recipe optimizer for language models.

errors.py      InputError: what the user gave is wrong; words.py: values, sizes and times for people;
               progress.py: how far something long is
cli.py         the command line, thin over this API; options.py: what several commands take; foreign.py: other
               tools' options, and what they are here
inspection.py  what ``heterosis inspect`` finds out; inspection_text.py: as lines of text

The packages below it: ``heterosis.merge`` (tensors and files), ``heterosis.evaluate`` (scoring with lm-eval)
and ``heterosis.evolve`` (the search). Importing heterosis loads neither torch, lm-eval nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heterosis.errors import InputError

if TYPE_CHECKING:
    from heterosis.evaluate.api import evaluate_model
    from heterosis.evolve.driver import search
    from heterosis.merge.api import merge_models
    from heterosis.merge.recipe.recipe import Recipe

__version__ = "0.1.0"

_LAZY = {
    "Recipe": "heterosis.merge.recipe.recipe",
    "evaluate_model": "heterosis.evaluate.api",
    "merge_models": "heterosis.merge.api",
    "search": "heterosis.evolve.driver",
}

__all__ = ["InputError", "Recipe", "evaluate_model", "merge_models", "search"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
