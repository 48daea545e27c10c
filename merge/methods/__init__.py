"""Merge methods, one file each.

base.py         what a method is; the registry
combine.py      the map of every linear combination, and its coefficients
elect.py        the map with a sign election
random_mask.py  addressed random numbers, and the steps that drop elements at random
rescale.py      the factors that restore norms after a step that drops elements
linear.py, slerp.py, passthrough.py                       merge the models' weights
task_arithmetic.py, ties.py, dare.py                      merge task vectors and add the base
model_stock.py, ram.py                                    so do these, by their angles and by what they share
nuslerp.py, multislerp.py                                 do either
karcher.py, nearswap.py                                   merge the models' weights, as directions and by distance
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
    random_formula,
    random_row_formula,
    row_quantity,
    wide_formula,
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
    "random_formula",
    "random_row_formula",
    "row_quantity",
    "wide_formula",
]
