"""Score models with lm-eval tasks, document by document.

    scores.py       what is asked and what was scored: TaskSpec, Metric, Scores (plain data)
    probability.py  how probable a right answer is, where a task tells
    answers.py      what a model answered, for people to read
    splits.py       which documents are for searching, selecting and the final report
    documents.py    the documents of a task: what they are known by, and what they ask
    task_faults.py  what may be wrong with a task
    loaded_task.py  one task: its requests, and what comes of the answers
    harness.py      TaskSet: lm-eval tasks built once, scored often (the only file that imports lm_eval)
    resident.py     ResidentModel: a live model whose parameters a merge overwrites in place
    candidates.py   CandidateLoader: recipe after recipe in one live model
    backends.py     BackendLoader: recipe after recipe in a folder, from which a model class of lm-eval loads it
    room.py         this machine's memory, and folders that go with the process that holds them
    api.py          evaluate_model

Names that need torch or lm-eval are imported when first used, so importing this package loads neither.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterosis.evaluate.answers import Answer
from heterosis.evaluate.scores import Metric, NonFiniteScore, Scores, TaskSpec
from heterosis.evaluate.splits import Sizes, Split, split_documents

if TYPE_CHECKING:
    from heterosis.evaluate.api import evaluate_model
    from heterosis.evaluate.backends import BackendLoader, BackendModel
    from heterosis.evaluate.candidates import CandidateLoader
    from heterosis.evaluate.documents import Documents
    from heterosis.evaluate.harness import TaskSet, make_lm
    from heterosis.evaluate.resident import ModelMismatch, ResidentModel

_LAZY = {
    "BackendLoader": "backends",
    "BackendModel": "backends",
    "CandidateLoader": "candidates",
    "evaluate_model": "api",
    "Documents": "documents",
    "TaskSet": "harness",
    "make_lm": "harness",
    "ModelMismatch": "resident",
    "ResidentModel": "resident",
}

__all__ = [
    "Answer",
    "BackendLoader",
    "BackendModel",
    "CandidateLoader",
    "Documents",
    "Metric",
    "ModelMismatch",
    "NonFiniteScore",
    "ResidentModel",
    "Scores",
    "Sizes",
    "Split",
    "TaskSet",
    "TaskSpec",
    "evaluate_model",
    "make_lm",
    "split_documents",
]


def _hide_shadowing_folders() -> None:
    """Put import paths last on which ``evaluate`` would be this folder and not Hugging Face's package.

    Python and Ray put the current folder on the path; in a checkout of this project that one has such a folder,
    and lm-eval imports the package when a metric asks for it. Modules of one's own may lie there as well.
    """
    mine = Path(__file__).resolve().parent
    # Not sorted in place, while other threads that import would find it empty.
    sys.path[:] = sorted(sys.path, key=lambda path: (Path(path) / "evaluate").resolve() == mine)


_hide_shadowing_folders()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
