"""Real Ray, and what can happen to its workers and nodes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.preflight.preflight import preflight
from heterosis.evolve.record.record import read_asks
from heterosis.evolve.record.summary_file import read_summary
from heterosis.evolve.workers import cluster
from heterosis.evolve.workers.cluster import RayPool, _check_address
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Failure, Setup
from heterosis.evolve.workers.worker import Worker
from heterosis.merge.models.checkpoint import Contents

pytestmark = pytest.mark.slow

Documents = dict[str, list[int]]


@pytest.fixture(autouse=True)
def no_ray_stays() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture
def setup(toy_config: Callable[..., dict[str, Any]]) -> Setup:
    checked = preflight(EvolveConfig.parse(yaml.safe_dump(toy_config(tasks=["toy_deadly"]))))
    return Setup(checked.config, checked.split)


@pytest.fixture
def recipe(toy_models: dict[str, Path]) -> str:
    return f"merge_method: passthrough\nmodels: [{{model: {toy_models['ann']}}}]\n"


@pytest.fixture
def documents(setup: Setup) -> Documents:
    return {"toy_deadly": setup.split.search["toy_deadly"][:2]}


def test_an_error_that_says_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(future: object) -> None:
        raise RayError

    monkeypatch.setattr(ray, "get", fail)
    assert cluster._result(None) == (Failure("RayError: RayError"), True)


def started(pool: RayPool) -> RayPool:
    while not pool.free:
        assert pool.wait(timeout=1.0) == []
    return pool


def outcome(pool: RayPool) -> Evaluation | Failure:
    while True:
        for _, found in pool.wait(timeout=1.0):
            return found


def test_a_lost_node_is_survived_and_a_new_one_used(
    setup: Setup, recipe: str, documents: dict[str, list[int]]
) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        pool = RayPool(setup, 1, address=nodes.address)  # which waits for a node
        node = nodes.add_node(num_cpus=1)
        started(pool)
        pool.submit("a", recipe, documents)
        nodes.remove_node(node, allow_graceful=False)
        lost = outcome(pool)
        assert isinstance(lost, Failure)
        assert lost.retry
        assert lost.blameless, lost.cause
        assert "was lost" in lost.cause
        assert pool.wait(timeout=0.1) == []
        assert pool.free == 0
        nodes.add_node(num_cpus=1)
        started(pool).submit("a", recipe, documents)
        assert isinstance(outcome(pool), Evaluation)
        pool.close()
    finally:
        ray.shutdown()
        nodes.shutdown()


def test_a_worker_may_be_another_one(setup: Setup, recipe: str, documents: dict[str, list[int]]) -> None:
    class Refusing(Worker):
        def score(self, recipe: str, documents: DocumentIds) -> Failure:
            return Failure("not today")

    pool = started(RayPool(setup, 1, worker=Refusing))
    try:
        pool.submit("a", recipe, documents)
        assert outcome(pool) == Failure("not today")
    finally:
        pool.close()


def test_a_worker_that_hangs_ends_itself(
    setup: Setup, recipe: str, documents: dict[str, list[int]], toy_tasks: Path
) -> None:
    pool = started(RayPool(replace(setup, silence=3.0), 1))
    hang = toy_tasks / "hang"
    try:
        hang.touch()
        pool.submit("a", recipe, documents)
        hung = outcome(pool)
        assert isinstance(hung, Failure)
        assert hung.retry
        assert hung.cause.startswith("the worker died: ")
        hang.unlink()
        started(pool).submit("a", recipe, documents)
        assert isinstance(outcome(pool), Evaluation)
    finally:
        hang.unlink(missing_ok=True)
        pool.close()


def test_a_machine_with_other_models_is_left_out(setup: Setup, toy_models: dict[str, Path]) -> None:
    elsewhere = replace(setup, machine="another", models={str(toy_models["ann"]): Contents("0", "0")})
    pool = RayPool(elsewhere, 2)
    try:
        with pytest.raises(RunStopped, match=r"none can be used: .*ann has other weights here.*copy it again"):
            started(pool)
    finally:
        pool.close()


def test_rays_memory_monitor(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    monkeypatch.setattr(cluster, "START_ATTEMPTS", 0)
    pool = RayPool(setup, 1)
    try:
        with pytest.raises(RunStopped, match="none can be started: out of memory: Ray ended the worker"):
            started(pool)
    finally:
        pool.close()


def test_a_head_node_that_restarts_ends_the_session_and_loses_nothing(
    toy_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(toy_config(trials=12, workers=1, cpus_per_worker=1, tasks=["toy_choice"])))
    # What Ray waits for its head node by default, a minute, would be most of the test.
    environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    codes, scores = [], run / "scores.jsonl"
    for session in range(2):
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            command = [sys.executable, "-m", "heterosis.cli", "evolve", config, "--run-dir", run]
            process = subprocess.Popen(
                [*map(str, command), "--ray-address", nodes.address],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            while not session and (not scores.exists() or scores.read_bytes().count(b"\n") < 4):
                assert process.poll() is None
                time.sleep(0.05)
            if not session:
                nodes.shutdown()
            errors = process.communicate(timeout=90)[1]
            codes.append(process.returncode)
        finally:
            nodes.shutdown()
    assert codes[0] != 0
    assert codes[1] == 0, errors
    assert [ask.number for ask in read_asks(run)] == list(range(12))
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    scored = Counter(
        (line["ask"], line["part"], d) for line in lines for d in line["scores"]["documents"]["toy_choice"]
    )
    assert set(scored.values()) == {1}
    assert read_summary(run)["trials"]["failed"] == 0


def test_an_address_where_nobody_answers_is_refused_at_once() -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        _check_address(f"localhost:{port}")
        _check_address(f"ray://localhost:{port}")
    for address in (f"localhost:{port}", f"ray://localhost:{port}", "localhost:99999999"):
        with pytest.raises(InputError, match=f"--ray-address: nobody answers at {address}: "):
            _check_address(address)
    _check_address("auto")
