"""What a model answered to a document, kept for people to read: nothing is computed from it."""

from collections.abc import Sequence
from dataclasses import dataclass

from heterosis.evaluate.probability import rated

_BEGINNING, _END = 400, 200  # characters that are kept; reasoning ends with what counts


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        said: The text that it wrote, or the choice that it made.
        taken: What the metric's filter made of that; empty where it took it as it is.
    """

    said: str
    taken: str = ""

    @classmethod
    def of(cls, said: str, taken: object) -> "Answer":
        """An answer whose texts are not too long, and can be written to a file."""
        other = isinstance(taken, str) and taken != said
        return cls(_shortened(said), _shortened(str(taken)) if other else "")

    def to_list(self) -> list[str]:
        """For JSON: ``Answer(*read)`` reads it."""
        return [self.said, self.taken] if self.taken else [self.said]


def chosen(choices: Sequence[str], likelihoods: Sequence[float], metric: str) -> str:
    """The choice that lm-eval takes for the model's: the likeliest, by its length where the metric says so.

    Args:
        choices: To choose from.
        likelihoods: Of each choice (logarithms); for ``acc_mutual_info`` those without the question after these.
        metric: The metric's name.
    """
    by = rated(choices, likelihoods, metric)
    return choices[max(range(len(choices)), key=by.__getitem__)]


def _shortened(text: str) -> str:
    # Documents may have halves of surrogate pairs, which UTF-8 has not.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _BEGINNING + _END else f"{text[:_BEGINNING]} […] {text[-_END:]}"
