"""The champion's recipe over depth, as charts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from heterosis.evolve.report.charts import Axis, Chart, Dot, Line, axis
from heterosis.evolve.report.shape import Series, Shape
from heterosis.evolve.report.words import number

COLOURS = 8  # of models, in the style sheet


@dataclass(frozen=True)
class HeatCell:
    """Some layers of one value in a heat map: where, how strong, all in percent; and what it says."""

    start: float
    width: float
    strength: float
    negative: bool
    title: str


@dataclass(frozen=True)
class HeatRow:
    """A row of a heat map, with the smallest and the largest value in words."""

    label: str
    colour: int | None
    range: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class DepthView:
    """A recipe over depth.

    Attributes:
        shape: What is shown.
        curves: A chart for each parameter that varies, and filter; what lines are called are models.
        path: The path through layers, if it is one.
        heat: All parameters as strips.
        negative: Whether any value is.
        colours: The style sheet's name for each model's colour.
    """

    shape: Shape
    curves: tuple[Chart, ...]
    path: Chart | None
    heat: tuple[HeatRow, ...]
    negative: bool
    colours: dict[str, str]


def depth_view(shape: Shape, models: Sequence[str]) -> DepthView:
    """Charts of a recipe over depth; ``models`` are the search's, by which colours are chosen."""
    names = dict.fromkeys((*models, *(s.model for s in shape.series if s.model), *(s.model for s in shape.path)))
    colours = {name: i % COLOURS for i, name in enumerate(names)}
    groups = dict.fromkeys((s.parameter, s.filter) for s in shape.series if not s.flat)
    curves = [
        _curves(shape, parameter, text, [s for s in shape.series if (s.parameter, s.filter) == (parameter, text)])
        for parameter, text in groups
    ]
    several = len({s.filter for s in shape.series}) > 1
    return DepthView(
        shape,
        tuple(curves),
        _path_chart(shape) if shape.path else None,
        tuple(_heat_row(shape, s, colours, several) for s in shape.series),
        any(v is not None and v < 0 for s in shape.series for v in s.values),
        {name: f"m{colour}" for name, colour in colours.items()},
    )


def _places(shape: Shape) -> tuple[Axis, list[float]]:
    """The axis over depth, and where each value is on it."""
    count = len(shape.series[0].values)
    places = [float(i) for i in range(count)] if shape.layers else [100 * i / (count - 1) for i in range(count)]
    half = 0.5 * shape.stepped
    return axis([places[0] - half, places[-1] + half], pad=0.0, whole=shape.layers is not None), places


def _curves(shape: Shape, parameter: str, text: str | None, series: Sequence[Series]) -> Chart:
    x, places = _places(shape)
    half = 0.5 * shape.stepped
    y = axis([0.0, *(v for s in series for v in s.values if v is not None)])
    lines = [
        Line(tuple((x.at(end), y.up(v)) for p, v in run for end in (p - half, p + half)), s.model or "merge")
        for s in series
        for run in _runs(list(zip(places, s.values, strict=True)))
    ]
    title = f"{parameter} of {text}" if text else parameter
    said = "; ".join(f"{s.model or 'the merge'} from {_ends(s)}" for s in series)
    legend = tuple((s.model or "merge", s.model or "the merge") for s in series)
    depth = "layer" if shape.layers else "depth, % of the layers"
    return Chart(f"{title} over depth: {said}.", x, y, depth, title, tuple(lines), legend=legend)


def _runs(points: Sequence[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    """Stretches without a gap."""
    run: list[tuple[float, float]] = []
    for place, value in points:
        if value is not None:
            run.append((place, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _ends(series: Series) -> str:
    there = [value for value in series.values if value is not None]
    return f"{number(there[0])} to {number(there[-1])}"


def _heat_row(shape: Shape, series: Series, colours: dict[str, int], several: bool) -> HeatRow:
    alike = [v for s in shape.series if s.parameter == series.parameter for v in s.values if v is not None]
    most = max(map(abs, alike)) or 1.0
    label = " ".join(filter(None, (series.parameter, (series.filter or "all others") if several else None)))
    cells, start, share = [], 0, 100 / len(series.values)
    for v, run in groupby(series.values):
        stop = start + len(list(run))
        layers = f"layer {start}" if stop == start + 1 else f"layers {start} to {stop - 1}"
        title = f"{layers}: {number(v)}" if shape.layers else number(v)
        strength = round(100 * abs(v or 0.0) / most, 1)
        width = round((stop - start) * share, 3)
        cells.append(HeatCell(round(start * share, 3), width, strength, (v or 0.0) < 0, title))
        start = stop
    there = [value for value in series.values if value is not None]
    low, high = number(min(there)), number(max(there))
    words = low if low == high else f"{low} to {high}"
    model = series.model
    return HeatRow(f"{model} · {label}" if model else label, colours.get(model or ""), words, tuple(cells))


def _path_chart(shape: Shape) -> Chart:
    x = axis(range(len(shape.path)), pad=0.02, whole=True)
    y = axis([step.layer for step in shape.path], whole=True)
    dots = tuple(
        Dot(
            x.at(i),
            y.up(step.layer),
            step.model,
            f"place {i}: layer {step.layer} of {step.model}"
            + (f", times {number(step.scale)}" if step.scale else ""),
        )
        for i, step in enumerate(shape.path)
    )
    models = dict.fromkeys(step.model for step in shape.path)
    label = f"A path of {len(shape.path)} layers through {', '.join(models)}."
    legend = tuple((name, name) for name in models)
    return Chart(label, x, y, "place in the champion", "layer of the model", dots=dots, legend=legend)
