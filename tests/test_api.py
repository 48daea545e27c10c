"""The public Python API, as the README shows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import heterosis
from heterosis.evaluate.scores import Scores
from heterosis.evolve.workers.pool import Evaluation, Setup


class ConstantPool:
    """A pool of one worker, to which every document is worth as much as the recipe is long."""

    size = 1

    def __init__(self, setup: Setup, workers: int) -> None:
        self._done: list[Any] = []

    @property
    def free(self) -> int:
        return 1 - len(self._done)

    def submit(self, key: object, recipe: str, documents: dict[str, list[int]]) -> None:
        scores = {task: {d: {"acc,none": len(recipe) + d} for d in ids} for task, ids in documents.items()}
        self._done.append((key, Evaluation(Scores(scores), {}, "")))

    def wait(self, timeout: float) -> Any:
        return [self._done.pop()]

    def close(self) -> None: ...


def test_the_readmes_example(
    toy_models: dict[str, Path], toy_tasks: Path, toy_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(toy_config(workers=1, trials=5)))

    summary = heterosis.search(config, tmp_path / "run", make_pool=ConstantPool)
    assert summary["status"] == "finished"
    assert summary["trials"]["complete"] + summary["trials"]["pruned"] == 5

    recipe = heterosis.Recipe.load(tmp_path / "run/best.yaml")
    assert recipe.merge_method == "task_arithmetic"
    merged = heterosis.merge_models(recipe, tmp_path / "merged")

    tasks = {"tasks": ["toy_choice"], "include_path": [toy_tasks], "limit": 10}
    on_disk, metrics = heterosis.evaluate_model(merged, **tasks)
    in_memory, _ = heterosis.evaluate_model(recipe, **tasks)
    from_file, _ = heterosis.evaluate_model(tmp_path / "run/best.yaml", **tasks)
    parent, _ = heterosis.evaluate_model(toy_models["ann"], **tasks)
    assert metrics["toy_choice"].key == "acc,none"
    assert len(on_disk.documents["toy_choice"]) == 10
    assert on_disk == in_memory == from_file
    assert on_disk.documents.keys() == parent.documents.keys()
    assert 0 <= parent.mean("toy_choice", "acc,none") <= 1


def test_wrong_input_raises_input_error(toy_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(heterosis.InputError, match="did you mean 'linear'"):
        heterosis.merge_models(
            heterosis.Recipe.parse(f"merge_method: linaer\nmodels: [{{model: {toy_models['ann']}}}]"),
            tmp_path / "out",
        )
    with pytest.raises(ValueError, match="no such config file"):
        heterosis.search(tmp_path / "none.yaml", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_hold_any_character(make_llama: Any, tmp_path: Path, toy_tasks: Path) -> None:
    model = make_llama(tmp_path / 'it\'s a "test" \\ é', seed=3)
    scores, _ = heterosis.evaluate_model(model, ["toy_choice"], include_path=[toy_tasks], limit=3)
    assert len(scores.documents["toy_choice"]) == 3


@pytest.mark.parametrize("as_path", [str, Path])
def test_one_task_and_one_folder_need_no_list(toy_models: dict[str, Path], toy_tasks: Path, as_path: Any) -> None:
    scores, _ = heterosis.evaluate_model(toy_models["ann"], "toy_choice", include_path=as_path(toy_tasks), limit=3)
    assert list(scores.documents) == ["toy_choice"]


def test_the_public_names() -> None:
    assert heterosis.__all__ == ["InputError", "Recipe", "evaluate_model", "merge_models", "search"]
    for name in heterosis.__all__:
        assert getattr(heterosis, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'merge_modles'"):
        _ = heterosis.merge_modles
