"""How time grows, as SVG: by size with one thread and with several, and by the number of fine-tunes.

Written by hand: the drawing is small, and needs neither a plotting library nor a browser.
"""

from collections.abc import Sequence
from math import ceil, floor, log10

from bench.checkpoints import Setting, model_bytes
from bench.results import Results, threads

GROWN = ("linear", "task_arithmetic", "ties")
Curve = list[tuple[float, float]]

WIDTH, HEIGHT = 300, 240  # of a panel's plot
LEFT, TOP, GAP = 56, 64, 48
# Colours that colour-blind readers tell apart; the picture brings its own background for both themes.
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 }
  .card { fill: #fff } .grid { stroke: #ddd } .frame { fill: none; stroke: #999 }
  .curve { fill: none; stroke-width: 2 } circle { fill: none; stroke-width: 3 }
  .floor { stroke: #777 } path.floor { stroke-dasharray: 5 4 }
  .linear { stroke: #0072b2 } .task_arithmetic { stroke: #009e73 } .ties { stroke: #d55e00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .card { fill: #16181d } .grid { stroke: #333 } .floor { stroke: #999 }
    .linear { stroke: #56b4e9 } .task_arithmetic { stroke: #2fc79b } .ties { stroke: #f08a4b }
  }
"""


def growth_plot(results: Results) -> str:
    """Three panels with logarithmic axes: medians of heterosis, and the floor of ties' files."""
    settings = [s for s in results.settings() if s.method in GROWN and not s.lora and not s.sharded]
    most = max((s.threads for s in settings), default=1)
    by_size = {
        count: [s for s in settings if s.parents == 3 and s.threads == count] for count in sorted({1, most})
    }
    sizes = {s.size for s in settings if s.parents != 3}
    by_parents = [s for s in settings if s.size in sizes and s.threads == most]
    panels = [
        (f"{threads(count)}, 3 fine-tunes", "GB of a model", _curves(results, group, by_parents=False))
        for count, group in by_size.items()
    ]
    shared = [point for _, _, curves in panels for curve in curves.values() for point in curve]
    title = f"{threads(most)}, {' and '.join(sorted(sizes))} a model"
    panels.append((title, "fine-tunes", _curves(results, by_parents, by_parents=True)))
    width, height = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + 48
    drawn = []
    for i, (title, unit, curves) in enumerate(panels):
        points = shared if i < len(by_size) else [point for curve in curves.values() for point in curve]
        if points:
            body = "\n".join(_panel(title, unit, curves, points))
            drawn.append(f'<g transform="translate({LEFT + i * (WIDTH + GAP)} {TOP})">\n{body}\n</g>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>Seconds of merging by size of a model and by number of fine-tunes, beside the floor</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" width="{width}" height="{height}" rx="6"/>',
            *_legend(),
            *drawn,
            "</svg>\n",
        ]
    )


def _curves(results: Results, settings: Sequence[Setting], *, by_parents: bool) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for s in settings:
        x = s.parents if by_parents else model_bytes(s.size) / 1e9
        for name, program in ((s.method, "heterosis"), *([("floor", "floor")] * (s.method == "ties"))):
            seconds = results.median(s, program, "seconds")
            if seconds:
                curves.setdefault(name, []).append((x, seconds))
    return {name: sorted(curve) for name, curve in curves.items()}


def _legend() -> list[str]:
    names = {"floor": "floor: read base and fine-tunes, write the result", **{name: name for name in GROWN}}
    marks, x = [], LEFT
    for name, text in names.items():
        marks.append(f'<path class="curve {name}" d="M{x} 20h28"/><text x="{x + 34}" y="24">{text}</text>')
        x += 64 + 7 * len(text)
    return marks


def _panel(title: str, unit: str, curves: dict[str, Curve], points: Curve) -> list[str]:
    (x_ticks, x_low, x_high), (y_ticks, y_low, y_high) = (
        _axis([point[axis] for point in points]) for axis in (0, 1)
    )

    def across(x: float) -> float:
        return WIDTH * log10(x / x_low) / log10(x_high / x_low)

    def up(y: float) -> float:
        return HEIGHT * (1 - log10(y / y_low) / log10(y_high / y_low))

    drawn = [f'<text class="title" x="0" y="-12">{title}</text>']
    for x in x_ticks:
        drawn.append(f'<path class="grid" d="M{across(x):.1f} 0v{HEIGHT}"/>')
        drawn.append(f'<text x="{across(x):.1f}" y="{HEIGHT + 16}" text-anchor="middle">{x:g}</text>')
    for y in y_ticks:
        drawn.append(f'<path class="grid" d="M0 {up(y):.1f}h{WIDTH}"/>')
        drawn.append(f'<text x="-6" y="{up(y) + 4:.1f}" text-anchor="end">{y:g} s</text>')
    drawn.append(f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>')
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT + 34}" text-anchor="middle">{unit}</text>')
    for name, curve in curves.items():
        path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in curve)
        drawn.append(f'<path class="curve {name}" d="M{path}"/>')
        drawn += [f'<circle class="{name}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="1.5"/>' for x, y in curve]
    return drawn


def _axis(values: Sequence[float]) -> tuple[list[float], float, float]:
    """Ticks, and the axis' ends: all powers of ten, with few of them also twice and five times those."""
    low, high = min(values) / 1.15, max(values) * 1.15
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1,) if log10(high / low) > 2.5 else (1, 2, 5) if log10(high / low) > 0.8 else range(1, 10)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high], low, high
