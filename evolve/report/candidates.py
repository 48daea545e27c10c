"""Charts with a point for each candidate: convergence, scores over parameters, fronts."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from heterosis.evolve.record.trial import Trial
from heterosis.evolve.report.charts import Chart, Dot, Line, Rule, axis
from heterosis.evolve.report.data import FrontPoint, Report
from heterosis.evolve.report.words import number, plural, signed
from heterosis.evolve.results.summary import describe_result

SCATTERS = 6  # of the parameters that mattered most


def convergence(report: Report) -> Chart | None:
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
    legend = [
        ("search", "candidate"),
        ("search stopped", "on a part of the documents (estimate)"),
        ("baseline", "baseline"),
    ]
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


def scatters(report: Report) -> Iterator[Chart]:
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


def front_chart(report: Report, first: str, second: str) -> Chart:
    """The finalists' gains in two tasks."""
    points = [p for p in report.front if first in p.gains and second in p.gains]
    x = axis([0.0, *(p.gains[first] for p in points)])
    y = axis([0.0, *(p.gains[second] for p in points)])
    dots = tuple(
        Dot(
            x.at(p.gains[first]),
            y.up(p.gains[second]),
            _finalist(p),
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


def _finalist(point: FrontPoint) -> str:
    """What the style sheet calls a finalist's point."""
    kinds = ["search" if point.role == "candidate" else point.role]
    return " ".join([*kinds, *["stopped"] * (not point.on_front), *["champion"] * point.champion])
