"""Wrong input on the command line: exit code 2, one line that says what to do, and nothing written."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heterosis import cli

MakeLlama = Callable[..., Path]
Break = Callable[[dict[str, object], Path], None]

HEALTHY = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a", "parameters": {"weight": 0.5, "density": 0.5}}],
    "dtype": "float32",
}


@pytest.fixture
def workshop(make_llama: MakeLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the models ``base`` and ``a``, as the current one."""
    base = make_llama("hostile-base", seed=0)
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(make_llama("hostile-a", seed=1, noise_from=base), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():  # main() sets up warnings for a process of its own
        yield tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["heterosis", *arguments])
    try:
        cli.main()
    except SystemExit as exit_:
        return exit_.code
    return 0


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def broken(recipe: dict[str, object], folder: Path) -> None:
        content = load_file(folder / "a/model.safetensors")
        change(content)
        save_file(content, folder / "a/model.safetensors")

    return broken


def file(name: str, change: Callable[[bytes], bytes]) -> Break:
    def broken(recipe: dict[str, object], folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return broken


def key(**changes: object) -> Break:
    return lambda recipe, folder: recipe.update(changes)


def slices(*ranges: tuple[str, list[int]]) -> Break:
    listed = [{"sources": [{"model": model, "layer_range": layers} for model, layers in ranges]}]

    def broken(recipe: dict[str, object], folder: Path) -> None:
        del recipe["models"]
        recipe.update(slices=listed, parameters={"weight": 1})

    return broken


NORM = "model.norm.weight"
CASES: dict[str, tuple[Break, str]] = {
    "method": (key(merge_method="tyes"), "recipe.yaml: merge_method: unknown method 'tyes'; did you mean 'ties'?"),
    "parameter": (
        key(parameters={"densty": 0.5}),
        "recipe.yaml: parameters.densty: unknown parameter of 'ties'; did you mean 'density'?",
    ),
    "key": (key(dtpye="float32"), "recipe.yaml: dtpye: unknown key; did you mean 'dtype'?"),
    "no base": (key(base_model=None), "recipe.yaml: base_model: ties needs one; name the model that"),
    "base": (key(base_model="bsae"), "recipe.yaml: bsae: no such model folder; give a local folder, or"),
    "dtype": (key(dtype="bfloat"), "recipe.yaml: dtype: unknown dtype 'bfloat'; did you mean 'bfloat16'?"),
    "seed": (key(heterosis={"seed": -1}), "recipe.yaml: heterosis.seed: must be a whole number in [0, 2**64)"),
    "text": (
        lambda recipe, folder: recipe.update(models=[{"model": "a", "parameters": {"weight": "much"}}]),
        "a: parameters.weight: must be a number, but got 'much'",
    ),
    "no weight": (lambda recipe, folder: recipe.update(models=[{"model": "a"}]), "a: ties needs 'weight', but no"),
    "range": (
        slices(("base", [0, 2]), ("a", [1, 3])),
        "`stop <= layers` must hold, but got [1, 3] of the 2 layers of",
    ),
    "reversed": (slices(("base", [0, 1]), ("a", [2, 1])), "must satisfy `0 <= from < to`, but got [2, 1]"),
    "lengths": (slices(("base", [0, 2]), ("a", [0, 1])), "must all have equally many layers, but got 2, 1"),
    "tokenizer": (key(tokenizer_source="c"), "tokenizer_source: c is not one of the recipe's models"),
    "shape": (
        tensors(lambda t: t.update({NORM: torch.ones(17)})),
        f"recipe.yaml: {NORM}: shapes must match, but got [17] in a and [16] in base; merge one architecture only",
    ),
    "transposed": (
        tensors(lambda t: t.update({NORM: torch.ones(1, 16)})),
        f"recipe.yaml: {NORM}: shapes must match, but got [1, 16] in a and [16] in base",
    ),
    "missing": (tensors(lambda t: t.pop(NORM)), f"recipe.yaml: {NORM}: missing in a, but base has it"),
    "extra": (
        tensors(lambda t: t.update({"model.extra": torch.ones(1)})),
        "recipe.yaml: model.extra: missing in base, but a has it",
    ),
    "truncated": (file("a/model.safetensors", lambda b: b[:-1]), "model.safetensors: truncated: the tensors need"),
    "emptied": (
        file("a/model.safetensors", lambda b: b""),
        "model.safetensors: truncated: a safetensors file has",
    ),
    "config": (file("a/config.json", lambda b: b[:-9]), "a/config.json: "),
    "quantised": (
        file(
            "a/config.json", lambda b: json.dumps({**json.loads(b), "quantization_config": {"bits": 4}}).encode()
        ),
        "a/config.json: the model is quantised; merge the original weights instead",
    ),
    "no weights": (
        lambda recipe, folder: (folder / "a/model.safetensors").unlink(),
        "a: has no weights; expected one of model.safetensors",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_code_two_and_no_folder(
    case: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dict(HEALTHY)
    damage, expected = CASES[case]
    damage(recipe, workshop)
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(path.name for path in workshop.iterdir())
    code = run(monkeypatch, "merge", "recipe.yaml", "out")
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert code == 2, output.err
    assert output.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("heterosis: ")
    assert expected in lines[0]
    assert sorted(path.name for path in workshop.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["merge", "nowhere.yaml", "out"], "nowhere.yaml"),
        (["merge", "recipe.yaml", "base"], "base: exists already; choose another folder, or pass --overwrite"),
        (["merge", "recipe.yaml", "recipe.yaml/out"], "recipe.yaml/out: cannot be created"),
        (["merge", "recipe.yaml", "out", "--memory-limit", "much"], "must be a size such as 512MiB"),
        (["merge", "recipe.yaml", "out", "--memory-limit", "1MiB"], "must be at least 16 MiB, but got 1 MiB"),
        (["merge", "recipe.yaml", "out", "--threads", "0"], "threads"),
        (["merge", "recipe.yaml"], "Missing argument 'out'"),
        (["inspect", "recipe.yaml", "a"], "recipe.yaml: must stand alone"),
        (["inspect", "a", "--distances"], "add --base MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(
    arguments: list[str],
    expected: str,
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(HEALTHY))
    before = sorted(path.name for path in workshop.iterdir())
    code = run(monkeypatch, *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if " tensors, " not in line]
    assert code == 2, lines
    assert len(lines) == 1
    assert lines[0].startswith("heterosis: ")
    assert expected in lines[0]
    assert sorted(path.name for path in workshop.iterdir()) == before


def test_numbers_that_fail_while_merging_are_a_failure(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors(lambda t: t[NORM].fill_(torch.nan))({}, workshop)
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(HEALTHY))
    assert run(monkeypatch, "merge", "recipe.yaml", "out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"heterosis: failed: {NORM}: the merged tensor has NaN or infinity; check the inputs, weights and dtype"
    )
    assert not (workshop / "out").exists()


def test_the_healthy_recipe_merges_and_shows_its_plan(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(HEALTHY))
    assert run(monkeypatch, "inspect", "recipe.yaml", "--full") == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("model.") for line in shown) == 2 * 9 + 2
    assert any(line.split() == [NORM, "16", "float32", "ties", "a", "base"] for line in shown)
    assert any(line.startswith("everywhere: weight=0.5 density=0.5 ") for line in shown)
    assert run(monkeypatch, "merge", "recipe.yaml", "out") == 0
    assert capsys.readouterr().out == "out\n"
    assert (workshop / "out/model.safetensors").is_file()
