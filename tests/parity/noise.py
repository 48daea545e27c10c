"""Where mergekit's own rounding is coarser than two units in the last place, and by how much."""

from typing import NamedTuple

# Of the elements that rounding does not decide, 99.9 % must be this near, in units in the last place of the
# summands; and none farther than the others, in ours and in mergekit's.
NEAR = 2.0
SHARE = 0.001
OUR_FARTHEST = 4.0
THEIR_FARTHEST = 16.0
# At most this share may be so near a cut, a vote or a threshold that rounding decides.
UNDECIDED = 0.16


class Noise(NamedTuple):
    """How far from the exact result mergekit is.

    Attributes:
        limit: Units in the last place, all elements.
        measured: The largest that was found.
        why: What rounds.
    """

    limit: float
    measured: float
    why: str


_STEPS = "every step of weighting, restoring norms and summing rounds"
_OPPOSED = "t comes from rounded dot products, and is large where task vectors almost oppose each other"
_UNITS = "vectors of unit length, their mean and the way back are rounded"
# By method and dtype of the arithmetic.
NOISY: dict[tuple[str, str], Noise] = {
    ("breadcrumbs", "bfloat16"): Noise(8, 3.8, _STEPS),
    ("breadcrumbs", "float16"): Noise(8, 3.7, _STEPS),
    ("breadcrumbs", "float32"): Noise(8, 4.3, _STEPS),
    ("karcher", "bfloat16"): Noise(16, 7.0, _UNITS),
    ("linear", "float32"): Noise(4, 2.0, "no farther than ours, but to the other side"),
    ("model_stock", "bfloat16"): Noise(400, 193.7, _OPPOSED),
    ("model_stock", "float16"): Noise(12, 5.1, _OPPOSED),
    ("model_stock", "float32"): Noise(16, 7.9, _OPPOSED),
    ("multislerp", "float16"): Noise(10, 4.9, _UNITS),
    ("multislerp", "float32"): Noise(8, 3.8, _UNITS),
    ("task_arithmetic", "float16"): Noise(6, 2.9, _STEPS),
}
# The share of elements that it takes from the other model than exact arithmetic does.
MISTAKEN: dict[tuple[str, str], Noise] = {
    ("arcee_fusion", "bfloat16"): Noise(0.05, 0.022, "divergences of rows are rounded away"),
    ("arcee_fusion", "float16"): Noise(0.01, 0.003, "divergences of rows are rounded away"),
}
# Their result is float32 in mergekit whatever the recipe's dtype.
WIDENING = ("arcee_fusion", "ramplus_tl")
