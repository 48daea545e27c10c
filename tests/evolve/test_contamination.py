"""Warnings about what is searched on: who gets one, and that it says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis.evaluate.documents import Source
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.preflight.contamination import benchmark_of, task_warnings
from heterosis.evolve.preflight.preflight import preflight
from heterosis.inspection import inspect_targets


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        ("gsm8k", "gsm8k"),
        ("gsm8k_cot_self_consistency", "gsm8k"),
        ("mmlu_abstract_algebra", "mmlu"),
        ("kmmlu", "mmlu"),
        ("arc_easy", "arc"),
        ("allenai/ai2_arc", "ai2_arc"),
        ("hendrycks_math_algebra", "hendrycks"),
        ("leaderboard_musr", "leaderboard"),
        ("global_piqa_prompted", "piqa"),
        ("truthful_qa", "truthful_qa"),
        ("Rowan/HellaSwag", "hellaswag"),
        ("gsm8k_train", None),
        ("heterosis_arith_fr", None),
        ("search", None),
        ("arcade_games", None),
        ("matriarch", None),
        ("json", None),
        ("", None),
    ],
)
def test_benchmarks_are_known_by_their_names(name: str, benchmark: str | None) -> None:
    assert benchmark_of(name) == benchmark


@pytest.mark.parametrize(
    ("task", "source", "says"),
    [
        ("gsm8k", Source("openai/gsm8k", "test", "test", ("training",)), "gsm8k: a well-known benchmark"),
        ("my_sums", Source("openai/gsm8k", "test", "test", ()), "my_sums: a well-known benchmark"),
        (
            "hellaswag",
            Source("Rowan/hellaswag", "validation", "validation", ("training",)),
            "hellaswag: a well-known",
        ),
        ("my_sums", Source("openai/gsm8k", "test", "train[:500]", ()), None),
        ("gsm8k", Source("openai/gsm8k", "validation", "train", ()), None),
        ("mine", Source("json", "test", "test", ()), None),
        ("mine", Source("json", "validation", "validation", ("training",)), None),
        (
            "mine",
            Source("org/data", "test", "test_v2", ("validation", "training")),
            "mine: its documents are the 'test_v2' split, which others report, though there is a validation split",
        ),
    ],
)
def test_a_warning_for_a_benchmark_or_a_test_split(task: str, source: Source, says: str | None) -> None:
    found = task_warnings({task: source})
    assert len(found) == (says is not None)
    for text in found:
        assert says is not None
        assert text.startswith(f"tasks: {says}")
        assert "search on" in text
        assert "once" in text
        assert "\n" not in text


def test_a_benchmark_of_many_tasks_is_named_once() -> None:
    names = [f"mmlu_{i}" for i in range(57)]
    (text,) = task_warnings({name: Source("cais/mmlu", "test", "test", ()) for name in names})
    assert text.startswith("tasks: mmlu_0 and 56 more: a well-known benchmark")


def tasks_with(folder: Path, name: str, splits: str) -> Path:
    folder.mkdir()
    (folder / "toy.py").write_text(
        "from datasets import Dataset\n\n\n"
        "def load(**_):\n"
        "    rows = [{'question': str(i)} for i in range(40)]\n"
        "    return {split: Dataset.from_list(rows) for split in ('train', 'dev', 'test')}\n"
    )
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ncustom_dataset: !function toy.load\n{splits}\ndoc_to_text: '{{{{question}}}}'\n"
        "output_type: multiple_choice\ndoc_to_choice: [even, odd]\ndoc_to_target: 0\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return folder


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ("test_split: test", None),
        ("validation_split: dev\ntraining_split: train", None),
        ("test_split: test\nvalidation_split: dev", "though there is a validation split"),
        ("test_split: test\ntraining_split: train", "though there is a training split"),
        ("test_split: train\ntraining_split: train", None),
    ],
)
def test_a_search_says_so_before_it_begins(
    splits: str, says: str | None, toy_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = tasks_with(tmp_path / "tasks", "mine", splits)
    config = toy_config(tasks=["mine"], include_path=[str(folder)], documents={})
    found = preflight(EvolveConfig.parse(yaml.safe_dump(config))).warnings
    assert len(found) == (says is not None)
    assert all(str(says) in text for text in found)


def test_a_run_warns_and_goes_on(toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path) -> None:
    folder = tasks_with(tmp_path / "tasks", "toy_choice", "test_split: test\nvalidation_split: dev")
    documents = {"search": 12, "selection": 12, "holdout": 12}
    data = toy_config(include_path=[str(folder)], documents=documents, trials=3, workers=1)
    with pytest.warns(UserWarning, match="toy_choice: its documents are the 'test' split"):
        summary = search(EvolveConfig.parse(yaml.safe_dump(data)), tmp_path / "run", make_pool=pools())
    assert summary["status"] == "finished"


def test_inspect_warns_too(toy_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = tasks_with(tmp_path / "tasks", "gsm8k_mine", "test_split: test")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(toy_config(tasks=["gsm8k_mine"], include_path=[str(folder)], documents={})))
    report = inspect_targets([str(path)], trial=False)
    assert [text.split(":")[1] for text in report.warnings] == [" gsm8k_mine"]
