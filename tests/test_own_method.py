"""The page on writing a merge method is followed: its module is used as it says, and does what it says."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from heterosis.evolve import session
from heterosis.evolve.record.summary_file import read_summary
from heterosis.merge import Recipe
from heterosis.merge.methods import Within, base, get_method, methods

from .inline_pool import InlinePool
from .pages import blocks

MODULE, USE = blocks("docs/writing-a-method.md", "python")
WEIGHTS, POWER = {"ann": 0.9, "bob": 0.4}, 0.5


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's module, in a folder where the reader works."""
    monkeypatch.setattr(base, "_METHODS", {**methods()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path(MODULE.title).write_text(MODULE.text, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "equalised", raising=False)
    return importlib.import_module("equalised")


@pytest.fixture
def recipe(module: ModuleType, toy_models: dict[str, Path]) -> str:
    models = [
        {"model": str(toy_models[name]), "parameters": {"weight": weight}} for name, weight in WEIGHTS.items()
    ]
    plain = {"merge_method": "equalised", "base_model": str(toy_models["base"]), "models": models}
    text = yaml.safe_dump({**plain, "parameters": {"power": POWER}, "dtype": "float32"})
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return text


def test_it_is_registered_as_it_says(module: ModuleType) -> None:
    method = get_method("equalised")
    assert (method.base, method.reduces, set(method.search)) == ("required", True, {"weight", "power"})
    assert method.per_input["weight"].required
    assert method.parameters["power"].within == Within(0.0, 1.0)
    assert module.scaled_sum(0, (0.1, 0.3), (1.0, 0.5)) == pytest.approx(0.25)


def test_it_merges_and_searches(
    recipe: str, toy_models: dict[str, Path], toy_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config({"merge_method": "equalised"}, trials=5, workers=1)
    Path("search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr(session, "RayPool", InlinePool)
    exec(compile(USE.text, USE.title, "exec"), {"__name__": "__main__"})

    parents = {name: load_file(folder / "model.safetensors") for name, folder in toy_models.items()}
    for name, merged in load_file(Path("merged-model/model.safetensors")).items():
        origin = parents["base"][name].double()
        deltas = {model: parents[model][name].double() - origin for model in WEIGHTS}
        norms = {model: float(delta.norm()) for model, delta in deltas.items()}
        mean = sum(norms.values()) / len(norms)
        expected = origin + sum(w * (mean / norms[m]) ** POWER * deltas[m] for m, w in WEIGHTS.items())
        torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-6)
    summary = read_summary(Path("runs/equalised"))
    assert (summary["status"], summary["failures"]) == ("finished", {})
    best = Path("runs/equalised/best.yaml").read_text(encoding="utf-8")
    assert "# Run it with: heterosis merge THIS_FILE OUT --import equalised\n" in best
    assert Recipe.parse(best).heterosis["methods"] == {"equalised": "equalised"}
    page = Path("runs/equalised/report.html").read_text(encoding="utf-8")
    assert "heterosis merge runs/equalised/best.yaml merged-equalised --import equalised" in page
    card = Path("merged-model/README.md").read_text(encoding="utf-8")
    assert "\nheterosis merge recipe.yaml OUT --import equalised\n" in card


def test_commands_know_it_as_the_page_calls_them(recipe: str) -> None:
    (line,) = blocks("docs/writing-a-method.md", "bash")[0].text.splitlines()
    _, *arguments = line.split()
    run = command(*arguments)
    assert run.returncode == 0, run.stderr
    assert "equalised" in run.stdout
    name = arguments.pop()  # the option may stand anywhere, and be written in another way
    assert command(f"{arguments.pop()}={name}", *arguments).stdout == run.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "recipe.yaml: merge_method: unknown method 'equalised'"),
        (
            ["--import", "equalized"],
            r"--import: equalized: must be importable, but got ModuleNotFoundError: .*; start in",
        ),
        (
            ["--import", "equalised.py"],
            "--import: must be a module's name, but got 'equalised.py'; write equalised",
        ),
        (["--import", "mine/equalised.py"], "--import: must be .* got 'mine/equalised.py'; write mine.equalised"),
        (["--import"], "--import: must be a module's name, but got ''; write one after it"),
        (["--import", "--full"], "--import: must be a module's name, but got ''; write one after it"),
        (["--import", "ends"], "--import: ends: must be importable, but got SystemExit: .*; mend it"),
        (
            ["--import", "broken"],
            "--import: broken: must be importable, but got NameError: name 'x' is not defined",
        ),
    ],
)
def test_mistakes_with_it_are_a_line(recipe: str, arguments: list[str], says: str) -> None:
    Path("broken.py").write_text("x", encoding="utf-8")
    Path("ends.py").write_text("import sys; sys.exit()", encoding="utf-8")
    run = command("inspect", "recipe.yaml", *arguments)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert re.match(f"heterosis: {says}", line)


def test_a_module_without_a_method_is_warned_of(recipe: str) -> None:
    """One that was imported before it, such as a library's of that name, or the wrong file."""
    Path("statistics.py").write_text(MODULE.text, encoding="utf-8")
    run = command("--import", "statistics", "inspect", "recipe.yaml", "--import", "equalised")
    assert run.returncode == 0
    (line,) = run.stderr.splitlines()
    assert re.match(r"warning: --import: statistics registers no merge method \(.*statistics.py\)", line)


def test_libraries_come_before_folders_of_their_names(recipe: str) -> None:
    Path("tokenizers.py").write_text("", encoding="utf-8")
    run = command("merge", "recipe.yaml", "merged", "--verify", "--import", "equalised")
    assert run.returncode == 0, run.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As the installed script calls it, where the folder that one is in is not searched for modules."""
    whole = [sys.executable, "-P", "-c", "from heterosis.cli import main; main()", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, check=False)
