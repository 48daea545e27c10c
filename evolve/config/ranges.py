"""Ranges of a config: numbers, pairs of numbers or log scales, for all models and filters or for each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import PlainSerializer, PlainValidator

from heterosis.errors import did_you_mean
from heterosis.merge.recipe.faults import Fault, refuse

REST = "*"  # the group of all tensors that no filter matches; in ranges, all that is not named


@dataclass(frozen=True)
class Span:
    """Where a number is searched, both ends included; equal ends fix it.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether steps are factors; then ``low`` is above 0.
    """

    low: float
    high: float
    log: bool = False

    @property
    def fixed(self) -> bool:
        return self.low == self.high


def _ranges(value: object) -> dict[str, dict[str, Span]]:
    """Each parameter's spans, by what they hold for: ``*``, or a model, a filter, or both."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, but got {value!r}")
    faults: list[Fault] = []
    ranges: dict[str, dict[str, Span]] = {}
    for name, entry in value.items():
        single = not isinstance(entry, dict) or entry.keys() & {"low", "high", "log"}
        spans = ranges[str(name)] = {}
        for key, text in ({REST: entry} if single else entry).items():
            try:
                spans[str(key)] = _span(text)
            except ValueError as fault:
                faults.append(((str(name),) if single else (str(name), str(key)), str(fault)))
        if not single and not entry:
            faults.append(((str(name),), "must hold at least one range, but is empty"))
    refuse(faults, value)
    return ranges


def _span(value: object) -> Span:
    forms = "must be a number, a range [low, high] or {low, high, log: true}"
    log = False
    if isinstance(value, Span):
        low, high, log = value.low, value.high, value.log
    elif isinstance(value, dict):
        if unknown := [str(key) for key in value if key not in ("low", "high", "log")]:
            raise ValueError(f"unknown key {unknown[0]!r}{did_you_mean(unknown[0], ('low', 'high', 'log'))}")
        if not {"low", "high"} <= value.keys():
            raise ValueError(f"{forms}, but got {value!r}")
        low, high, log = _number(value["low"]), _number(value["high"]), value.get("log", False)
        if log not in (True, False):
            raise ValueError(f"log must be true or false, but got {log!r}")
    elif isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError(f"{forms}, but got {value!r}")
        low, high = map(_number, value)
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        low = high = _number(value)
    else:
        raise ValueError(f"{forms}, but got {value!r}")
    if low > high:
        raise ValueError(f"`low <= high` must hold, but got [{low}, {high}]")
    if log and low <= 0:
        raise ValueError(f"`0 < low` must hold on a log scale, but got [{low}, {high}]")
    return Span(low, high, bool(log))


def _number(value: object) -> float:
    """A finite number; YAML 1.1 leaves ``1e-5`` a text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, but got {value!r}")
    return number


def _plain_ranges(ranges: Mapping[str, Mapping[str, Span]]) -> dict[str, Any]:
    """What gives the same ranges again, in the shortest of the forms."""

    return {
        name: _plain(spans[REST]) if spans.keys() == {REST} else {key: _plain(span) for key, span in spans.items()}
        for name, spans in ranges.items()
    }


def _plain(span: Span) -> Any:
    if span.fixed:
        return span.low
    return {"low": span.low, "high": span.high, "log": True} if span.log else [span.low, span.high]


Ranges: TypeAlias = Annotated[
    dict[str, dict[str, Span]], PlainValidator(_ranges), PlainSerializer(_plain_ranges, when_used="json")
]
# One range, of a factor.
SpanValue: TypeAlias = Annotated[
    Span,
    PlainValidator(_span),
    PlainSerializer(_plain, when_used="json"),
]
