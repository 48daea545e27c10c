"""What a search does when workers, the disk or the storage fail under it; real ones are in test_ray.py."""

import errno
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from sqlalchemy.exc import DataError, OperationalError

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import SearchFailed, search
from heterosis.evolve.faults import RunStopped, disk_faults
from heterosis.evolve.record import storage
from heterosis.evolve.record.record import Record, read_asks
from heterosis.evolve.record.storage import study_url
from heterosis.evolve.record.summary_file import read_summary
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.workers.pool import Failure


@pytest.fixture
def run(toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def go(judge: Any = pools.hill, folder: Path = tmp_path / "run", pool: Any = None, **config: Any) -> Any:
        plain = toy_config(**{"workers": 1, "racing": False, "optimizer": "random", **config})
        return search(EvolveConfig.parse(yaml.safe_dump(plain)), folder, make_pool=pools(judge, **(pool or {})))

    return go


def asked(pools: Any, number: int) -> int:
    return sum(pools.asked.count((number, part)) for part in ("search",))


class TestAttempts:
    DIED = Failure("the worker died", retry=True)
    LOST = Failure("the node was lost", retry=True, blameless=True)

    def test_a_poisonous_candidate_is_given_up_by_a_later_session(
        self, run: Any, pools: Any, tmp_path: Path
    ) -> None:
        """It ends its worker, is tried again, and the driver is killed meanwhile: one attempt is left."""

        def judge(ask: Ask, part: str) -> Any:
            return self.DIED if ask.number == 4 else pools.hill(ask, part)

        with pytest.raises(pools.crash):
            run(judge, trials=8, pool={"crash_after": 5})
        assert asked(pools, 4) == 2
        summary = run(judge, trials=8)
        assert summary["failures"] == {"the worker died": 1}
        assert asked(pools, 4) == 3
        assert summary["trials"] == {"complete": 7, "pruned": 0, "failed": 1, "budget": 8}

    def test_what_takes_the_machine_down_is_given_up(self, run: Any, pools: Any, tmp_path: Path) -> None:
        """The driver's own end says little, so it takes five."""

        def judge(ask: Ask, part: str) -> Any:
            if ask.number == 4:
                raise pools.crash
            return pools.hill(ask, part)

        for _ in range(5):
            with pytest.raises(pools.crash):
                run(judge, trials=8)
        assert run(judge, trials=8)["failures"] == {"was handed out 5 times without a result": 1}
        assert asked(pools, 4) == 5

    def test_a_lost_node_is_nobodys_fault(self, run: Any, pools: Any) -> None:
        lost = Counter[int]()

        def judge(ask: Ask, part: str) -> Any:
            lost[ask.number] += ask.number == 4 and part == "search"
            return self.LOST if 0 < lost[ask.number] <= 4 and part == "search" else pools.hill(ask, part)

        assert run(judge, trials=8)["trials"]["failed"] == 0
        assert lost[4] == 5

    def test_but_not_for_ever(self, run: Any, pools: Any) -> None:
        summary = run(lambda a, p: self.LOST if a.number == 4 else pools.hill(a, p), trials=8)
        assert summary["failures"] == {"the node was lost": 1}
        assert asked(pools, 4) == 5

    def test_workers_that_are_ended_with_the_search_cost_nobody_an_attempt(
        self, run: Any, pools: Any, tmp_path: Path
    ) -> None:
        """A scheduler's SIGTERM goes to all processes of a job."""
        import signal

        def judge(ask: Ask, part: str) -> Any:
            if ask.number == 4 and len(pools.made) == 1:
                signal.raise_signal(signal.SIGTERM)
                return self.DIED
            return pools.hill(ask, part)

        assert run(judge, trials=8)["status"] == "stopped"
        assert not (tmp_path / "run/attempts.jsonl").exists()
        assert run(judge, trials=8)["trials"] == {"complete": 8, "pruned": 0, "failed": 0, "budget": 8}


def test_failures_of_a_set_up_that_was_mended_do_not_count(run: Any, pools: Any) -> None:
    def judge(ask: Ask, part: str) -> Any:
        broken = ask.kind == "search" and (len(pools.made) == 1 or ask.number == 14)
        return Failure("broken") if broken else pools.hill(ask, part)

    with pytest.raises(SearchFailed, match="8 of 8 candidates failed") as stopped:
        run(judge, trials=20)
    summary = run(judge, trials=20)
    assert summary["status"] == "finished"
    assert summary["trials"]["failed"] == 9
    assert str(stopped.value) != summary["stopped"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be full; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", os.fspath(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # the study may still be open


def test_a_full_disk_stops_the_run_which_then_goes_on(run: Any, pools: Any, small_disk: Path) -> None:
    folder, ballast = small_disk / "run", small_disk / "ballast"

    def judge(ask: Ask, part: str) -> float:
        if ask.number == 9 and len(pools.made) == 1:
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(1024)):
                    pass
        return float(pools.hill(ask, part))

    with pytest.raises(
        RunStopped, match=r"run: cannot be written: .*make room.*the same command continues"
    ) as full:
        run(judge, folder=folder, trials=30)
    assert len(str(full.value).splitlines()) == 1
    first = pools.made[0]
    assert first.closed
    assert 9 <= len(first.asked) < 30
    ballast.unlink()
    summary = run(judge, folder=folder, trials=30)
    assert summary["trials"] == {"complete": 30, "pruned": 0, "failed": 0, "budget": 30}
    assert [ask.number for ask in read_asks(folder)] == list(range(30))
    times = Counter(number for number, part in pools.asked if part == "search")
    assert sum(times.values()) <= 31  # one was scored, but its scores had no room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_disk_that_fails_is_told_in_a_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    def judge(ask: Ask, part: str) -> float:
        if ask.number == 5:
            monkeypatch.setattr(os, "fsync", fail)
        return 0.5

    with pytest.raises(RunStopped, match=os.strerror(number)):
        run(judge)
    monkeypatch.undo()
    assert run(judge=lambda *_: 0.5)["status"] == "finished"


def test_other_errors_of_the_system_are_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_faults(tmp_path):
        (tmp_path / "no").read_text()


class TestStorage:
    """A database that is away for a while: Optuna's errors as a restarting server causes them."""

    @pytest.fixture
    def away(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
        def break_(attempts: range, error: type[Exception] = OperationalError, *, late: bool = False) -> list[int]:
            """Let some attempts to add a trial fail; ``late`` loses the answer only."""
            tried: list[int] = []
            whole = Study.add_trial

            def add(study: Study, trial: Any) -> None:
                tried.append(trial.user_attrs["ask"])
                if len(tried) - 1 not in attempts or late:
                    whole(study, trial)
                if len(tried) - 1 in attempts:
                    cause = error("SELECT 1", {}, Exception("connection to me:secret@host lost\nmore"))
                    raise StorageInternalError("An exception is raised during the commit.") from cause

            monkeypatch.setattr(Study, "add_trial", add)
            monkeypatch.setattr(storage, "FIRST_PAUSE", 0.0)
            return tried

        return break_

    @pytest.mark.parametrize("late", [False, True])
    def test_is_waited_for_and_no_trial_is_there_twice(
        self, run: Any, away: Any, tmp_path: Path, late: bool
    ) -> None:
        tried = away(range(5, 8), late=late)
        summary = run(trials=10)
        assert summary["trials"]["complete"] == 10
        record = Record(tmp_path / "run", study_url(tmp_path / "run"), _study_of(tmp_path / "run"), [])
        assert [t.ask.number for t in record.trials] == list(range(10))
        assert tried.count(5) == (1 if late else 4)
        log = (tmp_path / "run/run.log").read_text()
        assert "the storage cannot be reached: connection to me:secret@host lost; trying again in" in log
        assert "the storage is there again" in log

    def test_that_stays_away_stops_the_run(
        self, run: Any, away: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "PATIENCE", 0.05)
        with monkeypatch.context():
            away(range(5, 10**9))
            with pytest.raises(RunStopped, match=r"the storage cannot be reached: .* the same command continues"):
                run(trials=10)
        summary = read_summary(tmp_path / "run")
        assert summary["status"] == "stopped"
        assert "cannot be reached" in summary["stopped"]
        monkeypatch.undo()
        assert run(trials=10)["trials"]["complete"] == 10

    def test_is_not_waited_for_once_the_search_is_to_stop(
        self, run: Any, away: Any, pools: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import signal

        monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.0)
        away(range(5, 10**9))
        waits = []

        def beat(self: Any, text: str) -> None:
            waits.append(text)
            if len(waits) == 3:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr("heterosis.evolve.watching.pulse.PulseWriter.meanwhile", beat)
        with pytest.raises(RunStopped):
            run(trials=10)
        assert len(waits) == 3

    def test_errors_that_do_not_pass_are_not_waited_for(self, run: Any, away: Any) -> None:
        tried = away(range(5, 10**9), DataError)
        with pytest.raises(StorageInternalError):
            run(trials=10)
        assert len(tried) == 6


def _study_of(folder: Path) -> str:
    from heterosis.evolve.record.state import RunState

    return RunState.load(folder).study
