"""What a candidate costs the driver: a whole search on a pool whose scores are a formula, and there at once."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from search_bench.coverage import FormulaScorer, World, formula_config, formula_place
from search_bench.scoring import InProcessPool

from heterosis.evolve import search, session
from heterosis.evolve.judging.referee import Referee
from heterosis.evolve.proposals import Proposer
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.state import RunState
from heterosis.evolve.space.space import SearchSpace
from heterosis.evolve.watching.pulse import PulseWriter
from heterosis.merge import Recipe

from .clock import Clock, Times, between

WORKERS = 64
SHARE = 0.2  # of the trials up to a count, the last ones, are what a count's figures are means of

# What the driver does for a candidate: the functions, and where they are looked up.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "pool": [(InProcessPool, "submit"), (InProcessPool, "wait")],
    "ask": [(Proposer, "propose"), (SearchSpace, "values"), (SearchSpace, "decode"), (Recipe, "to_yaml")],
    "judge": [(Referee, "next_documents"), (Referee, "result"), (Referee, "can_judge")],
    "record": [(Record, "ask"), (Record, "add_scores"), (Record, "tell")],
    "tell": [(Proposer, "tell")],
    "save": [
        (session, "write_outcome"),
        (RunState, "save"),
        (PulseWriter, "trial"),
        (PulseWriter, "beat"),
    ],
    "study": [(Record, "write_study")],
}
COLUMNS = ("ask", "judge", "record", "tell", "save", "other")


class Marks:
    """Progress that reads the clock after every trial."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.read: list[dict[str, Times]] = []

    def begin(self, *_: Any) -> None: ...
    def phase(self, text: str) -> None: ...
    def end(self) -> None: ...

    def trial(self, *_: Any) -> None:
        self.read.append(self._clock.read())


def measure(
    optimizer: str, counts: Sequence[int], folder: Path, place: Path | None, *, study: bool = True
) -> Iterator[dict[str, Any]]:
    """One search with some more trials than the largest count; a line for each count.

    Args:
        optimizer: Its name.
        counts: Numbers of trials, in order.
        folder: Of the models for the preflight.
        place: Where the run folder is made; in memory, waiting for it costs nothing.
        study: Whether the study is written, which the driver does else while it waits for workers.
    """
    home = formula_place(folder)
    documents = len(home.documents(home.task_names[0]))
    scorer = FormulaScorer(World.draw(0), home.task_names, documents)
    changes = {"merge_method": "ties", "optimizer": optimizer, "racing": False, "workers": WORKERS}
    # More than are measured: towards the end, workers are given nothing any more.
    config = formula_config(home, 0, changes | {"trials": counts[-1] + 2 * WORKERS})
    clock = Clock()
    marks = Marks(clock)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="heterosis-driver-", dir=place))
        if not study:
            stack.enter_context(mock.patch.object(Record, "write_study", return_value=False))
        stack.enter_context(clock.following(PARTS))
        search(
            config,
            Path(name) / "run",
            make_pool=lambda setup, workers: InProcessPool(scorer, workers),
            progress=marks,
        )
    for count in counts:
        first = count - max(1, int(SHARE * count))
        spent = between(marks.read[first - 1], marks.read[count - 1], count - first)
        yield {
            "what": "driver",
            "optimizer": optimizer,
            "trials": count,
            "place": str(place),
            **{
                f"{key}_ms": [round(1000 * t, 3) for t in spent.get(key, (0.0, 0.0))]
                for key in (*COLUMNS, "study")
            },
        }


def cost_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Milliseconds per trial on the wall, and of processor time for all columns together and for the study."""
    yield f"| optimizer | at trial | {' | '.join(COLUMNS)} | together | its processor | study | its processor |"
    yield "| --- " * 2 + "| ---: " * (len(COLUMNS) + 4) + "|"
    for line in lines:
        wall = [line[f"{key}_ms"][0] for key in COLUMNS]
        processor = sum(line[f"{key}_ms"][1] for key in COLUMNS)
        numbers = [*wall, sum(wall), processor, *line["study_ms"]]
        cells = " | ".join(f"{number:.2f}" for number in numbers)
        yield f"| {line['optimizer']} | {line['trials']:,} | {cells} |"
