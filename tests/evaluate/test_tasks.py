"""The tasks in configs/tasks, with our harness and with plain lm-eval."""

import json
import re
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from heterosis.evaluate import Sizes, TaskSet, TaskSpec, split_documents

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "tasks"
SUMS = ["heterosis_arith_en", "heterosis_arith_fr"]
ALL = [*SUMS, "heterosis_numbers_fr", *(f"{t}_mc" for t in (*SUMS, "heterosis_numbers_fr"))]


def rows(task: str) -> list[dict[str, Any]]:
    name = task.removeprefix("heterosis_").removesuffix("_mc")
    text = (FOLDER / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class KnowsTheAnswers(LM):  # type: ignore[misc]
    """Answers in a sentence, or prefers the right choice; but to "Combien …" always wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = {row["question"]: row["answer"] for task in ALL for row in rows(task)}
        self.asked: list[Any] = []

    def question(self, prompt: str) -> str:
        match = re.fullmatch(r"Question: (.*)\nAnswer:", prompt)
        assert match is not None, prompt
        return match[1]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += requests
        questions = [self.question(request.args[0]) for request in requests]
        return [f" {'0 + 0 = 0' if q.startswith('Combien') else self.answers[q]}. 1 + 1 = 2" for q in questions]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += requests
        answers = []
        for prompt, choice in (request.args for request in requests):
            question = self.question(prompt)
            right = choice == f" {self.answers[question]}"
            answers.append((-9.0 if right == question.startswith("Combien") else 0.0, False))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def task_set() -> TaskSet:
    return TaskSet([TaskSpec(task) for task in ALL], include_path=[FOLDER])


def test_every_file_is_a_task() -> None:
    assert sorted(path.stem for path in FOLDER.rglob("*.yaml")) == sorted(ALL)


def test_at_least_1500_documents_one_per_pair(task_set: TaskSet) -> None:
    for task in ALL:
        documents = task_set.documents(task)
        assert documents.count >= 1500
        assert len(set(documents.groups)) == documents.count
        assert documents.groups[0].startswith("pair=")


def test_a_pair_is_in_the_same_part_of_every_task(task_set: TaskSet) -> None:
    split = split_documents(task_set.groups(), Sizes(50, 50, 50), seed=1)
    pairs = [{rows(task)[index]["pair"] for index in split.search[task]} for task in ALL]
    assert all(found == pairs[0] for found in pairs)


def test_metrics(task_set: TaskSet) -> None:
    keys = {task: task_set.metric(task).key for task in ALL}
    assert keys == {
        **dict.fromkeys(ALL[3:], "acc,none"),
        **dict.fromkeys(SUMS, "exact_match,sum"),
        "heterosis_numbers_fr": "exact_match,digits",
    }


def test_who_knows_the_answers_scores_one(
    task_set: TaskSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {task: list(range(12)) for task in ALL}
    task_set.build(documents)
    lm = KnowsTheAnswers()
    scores = task_set.score(lm, documents)

    monkeypatch.chdir(tmp_path)  # plain lm-eval finds the data from anywhere
    plain = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(ALL),
        limit=12,
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        bootstrap_iters=0,
    )
    for task in ALL:
        key = task_set.metric(task).key
        expected = 0.0 if "arith_fr" in task else 1.0
        assert scores.mean(task, key) == plain["results"][task][key] == expected

    settings = {request.task_name: request.args[1] for request in lm.asked if isinstance(request.args[1], dict)}
    assert settings["heterosis_arith_fr"] == {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
    assert settings["heterosis_numbers_fr"] == {"until": ["\n", "="], "max_gen_toks": 10, "do_sample": False}
