import json
import logging
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from heterosis.errors import InputError
from heterosis.evaluate import (
    Answer,
    NonFiniteScore,
    ResidentModel,
    Sizes,
    TaskSet,
    TaskSpec,
    harness,
    split_documents,
)
from heterosis.evaluate.scores import PROBABILITY

from ..pages import blocks


class FakeLM(LM):  # type: ignore[misc]
    """Answers every request by a function of its arguments, and keeps what it was asked."""

    def __init__(self, answer: Callable[..., Any] = lambda *_: "17") -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        assert disable_tqdm
        self.asked += [request.args for request in requests]
        answers = [self.answer(*request.args) for request in requests]
        for request in requests:
            request.args[1].clear()  # as some models do
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        self.asked += [request.args for request in requests]
        return [self.answer(*request.args) for request in requests]

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "|".join(f"{turn['role']}:{turn['content']}" for turn in chat_history)


@pytest.fixture(scope="module")
def resident(llama: Path) -> ResidentModel:
    return ResidentModel.from_folder(llama)


@pytest.mark.parametrize(
    "tasks", [["toy_generate"], ["toy_choice"], ["toy_generate", "toy_choice", "toy_filters"]]
)
def test_same_scores_as_plain_lm_eval(toys: Path, resident: ResidentModel, tasks: list[str]) -> None:
    documents = {task: [1, 4, 5, 11, 12, 20, 29] for task in tasks}
    task_set = TaskSet([TaskSpec(task) for task in tasks], include_path=[toys])
    task_set.build(split_documents(task_set.groups(), Sizes(), 0))
    scores = task_set.score(resident.lm(batch_size=3), documents)

    plain = lm_eval.simple_evaluate(
        model=resident.lm(batch_size=3),
        tasks=list(tasks),
        samples=documents,
        task_manager=TaskManager(include_path=str(toys), include_defaults=False),
        bootstrap_iters=0,
    )
    for task in tasks:
        expected: dict[int, dict[str, float]] = {document: {} for document in documents[task]}
        for sample in plain["samples"][task]:
            for metric in sample["metrics"]:
                if (key := f"{metric},{sample['filter']}") in task_set.metrics(task):
                    expected[sample["doc_id"]][key] = sample[metric]
            if task_set.gives_probability(task):
                logs = np.array([float(choice[0][0]) for choice in sample["resps"]])
                shares = np.exp(logs) / np.exp(logs).sum()
                expected[sample["doc_id"]][PROBABILITY] = pytest.approx(shares[int(sample["target"])])
        assert scores.documents[task] == expected
        key = task_set.metric(task).key
        assert scores.mean(task, key) == pytest.approx(plain["results"][task][key], abs=1e-12)
    if "toy_generate" in tasks:
        assert len(set(scores.values("toy_generate", "crc,none").values())) > 3  # it could have been different
    assert scores.forward_seconds > 0


@pytest.mark.parametrize("task", ["toy_generate", "toy_choice"])
def test_documents_that_lm_eval_shortens_are_counted(
    toys: Path, resident: ResidentModel, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    task_set = TaskSet([TaskSpec(task)], include_path=[toys])
    task_set.build({task: range(30)})
    counts = []
    for limit in range(12, 25):
        lm = resident.lm(batch_size=1, max_length=limit)
        shortened = 0
        for requests in task_set._tasks[task].requests.values():
            caplog.clear()
            for request in requests:
                getattr(lm, request.request_type)([harness._fresh(request)], disable_tqdm=True)
            shortened += any("truncat" in text.lower() for text in caplog.messages)
        assert task_set.shortened(lm) == {task: shortened}
        counts.append(shortened)
    assert (counts[0], counts[-1]) == (30, 0)
    assert set(counts) > {30, 0}


def test_other_parameters_other_scores(toys: Path, llama: Path) -> None:
    """Nothing is remembered from one candidate to the next, in either direction."""
    resident = ResidentModel.from_folder(llama)
    task_set = TaskSet([TaskSpec("toy_generate")], include_path=[toys])
    documents = {"toy_generate": list(range(8))}
    task_set.build(documents)
    before = task_set.score(resident.lm(4), documents)
    weight = resident.parameters["model.norm.weight"]
    saved = weight.clone()
    weight.copy_(saved.flip(0) + 1)
    weight[: len(weight) // 2] *= -1
    changed = task_set.score(resident.lm(4), documents)
    weight.copy_(saved)
    assert changed != before
    assert task_set.score(resident.lm(4), documents) == before


@pytest.mark.parametrize(("task", "each"), [("toy_generate", 1), ("toy_choice", 3), ("toy_filters", 3)])
def test_answers_are_counted_as_they_come(toys: Path, resident: ResidentModel, task: str, each: int) -> None:
    task_set = TaskSet([TaskSpec(task)], include_path=[toys])
    documents = {task: list(range(6))}
    task_set.build(documents)
    told: list[tuple[int, int]] = []
    lm = resident.lm(batch_size=2)
    scores = task_set.score(lm, documents, progress=lambda *how: told.append(how))
    assert told == [(done, 6 * each) for done in range(6 * each + 1)]
    assert task_set.score(lm, documents) == scores
    assert len(told) == 6 * each + 1  # who did not ask is not told


def test_repeats_and_filters(toys: Path) -> None:
    texts = iter(["0", "5", "5"] * 2)
    lm = FakeLM(lambda *_: next(texts))
    task_set = TaskSet([TaskSpec("toy_filters", metric="exact_match,vote")], include_path=[toys])
    task_set.build({"toy_filters": [0, 5]})
    scores = task_set.score(lm, {"toy_filters": [0, 5]})
    assert scores.documents["toy_filters"] == {
        0: {"exact_match,first": 1.0, "exact_match,vote": 0.0},
        5: {"exact_match,first": 0.0, "exact_match,vote": 1.0},
    }
    assert len(lm.asked) == 6


def test_answers_are_kept_of_the_documents_that_are_named(toys: Path) -> None:
    """What a model wrote, what the metric's filter made of it, or which choice the metric counts."""
    specs = [TaskSpec("toy_filters", metric="exact_match,vote"), TaskSpec("toy_choice", metric="acc_norm")]
    tasks = TaskSet([*specs, TaskSpec("toy_generate")], include_path=[toys])
    documents = {"toy_filters": [5], "toy_choice": [4, 11], "toy_generate": [2, 3]}
    tasks.build(documents)
    texts = iter(["0", "5", "5", "two", "three"])

    def answer(text: str, wanted: Any) -> Any:
        # 4: of "4", "5" and "16" the last is likeliest by its length only
        return next(texts) if isinstance(wanted, dict) else (-3.0 if len(wanted) > 2 else -2.0, False)

    keep = {"toy_filters": {5}, "toy_choice": {4}, "toy_generate": {3, 99}}
    scores = tasks.score(FakeLM(answer), documents, keep)
    assert scores.answers == {
        "toy_filters": {5: Answer("0", "5")},
        "toy_choice": {4: Answer("16")},
        "toy_generate": {3: Answer("three")},
    }
    assert scores.documents["toy_choice"][4]["acc_norm,none"] == 0.0  # "5" would be right
    texts = iter(["0", "5", "5", "two", "three"])
    without = tasks.score(FakeLM(answer), documents)
    assert without.answers == {}
    assert without.documents == scores.documents


def test_answers_that_cannot_be_told_cost_nothing(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = TaskSet([TaskSpec("toy_choice")], include_path=[toys])
    tasks.build({"toy_choice": [4]})
    monkeypatch.setattr("heterosis.evaluate.loaded_task.chosen", lambda *_: [][0])
    scores = tasks.score(FakeLM(lambda *_: (-1.0, False)), {"toy_choice": [4]}, {"toy_choice": [4]})
    assert scores.answers == {}
    assert scores.documents["toy_choice"].keys() == {4}


def test_scoring_twice_asks_the_same(toys: Path) -> None:
    task_set = TaskSet([TaskSpec("toy_generate")], include_path=[toys])
    task_set.build({"toy_generate": [0, 1]})
    asked: list[str] = []

    def answer(text: str, settings: dict[str, Any]) -> str:
        asked.append(f"{text} {settings['until']}")
        return ""

    for _ in range(2):
        task_set.score(FakeLM(answer), {"toy_generate": [1]})
    assert asked == ["Q: 1 and 1?\nA: ['\\n']"] * 2


def prompts(task_set: TaskSet, documents: list[int], **options: Any) -> list[str]:
    lm = FakeLM()
    task_set.build({"toy_generate": documents}, lm, **options)
    task_set.score(lm, {"toy_generate": documents})
    return [text for text, _ in lm.asked]


def test_few_shot_examples_depend_on_the_document_and_the_seed_only(toys: Path) -> None:
    task_set = TaskSet([TaskSpec("toy_generate", num_fewshot=2)], include_path=[toys])
    alone, together = prompts(task_set, [7]), prompts(task_set, list(range(12)))
    assert alone == [together[7]]
    assert alone[0].count("Q: ") == 3
    assert len({text.rsplit("Q: ", 1)[0] for text in together}) > 3  # not the same two for all documents
    other = TaskSet([TaskSpec("toy_generate")], include_path=[toys], num_fewshot=2, seed=1)
    assert prompts(other, list(range(12))) != together


def test_no_prompt_of_a_search_answers_a_document_that_is_held_back(toys: Path) -> None:
    """Where examples are of the documents that are asked."""
    (toys / "toy_examples.yaml").write_text(
        "task: toy_examples\ninclude: toy_generate.yaml\nfewshot_split: test\n"
    )
    task_set = TaskSet([TaskSpec("toy_examples", num_fewshot=3)], include_path=[toys])
    split = split_documents(task_set.groups(), Sizes(search=8, selection=6, holdout=9), 0)
    lm = FakeLM()
    task_set.build(split, lm)

    def asked(part: dict[str, list[int]]) -> list[list[str]]:
        lm.asked.clear()
        task_set.score(lm, part)
        return [text.removesuffix("\nA:").split("Q: ")[1:] for text, _ in lm.asked]

    held_back = {questions[-1] for part in (split.selection, split.holdout) for questions in asked(part)}
    examples = {text.split("\nA:")[0] for *own, _ in asked(split.documents()) for text in own}
    assert len(held_back) == 15
    assert len(examples) > 8
    assert not examples & held_back
    count = task_set.documents("toy_examples").count
    few = split_documents(task_set.groups(), Sizes(search=5, selection=20, holdout=count - 25), 0)
    with pytest.raises(
        InputError, match=r"^task 'toy_examples': num_fewshot: must be at most 4, its documents not"
    ):
        TaskSet([TaskSpec("toy_examples", num_fewshot=5)], include_path=[toys]).hold_back(few)


@pytest.mark.parametrize("split", ["train", "test"])
def test_more_examples_than_there_are(toys: Path, split: str) -> None:
    """Of the documents that are asked, none is an example of itself."""
    examples = f"task: toy_examples\ninclude: toy_generate.yaml\nfewshot_split: {split}\n"
    (toys / "toy_examples.yaml").write_text(examples)
    with pytest.raises(InputError, match=r"^task 'toy_examples': num_fewshot: must be at most \d+, its") as caught:
        TaskSet([TaskSpec("toy_examples", num_fewshot=10_000)], include_path=[toys])
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    task_set = TaskSet([TaskSpec("toy_examples", num_fewshot=most)], include_path=[toys])
    task_set.build({"toy_examples": [0]}, FakeLM())
    assert most == (5 if split == "train" else task_set.documents("toy_examples").count - 1)
    with pytest.raises(InputError, match="num_fewshot"):
        TaskSet([TaskSpec("toy_examples", num_fewshot=most + 1)], include_path=[toys])


def test_the_global_generators_are_left_as_they_were(toys: Path) -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    task_set = TaskSet([TaskSpec("toy_generate")], include_path=[toys])
    task_set.build({"toy_generate": [0]})
    assert random.random() == expected


def test_chat_template_and_system_instruction(toys: Path) -> None:
    task_set = TaskSet([TaskSpec("toy_generate", num_fewshot=1)], include_path=[toys])
    chat: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "Be brief."}
    [single] = prompts(task_set, [0], fewshot_as_multiturn=False, **chat)
    assert single.startswith("system:Be brief.|user:Q: ")
    assert single.endswith("Q: 0 and 0?\nA:")
    assert single.count("user:") == 1
    [turns] = prompts(task_set, [0], **chat)
    assert turns.count("user:") == 2
    assert turns.count("assistant:") == 1


def test_nan_likelihood(toys: Path) -> None:
    task_set = TaskSet([TaskSpec("toy_choice")], include_path=[toys])
    task_set.build({"toy_choice": [2, 3]})
    lm = FakeLM(lambda text, choice: (math.nan if "3 and" in text else -1.0, False))
    with pytest.raises(NonFiniteScore) as caught:
        task_set.score(lm, {"toy_choice": [2, 3]})
    assert (caught.value.task, caught.value.document) == ("toy_choice", 3)


def test_metrics_and_directions(toys: Path) -> None:
    task_set = TaskSet([TaskSpec("toy_choice", metric="acc_norm"), TaskSpec("toy_generate")], include_path=[toys])
    assert list(task_set.metrics("toy_choice")) == ["acc,none", "acc_norm,none"]
    assert task_set.metric("toy_choice").key == "acc_norm,none"
    assert task_set.metric("toy_choice").higher_is_better
    assert task_set.metric("toy_generate").key == "crc,none"
    assert not task_set.metric("toy_generate").higher_is_better


def test_all_faults_at_once(toys: Path) -> None:
    specs = [
        TaskSpec("toy_choice", metric="accuracy"),
        TaskSpec("toy_filters", metric="exact_match"),
        TaskSpec("toy_generate", metric="length,none"),
        TaskSpec("toy_rolling"),
        TaskSpec("toy_unsafe"),
    ]
    with pytest.raises(InputError) as caught:
        TaskSet(specs, include_path=[toys])
    assert caught.value.faults == (
        "task 'toy_choice': unknown metric 'accuracy'; valid: acc,none, acc_norm,none",
        "task 'toy_filters': metric 'exact_match' is ambiguous; valid: exact_match,first, exact_match,vote",
        "task 'toy_generate': unknown metric 'length,none'; valid: crc,none; not usable: length (aggregated by "
        "weighted_perplexity, not by the mean over documents)",
        "task 'toy_rolling': has no metric that can be used; not usable: word_perplexity (aggregated by "
        "weighted_perplexity, not by the mean over documents), byte_perplexity (aggregated by "
        "weighted_perplexity, not by the mean over documents), bits_per_byte (aggregated by bits_per_byte, not "
        "by the mean over documents); write one with aggregation: mean; for perplexity, with "
        "output_type: loglikelihood",
        "task 'toy_unsafe': runs code that the model writes, which a search does not; leave it out",
    )


def write_task(toys: Path, definition: str) -> TaskSpec:
    (toys / "toy_own.yaml").write_text(f"task: toy_own\ninclude: _common\ndoc_to_target: answer\n{definition}")
    return TaskSpec("toy_own")


LIKELIHOOD = "output_type: loglikelihood\nmetric_list: [{metric: perplexity, aggregation: mean%s}]\n"


@pytest.mark.parametrize("direction", ["", ", higher_is_better: false"])
def test_log_likelihoods_are_not_minimised(toys: Path, direction: str) -> None:
    """lm-eval's direction of ``perplexity``, lower, is that of exp(-mean), and not of what a document has."""
    spec = write_task(toys, LIKELIHOOD % direction)
    with pytest.raises(InputError, match=r"^task 'toy_own': metric_list: perplexity: higher must be"):
        TaskSet([spec], include_path=[toys])


def test_log_likelihoods_are_maximised(toys: Path) -> None:
    tasks = TaskSet([write_task(toys, LIKELIHOOD % ", higher_is_better: true")], include_path=[toys])
    tasks.build({"toy_own": [3]})
    scores = tasks.score(FakeLM(lambda *_: (-2.5, False)), {"toy_own": [3]})
    assert scores.values("toy_own", "perplexity,none") == {3: -2.5}
    assert tasks.metric("toy_own").higher_is_better


def test_the_guides_way_to_lower_a_perplexity(
    tmp_path: Path, resident: ResidentModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a function of the mean that is maximised."""
    [block] = (b for b in blocks("docs/first-search.md", "yaml") if "perplexity" in b.text)
    name = Path(block.title).stem
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{n} and {n}?", "choices": ["", str(2 * n)], "label": 1} for n in range(5)]
    Path(block.title).parent.mkdir()
    (Path(block.title).parent / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path(block.title).write_text(block.text)
    tasks = TaskSet([TaskSpec(name)], include_path=["my-tasks"])
    tasks.build({name: range(5)})
    scores = tasks.score(resident.lm(2), {name: range(5)})
    assert tasks._tasks[name].requests[3][0].args == ("3 and 3?", " 6")
    assert tasks.metric(name).higher_is_better

    Path(block.title).write_text(block.text.replace("aggregation: mean", "aggregation: perplexity"))
    manager = TaskManager(include_path="my-tasks", include_defaults=False)
    plain = lm_eval.simple_evaluate(resident.lm(2), tasks=[name], task_manager=manager, bootstrap_iters=0)
    key = tasks.metric(name).key
    assert math.exp(-scores.mean(name, key)) == pytest.approx(plain["results"][name][key])

    Path(block.title).write_text(block.text.replace("{{question}}", ""))
    running = TaskSet([TaskSpec(name)], include_path=["my-tasks"])
    running.build({name: [3]})
    assert running._tasks[name].requests[3][0].args == ("", " 6")
    assert running.score(resident.lm(2), {name: [3]}).mean(name, key) < 0


CHOICE = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"


@pytest.mark.parametrize(
    ("metric", "definition"),
    [
        ("bits_per_byte", "output_type: loglikelihood_rolling\n"),
        ("brier_score", CHOICE),
        ("f1", CHOICE),
        ("f1", "output_type: generate_until\n"),
        ("perplexity", CHOICE),
    ],
)
def test_metrics_that_need_their_own_aggregation(toys: Path, metric: str, definition: str) -> None:
    """lm-eval gives a document a pair, or nothing, and only an aggregation of its own makes a number of that."""
    own = f"{{metric: {metric}, aggregation: mean, higher_is_better: false}}"
    spec = write_task(toys, f"{definition}metric_list: [{own}]\n")
    with pytest.raises(
        InputError, match=rf"^task 'toy_own': .*not usable: {metric} \(gives no number for a document"
    ):
        TaskSet([spec], include_path=[toys])


@pytest.mark.parametrize(
    ("metric", "other", "task"),
    [
        ("likelihood", "acc", CHOICE),
        ("length", "crc", "output_type: generate_until\nprocess_results: !function toy.any_text_scores\n"),
        ("f1", "acc", "output_type: generate_until\nprocess_results: !function toy.f1\n"),
    ],
)
def test_a_value_that_is_no_number(toys: Path, metric: str, other: str, task: str) -> None:
    """It is told of the metric that is wanted, and left out of another; the task's own functions may give any."""
    with (toys / "toy.py").open("a") as file:
        file.write("\ndef f1(doc, results):\n    return {'f1': (0, 1), 'acc': 1.0}\n")
    metrics = (f"- {{metric: {name}, aggregation: mean, higher_is_better: true}}\n" for name in (metric, other))
    spec = write_task(toys, f"{task}metric_list:\n{''.join(metrics)}")

    def score(spec: TaskSpec) -> Any:
        tasks = TaskSet([spec], include_path=[toys])
        tasks.build({"toy_own": [3]})
        lm = FakeLM(lambda _, asked: "17" if isinstance(asked, dict) else (-1.0, False))
        return tasks.score(lm, {"toy_own": [3]})

    says = f"task 'toy_own': metric {metric},none: must be a number for each document, but got tuple; take another"
    with pytest.raises(InputError, match=f"^{says}"):
        score(spec)
    scores = score(replace(spec, metric=other))
    assert scores.documents["toy_own"][3].keys() - {PROBABILITY} == {f"{other},none"}


def test_a_task_that_runs_code_can_be_allowed(toys: Path) -> None:
    assert "toy_unsafe" in TaskSet([TaskSpec("toy_unsafe")], include_path=[toys], allow_code=True).specs


def test_a_task_is_named_once(toys: Path) -> None:
    with pytest.raises(InputError, match="task 'toy_choice': named twice"):
        TaskSet([TaskSpec("toy_choice"), TaskSpec("toy_choice")], include_path=[toys])


@pytest.mark.parametrize("as_path", [str, Path])
@pytest.mark.parametrize("tasks", ["toy_choice", TaskSpec("toy_choice"), ["toy_choice"], [TaskSpec("toy_choice")]])
def test_one_task_and_one_folder_need_no_list(toys: Path, tasks: Any, as_path: Any) -> None:
    assert list(TaskSet(tasks, include_path=as_path(toys)).specs) == ["toy_choice"]


def test_include_path_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"include_path: '.*nowhere' is not a folder"):
        TaskSet([TaskSpec("toy_choice")], include_path=[tmp_path / "nowhere"])


def test_a_task_that_cannot_be_loaded(toys: Path) -> None:
    (toys / "rows.json").unlink()
    with pytest.raises(InputError, match="task 'toy_choice': cannot be loaded: FileNotFoundError"):
        TaskSet([TaskSpec("toy_choice")], include_path=[toys])


def test_unknown_group_field(toys: Path) -> None:
    with pytest.raises(InputError, match="has no field 'topics'; did you mean 'topic'"):
        TaskSet([TaskSpec("toy_choice", group_by="topics")], include_path=[toys])


@pytest.mark.slow
def test_tags_and_unknown_tasks_need_lm_evals_own_index(toys: Path) -> None:
    with pytest.raises(InputError) as caught:
        TaskSet([TaskSpec("toys", weight=3.0, metric="acc,none"), TaskSpec("hellaswagg")], include_path=[toys])
    assert "task 'toy_filters': unknown metric 'acc,none'; valid: exact_match,first" in caught.value.faults[0]
    assert "task 'hellaswagg': unknown in lm-eval or " in caught.value.faults[1]
    assert caught.value.faults[1].endswith("; did you mean 'hellaswag'?")


def test_answers_that_are_no_choices_are_refused(toys: Path) -> None:
    path = toys / "toy_choice.yaml"
    path.write_text(path.read_text().replace("doc_to_target: label", "doc_to_target: lable"))
    with pytest.raises(InputError, match=r"task 'toy_choice': doc_to_target: must give a choice .* gives 'lable'"):
        TaskSet([TaskSpec("toy_choice")], include_path=[toys])


def test_the_users_own_tasks_are_suggested_first(toys: Path) -> None:
    with pytest.raises(InputError, match=r"; did you mean 'toy_choice'\?"):
        TaskSet([TaskSpec("toychoice")], include_path=[toys])


def test_templates_are_compiled_once_and_say_what_lm_eval_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"q": f" {n} {n % 3}\n", "options": ["no", "yes", "it's"], "right": n % 2} for n in range(12)]
    load = f"def load(**_):\n    import datasets\n    return {{'test': datasets.Dataset.from_list({rows!r})}}"
    (tmp_path / "own.py").write_text(load)
    chosen = {"output_type": "multiple_choice", "doc_to_choice": "{{options}}"}
    definitions: dict[str, dict[str, str]] = {
        "plain": {"doc_to_text": "Q: {{q}}", "doc_to_target": "{{right}}", **chosen},
        "filtered": {
            "doc_to_text": "{{q | regex_replace('[0-9]+', 'N')}}",
            "doc_to_target": "{{right}}",
            **chosen,
        },
        "beginnings": {"doc_to_text": "{{right}}", "doc_to_target": "{{q}}", **chosen},
        "written": {"doc_to_text": "q", "doc_to_target": "{{options}}", "output_type": "generate_until"},
    }
    for name, definition in definitions.items():
        metric = {"metric": "exact_match" if name == "written" else "acc"}
        whole = {"task": name, "test_split": "test", "metric_list": [metric], **definition}
        (tmp_path / f"{name}.yaml").write_text(f"custom_dataset: !function own.load\n{yaml.safe_dump(whole)}")
    tasks = TaskSet(list(definitions), include_path=[tmp_path])
    texts = {name: [tasks.text(name, n) for n in range(len(rows))] for name in definitions}
    compiled: list[str] = []
    by_lm_eval = lm_eval.utils.apply_template
    monkeypatch.setattr(
        lm_eval.utils, "apply_template", lambda text, doc: compiled.append(text) or by_lm_eval(text, doc)
    )
    for name, groups in tasks.groups().items():
        said = [(text.question, text.answer) for text in texts[name]]
        assert [groups.index(group) for group in groups] == [said.index(own) for own in said], name
    assert len(set(tasks.groups()["filtered"])) == 2
    assert set(compiled) == {definitions["filtered"]["doc_to_text"]}


def test_groups_and_fingerprints(tmp_path: Path, write_toys: Callable[..., Path]) -> None:
    def load(name: str, rows: list[dict[str, Any]] | None = None, group_by: str | None = None) -> TaskSet:
        folder = write_toys(tmp_path / name, rows)
        spec = TaskSpec("toy_choice", group_by=group_by)
        return TaskSet([spec], include_path=[folder])

    default = load("default")
    rows = json.loads((tmp_path / "default" / "rows.json").read_text())
    assert len(set(default.groups()["toy_choice"])) == default.documents("toy_choice").count == 30
    repeated = load("repeated", [*rows, rows[4]])
    groups = repeated.groups()["toy_choice"]
    assert groups[30] == groups[4]  # the same content is one group
    # An id does not make the same question another one, in whatever order its choices stand.
    with_ids = load("ids", [{**row, "id": n} for n, row in enumerate([*rows, rows[4]])]).groups()["toy_choice"]
    assert with_ids[30] == with_ids[4]
    assert len(set(with_ids)) == 30
    assert load("topics", rows, "topic").groups()["toy_choice"][:4] == ["topic=t0"] * 2 + ["topic=t1"] * 2
    assert load("again", rows).fingerprints() == default.fingerprints()
    assert load("changed", [{**rows[0], "answer": "no"}, *rows[1:]]).fingerprints() != default.fingerprints()


@pytest.mark.parametrize(
    ("file", "then", "now", "changed"),
    [
        ("toy_generate.yaml", "generation_kwargs:", "description: Think.\ngeneration_kwargs:", "description"),
        ("_common", "{{question}}", "{{question}} ", "doc_to_text"),
        ("toy.py", "import", "# of another version\nimport", None),
        ("toy.py", "import", "HELPS = 2\nimport", "process_results"),
    ],
)
def test_what_is_asked_is_in_the_fingerprint(
    toys: Path, file: str, then: str, now: str, changed: str | None
) -> None:
    def load() -> dict[str, str]:
        return TaskSet([TaskSpec("toy_generate")], include_path=[toys]).fingerprints()["toy_generate"]

    before = load()
    assert load() == before
    text = (toys / file).read_text()
    assert then in text
    (toys / file).write_text(text.replace(then, now, 1))
    after = load()
    differing = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    assert changed in differing if changed else not differing


def test_a_file_that_is_no_yaml_is_named(toys: Path) -> None:
    (toys / "bad.yaml").write_text("task: toy_bad\n  x: [\n")
    with pytest.raises(InputError, match=r"bad\.yaml: line \d: is not valid YAML: "):
        TaskSet([TaskSpec("toy_bad")], include_path=[toys])
    TaskSet([TaskSpec("toy_choice")], include_path=[toys])  # who does not ask for it can do without it


def test_nothing_is_printed(toys: Path, resident: ResidentModel, capfd: pytest.CaptureFixture[str]) -> None:
    task_set = TaskSet([TaskSpec("toy_generate"), TaskSpec("toy_choice")], include_path=[toys])
    documents = {"toy_generate": [0], "toy_choice": [0]}
    task_set.build(documents)
    task_set.score(resident.lm(batch_size=1), documents)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").getEffectiveLevel() <= logging.WARNING  # for everyone else, as it was


def test_texts_are_what_documents_ask(toys: Path) -> None:
    row = json.loads((toys / "rows.json").read_text())[3]
    (toys / "toy_ending.yaml").write_text(
        "task: toy_ending\ninclude: _common\noutput_type: multiple_choice\n"
        'doc_to_text: label\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    names = ("toy_choice", "toy_generate", "toy_ending")
    tasks = TaskSet([TaskSpec(name) for name in names], include_path=[toys])
    choice, generate, ending = (tasks.text(name, 3) for name in names)
    assert choice.question == generate.question == f"Q: {row['question']}\nA:"
    assert list(choice.choices) == list(ending.choices) == row["choices"]
    assert choice.answer == ending.answer == row["choices"][row["label"]]
    assert (generate.choices, generate.answer) == ((), str(row["answer"]))
    assert ending.question == f"… {row['answer']}"
