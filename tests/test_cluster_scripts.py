"""The SLURM job script, with stand-ins for SLURM, Ray and the search; and what the other cluster files start."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from heterosis import cli

CLUSTER = Path(__file__).parents[1] / "scripts/cluster"
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" != show ] || printf "one\\ntwo\\n"',
    "srun": 'echo "srun $*" >> "$CALLS"',
    "heterosis": """echo "heterosis $*" >> "$CALLS"
trap 'sleep 0.3; exit 130' TERM
[ "$CODE" != wait ] || while true; do sleep 0.05; done
exit "$CODE"
""",
}


@pytest.fixture
def job(tmp_path: Path) -> Any:
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls").touch()

    def start(code: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "CODE": code,
            "SLURM_JOB_NODELIST": "nodes",
            "SLURM_JOB_ID": "7",
            "RAY_SECONDS": "0",
        }
        command = ["bash", CLUSTER / "slurm.sh", "search.yaml", "run", "--workers", "3"]
        return subprocess.Popen(command, env=environment, cwd=tmp_path)

    return start


def _wait_for(text: str, calls: Path) -> None:
    deadline = time.monotonic() + 15
    while text not in calls.read_text():
        assert time.monotonic() < deadline, calls.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize(("code", "requeued"), [("0", False), ("1", False), ("2", False), ("130", True)])
def test_slurm_requeues_what_was_interrupted(job: Any, tmp_path: Path, code: str, requeued: bool) -> None:
    calls = tmp_path / "calls"
    assert job(code).wait(timeout=15) == int(code)
    assert ("scontrol requeue 7" in calls.read_text()) == requeued
    assert "heterosis evolve search.yaml --run-dir run --ray-address one:6379 --workers 3" in calls.read_text()
    # Ray is started in the background, which may write its call after the job's end.
    _wait_for("srun --nodes=1 --ntasks=1 --overlap -w one ray start --head --port 6379", calls)
    _wait_for("srun --nodes=1 --ntasks=1 --overlap -w two ray start --address one:6379", calls)


def test_slurms_signal_stops_the_search_which_is_requeued(job: Any, tmp_path: Path) -> None:
    process = job("wait")
    _wait_for("heterosis", tmp_path / "calls")
    time.sleep(0.2)  # until the stand-in has set its trap
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 130
    assert "scontrol requeue 7" in (tmp_path / "calls").read_text()


def test_the_jobs_command_is_one() -> None:
    job = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
    command, *arguments = job["spec"]["entrypoint"].split()[1:]
    app: Any = typer.main.get_command(cli.app)
    context = app.make_context("heterosis", [command])
    app.commands[command].make_context(command, arguments, parent=context)
    assert yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())["provider"]["type"] == "local"
