"""A real PostgreSQL server as the storage: ``bash scripts/test_postgresql.sh`` starts one for these tests."""

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.record import storage
from heterosis.evolve.record.record import read_asks
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.trial import Ask

URL = os.environ.get("HETEROSIS_TEST_POSTGRESQL", "")
CONTROL = shlex.split(os.environ.get("HETEROSIS_TEST_POSTGRESQL_CONTROL", ""))

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.skipif(not URL, reason="needs a PostgreSQL server: bash scripts/test_postgresql.sh"),
]


def control(*arguments: str) -> None:
    subprocess.run([*CONTROL, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")


@pytest.fixture
def server() -> Iterator[None]:
    """The server, which runs again afterwards."""
    yield
    if subprocess.run([*CONTROL, "status"], stdout=subprocess.DEVNULL, cwd="/", check=False).returncode:
        control("start")


@pytest.fixture
def run(toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def go(folder: str = "run", judge: Any = pools.hill, **config: Any) -> dict[str, Any]:
        plain = toy_config(**{"workers": 1, "racing": False, "optimizer": "random", "trials": 12, **config})
        parsed = EvolveConfig.parse(yaml.safe_dump(plain))
        return search(parsed, tmp_path / folder, storage=URL, make_pool=pools(judge))

    return go


def asks_of(folder: Path) -> list[int]:
    """The candidates of the trials of a run's study, in their order."""
    study = optuna.load_study(study_name=RunState.load(folder).study, storage=URL)
    return [trial.user_attrs["ask"] for trial in study.trials]


def test_holds_a_run_without_its_password_in_any_file(run: Any, tmp_path: Path) -> None:
    assert run()["trials"]["complete"] == 12
    assert asks_of(tmp_path / "run") == list(range(12))
    assert not (tmp_path / "run/study.db").exists()
    assert run(trials=14)["trials"]["complete"] == 14
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes(), path


def test_several_runs_share_a_server_without_meeting(run: Any, tmp_path: Path) -> None:
    """Also runs whose folders have the same name."""
    folders = ["a/run", "b/run", "c/run"]
    for folder in folders:
        (tmp_path / folder).parent.mkdir()
    with ThreadPoolExecutor() as threads:
        summaries = list(threads.map(lambda f: run(f, seed=folders.index(f)), folders))
    assert [s["trials"]["complete"] for s in summaries] == [12, 12, 12]
    for folder in folders:
        assert asks_of(tmp_path / folder) == list(range(12))
        assert len(list(read_asks(tmp_path / folder))) == 12


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("mode", "seconds", "waited"), [("fast", 0, 0), ("immediate", 10, 1)])
def test_a_server_that_restarts_is_waited_for(
    run: Any, pools: Any, tmp_path: Path, mode: str, seconds: int, waited: int
) -> None:
    """Between two results: all connections are gone. Optuna itself tries for 5 to 8 seconds, we do beyond."""

    def start_later() -> None:
        time.sleep(seconds)
        control("start")

    starter = threading.Thread(target=start_later)

    def judge(ask: Ask, part: str) -> float:
        if ask.number == 4 and part == "search":
            control("-m", mode, "stop")
            starter.start()
        return float(pools.hill(ask, part))

    summary = run(judge=judge)
    starter.join()
    assert summary["status"] == "finished"
    assert asks_of(tmp_path / "run") == list(range(12))
    log = (tmp_path / "run/run.log").read_text()
    assert log.count("the storage is there again") == waited
    assert "s3cret" not in log


@pytest.mark.usefixtures("server")
def test_a_server_that_stays_away_ends_the_session(
    run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(ask: Ask, part: str) -> float:
        if ask.number == 5 and len(pools.made) == 1:
            control("-m", "fast", "stop")
        return float(pools.hill(ask, part))

    monkeypatch.setattr(storage, "PATIENCE", 2.0)
    with pytest.raises(RunStopped, match="--storage: the storage cannot be reached") as stopped:
        run(judge=judge)
    assert len(str(stopped.value).splitlines()) == 1
    assert "s3cret" not in str(stopped.value)
    control("start")
    assert run(judge=judge)["trials"]["complete"] == 12
    assert asks_of(tmp_path / "run") == list(range(12))
    scored = [number for number, part in pools.asked if part == "search"]
    assert scored == list(range(12))  # the scores of the fifth were on the disk
