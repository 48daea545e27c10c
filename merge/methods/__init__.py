"""Merge methods. Each file is one, or two that differ in their map alone, but for what they share:

base.py         what a method is; the registry
combine.py      the map of every linear combination, and its coefficients
elect.py        the map with a sign election
random_mask.py  addressed random numbers, and the steps that drop elements at random
ranks.py        mean ranks of a row's entries, for such a step
rescale.py      the factors that restore norms after a step that drops elements
"""

from heterosis.merge.formulas import (
    INFINITY,
    ONE,
    ZERO,
    Bound,
    Cut,
    Formula,
    formula,
    per_model,
    random_formula,
    random_row_formula,
    row_quantity,
    wide_formula,
)
from heterosis.merge.methods.base import (
    Fractions,
    Method,
    Parameter,
    PerInput,
    Program,
    Uniform,
    Within,
    check_importable,
    get_method,
    import_own,
    load_methods,
    merge_method,
    methods,
    own_modules,
    unknown_method,
)

__all__ = [
    "INFINITY",
    "ONE",
    "ZERO",
    "Bound",
    "Cut",
    "Formula",
    "Fractions",
    "Method",
    "Parameter",
    "PerInput",
    "Program",
    "Uniform",
    "Within",
    "check_importable",
    "formula",
    "get_method",
    "import_own",
    "load_methods",
    "merge_method",
    "methods",
    "own_modules",
    "per_model",
    "random_formula",
    "random_row_formula",
    "row_quantity",
    "unknown_method",
    "wide_formula",
]
