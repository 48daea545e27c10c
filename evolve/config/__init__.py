"""A search's config file, as pydantic models.

search.py       all of it: mergekit-evolve's keys and ours
genome.py       its section on models, methods and depth
layer_paths.py  its section on paths through layers
ranges.py       where each parameter is searched
values.py       kinds of values
"""

from heterosis.evolve.config.search import RESIDENT, EvolveConfig, Racing

__all__ = ["RESIDENT", "EvolveConfig", "Racing"]
