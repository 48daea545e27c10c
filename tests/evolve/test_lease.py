"""One driver per run folder, also from two machines, and no database where locks do not work."""

import os
import subprocess
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from heterosis.errors import InputError
from heterosis.evolve import machine
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.record import folder as folders
from heterosis.evolve.record import lease
from heterosis.evolve.record.folder import RunFolder
from heterosis.evolve.record.lease import Lease

Partition = namedtuple("Partition", ["mountpoint", "fstype", "opts"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("EVERY", 0.02), ("DEAD", 1.0), ("SETTLE", 0.1)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setattr(lease, "this_machine", lambda: f"{name} boot-id")


def abandon(held: Lease) -> None:
    """End its signs of life, as a machine does that goes down or is suspended."""
    held._stop.set()
    held._thread.join()


def test_another_machine_is_refused_as_long_as_one_lives(tmp_path: Path, on: Callable[[str], None]) -> None:
    on("one")
    held = Lease(tmp_path, alone=True)
    on("two")
    with pytest.raises(InputError, match="another search is running in this folder, on one; wait for it"):
        Lease(tmp_path, alone=True)
    held.check()
    held.close()
    assert not (tmp_path / lease.FILE).exists()
    Lease(tmp_path, alone=True).close()


def test_a_lost_machines_folder_is_taken_and_it_stops_if_it_comes_back(
    tmp_path: Path, on: Callable[[str], None]
) -> None:
    on("a-machine-with-a-long-name")
    lost = Lease(tmp_path, alone=True)
    abandon(lost)
    on("two")
    held = Lease(tmp_path, alone=True)
    held.check()
    lost._refreshed = 0.0  # it slept
    with pytest.raises(RunStopped, match="another machine has gone on with this run"):
        lost.check()
    lost.close()
    held.check()
    held.close()


def test_a_killed_driver_on_the_same_machine_is_not_waited_for(
    tmp_path: Path, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on("one")
    abandon(Lease(tmp_path, alone=True))
    monkeypatch.setattr(Lease, "_watch", lambda *_: pytest.fail("it waited"))
    Lease(tmp_path, alone=True).close()


def test_a_machine_whose_name_begins_like_this_ones_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "this_machine", lambda: "node10")
    held = Lease(tmp_path, alone=True)
    monkeypatch.setattr(lease, "this_machine", lambda: "node1")
    with pytest.raises(InputError, match="another search is running in this folder, on node10"):
        Lease(tmp_path, alone=True)
    held.close()


def test_of_two_at_the_same_moment_one_gets_it(tmp_path: Path) -> None:
    found: list[Lease | InputError] = []

    def claim() -> None:
        try:
            found.append(Lease(tmp_path, alone=False))
        except InputError as error:
            found.append(error)

    threads = [threading.Thread(target=claim) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (held,) = [f for f in found if isinstance(f, Lease)]
    held.check()
    held.close()


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        ("ext4", "rw", None),
        ("nfs4", "rw,vers=4.2,local_lock=none", ("nfs4", True)),
        ("nfs", "rw,nolock", ("nfs", False)),
        ("nfs", "rw,local_lock=posix", ("nfs", False)),
        ("lustre", "rw,flock", ("lustre", True)),
        ("lustre", "rw,localflock", ("lustre", False)),
        ("fuse.sshfs", "rw", ("fuse.sshfs", True)),
    ],
)
def test_file_systems_of_several_machines_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, found: object
) -> None:
    mounts = [Partition("/", "ext4", "rw"), Partition(str(tmp_path.resolve()), kind, options)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert machine.shared_file_system(tmp_path / "runs/first") == found
    assert machine.shared_file_system(tmp_path.parent) is None


class TestRunFolder:
    def test_claims_a_shared_one_for_all_machines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folders, "shared_file_system", lambda path: ("nfs4", True))
        folder = RunFolder(tmp_path / "run")
        assert (tmp_path / "run" / lease.FILE).exists()
        folder.check()
        (tmp_path / "run" / lease.FILE).write_text("another one")
        folder._lease._is_mine()  # type: ignore[union-attr]
        with pytest.raises(RunStopped):
            folder.check()
        folder.close()

    def test_has_no_claim_on_a_disk_of_its_own(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        assert not (tmp_path / "run" / lease.FILE).exists()
        folder.check()
        folder.close()

    @pytest.mark.parametrize("replaced", [False, True])
    def test_leaves_what_is_not_there_any_more(self, tmp_path: Path, replaced: bool) -> None:
        path = tmp_path / "run"
        folder = RunFolder(path)
        path.rename(tmp_path / "there")
        if replaced:
            path.mkdir()
            (path / "run.log").touch()
        folder.discard_if_new()
        assert [p.name for p in path.glob("*")] == ["run.log"] * replaced
        assert (tmp_path / "there/.lock").exists()
        folder.close()

    def test_removes_what_a_killed_driver_was_writing(self, tmp_path: Path) -> None:
        killed = subprocess.Popen(["true"])
        killed.wait()
        living = tmp_path / f".report.html.{os.getppid()}.tmp"
        (tmp_path / "front").mkdir()
        torn = [tmp_path / f".run.json.{killed.pid}.tmp", tmp_path / f"front/.trial-3.yaml.{killed.pid}.tmp"]
        others = [tmp_path / name for name in ("run.json", ".own.tmp", "front/trial-3.yaml")]
        for path in (living, *torn, *others):
            path.write_text("{}")
        RunFolder(tmp_path).close()
        assert not any(path.exists() for path in torn)
        assert all(path.exists() for path in (living, *others))

    def test_refuses_a_database_where_locks_do_not_reach(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(folders, "shared_file_system", lambda path: ("nfs", False))
        with pytest.raises(InputError, match=r"file system \(nfs\) has no locks .*--storage a PostgreSQL URL"):
            RunFolder(tmp_path / "run")
        RunFolder(tmp_path / "run", "postgresql://server/studies").close()

    def test_a_file_system_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(folders.fcntl, "flock", fail)
        with pytest.raises(InputError, match="its file system has no locks that reach other machines"):
            RunFolder(tmp_path / "run")
        folder = RunFolder(tmp_path / "run", "postgresql://server/studies")
        assert (tmp_path / "run" / lease.FILE).exists()
        folder.close()
