"""Raw results, a JSON line for each measurement, and the tables made of them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from bench.checkpoints import METHODS, Setting
from bench.circumstances import circumstances

Line = dict[str, Any]


class Results:
    """Measurements, one for each setting, program and round; of several in a file the last counts.

    Args:
        path: A file of JSON lines, read and appended to; None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: dict[tuple[Setting, str, int], Line] = {}
        if path and path.exists():
            for text in path.read_text().splitlines():
                self._keep(json.loads(text))

    def _keep(self, line: Line) -> None:
        setting = Setting(**{field.name: line[field.name] for field in fields(Setting)})
        self._lines[setting, line["program"], line["round"]] = line

    def add(self, setting: Setting, program: str, turn: int, numbers: dict[str, float]) -> None:
        rounded = {key: round(value, 4) for key, value in numbers.items()}
        line = {**asdict(setting), "program": program, "round": turn, **rounded, **circumstances(":/merge")}
        self._keep(line)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def has(self, setting: Setting, program: str, turn: int) -> bool:
        return (setting, program, turn) in self._lines

    def settings(self) -> list[Setting]:
        return list(dict.fromkeys(setting for setting, _, _ in self._lines))

    def turns(self, setting: Setting, program: str) -> dict[int, Line]:
        """The measurements by round, without the first round: it warms caches, and compiles."""
        return {turn: line for (s, p, turn), line in self._lines.items() if turn and (s, p) == (setting, program)}

    def median(self, setting: Setting, program: str, number: str) -> float | None:
        lines = self.turns(setting, program).values()
        return median(line[number] for line in lines) if lines else None

    def ratio(self, setting: Setting, program: str, to: str) -> float | None:
        """The median of the ratios of seconds within rounds."""
        over, under = self.turns(setting, program), self.turns(setting, to)
        ratios = [over[turn]["seconds"] / under[turn]["seconds"] for turn in over.keys() & under.keys()]
        return median(ratios) if ratios else None


# --- tables -----------------------------------------------------------------------------------------------------


def tables(results: Results, settings: Iterable[Setting]) -> Iterator[str]:
    """Markdown: a table of speed for all that differs in the method alone, and what a process takes beside."""
    groups: dict[Setting, list[Setting]] = {}
    for setting in settings:
        if results.turns(setting, "heterosis"):
            groups.setdefault(replace(setting, method=""), []).append(setting)
    for common, group in groups.items():
        group.sort(key=lambda setting: list(METHODS).index(setting.method))
        yield from ("", caption(common), "", *_speed(results, group), "", *_summary(results, group))
        yield from ("", *_processes(results, group), "", *_provenance(results, group))


def caption(common: Setting) -> str:
    limit = f"{common.memory_limit} MiB" if common.memory_limit else "default"
    inputs = f"{common.size} a model, {common.parents} {'adapters' if common.lora else 'fine-tunes'}"
    extra = ", in shards" if common.sharded else ""
    return f"**{inputs}{extra}, dtype {common.dtype}, {threads(common.threads)}, memory limit {limit}**"


def threads(count: int) -> str:
    return f"{count} thread" + "s" * (count > 1)


def _speed(results: Results, group: list[Setting]) -> Iterator[str]:
    """Seconds of the merge alone, and ratios to the floors of the same round."""
    floors = {"floor_1": "1 thread"} if group[0].threads > 1 else {}
    floors["floor"] = threads(group[0].threads)
    columns = [*(f"floor, {name}, s" for name in floors.values()), "its fsync s", "heterosis s"]
    columns += [f"of the floor, {name}" for name in floors.values()] + ["CPU s", "MiB"]
    columns += ["mergekit s", "MiB", "times ours"]
    yield from _head("method", *columns)
    for setting in group:
        cpu = [results.median(setting, "heterosis", kind) for kind in ("user", "system")]
        yield _row(
            setting.method,
            *(results.median(setting, floor, "seconds") for floor in floors),
            results.median(setting, "floor", "fsync"),
            results.median(setting, "heterosis", "seconds"),
            *(results.ratio(setting, "heterosis", floor) for floor in floors),
            sum(x for x in cpu if x is not None),
            _peak(results, setting, "heterosis"),
            results.median(setting, "mergekit", "seconds"),
            _peak(results, setting, "mergekit"),
            _quotient(results, setting, "mergekit", "heterosis"),
        )


def _peak(results: Results, setting: Setting, program: str) -> str:
    peaks = [line["MiB"] for line in results.turns(setting, program).values()]
    return f"{max(peaks):.0f}" if peaks else ""


def _quotient(results: Results, setting: Setting, program: str, other: str) -> float | None:
    """A program's median time over another's."""
    above, below = (results.median(setting, name, "seconds") for name in (program, other))
    return above / below if above and below else None


def _summary(results: Results, group: list[Setting]) -> Iterator[str]:
    for floor, name in (("floor_1", "1 thread"), ("floor", threads(group[0].threads))):
        by_round = {s.method: ratio for s in group if (ratio := results.ratio(s, "heterosis", floor))}
        of_medians = {s.method: ratio for s in group if (ratio := _quotient(results, s, "heterosis", floor))}
        for ratios, what in ((by_round, f"the floor with {name}"), (of_medians, f"the median floor with {name}")):
            if ratios:
                mean, most = geometric_mean(ratios.values()), max(ratios, key=lambda method: ratios[method])
                yield f"- Of {what}: {mean:.2f} in geometric mean, at most {ratios[most]:.2f} ({most})"
    gains = {s.method: gain for s in group if (gain := _quotient(results, s, "mergekit", "heterosis"))}
    if gains:
        mean, least = geometric_mean(gains.values()), min(gains, key=lambda method: gains[method])
        yield f"- mergekit's time over ours: {mean:.1f} in geometric mean, at least {gains[least]:.1f} ({least})"


def _processes(results: Results, group: list[Setting]) -> Iterator[str]:
    """What a process takes from start to exit, and what compiling adds when it is done for the first time."""
    columns = {"process s": ("heterosis", "process"), "imports s": ("heterosis", "imports")}
    columns |= {"merge s": ("heterosis", "seconds"), "user s": ("heterosis", "user")}
    columns |= {"system s": ("heterosis", "system"), "first ever, process s": ("first", "process")}
    columns |= {"first ever, merge s": ("first", "seconds"), "importing torch, process s": ("torch", "process")}
    columns |= {"mergekit, process s": ("mergekit", "process"), "mergekit, imports s": ("mergekit", "imports")}
    measured = {name: what for name, what in columns.items() if any(results.turns(s, what[0]) for s in group)}
    yield from _head("method", *measured)
    for setting in group:
        yield _row(setting.method, *(results.median(setting, *what) for what in measured.values()))


def _provenance(results: Results, group: list[Setting]) -> Iterator[str]:
    lines = [line for s in group for p in ("heterosis", "mergekit") for line in results.turns(s, p).values()]
    rounds = max(len(results.turns(setting, "heterosis")) for setting in group)
    theirs = max(len(results.turns(setting, "mergekit")) for setting in group)
    machines, commits = (", ".join(sorted({line[key] for line in lines})) for key in ("machine", "commit"))
    both = f"{rounds} round{'s' * (rounds > 1)}" + (f", {theirs} of them with mergekit" if theirs else "")
    yield f"Medians of {both}; the largest of the peaks of memory. {machines}; commit {commits}."


def growth_table(results: Results, settings: Iterable[Setting]) -> Iterator[str]:
    yield from _head("method", "a model", "fine-tunes", "threads", "floor s", "heterosis s", "of the floor", "MiB")
    for s in settings:
        if results.turns(s, "heterosis"):
            seconds = [results.median(s, program, "seconds") for program in ("floor", "heterosis")]
            ratio = results.ratio(s, "heterosis", "floor")
            peak = _peak(results, s, "heterosis")
            yield _row(s.method, s.size, str(s.parents), str(s.threads), *seconds, ratio, peak)


def _head(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"| {' | '.join('---' if i == 0 else '---:' for i in range(len(names)))} |"


def _row(*cells: str | float | None) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.{3 if value < 0.1 else 2 if value < 100 else 0}f}"
