"""``trials.csv``: a line for each result, parameters last."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from heterosis.errors import InputError
from heterosis.evolve.record.files import AGAIN, REMOVE, SUMMARY, read_text
from heterosis.evolve.record.trial import TIMES, Ask, Kind, Trial
from heterosis.merge.files import write_text

TABLE = "trials.csv"
_HEAD = ("trial", "ask", "kind", "name", "stage", "score", "pruned", "documents", "cause")


class TableWriter:
    """Writes the table of a run: whole at first, and where a new stage has other parameters; else new lines only.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TABLE
        self._names: list[str] = []
        self._written = 0

    def write(self, trials: Sequence[Trial]) -> None:
        """Bring the table up to date.

        Args:
            trials: All results; those of the last call are the first of them.
        """
        new = trials[self._written :]
        names = list(dict.fromkeys((*self._names, *(name for t in new for name in t.ask.values))))
        if not self._written or names != self._names:
            self._names = names
            times = (f"{key}_s" for key in TIMES)
            write_text(self._path, _lines([(*_HEAD, *times, *names), *map(self._row, trials)]))
        elif new:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines(map(self._row, new)))
                file.flush()
                os.fsync(file.fileno())
        self._written = len(trials)

    def _row(self, t: Trial) -> list[object]:
        score = "" if t.score is None else t.score
        row = [t.number, t.ask.number, t.ask.kind, t.ask.name, t.ask.stage, score, int(t.pruned), t.documents]
        times = [t.seconds.get(key, "") for key in TIMES]
        return [*row, t.cause or "", *times, *(t.ask.values.get(name, "") for name in self._names)]


def _lines(rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def read_table(folder: Path) -> list[dict[str, str]]:
    """The table's rows, without one that is being written.

    Raises:
        InputError: If the table was removed or damaged.
    """
    path = folder / TABLE
    if not path.exists():
        raise InputError(f"{path}: is missing; remove {SUMMARY} too, and {AGAIN}")
    text = read_text(path, REMOVE)
    with _undamaged(path):
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        if tuple(reader.fieldnames or ())[: len(_HEAD)] != _HEAD:
            raise ValueError
        return list(reader)


def read_outlines(folder: Path) -> list[Trial]:
    """The results; their asks have no recipes and no values."""
    rows, trials, scored = read_table(folder), [], set()
    with _undamaged(folder / TABLE):
        for row in rows:
            who = row["kind"], row["name"]
            trials.append(_trial(row, promoted=who in scored))
            if row["score"]:
                scored.add(who)
    return trials


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (csv.Error, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged; {REMOVE}") from error


def _trial(row: Mapping[str, str], *, promoted: bool) -> Trial:
    number, kind, stage = int(row["ask"]), cast("Kind", row["kind"]), int(row["stage"])
    ask = Ask(number, kind, row["name"], "", {}, after=0, stage=stage, promoted=promoted)
    times = {key: float(row[f"{key}_s"]) for key in TIMES if row[f"{key}_s"]}
    return Trial(
        int(row["trial"]),
        ask,
        float(row["score"]) if row["score"] else None,
        row["cause"] or None,
        times,
        pruned=row["pruned"] == "1",
        documents=int(row["documents"]),
    )
