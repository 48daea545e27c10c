"""The guide is followed: files written, commands and Python run, on tiny models with the names in the text."""

import re
import warnings
from pathlib import Path

import pytest

from heterosis import cli
from heterosis.evolve import session

from .inline_pool import InlinePool
from .pages import GUIDE, Block, blocks, heterosis_commands

MODELS = {"base-7b": "base", "math-7b": "ann", "french-7b": "bob"}
# What would publish, or take a night.
NOT_RUN = ("push", "runs/night", "--trials 16")
# Pages with tests of their own: below, and in test_own_method.py.
FOLLOWED = ("first-search.md", "writing-a-method.md")
PYTHON = [block for page in GUIDE if page.name not in FOLLOWED for block in blocks(page, "python")]


@pytest.fixture(scope="module")
def place(toy_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the reader works; models that lie there go before those of the Hub."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "org").mkdir()
    for name, toy in MODELS.items():
        (folder / "org" / name).symlink_to(toy_models[toy])
    return folder


@pytest.fixture(scope="module")
def followed(place: Path) -> list[str]:
    """The page on the first search, followed line by line. Returns the commands that were run."""
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(session, "RayPool", InlinePool)
        for block in blocks("docs/first-search.md"):
            match block.language:
                case "python":
                    run_python(block)
                case "bash":
                    done += run_bash(block, patch)
                case "yaml":
                    Path(block.title).write_text(block.text, encoding="utf-8")
            make_it_small()
    return done


def make_it_small() -> None:
    """Fewer questions and trials than on the page, for time's sake."""
    for path in Path("my-tasks").glob("*.jsonl"):
        path.write_text("\n".join(path.read_text().splitlines()[:60]))
    config = Path("search.yaml")
    if config.exists():
        config.write_text(re.sub("^trials: 100$", "trials: 12", config.read_text(), flags=re.M))


def run_python(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def run_bash(block: Block, patch: pytest.MonkeyPatch) -> list[str]:
    """Run the heterosis commands of a block, and return their names."""
    done = []
    for arguments in heterosis_commands(block):
        command = " ".join(arguments)
        if any(text in command for text in NOT_RUN):
            continue
        patch.setattr("sys.argv", ["heterosis", *arguments])
        with warnings.catch_warnings():
            cli.main()  # exits where something is wrong
        done.append(arguments[0])
    return done


def test_the_first_search(place: Path, followed: list[str]) -> None:
    assert followed == ["init", "inspect", "evolve", "report", "export", "merge", "evaluate"]
    assert (place / "best.yaml").read_text() == (place / "runs/first/best.yaml").read_text()
    merged = place / "merged-model"
    assert all((merged / name).is_file() for name in ("config.json", "tokenizer.json", "README.md"))


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    run_python(block)
