"""Merge methods, one file each.

base.py         what a method is; the registry
combine.py      the map of every linear combination, and its coefficients
elect.py        the map with a sign election
random_mask.py  addressed random numbers, and the step that drops elements at random
linear.py, slerp.py, passthrough.py                       merge the models' weights
task_arithmetic.py, ties.py, dare.py                      merge task vectors and add the base
"""

from heterosis.merge.methods.base import (
    Bound,
    Formula,
    Fractions,
    Method,
    Parameter,
    PerInput,
    Program,
    Uniform,
    Within,
    formula,
    get_method,
    merge_method,
    methods,
    row_formula,
)

__all__ = [
    "Bound",
    "Formula",
    "Fractions",
    "Method",
    "Parameter",
    "PerInput",
    "Program",
    "Uniform",
    "Within",
    "formula",
    "get_method",
    "merge_method",
    "methods",
    "row_formula",
]
