"""A run on the terminal: a live view, or plain lines where there is no terminal."""

import time
from collections import deque
from statistics import median

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heterosis.evolve.outcome import describe_result
from heterosis.evolve.preflight import Preflight
from heterosis.evolve.record import Record, Trial


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _searched(checked: Preflight) -> str:
    """What is searched, in words."""
    counts = " then ".join(str(len(space.parameters)) for space in checked.spaces)
    paths = checked.config.genome.layer_paths
    if checked.paths:
        return f"layer paths, {counts} numbers to find"
    then = ", then layer paths" if paths else ""
    return f"{' or '.join(checked.config.genome.methods)}, {counts} numbers to find{then}"


def describe(checked: Preflight, budget: int, workers: int) -> list[str]:
    """What is about to happen, in a few lines."""
    split, objective = checked.split, checked.objective
    lines = [
        f"{len(checked.config.genome.models)} parents of {checked.parameters / 1e6:.0f} M parameters, "
        f"{_searched(checked)}, {budget} trials on {workers} worker{'s' * (workers != 1)}"
    ]
    for task, weight in objective.weights.items():
        direction = "higher" if weight >= 0 else "lower"
        counts = [len(part[task]) for part in (split.search, split.selection, split.holdout)]
        lines.append(
            f"{task}: {objective.metrics[task]}, {direction} is better; documents: "
            f"{counts[0]} search, {counts[1]} selection, {counts[2]} held out"
        )
    return lines


def trial_line(trial: Trial, best: Trial | None, done: int, budget: int) -> str:
    """A finished trial in a line."""
    result = describe_result(trial)
    best_text = f"  best {best.score:.4f} ({best.ask.name})" if best is not None else ""
    return f"[{done}/{budget}] {trial.ask.name}: {result}{best_text}"


class PlainProgress:
    """A line for every event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._budget = 0

    def begin(self, preflight: Preflight, budget: int, workers: int) -> None:
        self._budget = budget
        for line in describe(preflight, budget, workers):
            self._print(line)

    def stage(self, text: str) -> None:
        self._print(text)

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None:
        self._print(trial_line(trial, best, len(record.trials), self._budget))

    def end(self) -> None:
        pass

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveProgress:
    """A view that redraws itself: progress, the best against the parents, time left, recent trials."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._budget = 0
        self._workers = 1
        self._recent: deque[str] = deque(maxlen=6)
        self._references: dict[str, float | None] = {}
        self._best: Trial | None = None
        self._done = 0
        self._begun = time.monotonic()
        self._left = ""
        self._stage_text = "starting the workers"
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._view)

    def begin(self, preflight: Preflight, budget: int, workers: int) -> None:
        self._budget, self._workers = budget, workers
        for line in describe(preflight, budget, workers):
            self._console.print(line, markup=False, highlight=False)
        self._live.start()

    def stage(self, text: str) -> None:
        self._stage_text = text

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None:
        self._done, self._best = len(record.trials), best
        self._begun = time.monotonic() - seconds
        self._stage_text = "searching"
        self._recent.append(trial_line(trial, None, self._done, self._budget))
        if trial.ask.kind in ("parent", "baseline"):
            self._references[trial.ask.name] = trial.score
        times = [sum(t.seconds.values()) for t in record.trials if t.seconds]
        if times:
            left = median(times) * max(0, self._budget - self._done) / self._workers
            self._left = f", about {duration(left)} to go before the finals" if left else ""

    def end(self) -> None:
        self._live.stop()

    def _view(self) -> Group:
        seconds = duration(time.monotonic() - self._begun)
        head = Text(f"{self._stage_text}: {self._done}/{self._budget} trials, {seconds}{self._left}")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, score in self._references.items():
            table.add_row(name, "failed" if score is None else f"{score:.4f}")
        if self._best is not None:
            table.add_row(Text("best so far", style="bold"), f"{self._best.score:.4f}", Text(self._best.ask.name))
        bar = ProgressBar(total=max(1, self._budget), completed=self._done, width=60)
        return Group(head, bar, table, *(Text(line, style="dim") for line in self._recent))
