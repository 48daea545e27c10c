"""A run for people: one view of where it stands, live on a terminal, in plain lines elsewhere.

``heterosis evolve`` and ``heterosis status --watch`` show the same; both read it from the run folder.
"""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heterosis.errors import InputError
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.tally import Tally
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.results.summary import describe_result, label
from heterosis.evolve.watching.standing import Standing, Watcher
from heterosis.words import count, duration

if TYPE_CHECKING:
    from heterosis.evolve.preflight.preflight import Preflight

WIDTH = 96  # columns of the view at most
RECENT = 6  # results shown at most
CAUSES = 3  # of failures shown
SCORES = 60  # candidates in the line of scores at most
LOOK = 0.5  # seconds between two looks into the folder, where there is no terminal
LOOK_SHARE = 20  # times as long as a look takes, at least, where there is one
_LEVELS = "▁▂▃▄▅▆▇█"


# --- what is about to happen ------------------------------------------------------------------------------------


def _searched(checked: "Preflight") -> str:
    """What is searched, in words."""
    counts = " then ".join(str(len(space.dimensions)) for space in checked.spaces)
    paths = checked.config.genome.layer_paths
    if checked.paths:
        return f"layer paths, {counts} numbers to find"
    then = ", then layer paths" if paths else ""
    return f"{' or '.join(checked.config.genome.methods)}, {counts} numbers to find{then}"


def describe(checked: "Preflight", budget: int, workers: int) -> list[str]:
    """What is about to happen, in a few lines."""
    split, objective, most = checked.split, checked.objective, checked.config.max_documents
    within = "" if most is None else f" within {most:,} documents"
    lines = [
        f"{len(checked.config.genome.models)} parents of {count(checked.plan.parameters)} parameters, "
        f"{_searched(checked)}, {budget} trials{within} on {workers} worker{'s' * (workers != 1)}"
    ]
    for task in objective.weights:
        direction = "lower" if task in objective.lower else "higher"
        counts = [len(part[task]) for part in (split.search, split.selection, split.holdout)]
        lines.append(
            f"{task}: {objective.metrics[task]}, {direction} is better; documents: "
            f"{counts[0]} search, {counts[1]} selection, {counts[2]} held out"
        )
    if sample := checked.sample:
        lines.append(
            f"candidates meet {sum(map(len, sample.values()))} of the {split.size('search')} search documents and "
            "are compared by how probable the right answers are; the best of them meet all"
        )
    return lines


# --- plain lines ------------------------------------------------------------------------------------------------


def trial_line(trial: Trial, tally: Tally, budget: int) -> str:
    """A finished trial in a line, with the best of all."""
    best, ahead = tally.best, tally.ahead
    best_text = f"  best {best.score:z.4f} ({label(best)})" if best is not None else ""
    if ahead is not None:
        best_text += f", ahead about {ahead.score:z.4f} ({label(ahead)})"
    return f"[{tally.counted}/{budget}] {label(trial)}: {describe_result(trial)}{best_text}"


def standing_line(standing: Standing) -> str:
    """Where a run stands, in a line, without the numbers of trials."""
    parts = [standing.phase, duration(standing.seconds)]
    pulse = standing.pulse
    if standing.best is not None and standing.best.ask.kind == "parent":
        parts.append(f"best is the parent {standing.best.ask.name}")
    elif pulse is not None and pulse.against:
        parent = _best_parent(standing, pulse.against)
        mean, low, high = pulse.against[parent]
        parts.append(f"best {mean:+z.4f} ({low:+z.4f} to {high:+z.4f}) against {parent} on search documents")
    parts.append(f"{_documents(standing)} documents")
    if standing.utilisation is not None:
        parts.append(f"workers busy {standing.utilisation:.0%}")
    if standing.left is not None:
        parts.append(f"about {duration(standing.left)} to go")
    return "; ".join(parts)


def _best_parent(standing: Standing, names: Iterable[str]) -> str:
    """The parent with the best search score, whatever it breaks included, as the report names it."""
    scores = {t.ask.name: t.score for t in standing.trials if t.ask.kind == "parent" and t.score is not None}
    return max(names, key=lambda name: scores.get(name, -math.inf))


def _documents(standing: Standing) -> str:
    """How many were scored, and of how many that may be."""
    pulse = standing.pulse
    most = f" of {pulse.max_documents:,}" if pulse is not None and pulse.max_documents is not None else ""
    return f"{standing.summary['documents']['scored']:,}{most}"


class PlainLines:
    """Lines for what has happened: one for every result, and at every tenth of the budget where the run stands."""

    def __init__(self) -> None:
        self._shown, self._tenth, self._phase = 0, 0, ""

    def results(self, trials: Sequence[Trial], budget: int) -> list[str]:
        """The lines of results that were not shown yet."""
        lines, tally = [], Tally()
        for shown, trial in enumerate(trials, 1):
            tally.add(trial)
            if shown > self._shown:
                lines.append(trial_line(trial, tally, budget))
        self._shown = max(self._shown, len(trials))
        return lines

    def standing(self, standing: Standing) -> list[str]:
        """The line on where the run stands, if it is time for one."""
        tenth = 10 * standing.done // max(1, standing.budget)
        due = tenth != self._tenth or standing.phase != self._phase
        self._tenth, self._phase = tenth, standing.phase
        return [standing_line(standing)] if due else []


# --- the view ---------------------------------------------------------------------------------------------------


def view(
    standing: Standing, title: str = "heterosis", columns: int = WIDTH, lines: int | None = None
) -> RenderableType:
    """Where a run stands, to look at.

    Args:
        standing: Where it stands.
        title: The run's name.
        columns: Of the terminal.
        lines: Of the terminal: so many of the latest results are shown as it has room for. None for any number.
    """
    done, budget, inside = standing.done, standing.budget, min(columns, WIDTH) - 6
    head = f"{done} of {budget} trials · {duration(standing.seconds)}"
    if standing.left is not None:
        head += f" · about {duration(standing.left)} to go"
    width = max(8, min(32, inside - len(head) - 2))
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=max(1, budget), completed=min(done, budget), width=width, complete_style="cyan"),
        Text(head),
    )
    parts: list[RenderableType] = [bar, Text()]
    taken = 6  # with the frame
    if standing.best is not None:
        ladder = _ladder(standing)
        parts += [ladder, Text()]
        taken += ladder.row_count + 2
    facts = _facts(standing, inside)
    parts.append(facts)
    shown = RECENT if lines is None else min(RECENT, lines - taken - facts.row_count - 2)
    if standing.trials and shown > 0:
        parts += [Text(), *_recent(standing, shown)]
    style = "red" if standing.lost else "cyan"
    return Panel(
        Group(*parts),
        title=Text(f" {title}: {standing.phase} ", style="bold"),
        title_align="left",
        border_style=style,
        padding=(1, 2),
        width=WIDTH,
    )


def _ladder(standing: Standing) -> Table:
    """The best so far above what it has to beat, best first."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("on search documents", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("the best is ahead by")
    best, against = standing.best, standing.pulse.against if standing.pulse else {}
    assert best is not None
    table.add_row(
        Text(f"best so far: {label(best)}", style="bold green"),
        Text(f"{best.score:z.4f}", style="bold green"),
        "",
    )
    if (maybe := standing.tally.ahead) is not None:
        table.add_row(f"perhaps ahead: {label(maybe)}, on {maybe.documents} of them", f"{maybe.score:z.4f}", "")
    known = {t.ask.name: t for t in standing.trials if not t.ask.is_candidate}
    for trial in sorted(known.values(), key=lambda t: (t.complete, t.score or 0.0), reverse=True):
        if trial.number == best.number:
            continue
        ahead = ""
        if trial.ask.name in against:
            mean, low, high = against[trial.ask.name]
            ahead = f"{mean:+z.4f}  ({low:+z.4f} to {high:+z.4f})"
        name = trial.ask.name if trial.ask.kind == "parent" else f"{trial.ask.name} (baseline)"
        score = "failed" if trial.score is None else "stopped" if trial.pruned else f"{trial.score:z.4f}"
        table.add_row(Text(name), score, ahead)
    return table


def _facts(standing: Standing, columns: int) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    pulse, counts = standing.pulse, standing.summary["trials"]
    if pulse is not None:
        share = f", {standing.utilisation:.0%} of the time so far" if standing.utilisation is not None else ""
        waiting = f"; {pulse.waiting} waiting" if pulse.waiting else ""
        table.add_row("workers", f"{pulse.busy} of {pulse.workers} busy{share}{waiting}")
    part = f"; {counts['pruned']} candidates met a part" if counts["pruned"] else ""
    table.add_row("documents", f"{_documents(standing)} scored{part}")
    if pulse is not None and pulse.spread is not None:
        now, first = pulse.spread
        table.add_row("spread", f"{now:.3f} of the ranges in the last ten, {first:.3f} in the first ten")
    scores = [t.score for t in standing.trials if t.ask.is_candidate and t.score is not None]
    if len(scores) > 1:
        last = scores[-max(8, min(SCORES, columns - 34)) :]  # beside the name and the ends
        table.add_row("candidates", f"{_line_of(last)}  {min(last):z.4f} to {max(last):z.4f}")
    causes = standing.summary["failures"].items()
    for cause, times in sorted(causes, key=lambda entry: -entry[1])[:CAUSES]:
        table.add_row(Text("failed", style="red"), Text(f"{times} × {cause}", overflow="ellipsis", no_wrap=True))
    if len(causes) > CAUSES:
        table.add_row("", f"and for {len(causes) - CAUSES} more reasons; see run.log")
    return table


def _recent(standing: Standing, shown: int) -> list[RenderableType]:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), style="dim")
    table.add_column()
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right")
    for trial in standing.trials[: -shown - 1 : -1]:
        took = duration(trial.took) if trial.seconds else ""
        table.add_row(Text(label(trial)), Text(describe_result(trial)), took)
    return [Text("latest results", style="dim"), Padding(table, 0)]


def _line_of(values: Sequence[float]) -> str:
    """Values as a line of blocks."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_LEVELS[round((value - low) / span * (len(_LEVELS) - 1))] for value in values)


# --- who shows it -----------------------------------------------------------------------------------------------


class PlainProgress:
    """A line for every event of a search in this process."""

    def __init__(self, console: Console, folder: Path) -> None:
        self._console, self._watcher = console, Watcher(folder)
        self._budget, self._done = 0, 0

    def begin(self, preflight: "Preflight", budget: int, workers: int) -> None:
        self._budget = budget
        for line in describe(preflight, budget, workers):
            self._print(line)

    def phase(self, text: str) -> None:
        self._print(text)

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None:
        before, self._done = self._done, record.tally.counted
        self._print(trial_line(trial, record.tally, self._budget))
        if 10 * self._done // self._budget != 10 * before // self._budget:
            standing = self._watcher.look().now(record.trials, record.documents_scored(), seconds)
            self._print(standing_line(standing))

    def end(self) -> None:
        pass

    def _print(self, text: str) -> None:
        _print(self._console, text)


class LiveProgress:
    """The view of a search in this process."""

    def __init__(self, console: Console, folder: Path) -> None:
        self._console = console
        self._live = _live(console, folder)

    def begin(self, preflight: "Preflight", budget: int, workers: int) -> None:
        for line in describe(preflight, budget, workers):
            _print(self._console, line)
        self._live.start()

    def phase(self, text: str) -> None:
        pass

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None:
        pass

    def end(self) -> None:
        self._live.stop()


def watch(folder: Path, console: Console) -> None:
    """Show a run of another process until it ends, or until a keyboard interrupt.

    Raises:
        InputError: If the folder is no run folder.
    """
    watcher, lines = Watcher(folder), PlainLines()
    standing = watcher.look()
    try:
        if console.is_terminal:
            with _live(console, folder):
                while watcher.look().running:
                    time.sleep(LOOK)
            return
        while True:
            told = [*lines.results(standing.trials, standing.budget), *lines.standing(standing)]
            for line in told:
                _print(console, line)
            if not standing.running:
                return
            time.sleep(LOOK)
            standing = watcher.look()
    except KeyboardInterrupt:
        return


def _live(console: Console, folder: Path) -> Live:
    watcher = Watcher(folder)
    shown: RenderableType = Text("starting")
    after = 0.0

    def render() -> RenderableType:
        nonlocal shown, after
        begun = time.monotonic()
        if begun >= after:
            with suppress(InputError):  # nothing is there yet
                shown = view(watcher.look(), folder.resolve().name, console.width, console.height)
            # Longer the more trials there are, and in the driver's own process.
            after = time.monotonic() + LOOK_SHARE * (time.monotonic() - begun)
        return shown

    return Live(console=console, refresh_per_second=4, transient=True, get_renderable=render)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
