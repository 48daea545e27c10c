"""What people see of a run: read from its folder while it runs, on a terminal and in plain lines."""

import io
import json
import os
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from heterosis import cli
from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.judging.finals import finals_documents
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.watching import progress, standing
from heterosis.evolve.watching.progress import LiveProgress, PlainLines, PlainProgress, view, watch
from heterosis.evolve.watching.pulse import Pulse
from heterosis.evolve.watching.standing import Standing, Watcher
from heterosis.evolve.workers.pool import Failure
from heterosis.words import count, duration


def rendered(standing: Standing, width: int = 100, height: int | None = None) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(view(standing, columns=width, lines=height))
    return console.export_text()


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def run(
    toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Search with a look at the folder whenever a worker is waited for; no throttling of what is written."""
    from heterosis.evolve import session
    from heterosis.evolve.watching import pulse

    monkeypatch.setattr(pulse, "EVERY", 0.0)
    monkeypatch.setattr(session, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(session, "SAVE_SHARE", 0)

    def go(
        judge: Any = pools.hill, look: Any = lambda: None, show: Any = None, **config: Any
    ) -> tuple[list[Standing], dict[str, Any]]:
        text = yaml.safe_dump(toy_config(**{"workers": 1, "racing": False, "optimizer": "cma", **config}))
        watcher = Watcher(tmp_path / "run")
        seen: list[Standing] = []

        def on_wait(pool: Any) -> None:
            seen.append(watcher.look())
            look()

        pool = pools(judge, on_wait=on_wait, seconds=0.5)
        return seen, search(EvolveConfig.parse(text), tmp_path / "run", make_pool=pool, progress=show)

    return go


def test_a_run_can_be_followed_from_its_folder(run: Any, tmp_path: Path) -> None:
    seen, summary = run(trials=26, workers=2)
    assert [len(s.trials) for s in seen[:4]] == [0, 1, 2, 3]
    assert seen[0].phase == "starting the workers"
    assert seen[2].phase == "scoring what is to be beaten"
    searching = [s for s in seen if s.phase == "searching"]
    assert len(searching) > 20
    assert seen[-1].phase == "held-out documents: champion, parents and uniform"
    assert all(s.running and not s.lost for s in seen)
    assert all(s.pulse is not None and s.pulse.workers == 2 for s in seen)
    assert {s.pulse.busy for s in searching if s.pulse} == {1, 2}

    last = searching[-1]
    assert last.pulse is not None
    assert last.best is not None
    assert last.best.score == max(t.score or 0.0 for t in last.trials)
    for parent in ("ann", "bob"):
        mean, low, high = last.pulse.against[parent]
        own = next(t.score for t in last.trials if t.ask.name == parent)
        assert mean == pytest.approx(last.best.score - own, abs=1e-5)
        assert low < mean < high
    assert last.pulse.spread is not None
    now, first = last.pulse.spread
    assert 0 < now < 1
    assert 0 < first < 1
    spreads = [s.pulse.spread for s in searching if s.pulse]
    assert spreads[0] is None
    assert next(s for s in spreads if s)[0] == first

    assert not (tmp_path / "run/live.json").exists()
    end = Watcher(tmp_path / "run").look()
    assert (end.summary, end.running, end.phase, end.pulse) == (summary, False, "finished", None)


def test_time_left_counts_candidates_and_finals(run: Any) -> None:
    seen, _ = run(trials=12)
    middle = next(s for s in seen if len(s.trials) == 6)
    # Two parents, a finalist, a mean, uniform and a recipe on 20 selection documents; four on 30 held-out ones;
    # searched on 20.
    assert middle.pulse is not None
    assert middle.pulse.finals == pytest.approx((6 * 20 + 4 * 30) / 20)
    assert middle.left == pytest.approx((6 + middle.pulse.finals) * 0.5, rel=1e-3)
    middle.pulse.hours = 1 / 3600
    assert middle.left <= 1
    assert seen[-1].left is None


@pytest.mark.parametrize("objective", ["weighted", "gain"])
@pytest.mark.parametrize(("trials", "optimizer"), [(12, "gp"), (60, "cma")])
def test_the_finals_take_no_more_than_is_said(
    run: Any, pools: Any, objective: str, trials: int, optimizer: str
) -> None:
    run(trials=trials, objective=objective, optimizer=optimizer, finalists=2)
    took = {part: len([1 for _, p in pools.asked if p == part]) for part in ("selection", "holdout")}
    said = finals_documents(pools.made[0].setup.split, 2, 2 + 2 + 3)  # two finalists, a mean, uniform, a recipe
    documents = took["selection"] * 20 + took["holdout"] * 30
    # Those that are beaten beyond doubt are left out, unless the objective compares with all parents. The mean
    # may be one of the best.
    assert said - documents in (0, 20) if (trials, objective) == (60, "gain") else said > documents


def test_a_driver_that_was_killed_is_missed(
    run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []

    def keep() -> None:
        kept.append((tmp_path / "run/live.json").read_bytes())
        if len(kept) == 5:
            raise pools.crash

    with pytest.raises(pools.crash):
        run(look=keep)
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    assert Watcher(folder).look().phase == "running"  # it may be about to begin
    os.utime(folder / "summary.json", (time.time() - 100, time.time() - 100))
    lost = Watcher(folder).look()
    assert lost.lost
    assert lost.phase == "no sign of the search; the same evolve command continues it"
    assert lost.seconds == summary["seconds"]["total"]

    (folder / "live.json").write_bytes(kept[-1])
    assert not Watcher(folder).look().lost
    monkeypatch.setattr(standing, "SILENCE", 0.0)
    time.sleep(0.01)
    silent = Watcher(folder).look()
    assert silent.lost
    assert silent.left is None
    assert "no sign of the search" in rendered(silent)


def test_the_view_shows_what_matters(run: Any, pools: Any) -> None:
    def judge(ask: Ask, part: str) -> float | Failure:
        if ask.number % 5 == 4 and ask.kind == "search":
            return Failure("a merged tensor has [NaN]")
        return float(pools.hill(ask, part))

    seen, _ = run(judge, trials=26)
    text = rendered(next(s for s in seen if len(s.trials) == 20))
    assert "20 of 26 trials" in text
    assert "to go" in text
    assert "searching" in text
    assert "best so far: trial" in text
    for name in ("ann", "bob", "uniform (baseline)"):
        assert name in text
    assert "1 of 1 busy" in text
    assert f"{20 * 16:,} scored" in text
    assert "× a merged tensor has [NaN]" in text  # no markup
    assert "of the ranges in the last ten" in text
    latest = text.split("latest results")[1]
    assert latest.index(" 19 ") < latest.index(" 18 ")
    assert " 12 " not in latest
    narrow = rendered(next(s for s in seen if len(s.trials) == 20), width=40)
    assert max(map(len, narrow.splitlines())) <= 40


def test_the_view_fits_on_the_terminal(run: Any) -> None:
    """The latest results make room; what is said in one line on a wide terminal is so on an ordinary one."""
    seen, _ = run(trials=80)
    shown = next(s for s in seen if len(s.trials) == 79)
    whole = rendered(shown).splitlines()
    for height in range(len(whole) - 8, len(whole) + 1):
        assert height - 2 <= len(rendered(shown, height=height).splitlines()) <= height
    assert rendered(shown, height=200).splitlines() == whole
    ordinary = rendered(shown, width=80).splitlines()
    assert len(ordinary) == len(whole)
    assert "about" in ordinary[2]


def test_a_run_without_results_can_be_shown(run: Any) -> None:
    seen, _ = run(trials=3)
    assert "0 of 3 trials" in rendered(seen[0])


def test_plain_lines_tell_each_result_once(run: Any) -> None:
    seen, _ = run(trials=20)
    lines = PlainLines()
    told = [line for s in seen for line in (*lines.results(s.trials, s.budget), *lines.standing(s))]
    results = [line for line in told if line.startswith("[")]
    assert [line.split("]")[0] for line in results] == [f"[{n}/20" for n in range(1, 21)]
    standings = [line for line in told if not line.startswith("[")]
    assert 10 <= len(standings) <= 16  # tenths of the budget, and phases
    assert any("against ann on search documents; " in line or "against bob" in line for line in standings)
    assert any("; best is the parent ann; " in line or "; best is the parent bob; " in line for line in standings)
    best = max(t.score or 0.0 for t in seen[-1].trials)
    assert f"best {best:.4f} (" in results[-1]


@pytest.mark.parametrize(
    ("number", "text"),
    [(64, "64"), (999, "999"), (1000, "1 k"), (999_999, "1 M"), (999_600_000, "1 B"), (7_240_000_000, "7.24 B")],
)
def test_counts_are_of_three_digits(number: int, text: str) -> None:
    assert count(number) == text


def test_a_log_gets_sober_lines(run: Any, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    run(trials=20, show=PlainProgress(console, tmp_path / "run"))
    text = output(console)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert re.match(r"2 parents of \d+(\.\d+)? k parameters, task_arithmetic", lines[0])
    assert len([line for line in lines if line.startswith("[")]) == 20
    assert len([line for line in lines if line.startswith("searching; ")]) >= 8


def test_a_log_tells_what_is_known_and_not_what_was_written_last(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heterosis.evolve import session

    monkeypatch.setattr(session, "SAVE_SECONDS", 1000.0)
    console = Console(file=io.StringIO(), width=40)
    run(trials=20, show=PlainProgress(console, tmp_path / "run"))
    lines = output(console).splitlines()
    told = {}
    for before, line in pairwise(lines):
        if before.startswith("[") and (found := re.search(r"; (\d+) documents", line)):
            told[int(before[1:].split("/")[0])] = int(found[1])
    assert told == {trials: 20 * trials for trials in range(2, 22, 2)}


def test_status_tells_the_phase_and_the_time(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []

    def look() -> None:
        hour_ago = time.time() - 3600
        os.utime(tmp_path / "run/summary.json", (hour_ago, hour_ago))
        capsys.readouterr()
        cli.status(tmp_path / "run")
        said.append(capsys.readouterr().out.splitlines()[0])

    run(trials=6, look=look)
    assert said[0] == "starting the workers: 0 of 6 trials, 3600 s"
    assert re.fullmatch(r"selection: \d finalists: 6 of 6 trials, 360\d s", said[6])
    assert re.fullmatch(r"held-out documents: .*: 6 of 6 trials, 360\d s", said[-1])


def test_a_live_view_goes_away_at_the_end(run: Any, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    run(trials=6, show=LiveProgress(console, tmp_path / "run"))
    text = output(console)
    assert "task_arithmetic, 4 numbers to find" in text
    assert "of 6 trials" in text
    assert "\x1b[?25h" in text  # the cursor is back


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_ends_with_the_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    seen, _ = run(trials=8)
    ahead = iter([*seen, Watcher(tmp_path / "run").look()])
    now = [next(ahead)]
    monkeypatch.setattr(Watcher, "look", lambda self: now[0])
    monkeypatch.setattr(progress.time, "sleep", lambda _: now.__setitem__(0, next(ahead)))
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    watch(tmp_path / "run", console)
    assert next(ahead, None) is None
    lines = output(console).splitlines()
    if not terminal:
        assert len([line for line in lines if line.startswith("[")]) == 8
        assert lines[-1].startswith("finished; ")


def test_ctrl_c_ends_watching_only(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = run(trials=3)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watcher, "look", lambda self: seen[1])
    monkeypatch.setattr(progress.time, "sleep", interrupt)
    watch(tmp_path / "run", Console(file=io.StringIO()))


def test_only_a_run_folder_can_be_watched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        watch(tmp_path, Console(file=io.StringIO()))


def test_a_torn_pulse_is_none(tmp_path: Path) -> None:
    assert Pulse.read(tmp_path) is None
    for text in ("", "{", "[]", '{"unknown": 1}'):
        (tmp_path / "live.json").write_text(text)
        assert Pulse.read(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, says: str) -> None:
    assert duration(seconds) == says
