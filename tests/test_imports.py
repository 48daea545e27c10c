"""What imports what: the direction of the packages, and what is loaded lazily."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LEVEL = {"merge": 0, "evaluate": 1, "evolve": 2}
PUBLIC = ["heterosis", "heterosis.merge", "heterosis.evaluate", "heterosis.evolve"]
UNNEEDED = (
    "accelerate datasets huggingface_hub lm_eval optuna pandas ray rich safetensors sqlalchemy tokenizers "
    "torch._dynamo transformers"
).split()
SOURCES = sorted(path for folder in ("heterosis", *LEVEL) for path in (ROOT / folder).rglob("*.py"))
PACKAGES = [str(path.parent.relative_to(ROOT)) for path in SOURCES if path.name == "__init__.py"]


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it."""
    relative = path.relative_to(ROOT)
    package = list(relative.parent.parts)
    if package[0] != "heterosis":
        package.insert(0, "heterosis")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(PUBLIC)}; print(*sorted({{'torch', 'lm_eval', 'ray'}} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""


def test_a_merge_of_local_models_loads_little(toy_models: dict[str, Path], tmp_path: Path) -> None:
    """Libraries that fetch, load, score or search for models take longer to import than a small merge."""
    models = [{"model": str(toy_models[name]), "parameters": {"weight": 0.5}} for name in ("ann", "bob")]
    recipe = {"merge_method": "linear", "dtype": "bfloat16", "models": models}
    Path(tmp_path, "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code = "import sys; from heterosis import cli; cli.main(); print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", code, "merge", "recipe.yaml", "out"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines())
    assert "heterosis.merge.api" in loaded
    assert not loaded & set(UNNEEDED)


SLOW = "lm_eval optuna ray scipy torch transformers"


@pytest.mark.parametrize(
    ("command", "says", "slow"),
    [
        ("evolve nothing.yaml --run-dir out", "no such config file", SLOW),
        ("evolve search.yaml --run-dir out", "trails: unknown key; did you mean 'trials'?", "lm_eval optuna ray"),
        ("evolve search.yaml --run-dir out --hours 0", "must be a number > 0, but got '0'", SLOW),
        ("init one --tasks sums -o new.yaml", "there must be at least two", SLOW),
        ("init one two --tasks sums -o missing/search.yaml", "missing is not a folder", SLOW),
        ("init one two --tasks sums -o new.yaml", "two: no such model folder", "lm_eval ray"),
        ("evaluate one --tasks sums --output missing/scores.json", "missing is not a folder", SLOW),
        ("status missing", "missing: not a run folder", "lm_eval datasets ray torch transformers"),
        ("report missing", "missing: not a run folder", "lm_eval datasets ray transformers"),
    ],
)
def test_a_simple_mistake_is_told_before_much_is_loaded(
    tmp_path: Path, command: str, says: str, slow: str
) -> None:
    genome = {"models": ["one", "two"], "merge_method": "linear"}
    config = yaml.safe_dump({"genome": genome, "tasks": ["sums"], "trails": 3})
    Path(tmp_path, "search.yaml").write_text(config, encoding="utf-8")
    code = "import sys; from heterosis import cli\ntry: cli.main()\nfinally: print(*sys.modules, sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", code, *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert says in run.stderr
    assert not set(run.stdout.splitlines()) & set(slow.split())


@pytest.mark.parametrize("package", LEVEL)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "heterosis" and len(parts) > 1 and parts[1] in LEVEL:
                assert LEVEL[parts[1]] <= LEVEL[package], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["merge", "evolve"])
def test_folders_import_from_those_above_them(package: str) -> None:
    """In the order in which the package's docstring has them."""
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    order = re.findall(r"^(\w+)/ ", docstring or "", re.M)
    assert sorted(order) == sorted(path.parent.name for path in ROOT.glob(f"{package}/*/__init__.py"))
    for level, folder in enumerate(order):
        for path in (ROOT / package / folder).rglob("*.py"):
            used = {name.split(".")[2] for name in imported(path) if name.startswith(f"heterosis.{package}.")}
            assert not used & set(order[level + 1 :]), path.relative_to(ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_each_of_its_files_is(package: str) -> None:
    """Merge methods are read about in their table instead."""
    folder = ROOT / package
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    names = [path.name for path in files if "@merge_method" not in path.read_text(encoding="utf-8")]
    names += [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    assert not [name for name in names if name not in docstring]


def test_all_packages_are_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(setuptools["package-dir"].values()) == set(PACKAGES)
    assert set(setuptools["package-dir"]) == set(setuptools["packages"])


@pytest.mark.parametrize("library", ["lm_eval", "ray"])
def test_one_file_imports_it(library: str) -> None:
    home = {"lm_eval": "evaluate/", "ray": "evolve/"}[library]
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name.partition(".")[0] == library for name in imported(path))
    ]
    assert len(found) == 1, found
    assert found[0].startswith(home)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_evaluate_is_hugging_faces() -> None:
    """lm-eval's tasks import it by that name; our folder of the same name must not hide it."""
    spec = importlib.util.find_spec("evaluate")
    assert spec is not None
    assert spec.origin is not None
    assert not Path(spec.origin).is_relative_to(ROOT / "evaluate")
    assert "site-packages" in spec.origin


def test_a_folder_that_would_hide_it_is_looked_into_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But still: in a checkout, a module of one's own lies beside this project's folder."""
    import heterosis.evaluate

    Path(tmp_path, "evaluate").symlink_to(ROOT / "evaluate")
    others = [str(tmp_path / name) for name in ("one", "other")]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
    heterosis.evaluate._hide_shadowing_folders()
    assert sys.path == [*others, str(tmp_path)]
