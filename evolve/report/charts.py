"""Geometry of the charts: from numbers to percent of a plot's width and height. The template draws it.

Positions are in percent, so that a chart fits a phone and a desk while its text and lines keep their size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: Its first value.
        high: Its last value, above ``low``.
        ticks: (percent, label) of its marks.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Where a value is, in percent; one outside is at the nearest end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def up(self, value: float) -> float:
        """The same from the top, as in SVG."""
        return round(100 - self.at(value), 2)


@dataclass(frozen=True)
class Line:
    """A line through points (x, y from the top), in percent; ``kind`` is what the style sheet calls it."""

    points: tuple[tuple[float, float], ...]
    kind: str

    @property
    def path(self) -> str:
        """As SVG's ``points``."""
        return " ".join(f"{x},{y}" for x, y in self.points)


@dataclass(frozen=True)
class Dot:
    """A point with what it says when pointed at."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Rule:
    """A straight line across the plot, at percent of its height from the top, or of its width."""

    at: float
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart with two axes.

    Attributes:
        label: What it shows, for those who cannot see it.
        x: Horizontal axis.
        y: Vertical axis.
        x_title: What the horizontal axis is.
        y_title: What the vertical axis is.
        lines: Lines, drawn first.
        dots: Points.
        levels: Horizontal rules.
        marks: Vertical rules.
        legend: (kind, text) of what there is in it.
    """

    label: str
    x: Axis
    y: Axis
    x_title: str
    y_title: str
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    levels: tuple[Rule, ...] = ()
    marks: tuple[Rule, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Whisker:
    """A mean with its interval on an axis, in percent."""

    low: float
    mean: float
    high: float
    kind: str
    title: str


def axis(values: Iterable[float], *, pad: float = 0.06, most: int = 6, whole: bool = False) -> Axis:
    """An axis over some values, with round marks.

    Args:
        values: What it must hold.
        pad: Room at both ends, as a share of the range.
        most: Marks at most, about.
        whole: Whether only whole numbers may be marked.
    """
    found = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(found), max(found)
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = 0.5 * abs(high) or 0.5
        low, high = low - half, high + half
    room = pad * (high - low)
    low, high = low - room, high + room
    step = _step((high - low) / most)
    if whole:
        step = max(1.0, step)
    marks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    scale = Axis(low, high, ())
    return Axis(low, high, tuple((scale.at(mark), _label(mark, step)) for mark in marks))


def _step(least: float) -> float:
    """The smallest round step that is not below another."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _label(value: float, step: float) -> str:
    if abs(value) < step / 2:
        return "0"  # which rounding may have left at 1e-17
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
