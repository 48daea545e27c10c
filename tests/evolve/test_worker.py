"""A worker, without Ray: it scores what `heterosis merge` would write, and nothing it did before matters."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from heterosis.evaluate import CandidateLoader
from heterosis.evaluate.scores import PROBABILITY
from heterosis.evaluate.splits import Split
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.machine import this_machine
from heterosis.evolve.workers.pool import Evaluation, Failure, Setup
from heterosis.evolve.workers.worker import Worker, known_batch_size, task_set
from heterosis.merge import Recipe, merge_models
from heterosis.merge.models.checkpoint import Contents

DOCUMENTS = {"toy_choice": list(range(5, 29)), "toy_generate": list(range(11, 24))}
KEYS = {"toy_choice": ["acc,none", "acc_norm,none"], "toy_generate": ["crc,none"]}


@pytest.fixture
def recipe(toy_models: dict[str, Path]) -> Callable[..., str]:
    def make(method: str = "task_arithmetic", weights: tuple[float, float] = (0.8, 0.4), **parameters: Any) -> str:
        models = [
            {"model": str(toy_models[name]), "parameters": {"weight": weight, **parameters}}
            for name, weight in zip(("ann", "bob"), weights, strict=True)
        ]
        return yaml.safe_dump(
            {"merge_method": method, "base_model": str(toy_models["base"]), "models": models}
            | {"dtype": "bfloat16", "heterosis": {"seed": 5}}
        )

    return make


@pytest.fixture
def make_worker(toy_config: Callable[..., dict[str, Any]]) -> Callable[..., Worker]:
    def make(documents: dict[str, list[int]] = DOCUMENTS, **changes: Any) -> Worker:
        tasks = [{"name": name} for name in documents]
        config = EvolveConfig.parse(yaml.safe_dump(toy_config(tasks=tasks, batch_size=4, **changes)))
        nothing: dict[str, list[int]] = {task: [] for task in documents}
        return Worker(Setup(config, Split(documents, nothing, nothing)))

    return make


def scored(worker: Worker, recipe: str, documents: dict[str, list[int]] = DOCUMENTS) -> Evaluation:
    result = worker.score(recipe, documents)
    assert isinstance(result, Evaluation), result
    return result


def plain_lm_eval(folder: Path, tasks: Path) -> dict[str, dict[int, dict[str, float]]]:
    """The scores that lm-eval itself gives a model folder, document by document."""
    import transformers
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    output = simple_evaluate(
        HFLM(model, tokenizer=tokenizer, backend="causal", batch_size=4),
        tasks=list(DOCUMENTS),
        samples=DOCUMENTS,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    return {
        task: {
            sample["doc_id"]: {key: float(sample[key.split(",")[0]]) for key in KEYS[task]}
            for sample in output["samples"][task]
        }
        for task in DOCUMENTS
    }


@pytest.mark.parametrize(("method", "parameters"), [("task_arithmetic", {}), ("dare_ties", {"density": 0.5})])
def test_scores_equal_those_of_the_merge_on_the_disk(
    make_worker: Any, recipe: Any, tmp_path: Path, toy_tasks: Path, method: str, parameters: dict[str, Any]
) -> None:
    text = recipe(method, **parameters)
    result = scored(make_worker(), text)
    folder = merge_models(Recipe.parse(text), tmp_path / "out")
    metrics = {
        task: {d: {key: x for key, x in scored.items() if key != PROBABILITY} for d, scored in own.items()}
        for task, own in result.scores.documents.items()
    }
    assert metrics == plain_lm_eval(folder, toy_tasks)
    assert result.seconds.keys() == {"merge", "forward", "other"}
    assert all(seconds >= 0 for seconds in result.seconds.values())


def test_it_stops_where_the_written_model_stops(recipe: Any, toy_models: dict[str, Path], tmp_path: Path) -> None:
    """At the end token of the tokenizer's model, not of the base."""
    import transformers

    chat = shutil.copytree(toy_models["ann"], tmp_path / "chat")
    path = chat / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 21}))
    made = Recipe.parse(yaml.safe_dump(yaml.safe_load(recipe()) | {"tokenizer_source": str(chat)}))
    live = CandidateLoader().load(made).model.generation_config
    written = transformers.GenerationConfig.from_pretrained(merge_models(made, tmp_path / "out"))
    assert live.eos_token_id == written.eos_token_id == 21


def test_answers_to_held_out_documents_are_kept(
    toy_config: Any, recipe: Any, toy_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And to no others; of each task so many at most."""
    monkeypatch.setattr("heterosis.evolve.workers.worker.KEPT_ANSWERS", 3)
    tasks = [{"name": "toy_choice"}, {"name": "toy_generate"}]
    config = EvolveConfig.parse(yaml.safe_dump(toy_config(tasks=tasks, batch_size=4)))
    parts = {"toy_choice": [9, 8, 7, 6, 5], "toy_generate": [4]}
    worker = Worker(Setup(config, Split(DOCUMENTS, {task: [] for task in parts}, parts)))
    assert scored(worker, recipe(), {"toy_choice": [20, 21], "toy_generate": [12]}).scores.answers == {}
    kept = scored(worker, recipe(), parts).scores.answers
    assert {task: sorted(own) for task, own in kept.items()} == {"toy_choice": [7, 8, 9], "toy_generate": [4]}
    rows = json.loads((toy_tasks / "rows.json").read_text())
    for document, answer in kept["toy_choice"].items():
        assert answer.said in rows[document]["choices"]


def test_recipes_share_nothing(make_worker: Any, recipe: Any) -> None:
    """A, B, A gives A's scores again, and those that a worker gives which never saw B."""
    worker = make_worker()
    texts = {"a": recipe(weights=(1.0, 0.0)), "b": recipe(weights=(0.0, 1.3))}
    results = {name: scored(worker, text) for name, text in texts.items()}
    again = scored(worker, texts["a"])
    fresh = scored(make_worker(), texts["b"])
    assert results["a"].checksum == again.checksum != results["b"].checksum == fresh.checksum
    assert results["a"].scores == again.scores
    assert results["b"].scores == fresh.scores
    for task in DOCUMENTS:
        assert results["a"].scores.documents[task] != results["b"].scores.documents[task]


def test_each_recipe_is_asked_in_the_form_of_its_own_chat_template(
    make_worker: Any, make_llama: Any, toy_models: dict[str, Path], tmp_path: Path
) -> None:
    """Whichever a worker scored first: a parent may bring another template than the merges."""
    other = make_llama(tmp_path / "other", seed=1, noise_from=toy_models["base"], noise=0.1)
    (template,) = other.glob("chat_template.jinja")
    template.write_text("{% for m in messages %}the cat {{ m['content'] }} sat on\n{% endfor %}")
    one, two = (
        yaml.safe_dump({"merge_method": "passthrough", "models": [{"model": str(m)}]})
        for m in (toy_models["ann"], other)
    )
    worker, fresh = (make_worker(apply_chat_template=True) for _ in range(2))
    first = scored(worker, one)
    assert scored(worker, two).scores == scored(fresh, two).scores
    assert scored(worker, one).scores == first.scores
    assert scored(worker, two).checksum == first.checksum  # the same weights: only the template differs
    assert scored(worker, two).scores != first.scores


class TestFailures:
    def test_weights_that_overflow(self, make_worker: Any, recipe: Any) -> None:
        worker = make_worker()
        result = worker.score(recipe(weights=(1e39, 1e39)), DOCUMENTS)
        assert isinstance(result, Failure)
        assert not result.retry
        assert "not finite" in result.cause or "infinity" in result.cause
        assert "model." in result.cause  # the tensor
        scored(worker, recipe())  # and the worker works on

    def test_outputs_that_overflow(self, make_worker: Any, recipe: Any) -> None:
        """Finite weights whose outputs are not: generated text alone would not show it."""
        result = make_worker().score(recipe(weights=(1e15, 1e15)), DOCUMENTS)
        assert isinstance(result, Failure)
        assert "not finite" in result.cause

    def test_a_recipe_that_cannot_run(self, make_worker: Any, recipe: Any) -> None:
        result = make_worker().score(recipe("tiess"), DOCUMENTS)
        assert result == Failure(result.cause)
        assert "did you mean 'ties'" in result.cause
        assert "\n" not in result.cause

    @pytest.mark.parametrize(
        ("error", "cause", "retry"),
        [
            (RuntimeError("first\nsecond"), "RuntimeError: first", False),
            (SystemExit(3), "SystemExit: 3", False),
            (MemoryError("no room"), "out of memory: no room", True),
            (torch.OutOfMemoryError("CUDA"), "OutOfMemoryError: CUDA", True),
        ],
    )
    def test_anything_else(
        self, make_worker: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch, error: Any, cause: str, retry: bool
    ) -> None:
        from heterosis.evaluate.harness import TaskSet

        def fail(*_: object) -> None:
            raise error

        worker = make_worker()
        monkeypatch.setattr(TaskSet, "score", fail)
        assert worker.score(recipe(), DOCUMENTS) == Failure(cause, retry=retry)
        monkeypatch.undo()
        scored(worker, recipe())  # and the worker works on


HF = {"name": "hf", "args": {"dtype": "float32"}}


class TestBackends:
    """The same candidates, loaded from a folder by a model class of lm-eval."""

    @pytest.mark.parametrize("options", [{}, {"apply_chat_template": True, "max_length": 24}])
    def test_scores_are_the_resident_models(self, make_worker: Any, recipe: Any, options: dict[str, Any]) -> None:
        live, other = make_worker(**options), make_worker(backend=HF, **options)
        for text in (recipe(), recipe("dare_ties", density=0.5)):
            expected, found = scored(live, text), scored(other, text)
            for task, documents in expected.scores.documents.items():
                for document, values in documents.items():
                    assert found.scores.documents[task][document] == pytest.approx(values, abs=1e-5)
        assert found.seconds.keys() == {"merge", "forward", "other"}

    def test_a_candidate_that_goes_on_is_loaded_once(
        self, make_worker: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from heterosis.evaluate import harness

        loaded: list[Path] = []
        load = harness.load_lm

        def counted(backend: str, args: Any, folder: Path, *rest: Any) -> Any:
            loaded.append(folder)
            return load(backend, args, folder, *rest)

        monkeypatch.setattr(harness, "load_lm", counted)
        worker = make_worker(backend=HF)
        halves = [{task: own[part] for task, own in DOCUMENTS.items()} for part in (slice(0, 6), slice(6, None))]
        parts = [scored(worker, recipe(), half).scores for half in halves]
        assert len(loaded) == 1
        assert parts[0].merged(parts[1]) == scored(make_worker(backend=HF), recipe()).scores
        assert not any(folder.exists() for folder in loaded)

    def test_what_a_backend_says_is_the_cause(self, make_worker: Any, recipe: Any) -> None:
        worker = make_worker(backend={"name": "hf", "args": {"dtype": "float33"}})
        failed = worker.score(recipe(), DOCUMENTS)
        assert isinstance(failed, Failure)
        assert "float33" in failed.cause

    def test_its_silence_is_watched_where_its_passes_can_be(
        self, make_worker: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import faulthandler

        beats: list[float] = []
        monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: beats.append(seconds))
        worker = make_worker(backend=HF)
        worker._setup = replace(worker._setup, silence=5.0)
        scored(worker, recipe())
        assert set(beats) == {5.0}


class TestBatchSizes:
    @pytest.mark.parametrize(
        ("asked", "device", "known"),
        [
            ({"batch_size": 4}, "cuda", 4),
            ({"batch_size": "auto"}, "cpu", 16),
            ({"batch_size": "auto"}, "cuda:1", None),
            ({"batch_size": "auto", "backend": "vllm"}, "cuda", "auto"),
        ],
    )
    def test_that_are_known_without_a_probe(
        self, toy_config: Callable[..., dict[str, Any]], asked: dict[str, Any], device: str, known: Any
    ) -> None:
        assert known_batch_size(EvolveConfig.parse(yaml.safe_dump(toy_config(**asked))), device) == known

    def test_a_probe_is_of_the_longest_request(
        self, make_worker: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from heterosis.evaluate.resident import ResidentModel

        asked: list[int] = []
        monkeypatch.setattr(ResidentModel, "largest_batch", lambda self, tokens: asked.append(tokens) or 64)
        longest = 5  # four words of the question and one of the answer
        assert make_worker({"toy_choice": [0, 1]}).probe(recipe()) == 64
        assert make_worker(DOCUMENTS).probe(recipe()) == 64
        assert asked == [longest, longest + 4]  # the other task has the model write five
        failed = make_worker().probe(recipe("tiess"))
        assert isinstance(failed, Failure)


def test_hugging_faces_evaluate_is_not_shadowed() -> None:
    """Started in a checkout, a process has the project's ``evaluate`` folder on its path."""
    root = Path(__file__).parents[2]
    code = "import heterosis.evaluate, evaluate; print(evaluate)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert "site-packages" in done.stdout, done.stderr


def test_a_candidate_that_goes_on_is_merged_once(
    make_worker: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heterosis.evaluate.candidates import CandidateLoader

    merged: list[str] = []
    load = CandidateLoader.load

    def counted(self: CandidateLoader, recipe: Recipe, origin: str = "") -> Any:
        merged.append(recipe.to_yaml())
        return load(self, recipe, origin)

    monkeypatch.setattr(CandidateLoader, "load", counted)
    first, other = recipe(), recipe(weights=(0.1, 0.9))
    halves = [{task: own[part] for task, own in DOCUMENTS.items()} for part in (slice(0, 6), slice(6, None))]
    worker = make_worker()
    parts = [scored(worker, first, half).scores for half in halves]
    assert len(merged) == 1
    assert parts[0].merged(parts[1]) == scored(make_worker(), first).scores
    scored(worker, other, halves[0])
    scored(worker, first, halves[0])
    assert len(merged) == 4


def test_a_failed_merge_leaves_nothing_to_go_on_with(make_worker: Any, recipe: Any) -> None:
    worker, good = make_worker(), recipe()
    first = scored(worker, good)
    assert isinstance(worker.score(recipe(weights=(float("inf"), 0.4)), DOCUMENTS), Failure)
    assert scored(worker, good).scores == first.scores


class TestModels:
    """What a worker on another machine finds of the models there."""

    @pytest.fixture
    def elsewhere(self, make_worker: Any, toy_models: dict[str, Path], tmp_path: Path) -> Callable[..., Worker]:
        def make(**hashes: Contents) -> Worker:
            setup = make_worker()._setup
            models = {str(toy_models[name]): digest for name, digest in hashes.items()}
            return Worker(replace(setup, run=str(tmp_path), models=models, machine="another"))

        return make

    @pytest.fixture
    def hashes(self, toy_models: dict[str, Path]) -> dict[str, Contents]:
        from heterosis.merge import open_checkpoint

        found = {name: open_checkpoint(str(path)) for name, path in toy_models.items()}
        return {name: model.contents for name, model in found.items()}

    def test_are_read_once_on_each_machine(
        self, elsewhere: Any, hashes: dict[str, Contents], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []
        differing = Worker._differing
        monkeypatch.setattr(
            Worker, "_differing", lambda self, models: read.extend(models) or differing(self, models)
        )
        first, second = elsewhere(**hashes), elsewhere(**hashes)
        assert first.check() is None
        assert len(read) == 3
        assert second.check() is None
        assert len(read) == 3
        other = dict.fromkeys(first._setup.models, Contents("0", "0"))
        assert (
            Worker(replace(first._setup, machine=this_machine(), models=other)).check() is None
        )  # the driver did

    @pytest.mark.parametrize(("key", "says"), [("weights", "weights"), ("settings", "config or tokenizer")])
    def test_that_differ_are_told(self, elsewhere: Any, hashes: dict[str, Any], key: str, says: str) -> None:
        for _ in range(2):
            found = elsewhere(**hashes | {"bob": hashes["bob"]._replace(**{key: 64 * "0"})}).check()
            assert isinstance(found, Failure)
            assert f"bob has other {says} here" in found.cause
            assert "ann" not in found.cause
        assert elsewhere(**hashes).check() is None

    @pytest.mark.parametrize(
        ("module", "cause"),
        [
            ("nosuch", r"the module nosuch of 'mymix': must be importable, but got \w+: No module .*; start"),
            ("heterosis.merge", "unknown method 'mymix'"),
        ],
    )
    def test_come_after_methods(self, elsewhere: Any, module: str, cause: str) -> None:
        worker = Worker(replace(elsewhere()._setup, methods={"mymix": module}))
        for found in (worker.check(), worker.probe("")):
            assert isinstance(found, Failure)
            assert re.search(f"merge_method: {cause}", found.cause)

    def test_that_are_missing_are_told(self, elsewhere: Any, tmp_path: Path) -> None:
        worker = elsewhere()
        missing = Worker(replace(worker._setup, models={str(tmp_path / "none"): Contents("0", "0")})).check()
        assert isinstance(missing, Failure)
        assert "no such model folder" in missing.cause

    def test_that_are_written_again_are_not_mixed_in(
        self, make_worker: Any, make_llama: Any, toy_models: dict[str, Path], tmp_path: Path
    ) -> None:
        """A worker that takes another's place reads them anew."""
        from heterosis.merge import open_checkpoint

        mine = make_llama(tmp_path / "mine", seed=5, noise_from=toy_models["base"])
        written = {str(mine): open_checkpoint(str(mine)).written}
        setup = replace(make_worker()._setup, machine=this_machine(), written=written)
        assert Worker(setup).check() is None
        config = mine / "config.json"
        config.write_text(config.read_text() + " ")
        found = Worker(setup).check()
        assert isinstance(found, Failure)
        assert "mine was written again since the search was started" in found.cause


def test_a_worker_whose_tasks_cannot_be_loaded_now_is_not_left_out(
    make_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next candidate tries again, and tells the cause."""
    setup = make_worker()._setup

    def away(config: EvolveConfig) -> Any:
        raise OSError("the Hub is away")

    monkeypatch.setattr("heterosis.evolve.workers.worker.task_set", away)
    worker = Worker(replace(setup, split=replace(setup.split, fingerprints={"toy_choice": {"documents": "0"}})))
    assert worker.check() is None


def test_a_worker_with_other_documents_is_left_out(make_worker: Any, toy_tasks: Path) -> None:
    setup, rows = make_worker()._setup, toy_tasks / "rows.json"
    split = replace(setup.split, fingerprints=task_set(setup.config).fingerprints())
    assert Worker(replace(setup, split=split)).check() is None
    before = rows.read_text()
    try:
        rows.write_text(before.replace("cat", "dog"))
        found = Worker(replace(setup, split=split)).check()
    finally:
        rows.write_text(before)
    assert isinstance(found, Failure)
    assert "toy_choice: its documents changed since" in found.cause
