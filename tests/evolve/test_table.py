"""trials.csv: lines are added as long as the columns stay, and what is being written is not read."""

from itertools import pairwise
from pathlib import Path

from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.results.table import TableWriter, read_outlines, read_table


def a_trial(number: int, **values: float) -> Trial:
    ask = Ask(number, "search", f'candidate "{number}", é', "r", values, 0, stage=number // 3)
    return (
        Trial(number, ask, None, "NaN", {})
        if number == 1
        else Trial(number, ask, 0.1 + number, None, {"merge": 0.5})
    )


TRIALS = [a_trial(0), *(a_trial(n, a=0.25) for n in (1, 2)), *(a_trial(n, a=0.5, b=1.0) for n in (3, 4, 5))]


def test_adding_lines_gives_the_same_as_writing_the_whole(tmp_path: Path) -> None:
    whole, added = tmp_path / "whole", tmp_path / "added"
    for folder in (whole, added):
        folder.mkdir()
    TableWriter(whole).write(TRIALS)
    writer, files = TableWriter(added), []
    for count in range(len(TRIALS) + 1):
        writer.write(TRIALS[:count])
        assert [row["trial"] for row in read_table(added)] == [str(n) for n in range(count)]
        files.append((added / "trials.csv").stat().st_ino)
    assert (added / "trials.csv").read_bytes() == (whole / "trials.csv").read_bytes()
    # Rewritten for the first result and for new columns, a and b; else the file is the same one.
    assert [a != b for a, b in pairwise(files)] == [True, True, False, True, False, False]
    assert read_table(added)[4]["b"] == "1.0"


def test_another_session_begins_with_the_whole(tmp_path: Path) -> None:
    TableWriter(tmp_path).write(TRIALS[:3])
    TableWriter(tmp_path).write(TRIALS)
    assert [t.number for t in read_outlines(tmp_path)] == list(range(6))


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    TableWriter(tmp_path).write(TRIALS)
    path = tmp_path / "trials.csv"
    before = read_outlines(tmp_path)
    assert [(t.score, t.cause, dict(t.seconds)) for t in before[:2]] == [
        (0.1, None, {"merge": 0.5}),
        (None, "NaN", {}),
    ]
    path.write_bytes(path.read_bytes() + b"6,6,search,candi")
    assert read_outlines(tmp_path) == before
