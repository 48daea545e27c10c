"""A fake Hub, and command lines that talk to it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fake_hub import FakeHub  # noqa: E402

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For HF_HOME: its ``hub`` is the cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(hub: FakeHub, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a command line in an empty folder: ``run("merge", "recipe.yaml", "out", HF_TOKEN=...)``.

    Returns exit code, standard output and the lines of standard error.
    """
    folder = tmp_path_factory.mktemp("run")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "forks.py")], stdin=-1, stdout=-1, text=True, cwd=folder, env=clean
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def go(*arguments: object, **env: str) -> tuple[int, str, list[str]]:
        request = {"arguments": [str(a) for a in arguments], "cwd": str(folder), "env": settings | env}
        print(json.dumps(request), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        return answer["code"], answer["out"], answer["err"].splitlines()

    yield go
    process.stdin.close()
    process.wait()
    process.stdout.close()
