"""The true score of what a contender would return, by documents scored: a panel for each zoo, as SVG."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, log10

from .results import OURS, Results, is_ablation

Curve = list[tuple[float, float, float]]

WIDTH, HEIGHT = 330, 230  # of a panel's plot
LEFT, TOP, GAP, BELOW = 48, 64, 56, 72
COLUMNS = 2
# Colours that colour-blind readers tell apart; the picture brings its own background for both themes.
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 }
  .card { fill: #fff } .grid { stroke: #ddd } .frame { fill: none; stroke: #999 }
  .curve { fill: none; stroke-width: 2 } .band { stroke: none; fill-opacity: 0.14 }
  .known { fill: none; stroke: #777; stroke-dasharray: 5 4 }
  .c0 { stroke: #d55e00; fill: #d55e00 } .c1 { stroke: #0072b2; fill: #0072b2 }
  .c2 { stroke: #009e73; fill: #009e73 } .c3 { stroke: #888; fill: #888 } .c4 { stroke: #9a5fb5; fill: #9a5fb5 }
  .curve { fill: none } .band { stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .card { fill: #16181d } .grid { stroke: #333 } .known { stroke: #999 }
    .c0 { stroke: #f08a4b; fill: #f08a4b } .c1 { stroke: #56b4e9; fill: #56b4e9 }
    .c2 { stroke: #2fc79b; fill: #2fc79b } .c3 { stroke: #aaa; fill: #aaa } .c4 { stroke: #c79be0; fill: #c79be0 }
    .curve { fill: none } .band { stroke: none }
  }
"""


def curves_plot(results: Results) -> str:
    """Mean curves over seeds with their 95 % intervals, the best parent and the uniform merge dashed."""
    zoos = results.zoos()
    names = [c for c in dict.fromkeys(c for zoo in zoos for c in results.contenders(zoo)) if not is_ablation(c)]
    names.sort(key=lambda name: name != OURS)
    rows = ceil(len(zoos) / COLUMNS)
    width = LEFT + COLUMNS * (WIDTH + GAP)
    height = TOP + rows * (HEIGHT + BELOW)
    drawn = []
    for i, zoo in enumerate(zoos):
        curves = {f"c{k}": results.curve(zoo, name) for k, name in enumerate(names)}
        known = next(iter(results.runs(zoo, results.contenders(zoo)[0]).values()))["known"]
        lines = {
            "uniform": known["uniform"],
            "best parent": max(v for k, v in known.items() if k not in ("uniform", "base")),
        }
        across, down = LEFT + i % COLUMNS * (WIDTH + GAP), TOP + i // COLUMNS * (HEIGHT + BELOW)
        body = "\n".join(_panel(zoo, {k: c for k, c in curves.items() if c}, lines))
        drawn.append(f'<g transform="translate({across} {down})">\n{body}\n</g>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>True score of the returned recipe by documents scored, for each zoo and contender</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" width="{width}" height="{height}" rx="6"/>',
            *_legend(names),
            *drawn,
            "</svg>\n",
        ]
    )


def _legend(names: Sequence[str]) -> list[str]:
    marks, x = [], LEFT
    for k, name in enumerate(names):
        marks.append(f'<path class="curve c{k}" d="M{x} 20h28"/><text x="{x + 34}" y="24">{name}</text>')
        x += 56 + 7 * len(name)
    return marks


def _panel(title: str, curves: dict[str, Curve], known: dict[str, float]) -> list[str]:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return []
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    values = [v for _, true, half in points for v in (true - _number(half), true + _number(half))] + [
        *known.values()
    ]
    y_low, y_high, step = _linear_axis(min(values), max(values))

    def across(x: float) -> float:
        return WIDTH * log10(x / x_low) / log10(x_high / x_low)

    def up(y: float) -> float:
        return HEIGHT * (1 - (y - y_low) / (y_high - y_low))

    drawn = [f'<text class="title" x="0" y="-12">{title}</text>']
    for x in (m * 10**k for k in range(2, 7) for m in (1, 2, 5)):
        if x_low <= x <= x_high:
            drawn.append(f'<path class="grid" d="M{across(x):.1f} 0v{HEIGHT}"/>')
            drawn.append(f'<text x="{across(x):.1f}" y="{HEIGHT + 16}" text-anchor="middle">{x:g}</text>')
    for k in range(round((y_high - y_low) / step) + 1):
        y = y_low + k * step
        drawn.append(f'<path class="grid" d="M0 {up(y):.1f}h{WIDTH}"/>')
        drawn.append(f'<text x="-6" y="{up(y) + 4:.1f}" text-anchor="end">{y:.2f}</text>')
    drawn.append(f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>')
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT + 34}" text-anchor="middle">documents scored</text>')
    for name, y in known.items():
        drawn.append(f'<path class="known" d="M0 {up(y):.1f}h{WIDTH}"/>')
        drawn.append(f'<text x="{WIDTH - 4}" y="{up(y) - 4:.1f}" text-anchor="end">{name}</text>')
    for name, curve in reversed(curves.items()):  # ours on top
        over = [(across(x), up(y + _number(half))) for x, y, half in curve]
        under = [(across(x), up(y - _number(half))) for x, y, half in curve]
        back = [(x, y) for (x, _), (_, y) in zip(reversed(over), reversed(under), strict=True)]
        drawn.append(f'<path class="band {name}" d="M{_steps(over)}L{_steps(back, back=True)}Z"/>')
        drawn.append(f'<path class="curve {name}" d="M{_steps([(across(x), up(y)) for x, y, _ in curve])}"/>')
    return drawn


def _steps(points: Sequence[tuple[float, float]], back: bool = False) -> str:
    """A step function's corners: it keeps a value until the next point."""
    corners = [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        corners += [(x0, y1) if back else (x1, y0), (x1, y1)]
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _linear_axis(low: float, high: float) -> tuple[float, float, float]:
    """Ends and step, round numbers."""
    rough = max(high - low, 1e-6) / 5
    step = min((m * 10.0 ** floor(log10(rough)) for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return floor(low / step) * step, ceil(high / step) * step, step


def _number(half: float) -> float:
    return half if half == half else 0.0  # NaN where there is a single seed
