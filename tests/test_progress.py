"""Progress on stderr: late, seldom where there is no terminal, and never in the way of the work."""

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from heterosis import progress
from heterosis.progress import Progress
from heterosis.words import size

MIB = 1024**2
Shown = Callable[..., str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is shown of work that has come so far at these times."""
    monkeypatch.setenv("TERM", "xterm")
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(progress, "time", clock)

    def go(stderr: io.StringIO, *steps: tuple[float, int], total: int = 100 * MIB) -> str:
        monkeypatch.setattr("sys.stderr", stderr)
        with Progress("merging", size) as told:
            for clock.now, done in steps:
                told(done, total)
        return stderr.getvalue()

    return go


@pytest.mark.parametrize(("stderr", "seconds"), [(io.StringIO, 9.9), (Terminal, 1.9)])
def test_nothing_is_shown_of_what_ends_soon(shown: Shown, stderr: type[io.StringIO], seconds: float) -> None:
    assert shown(stderr(), (100, 0), (100 + seconds / 2, 50 * MIB), (100 + seconds, 100 * MIB)) == ""


def test_a_line_comes_now_and_then_where_there_is_no_terminal(shown: Shown) -> None:
    steps = [(100 + second, second * MIB) for second in range(101)]
    first, *others = shown(io.StringIO(), *steps).splitlines()
    assert first == "merging: 10 MiB of 100 MiB, about 1 min 30 s to go"
    assert others[-1] == "merging: 100 MiB of 100 MiB"
    assert len(others) == 9


def test_a_terminal_has_a_bar_that_goes_at_the_end(shown: Shown) -> None:
    text = shown(Terminal(), (100, 0), (101, 20 * MIB), (103, 60 * MIB))
    assert "━" in text
    assert "merging: 60 MiB of 100 MiB, about 2.0 s to go" in text
    assert text.endswith("\x1b[2K")  # the line is empty again


def test_work_goes_on_without_its_terminal(shown: Shown) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    assert shown(Closed(), (100, 0), (120, 60 * MIB)) == ""
