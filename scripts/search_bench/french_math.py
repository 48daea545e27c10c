"""The French x Math example as a zoo: a real language model, three adapters, and sums asked in French.

Documents of the true score are of other pairs of operands than those that searches have. Nothing is trained: the
base model is what scripts/fetch_base_model.py fetches, the adapters are in configs/experts.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from heterosis.evaluate import Sizes, Split, TaskSet
from heterosis.evaluate.scores import PerDocument
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.workers.pool import Failure, Setup
from heterosis.evolve.workers.worker import Worker

from .scoring import PerTask, Unscorable, only

BASE = "models/smollm2-135m-instruct"
EXPERTS = ("math", "french", "spelling")
TASK, TRUE_TASK = "heterosis_arith_fr", "heterosis_arith_fr_true"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TRUE_DOCUMENTS = 150
SIZES = Sizes(search=32, selection=32, holdout=32)


@dataclass(frozen=True)
class Example:
    """What contenders need to know of it, as of a `Zoo`."""

    name: str = "french_math"
    purpose: str = "a language model's adapters add, read French numbers and spell; asked are sums in French"
    method: str = "task_arithmetic"
    layers: int = 30
    granularity: int = 15  # two groups, as in the quickstart
    sizes: Sizes = SIZES
    dtype: str = "float32"  # as in the quickstart: the adapters' deltas are finer than bfloat16's steps
    ends_only: bool = True

    @property
    def definition(self) -> str:
        """A hash of all that decides what is asked of whom."""
        digest = blake2b(repr((self, TRUE_DOCUMENTS)).encode(), digest_size=8)
        for name in ("data/arith_fr.jsonl", "_sums_yaml", "_common_yaml"):
            digest.update((CONFIGS / "tasks" / name).read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ExampleHome:
    """Where the example's files are; the same as a zoo's `Home`.

    Attributes:
        folder: Where its tasks are written to.
    """

    folder: Path
    zoo: Example = Example()

    base = BASE
    experts = tuple(f"{BASE}+configs/experts/{name}" for name in EXPERTS)
    task_names = (TASK,)

    @property
    def tasks(self) -> Path:
        return self.folder / "tasks"


def example_home(folder: Path) -> ExampleHome:
    """The example, with its documents divided: the last pairs of operands are for the true score."""
    place = ExampleHome(folder / Example.name)
    shutil.rmtree(place.tasks, ignore_errors=True)
    (place.tasks / "data").mkdir(parents=True)
    for name in ("_common_yaml", "_sums_yaml", "tasks.py"):
        shutil.copy(CONFIGS / "tasks" / name, place.tasks)
    lines = (CONFIGS / "tasks" / "data" / "arith_fr.jsonl").read_text(encoding="utf-8").splitlines()
    apart = {json.loads(line)["pair"] for line in lines[-TRUE_DOCUMENTS:]}
    parts: dict[str, list[str]] = {TASK: [], TRUE_TASK: lines[-TRUE_DOCUMENTS:]}
    parts[TASK] = [line for line in lines[:-TRUE_DOCUMENTS] if json.loads(line)["pair"] not in apart]
    for task, documents in parts.items():
        (place.tasks / "data" / f"{task}.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
        task_yaml = f"task: {task}\ninclude: _sums_yaml\ndataset_kwargs:\n  data_file: {task}.jsonl\n"
        (place.tasks / f"{task}.yaml").write_text(task_yaml)
    return place


class ExampleScorer:
    """Scores recipes on the example with heterosis' own worker, one thread; what was scored once is kept.

    Args:
        place: The example.
    """

    metric = "exact_match,sum"

    def __init__(self, place: ExampleHome) -> None:
        self.place = place
        config = EvolveConfig.parse(
            json.dumps(
                {
                    "models": list(place.experts),
                    "base_model": place.base,
                    "merge_method": place.zoo.method,
                    "tasks": [TASK, TRUE_TASK],
                    "include_path": str(place.tasks),
                    "apply_chat_template": False,
                    "batch_size": 32,
                }
            )
        )
        tasks = TaskSet([TASK, TRUE_TASK], include_path=place.tasks)
        everything = {task: list(range(tasks.documents(task).count)) for task in (TASK, TRUE_TASK)}
        nothing: dict[str, list[int]] = {task: [] for task in everything}
        self._true = {TRUE_TASK: everything[TRUE_TASK]}
        self._worker = Worker(Setup(config, Split(everything, nothing, nothing)), tasks)
        self._kept: dict[str, PerDocument] = {}
        self.checksum = ""

    def score(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerTask:
        """1 or 0 for each document, as of `measured`."""
        return only(self.metric, self.measured(recipe, documents))

    def measured(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerDocument:
        """The metrics of each document.

        Raises:
            Unscorable: If the recipe cannot be merged or scored.
        """
        kept = self._kept.setdefault(recipe, {TASK: {}, TRUE_TASK: {}})
        missing = {task: [d for d in ids if d not in kept[task]] for task, ids in documents.items()}
        if any(missing.values()):
            result = self._worker.score(recipe, {task: ids for task, ids in missing.items() if ids})
            if isinstance(result, Failure):
                raise Unscorable(result.cause)
            self.checksum = result.checksum
            for task, of in result.scores.documents.items():
                kept[task].update(of)
        return {task: {document: kept[task][document] for document in ids} for task, ids in documents.items()}

    def true_score(self, recipe: str) -> float:
        """The accuracy on documents that no search has."""
        (scores,) = self.score(recipe, self._true).values()
        return sum(scores.values()) / len(scores)

    def forget(self) -> None:
        """Drop the scores that were kept."""
        self._kept.clear()
