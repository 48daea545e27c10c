"""Contamination: what is searched on although others report it, and what to do instead.

A search is training. Its three-way split of the documents keeps *luck* out of the report: the held-out gain is
real for documents like those that were searched on. It does not make a score on a published benchmark comparable
with scores of models that were never tuned on that benchmark's questions.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from heterosis.words import some

if TYPE_CHECKING:
    from heterosis.evaluate.documents import Source

# Parts of the names of tasks and data sets; what is short must stand alone.
_BENCHMARK = re.compile(
    "mmlu|hendrycks|agieval|gsm8k|mgsm|hellaswag|winogrande|truthful_?qa|bigbench|openbookqa|leaderboard"
    "|humaneval|triviaqa|lambada|minerva_math|(?<![a-z])(?:ai2_arc|arc|piqa|bbh|gpqa|mbpp|ifeval|boolq|musr)(?![a-z])"
)


def benchmark_of(*names: str) -> str | None:
    """The well-known benchmark that a name is of, if it is of one and not of its training split."""
    for name in names:
        found = _BENCHMARK.search(name.lower())
        if found and not name.endswith("_train"):
            return found.group()
    return None


def task_warnings(sources: Mapping[str, "Source"]) -> list[str]:
    """Warnings about loaded tasks, by where their documents come from."""
    found: dict[str, list[str]] = {}
    warnings = []
    for task, source in sources.items():
        if source.split.startswith("train"):
            continue
        if benchmark := benchmark_of(task, source.dataset):
            found.setdefault(benchmark, []).append(task)
        elif source.kind == "test" and source.others:
            other = source.others[0]
            warnings.append(
                f"tasks: {task}: its documents are the {source.split!r} split, which others report, though there "
                f"is a {other} split; search on a copy of the task without test_split, whose validation_split is "
                f"that one, and score the champion on {task} once"
            )
    return [*(_benchmark_warning(names) for names in found.values()), *warnings]


def _benchmark_warning(tasks: list[str]) -> str:
    return (
        f"tasks: {some(tasks, 1)}: a well-known benchmark; a champion chosen by it has no comparable score there, "
        "though its held-out gain is no luck; search on a task of your own or on the training split, and "
        "score the champion on the benchmark once"
    )
