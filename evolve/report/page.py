"""The report as one HTML page, from its data: charts' geometry, words for numbers, and the template."""

import base64
import hashlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate, groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from heterosis.evaluate.splits import PARTS
from heterosis.evolve.outcome import closing_table, describe_result
from heterosis.evolve.record import Trial
from heterosis.evolve.report.charts import Axis, Chart, Dot, Line, Rule, Whisker, axis
from heterosis.evolve.report.data import Report
from heterosis.evolve.report.shape import Series, Shape

PART_NAMES = {"search": "search", "selection": "selection", "holdout": "held out"}
COLOURS = 8  # of models, in the style sheet
SCATTERS = 6  # of the parameters that mattered most
_MOST_BARS = 24
_VERDICTS = {
    "empty": "Nothing scored yet",
    "parent": "No signal",
    "baseline": "No signal",
    "better": "Better than its parents",
    "unclear": "No clear difference",
    "worse": "Worse than a parent",
}
_OBJECTIVES = {"weighted": "weighted sum", "gain": "mean gain", "worst": "smallest gain", "pareto": "every task"}


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


def render(report: Report) -> str:
    """The page."""
    style, script = _asset("style.css"), _asset("copy.js")
    page = _environment().get_template("page.html")
    return page.render(
        report=report,
        summary=report.summary,
        badge=_badge(report),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        objective=_OBJECTIVES[report.summary["maximised"]["kind"]],
        gains=_gains(report),
        table=closing_table(report.summary),
        parts=PARTS,
        part_names=PART_NAMES,
        task_axes=[_task_axis(report, i) for i in range(len(report.tasks))],
        convergence=_convergence(report),
        shapes=[_shape_view(report, shape) for shape in report.shapes],
        bars=list(report.importance.shares.items())[:_MOST_BARS],
        hidden_bars=max(0, len(report.importance.shares) - _MOST_BARS),
        scatters=list(_scatters(report)),
        fronts=[_front(report, *pair) for pair in report.pairs()] if report.front else [],
        commands=_commands(report),
        failures=report.summary["failures"],
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("heterosis.evolve.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "hours": duration, "plural": plural}
    return environment


@cache
def _asset(name: str) -> str:
    return files("heterosis.evolve.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """The script as a content security policy allows it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# ------------------------------------------------------------------ words for numbers


def number(value: float | None) -> str:
    """A score or parameter."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}"


def signed(value: float) -> str:
    """A difference, with a minus sign as wide as the plus."""
    text = f"{value:+.3f}" if abs(value) < 10 else f"{value:+,.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _badge(report: Report) -> str:
    running = report.summary["status"] == "running" and not report.lost
    if report.verdict == "unfinished":
        return "Still running" if running else "Stopped before the end"
    return _VERDICTS[report.verdict]


# ------------------------------------------------------------------ scores


def _gains(report: Report) -> dict[str, Any] | None:
    """The gains held out over the best parent and the uniform merge, on one axis with zero."""
    summary, found = report.summary, []
    for label, key in (("best parent", "gain_over_best_parent"), ("uniform merge", "gain_over_uniform")):
        gain = summary.get(key)
        if gain and report.verdict not in ("parent", "empty", "unfinished"):
            name = f"{label}, {gain['parent']}" if "parent" in gain else label
            found.append((name, gain["holdout"], *gain["ci95"]))
    if not found:
        return None
    scale = axis([0.0, *(v for _, *values in found for v in values)])
    rows = [
        (name, mean, low, high, Whisker(scale.at(low), scale.at(mean), scale.at(high), "holdout", ""))
        for name, mean, low, high in found
    ]
    return {"axis": scale, "rows": rows, "zero": scale.at(0.0)}


def _task_axis(report: Report, index: int) -> dict[str, Any]:
    """Every contender's whiskers on one task, on one axis."""
    task = report.tasks[index]
    ends = [end for row in task.rows for i in row.parts.values() for end in (i.low, i.high)]
    scale = axis(ends)
    rows = []
    for row in task.rows:
        whiskers = [
            Whisker(
                scale.at(interval.low),
                scale.at(interval.mean),
                scale.at(interval.high),
                part,
                f"{PART_NAMES[part]}: {number(interval.mean)} ({number(interval.low)} to {number(interval.high)})",
            )
            for part, interval in row.parts.items()
        ]
        last = next((row.parts[part] for part in reversed(PARTS) if part in row.parts), None)
        rows.append((row, whiskers, last))
    return {"task": task, "axis": scale, "rows": rows}


# ------------------------------------------------------------------ convergence


def _convergence(report: Report) -> Chart | None:
    """Every candidate's search score over the documents scored until then, and the best so far."""
    scored = [t for t in report.trials if t.score is not None]
    if not scored:
        return None
    numbers = [t.number for t in report.trials]
    spent = dict(zip(numbers, accumulate(t.documents for t in report.trials), strict=True))
    x = axis([0, *spent.values()], pad=0.0)
    scores = [t.score or 0.0 for t in scored]
    y = axis([max(score, _floor(scores)) for score in scores])
    dots, steps, best = [], [], None
    champion = report.champion
    for trial in sorted(scored, key=lambda t: t == champion):  # the champion on top
        score = trial.score or 0.0
        kind = _kind(trial, champion) + (" below" if score < y.low else "")
        title = f"{_title(trial)}; {spent[trial.number]:,} documents until then"
        dots.append(Dot(x.at(spent[trial.number]), y.up(score), kind, title))
    for trial in scored:
        score = trial.score or 0.0
        if trial.complete and (best is None or score > best):
            if best is not None:
                steps.append((x.at(spent[trial.number]), y.up(best)))
            steps.append((x.at(spent[trial.number]), y.up(score)))
            best = score
    if best is not None:
        steps.append((100.0, y.up(best)))
    parents = [t.score or 0.0 for t in scored if t.ask.kind == "parent"]
    marks = [spent[t.number] - t.documents for t in _first_of_stages(report.trials)]
    below = sum(score < y.low for score in scores)
    legend = [("search", "candidate"), ("search stopped", "stopped early (estimate)"), ("baseline", "baseline")]
    legend += [("parent", "parent"), ("line best", "best so far")]
    legend += [("below", f"{below} below the chart")] if below else []
    last = f"; the best reaches {number(best)}" if best is not None else ""
    return Chart(
        f"Score of {plural(len(scored), 'candidate')} on the search documents over documents scored{last}.",
        x,
        y,
        "documents scored",
        "score on the search documents",
        lines=(Line(tuple(steps), "best"),) if steps else (),
        dots=tuple(dots),
        levels=(Rule(y.up(max(parents)), "best parent"),) if parents else (),
        marks=tuple(Rule(x.at(at), f"stage {i + 2}") for i, at in enumerate(marks)),
        legend=tuple(legend),
    )


def _floor(scores: Sequence[float]) -> float:
    """Where a chart of scores may end below: failures of a merge, far away, would press the rest into a line."""
    ranked = sorted(scores)
    tenth, top = ranked[len(ranked) // 10], ranked[-1]
    return ranked[0] if top - ranked[0] <= 3 * (top - tenth) else tenth - 0.1 * (top - tenth)


def _first_of_stages(trials: Iterable[Trial]) -> Iterator[Trial]:
    """The first result of every stage but the first."""
    stage = 0
    for trial in trials:
        if trial.ask.stage > stage:
            stage = trial.ask.stage
            yield trial


def _kind(trial: Trial, champion: Trial | None) -> str:
    """What the style sheet calls a candidate's point."""
    kinds = ["search" if trial.ask.kind == "mean" else trial.ask.kind]
    return " ".join([*kinds, *["stopped"] * trial.pruned, *["champion"] * (trial == champion)])


def _title(trial: Trial) -> str:
    return f"trial {trial.number} ({trial.ask.name}): {describe_result(trial)}"


# ------------------------------------------------------------------ the champion over depth


def _shape_view(report: Report, shape: Shape) -> dict[str, Any]:
    names = dict.fromkeys(s.model for s in shape.series if s.model) | dict.fromkeys(s.model for s in shape.path)
    by_colour = {name: _colour(report, name, i) for i, name in enumerate(names)}
    curved = [s for s in shape.series if not s.flat]
    groups = dict.fromkeys((s.parameter, s.filter) for s in curved)
    curves = [
        _curves(shape, parameter, text, [s for s in shape.series if (s.parameter, s.filter) == (parameter, text)])
        for parameter, text in groups
    ]
    several = len({s.filter for s in shape.series}) > 1
    return {
        "shape": shape,
        "curves": [_coloured(chart, by_colour) for chart in curves],
        "heat": [_heat_row(shape, s, by_colour, several) for s in shape.series],
        "negative": any(v is not None and v < 0 for s in shape.series for v in s.values),
        "path": _coloured(_path_chart(shape), by_colour) if shape.path else None,
    }


def _colour(report: Report, name: str, otherwise: int) -> int:
    models = report.config.genome.model_names
    return (models.index(name) if name in models else len(models) + otherwise) % COLOURS


def _coloured(chart: Chart, colours: dict[str, int]) -> dict[str, Any]:
    """A chart whose kinds are models, with their colours."""
    return {"chart": chart, "colours": {name: f"m{colour}" for name, colour in colours.items()}}


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


# ------------------------------------------------------------------ what mattered


def _scatters(report: Report) -> Iterator[Chart]:
    """Score over each of the parameters that mattered most."""
    trials = [t for t in report.trials if t.score is not None and t.ask.values and t.ask.stage == report.stage]
    low = _floor([t.score or 0.0 for t in trials]) if trials else 0.0
    for name in list(report.importance.shares)[:SCATTERS]:
        found = [(t, t.ask.values[name]) for t in trials if name in t.ask.values]
        points = [(t, value) for t, value in found if not isinstance(value, str)]
        if len(points) < len(found) or not points:
            continue  # names have no order
        x = axis([value for _, value in points], most=4)
        y = axis([max(low, t.score or 0.0) for t, _ in points], most=4)
        ordered = sorted(points, key=lambda point: point[0] == report.champion)
        dots = tuple(
            Dot(
                x.at(value),
                y.up(t.score or 0.0),
                _kind(t, report.champion),
                f"{_title(t)}; {name} = {number(value)}",
            )
            for t, value in ordered
        )
        yield Chart(f"Score over {name}, {plural(len(points), 'candidate')}.", x, y, name, "score", dots=dots)


# ------------------------------------------------------------------ the front


def _front(report: Report, first: str, second: str) -> Chart:
    points = [p for p in report.front if first in p.gains and second in p.gains]
    x = axis([0.0, *(p.gains[first] for p in points)])
    y = axis([0.0, *(p.gains[second] for p in points)])
    dots = tuple(
        Dot(
            x.at(p.gains[first]),
            y.up(p.gains[second]),
            " ".join(
                filter(
                    None,
                    (
                        "search" if p.role == "candidate" else p.role,
                        "" if p.on_front else "stopped",
                        "champion" if p.champion else "",
                    ),
                )
            ),
            f"{p.label}: {first} {signed(p.gains[first])}, {second} {signed(p.gains[second])}"
            + (" (on the front)" if p.on_front else ""),
        )
        for p in sorted(points, key=lambda p: p.champion)
    )
    edge = sorted((x.at(p.gains[first]), y.up(p.gains[second])) for p in points if p.on_front)
    lines = (Line(tuple(edge), "front"),) if len(report.tasks) == 2 and edge else ()
    legend = [("search", "candidate"), ("parent", "parent"), ("baseline", "baseline")]
    legend += [("search stopped", "not on the front")]
    return Chart(
        f"Gains over the best parent in {first} and {second} of {plural(len(points), 'finalist')}.",
        x,
        y,
        f"gain in {first}",
        f"gain in {second}",
        lines=lines,
        dots=dots,
        levels=(Rule(y.up(0.0)),),
        marks=(Rule(x.at(0.0)),),
        legend=tuple(legend),
    )


# ------------------------------------------------------------------ commands


def _commands(report: Report) -> list[tuple[str, str]]:
    """What to do with the recipe, with the command for it."""
    config, out = report.config, f"merged-{report.name}"
    evaluate = ["heterosis", "evaluate", out, "--tasks", ",".join(task.name for task in config.tasks)]
    for path in config.include_path:
        evaluate += ["--include-path", path]
    if config.num_fewshot is not None:
        evaluate += ["--num-fewshot", str(config.num_fewshot)]
    if config.apply_chat_template:
        evaluate.append("--apply-chat-template")
    evaluate += ["--batch-size", str(config.batch_size)]
    return [
        ("Merge", shlex.join(["heterosis", "merge", str(report.folder / "best.yaml"), out])),
        ("Evaluate", shlex.join(evaluate)),
        ("Publish", shlex.join(["heterosis", "push", out, f"YOUR-NAME/{report.name}"])),
    ]
