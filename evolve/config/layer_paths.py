"""The ``layer_paths`` section of a genome: which paths through the models' layers are searched."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from heterosis.evolve.config.ranges import Span, SpanValue
from heterosis.evolve.config.values import Count, Section, not_bool

CHAMPION = "champion"  # what recipes of layer paths call the merge that was found before them


class LayerPaths(Section):
    """A search over paths: which layers of which models, in which order, how often, and how strongly.

    Attributes:
        after: ``parameters`` searches how the models are merged first, and paths through the layers of the best
            merge and of its parents then. None searches paths through the parents alone.
        segments: Runs of consecutive layers that a path has at most.
        reach: How many layers a path skips or repeats at most where it leaves one segment for the next; None for
            a quarter of the deepest model.
        min_layers: Layers of a path at least; None for half of the shallowest model.
        max_layers: Layers of a path at most; None for one and a half times the deepest model.
        scale: Where the factor on what a segment's layers add is searched, 1 among them; a number, which must
            be 1, leaves it out. None for [0.5, 1.5] where the architecture allows it.
        embeddings: The model, by its name or short name, whose embeddings, final norm and head are taken; None
            leaves the choice to the search, or takes the first model's where vocabularies differ.
        indicators: Searches instead, as Sakana's paper does, whether each layer of each model is used or not, in
            the models' order; for budgets of many thousand candidates.
        repeats: How often indicators pass through all the models.
    """

    after: Literal["parameters"] | None = None
    segments: Annotated[int, BeforeValidator(not_bool), Field(ge=1, le=64)] = 4
    reach: Count | None = None
    min_layers: Count | None = None
    max_layers: Count | None = None
    scale: SpanValue | None = None
    embeddings: str | None = None
    indicators: bool = False
    repeats: Annotated[int, BeforeValidator(not_bool), Field(ge=1, le=16)] = 2

    @field_validator("max_layers")
    @classmethod
    def _check_limits(cls, most: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min_layers")
        if most is not None and least is not None and most < least:
            raise ValueError(f"must be at least min_layers, {least}, but got {most}")
        return most

    @field_validator("scale")
    @classmethod
    def _check_scale(cls, scale: Span | None) -> Span | None:
        if scale is not None and not 0 < scale.low <= 1 <= scale.high:
            raise ValueError(
                f"`0 < low <= 1 <= high` must hold, so that parents are paths, but got [{scale.low}, {scale.high}]"
            )
        return scale


def section(value: object) -> object:
    """``true`` for a section with its defaults, ``false`` for none."""
    return {} if value is True else None if value is False else value
