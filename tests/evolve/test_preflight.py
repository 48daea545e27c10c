"""What is found out before a search: faults, what it takes, and one candidate that is tried."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis.errors import InputError
from heterosis.evaluate.scores import Scores
from heterosis.evolve import driver
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.preflight import resources
from heterosis.evolve.preflight.inspection import inspect_search
from heterosis.evolve.preflight.preflight import Preflight, preflight
from heterosis.evolve.preflight.rehearsal import Rehearsal, rehearse
from heterosis.evolve.workers.pool import Evaluation, Failure
from heterosis.merge import ModelRef, Recipe, merge_models, open_checkpoint
from heterosis.merge.methods import PerInput, Program, Uniform, base, merge_method, methods
from heterosis.merge.methods.combine import combine

MIB = 2**20


@pytest.fixture
def config(toy_config: Callable[..., dict[str, Any]]) -> Callable[..., EvolveConfig]:
    return lambda **changes: EvolveConfig.parse(yaml.safe_dump(toy_config(**changes)))


@pytest.fixture
def checked(config: Callable[..., EvolveConfig]) -> Preflight:
    return preflight(config(workers=3, trials=40))


def test_faults_of_models_and_of_tasks_are_told_at_once(config: Callable[..., EvolveConfig]) -> None:
    wrong = config(
        genome={"models": ["/no/a", "/no/b"]}, tasks=[{"name": "toy_choice", "metric": "f1"}], documents={}
    )
    with pytest.raises(InputError) as caught:
        preflight(wrong)
    first, second, third = caught.value.faults
    assert first.startswith("/no/a: no such model folder")
    assert second.startswith("/no/b: no such model folder")
    assert third.startswith("task 'toy_choice': unknown metric 'f1'")


def test_a_budget_that_does_not_reach_for_the_parents_is_refused(config: Callable[..., EvolveConfig]) -> None:
    with pytest.raises(InputError, match="trials: must be at least 3, as the parents and their uniform merge"):
        preflight(config(trials=2))
    preflight(config(trials=3))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"genome": {"filters": ["self_atn"]}},
            r"genome.filters\[0\]: no tensor's name has 'self_atn'; did",
        ),
        (
            {"genome": {"layer_granularity": 0, "layer_paths": {"after": "parameters", "max_layers": 1}}},
            "genome.layer_paths.max_layers: must be at least 2",
        ),
        ({"warm_start": "/no/run"}, "warm_start: /no/run: no such run folder or recipe file; check the path"),
    ],
)
def test_what_would_be_found_later_is_found_now(
    config: Callable[..., EvolveConfig], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        preflight(config(**changes))


def test_a_model_without_a_tokenizer_is_refused(
    config: Callable[..., EvolveConfig], toy_models: dict[str, Path], tmp_path: Path
) -> None:
    for name, role in (("bob", "models"), ("base", "base_model")):
        copy = tmp_path / name
        shutil.copytree(toy_models[name], copy)
        for file in copy.glob("*token*"):
            file.unlink()
        wanted = {"models": [str(toy_models["ann"]), str(copy)]} if role == "models" else {"base_model": str(copy)}
        with pytest.raises(InputError, match=f"{name}: has no tokenizer"):
            preflight(config(genome=wanted))


def test_a_rehearsal_tells_the_time_of_a_candidate(checked: Preflight) -> None:
    asked = []

    def score(recipe: str, documents: Any) -> Evaluation:
        asked.append((recipe, {task: list(ids) for task, ids in documents.items()}))
        seconds = {"merge": 2.0, "forward": 8.0, "other": 1.6} if len(asked) == 2 else {"merge": 50.0}
        return Evaluation(Scores({}, 0.0), seconds, "")

    found = rehearse(checked, 1, score)
    (first, one), (second, batch) = asked
    assert first != second
    assert [len(ids) for ids in (*one.values(), *batch.values())] == [1, 16]
    assert found == Rehearsal(documents=16, start=50.0, merge=2.0, per_document=pytest.approx(0.6), asked=20)
    assert found.candidate(20) == pytest.approx(14.0)

    takes = resources.resources(checked, Path(), rehearsal=found)
    finals = ((2 + 5) * 20 + 4 * 30) / 20  # two finalists, a mean, uniform and a recipe
    assert takes.finals == finals
    assert takes.seconds == pytest.approx(50 + (40 + finals) * 14 / 3)
    hurried = dataclasses.replace(checked, config=checked.config.updated(hours=0.01))
    assert resources.resources(hurried, Path(), rehearsal=found).seconds == 36


def test_of_quick_candidates_one_meets_all_search_documents(checked: Preflight) -> None:
    """The second one's time is mostly what it does once, or for any number of documents."""
    asked = []

    def score(recipe: str, documents: Any) -> Evaluation:
        asked.append(recipe)
        n = len(documents["toy_choice"])
        return Evaluation(Scores({}, 0.0), {"merge": 0.01, "forward": 0.1 / len(asked), "other": 0.02 * n}, "")

    found = rehearse(checked, 1, score)
    assert len(set(asked)) == 3
    assert found.documents == 20
    assert found.candidate(20) == pytest.approx(0.01 + 0.1 / 3 + 0.4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"max_length": 4}, None),  # four words, and the answer's one, which is not read
        (
            {"max_length": 3},
            "max_length: 20 of 20 search documents take more than 3 tokens, with what is to be written",
        ),
        (
            {"num_fewshot": 25},
            "128 tokens, the model's own limit, with what is to be written, so that prompts lose their",
        ),
    ],
)
def test_prompts_that_are_cut_are_told(
    config: Callable[..., EvolveConfig], changes: dict[str, Any], says: str | None
) -> None:
    report = inspect_search(config(**changes))
    assert [text for text in report.warnings if "max_length" in text] == [
        text for text in report.warnings if says is not None and says in text
    ]
    assert any("max_length" in text for text in report.warnings) == (says is not None)


def test_a_candidate_that_cannot_be_scored_is_told(checked: Preflight) -> None:
    with pytest.raises(InputError, match="cannot be scored: out of memory; all others would fail alike"):
        rehearse(checked, 1, lambda recipe, documents: Failure("out of memory"))


def test_a_real_candidate_is_tried(config: Callable[..., EvolveConfig]) -> None:
    report = inspect_search(config())
    assert report.rehearsal is not None
    assert report.rehearsal.documents == 20
    assert report.rehearsal.per_document > 0
    (tried,) = report.rehearsal.tried
    assert (tried.task, 0 <= tried.score <= 1) == ("toy_choice", True)
    assert tried.asked
    assert tried.answered is not None
    assert tried.answered.said
    assert report.resources.candidate == report.rehearsal.candidate(20)
    (task,) = report.tasks
    assert dataclasses.astuple(task) == ("toy_choice", 1.0, "acc,none", "higher", 80, 20, 20, 30)
    assert report.dimensions == sum(n for _, _, n in report.ranges.values()) == 4
    assert report.baselines == ("ann", "bob", "uniform")


@pytest.mark.parametrize(
    ("paths", "methods", "depth"),
    [
        (True, (), ("layer paths",)),
        ({"after": "parameters"}, ("task_arithmetic",), ("one value for all layers", "layer paths")),
    ],
)
def test_layer_paths_are_told(
    config: Callable[..., EvolveConfig], paths: Any, methods: tuple[str, ...], depth: tuple[str, ...]
) -> None:
    genome = {"layer_paths": paths, "layer_granularity": 0}
    if paths is True:
        genome |= {"merge_method": None, "layer_granularity": None}
    report = inspect_search(config(genome=genome), trial=paths is True)
    assert (report.methods, report.depth) == (methods, depth)
    assert (report.rehearsal is None) == (paths is not True)


def test_layer_paths_take_models_of_several_depths(
    toy_config: Callable[..., dict[str, Any]], toy_models: dict[str, Path], tmp_path: Path, pools: Any
) -> None:
    """There is no mean of them, so the parents are all the baselines."""
    ann, deep = toy_models["ann"], tmp_path / "deep"
    layers = open_checkpoint(ModelRef.parse(str(ann))).config["num_hidden_layers"]
    slices = [{"sources": [{"model": str(ann), "layer_range": [0, end]}]} for end in (layers, 1)]
    merge_models(Recipe.model_validate({"merge_method": "passthrough", "slices": slices}), deep)
    plain = toy_config() | {"genome": {"models": [str(ann), str(deep)], "layer_paths": True}}
    subject = EvolveConfig.parse(yaml.safe_dump(plain))
    checked = preflight(subject)
    assert [baseline.name for baseline in checked.baselines()] == ["ann", "deep"]
    assert all(baseline.values is not None for baseline in checked.baselines())
    assert {op.name for op in checked.plan.ops} == {*open_checkpoint(ModelRef.parse(str(ann))).tensors}
    summary = driver.search(subject, tmp_path / "run", make_pool=pools(), trials=8)
    assert summary["status"] == "finished"
    assert summary["gain_over_uniform"] is None


@pytest.mark.parametrize(
    ("free", "total", "says"),
    [
        (8000 * MIB, 8000 * MIB, None),
        (2000 * MIB, 8000 * MIB, "are needed, and 1.953 GiB are free; close what else is running, or write fewer"),
    ],
)
def test_memory_that_may_not_do_is_warned_of(
    checked: Preflight, monkeypatch: pytest.MonkeyPatch, free: int, total: int, says: str | None
) -> None:
    monkeypatch.setattr(resources, "memory_of_machine", lambda: (free, total))
    takes = resources.resources(checked, Path())
    assert takes.faults == []
    assert len(takes.warnings) == (says is not None)
    assert all(str(says) in text for text in takes.warnings)
    assert resources.resources(checked, Path(), local=False).warnings == []


@pytest.mark.parametrize(
    ("models", "remedy"), [(2.5, "write workers: 2"), (0.5, "take smaller models or a larger machine")]
)
def test_memory_that_cannot_do_is_refused(
    checked: Preflight, monkeypatch: pytest.MonkeyPatch, models: float, remedy: str
) -> None:
    total = round(models * 4 * checked.plan.parameters)
    monkeypatch.setattr(resources, "memory_of_machine", lambda: (total, total))
    takes = resources.resources(checked, Path())
    (fault,) = takes.faults
    assert fault.startswith("workers: the live models of 3 need ")
    assert fault.endswith(remedy)
    with pytest.raises(InputError, match=remedy):
        takes.check()
    resources.resources(checked, Path(), local=False).check()


def test_a_full_disk_is_refused_and_a_fullish_one_warned_of(
    checked: Preflight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def free(amount: int) -> resources.Resources:
        usage = type(shutil.disk_usage("."))(10**12, 0, amount)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
        return resources.resources(checked, tmp_path / "not" / "yet")

    assert "the run folder will take about" in free(1000).faults[0]
    assert free(10**11).faults == []
    takes = free(10**11)
    large = dataclasses.replace(takes, disk_merged=10**12)
    assert "once it is merged" in large.warnings[0]


def test_evolve_stops_on_what_would_fail_later(
    config: Callable[..., EvolveConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pools: Any
) -> None:
    monkeypatch.setattr(resources, "memory_of_machine", lambda: (1000, 1000))
    with pytest.raises(InputError, match="config: workers: the live models"):
        driver.search(config(), tmp_path / "run", make_pool=pools())
    assert list(tmp_path.iterdir()) == []
    assert pools.made == []
    driver.search(config(trials=3), tmp_path / "run", make_pool=pools(), device="cuda")


def test_the_run_folder_takes_about_what_was_said(
    config: Callable[..., EvolveConfig], tmp_path: Path, pools: Any
) -> None:
    searched = config(trials=40, workers=1, racing=False)
    said = resources.resources(preflight(searched), tmp_path).disk
    driver.search(searched, tmp_path / "run", make_pool=pools())
    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert taken / 3 < said < 3 * taken


class TestRoomForFolders:
    """Of a backend that loads candidates from one."""

    def test_is_told(self, config: Callable[..., EvolveConfig], checked: Preflight) -> None:
        report = inspect_search(config(backend="hf"), trial=False)
        assert re.fullmatch(r"hf, from a folder of [\d.]+ KiB in (/dev/shm|/tmp|.*)", report.backend)
        assert inspect_search(config(), trial=False).backend == "resident"
        assert resources.merges_to(checked) is None

    def test_that_is_missing_is_refused(
        self, config: Callable[..., EvolveConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pools: Any
    ) -> None:
        monkeypatch.setattr(resources, "place_for", lambda nbytes: None)
        says = r"backend: hf loads candidates of .* from a folder, but neither shared memory nor .* has room"
        with pytest.raises(InputError, match=f"^{says}"):
            inspect_search(config(backend="hf"))
        with pytest.raises(InputError, match=f"config: {says}"):
            driver.search(config(backend="hf"), tmp_path / "run", make_pool=pools())
        assert list(tmp_path.iterdir()) == []
        driver.search(config(trials=3), tmp_path / "run", make_pool=pools())

    def test_a_real_candidate_is_tried(self, config: Callable[..., EvolveConfig]) -> None:
        assert inspect_search(config(backend="hf")).rehearsal is not None


class TestSizesOfWorkers:
    @pytest.fixture(autouse=True)
    def eight_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resources, "available_cores", lambda: 8)

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            ({}, (2, 4, 4.0)),
            ({"workers": 3}, (3, 2, 2.0)),
            ({"cpus_per_worker": 3}, (2, 3, 3.0)),
            ({"cpus_per_worker": 0.5, "workers": 5}, (5, 1, 0.5)),
        ],
    )
    def test_follow_from_what_is_given(
        self, config: Any, asked: dict[str, Any], found: tuple[int, int, float]
    ) -> None:
        checked = preflight(config(**asked))
        setup = resources.worker_setup(checked, [], checked.split, "cpu", Path("run"))
        assert (*resources.workers_and_threads(checked.config), setup.cpus) == found
        assert setup.gpus == 0
        assert len(setup.models) == 3

    @pytest.mark.parametrize(("asked", "gpus"), [({}, 1.0), ({"gpus_per_worker": 0.25}, 0.25)])
    def test_of_gpus(self, config: Any, asked: dict[str, Any], gpus: float) -> None:
        checked = preflight(config(**asked))
        assert resources.worker_setup(checked, [], checked.split, "cuda", Path("run")).gpus == gpus

    def test_have_modules_of_methods_of_the_config_and_of_what_a_search_starts_from(
        self, config: Any, toy_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "_METHODS", {**methods()})
        for name in ("mine", "yours", "unused"):

            def method(*, weight: PerInput) -> Program:
                return Program(combine.bind(weight))

            method.__module__ = f"{name}_module"
            merge_method(name, paper="", base="ignored", search={"weight": Uniform(0.0, 1.0)})(method)
        models = [{"model": str(toy_models[model]), "parameters": {"weight": 1.0}} for model in ("ann", "bob")]
        recipe = {"merge_method": "yours", "models": models, "dtype": "bfloat16"}
        Path(tmp_path, "warm.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        checked = preflight(config(genome={"merge_method": "mine"}, warm_start=str(tmp_path / "warm.yaml")))
        setup = resources.worker_setup(checked, checked.baselines(), checked.split, "cpu", Path("run"))
        assert setup.methods == {"mine": "mine_module", "yours": "yours_module"}

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            ({"workers": 5, "cpus_per_worker": 2}, "need 10, but this machine has 8; write workers: 4"),
            ({"gpus_per_worker": 1}, "only with --device cuda, but got --device cpu"),
        ],
    )
    def test_that_cannot_be_had_are_refused(self, config: Any, asked: dict[str, Any], says: str) -> None:
        with pytest.raises(InputError, match=says):
            resources.check_workers(config(**asked), "cpu")

    @pytest.mark.parametrize("key", ["cpus_per_worker", "gpus_per_worker"])
    def test_that_make_no_sense_are_refused(self, config: Any, key: str) -> None:
        with pytest.raises(InputError, match=rf"{key}: must be a whole number above 1, or a fraction of one"):
            config(**{key: 1.5})
