"""One lm-eval task with its documents: the requests that are made of them, and what comes of the answers."""

import copy
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from heterosis.errors import InputError
from heterosis.evaluate.answers import Answer, chosen
from heterosis.evaluate.documents import Documents, describe, digest, examples_are_asked, fingerprint_of, hash_of
from heterosis.evaluate.probability import has_probability, probability_of, tokens_added
from heterosis.evaluate.scores import PROBABILITY, Metric, NonFiniteScore, TaskSpec


@dataclass
class LoadedTask:
    """A task and its data.

    Attributes:
        spec: What the user asked of it, with the full key of its metric.
        task: lm-eval's.
        data: Its documents, as the task has them.
        hashes: Of their content.
        metrics: Those that can be used, by key.
        filters: lm-eval's pipelines of filters, by whose names metrics' keys end.
        requests: lm-eval's requests of the documents that were built.
    """

    spec: TaskSpec
    task: Any
    data: list[Any]
    hashes: list[str]
    metrics: dict[str, Metric]
    filters: Sequence[Any]
    requests: dict[int, list[Any]] = field(default_factory=dict)

    @cached_property
    def documents(self) -> Documents:
        """What they are known by; not needed to score them."""
        return describe(self.task, self.data, self.hashes, self.spec.group_by)

    @property
    def fingerprint(self) -> str:
        """A hash of the documents, in order."""
        return fingerprint_of(self.hashes)

    @property
    def metric(self) -> Metric:
        """The metric that was asked for."""
        assert self.spec.metric is not None
        return self.metrics[self.spec.metric]

    @cached_property
    def gives_probability(self) -> bool:
        """Whether scores have a `PROBABILITY` beside the metric that was asked for."""
        return PROBABILITY not in self.metrics and has_probability(self.task, self.metric.name)

    def hold_back(self, indices: Iterable[int]) -> None:
        """Leave documents out of the few-shot examples, if those are of the documents that are asked."""
        wanted = self.task.config.num_fewshot or 0
        if not wanted or not examples_are_asked(self.task):
            return
        held = {self.hashes[index] for index in indices}
        left = [document for document in self.task.fewshot_docs() if hash_of(document) not in held]
        most = max(0, len(left) - 1)  # without the document that is asked
        if wanted > most:
            raise InputError(
                f"task '{self.spec.name}': num_fewshot: must be at most {most}, its documents not held back for "
                f"selection and report, but got {wanted}; name others by fewshot_split"
            )
        self.task.sampler.replace_df(left)

    def build(
        self,
        index: int,
        seed: int,
        *,
        apply_chat_template: bool,
        fewshot_as_multiturn: bool,
        system_instruction: str | None,
        chat_template: Any,
    ) -> None:
        """Make the requests of a document; with the arguments of `TaskSet.build`, and the model's template."""
        # Not lm-eval's stream of random numbers: neither the few-shot examples nor what a task draws itself may
        # depend on the documents that were built before.
        own = int.from_bytes(digest(f"{seed}\0{self.hashes[index]}")[:4], "big")
        random.seed(own)
        np.random.seed(own)
        self.task.set_fewshot_seed(own)
        document, config = self.data[index], self.task.config
        context = self.task.fewshot_context(
            document,
            num_fewshot=config.num_fewshot or 0,
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            chat_template=chat_template,
            gen_prefix=self.task.doc_to_prefix(document),
        )
        requests = self.task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(self.spec.name, index, config.repeats),
            apply_chat_template=apply_chat_template,
            chat_template=chat_template,
        )
        self.requests[index] = requests if isinstance(requests, list) else [requests]

    def score(self, asked: Mapping[int, Sequence[Any]], lm: Any) -> dict[int, dict[str, float]]:
        """Filter the answers and compute every usable metric of each document, and its `PROBABILITY`.

        Args:
            asked: The answered requests of each document.
            lm: lm-eval's model, which has answered.

        Raises:
            InputError: If the metric gives no number, or none of all documents has it.
            NonFiniteScore: If it is not finite.
        """
        answers = [request for requests in asked.values() for request in requests]
        scored: dict[int, dict[str, float]] = {index: {} for index in asked}
        for pipeline in self.filters if answers else ():
            pipeline.apply(answers)
            for index, requests in asked.items():
                results = [r.filtered_resps[pipeline.name] for r in sorted(requests, key=lambda r: r.idx)]
                # A shallow copy, as lm-eval reads the document anew each time and tasks may add to it.
                found = self.task.process_results(copy.copy(self.data[index]), results)
                keyed = {f"{metric},{pipeline.name}": value for metric, value in found.items()}
                scored[index] |= self._numbers(index, {k: v for k, v in keyed.items() if k in self.metrics})
        for index, requests in asked.items() if self.gives_probability else ():
            ordered = sorted(requests, key=lambda r: r.idx)
            likelihoods, tokens = [r.resps[0][0] for r in ordered], partial(tokens_added, lm, *ordered[0].args)
            probability = probability_of(self.task, self.data[index], likelihoods, self.metric.name, tokens)
            if probability is not None:
                scored[index][PROBABILITY] = probability
        # Some tasks give it for some of their documents only, so that a part of them may have none.
        whole = len(scored) == len(self.requests) > 0
        if whole and not any(self.metric.key in own for own in scored.values()):
            given = ", ".join(sorted({key for own in scored.values() for key in own})) or "none"
            raise InputError(
                f"task '{self.spec.name}': metric {self.metric.key}: given for none of {len(scored)} documents; "
                f"take one that is given: {given}"
            )
        return scored

    def _numbers(self, index: int, values: Mapping[str, Any]) -> dict[str, float]:
        """A document's metrics, without other ones than what was asked for that are no finite numbers."""
        numbers = {}
        for key, value in values.items():
            wanted = key == self.metric.key
            try:
                finite = math.isfinite(value)
            except TypeError as error:
                if not wanted:
                    continue
                raise InputError(
                    f"task '{self.spec.name}': metric {key}: must be a number for each document, but got "
                    f"{type(value).__name__}; take another, or compute one in process_results"
                ) from error
            if finite:
                numbers[key] = float(value)
            elif wanted:
                raise NonFiniteScore(self.spec.name, index, float(value))
        return numbers

    def answers(self, asked: Mapping[int, Sequence[Any]]) -> dict[int, Answer]:
        """What the model wrote or chose, as the metric takes it; after `score`."""
        chooses = str(self.task.config.output_type) == "multiple_choice"
        answers = {}
        for index, requests in asked.items():
            first, *_ = requests = sorted(requests, key=lambda r: r.idx)
            if first.request_type == "generate_until":
                answers[index] = Answer.of(str(first.resps[0]), first.filtered_resps[self.metric.filter])
            elif chooses:
                try:
                    choices = list(map(str, self.task.doc_to_choice(copy.copy(self.data[index]))))
                    choice = chosen(choices, [r.resps[0][0] for r in requests], self.metric.name)
                except Exception:  # a task's functions may do anything, and the scores do not need this
                    continue
                answers[index] = Answer.of(choice, choice)
        return answers
