"""A search is a function of its seed and of what came back in which order, in whatever process it runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SEARCH = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import Pools
from heterosis.evolve.driver import search
search(sys.argv[2], sys.argv[3], make_pool=Pools()(last_first=True))
"""


def asks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "asks.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["auto", "cma", "tpe"])
def test_the_hash_seed_changes_nothing(
    toy_config: Callable[..., dict[str, Any]], tmp_path: Path, optimizer: str
) -> None:
    genome = {"merge_method": ["task_arithmetic", "ties"], "layer_granularity": None}
    plain = toy_config(genome, trials=24, workers=3, optimizer=optimizer, racing=True)
    plain["genome"] = {key: value for key, value in plain["genome"].items() if value is not None}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(plain))
    for hash_seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SEARCH, str(Path(__file__).parent), str(config), hash_seed],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
        )
    assert asks(tmp_path / "1") == asks(tmp_path / "2")
    assert (tmp_path / "1" / "best.yaml").read_text() == (tmp_path / "2" / "best.yaml").read_text()
