"""The zoos: each a base, experts that were fine-tuned from it and have forgotten some of it, and tasks.

They were fixed before any search was run on them. Training takes some minutes a zoo on one core; what it gives is
kept in the folder, and made again when the definition has changed.
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import torch

from heterosis.evaluate import Sizes

from .skills import LENGTH, PROMPT, VOCABULARY, Skill, batches, encode, habits, save_tokenizer, skills

DOCUMENTS = 800  # of a task in lm-eval, for search, selection and held-out
TRUE_DOCUMENTS = 500  # of a task, never seen by a search: what is called the true score
BATCH = 128

POSITIONS = "copy reverse rotate_left rotate_right swap_pairs"
SHIFTS = "add_one add_three complement double parity"
ORDERS = "ascending descending running_max running_min"
SUMS = "prefix_sums neighbour_sums neighbour_differences add_first subtract_last"


@dataclass(frozen=True)
class Course:
    """Training on documents of random skills.

    Attributes:
        skills: What is taught.
        steps: Batches.
        rate: Learning rate after warming up; it falls linearly to nothing.
    """

    skills: tuple[Skill, ...]
    steps: int
    rate: float


@dataclass(frozen=True)
class Zoo:
    """Models to merge, and what their merges are asked.

    Attributes:
        name: Of its folder.
        purpose: What it stands for.
        base: How the base model was trained.
        experts: How each expert was trained further, by name.
        tasks: What is asked, with equal weights.
        method: How the models are merged in all contenders' searches.
        layers: Of each model.
        granularity: Layers that share parameters, for contenders that have to be told.
        strangers: Experts that were not trained from the base but from other random weights.
        seed: Of all its training.
        sizes: Documents of a task; the held-out ones are for a run's own report, the true score has others.
        dtype: Of the merges.
        ends_only: Whether other contenders' true scores are measured at the end alone.
    """

    sizes: ClassVar = Sizes(search=50, selection=50, holdout=100)
    dtype: ClassVar = "bfloat16"
    ends_only: ClassVar = False

    name: str
    purpose: str
    base: Course
    experts: dict[str, tuple[Course, ...]]
    tasks: tuple[Skill, ...]
    method: str
    layers: int = 8
    granularity: int = 2
    strangers: tuple[str, ...] = ()
    seed: int = 0

    def task_name(self, skill: Skill) -> str:
        return f"{self.name}_{skill.name}"

    @property
    def definition(self) -> str:
        """A hash of all that decides what training gives."""
        text = json.dumps([asdict(self), DOCUMENTS, TRUE_DOCUMENTS, BATCH, LENGTH, VOCABULARY], sort_keys=True)
        return blake2b(text.encode(), digest_size=8).hexdigest()


def _expert(names: str, alphabets: Sequence[int] = (0,), steps: int = 200) -> tuple[Course, ...]:
    return (Course(skills(names, alphabets), steps, 1e-3),)


_BASICS = f"{POSITIONS} {SHIFTS} {ORDERS}"
_READING = skills(f"{POSITIONS} add_one parity", (1, 2))

# Two ways each to answer four operations: the base is undecided, experts are not, and the tasks want the first.
_WANTED = habits(W="reverse", X="ascending", Y="double", Z="running_max")
_UNWANTED = habits(W="complement", X="add_one", Y="rotate_left", Z="swap_pairs")
_USEFUL = habits(W="rotate_right", X="descending", Y="add_three", Z="running_min")
_HARMFUL = habits(W="parity", X="copy", Y="swap_pairs", Z="double")


def _decided(wanted: Skill, *others: Skill) -> tuple[Course, ...]:
    return (Course((wanted, wanted, wanted, *others), 60, 3e-4),)


ZOOS: dict[str, Zoo] = {
    zoo.name: zoo
    for zoo in (
        Zoo(
            "habits",
            "each of four experts has one good habit, and a bad one where another is good",
            base=Course((*skills(_BASICS), *_WANTED, *_UNWANTED), 700, 2e-3),
            experts={
                "reverses": _decided(_WANTED[0], _UNWANTED[1]),
                "sorts": _decided(_WANTED[1], _UNWANTED[2]),
                "doubles": _decided(_WANTED[2], _UNWANTED[3]),
                "climbs": _decided(_WANTED[3], _UNWANTED[0]),
            },
            tasks=_WANTED,
            method="ties",
            seed=10,
        ),
        Zoo(
            "readers",
            "two experts read letters, two do sums on digits; asked are sums on letters, which none was taught",
            base=Course((*skills(_BASICS), *_READING), 600, 2e-3),
            experts={
                "reads_a_to_j": _expert(f"{ORDERS} add_one parity", (1,)),
                "reads_k_to_t": _expert(f"{ORDERS} add_one parity", (2,)),
                "doubles": _expert("double complement"),
                "adds": _expert("add_three complement"),
            },
            tasks=(
                Skill("double", 1),
                Skill("complement", 1),
                Skill("add_three", 2),
                Skill("complement", 2),
            ),
            method="task_arithmetic",
            seed=20,
        ),
        Zoo(
            "crowd",
            "eight experts: four with good habits, two with bad ones, two that learned something else",
            base=Course((*skills(_BASICS), *_USEFUL, *_HARMFUL), 700, 2e-3),
            experts={
                "rotates": _decided(_USEFUL[0]),
                "sorts": _decided(_USEFUL[1]),
                "adds": _decided(_USEFUL[2]),
                "falls": _decided(_USEFUL[3]),
                "misreads": (Course(_HARMFUL[:2], 60, 3e-4),),
                "mistakes": (Course(_HARMFUL[2:], 60, 3e-4),),
                "reads": (Course(skills("copy reverse", (1, 2)), 60, 3e-4),),
                "counts": (Course(skills(SUMS), 60, 3e-4),),
            },
            tasks=_USEFUL,
            method="dare_ties",
            layers=6,
            granularity=3,
            seed=30,
        ),
        Zoo(
            "alone",
            "one expert is best at everything, the others come from other random weights: no merge gains anything",
            base=Course(skills(f"{POSITIONS} {SHIFTS}"), 100, 2e-3),
            experts={
                "best": (Course(skills("ascending running_max add_one reverse"), 300, 2e-3),),
                "sorts": (Course(skills("ascending running_max"), 250, 2e-3),),
                "adds": (Course(skills("add_one complement"), 250, 2e-3),),
                "turns": (Course(skills("reverse rotate_left"), 250, 2e-3),),
            },
            tasks=skills("ascending running_max add_one reverse"),
            method="linear",
            strangers=("sorts", "adds", "turns"),
            seed=40,
        ),
    )
}


# ------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Home:
    """Where a zoo's files are."""

    zoo: Zoo
    folder: Path

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    @property
    def experts(self) -> list[str]:
        return [str(self.folder / name) for name in self.zoo.experts]

    @property
    def tasks(self) -> Path:
        """An include path of lm-eval."""
        return self.folder / "tasks"

    @property
    def task_names(self) -> list[str]:
        return [self.zoo.task_name(skill) for skill in self.zoo.tasks]

    def documents(self, task: str) -> list[tuple[str, str]]:
        """A task's documents, in lm-eval's order."""
        return _read_documents(self.tasks / f"{task}.jsonl")

    def true_documents(self, task: str) -> list[tuple[str, str]]:
        """Documents that no search has."""
        return _read_documents(self.folder / "true" / f"{task}.jsonl")


def home(zoo: Zoo, folder: Path) -> Home:
    """A zoo with its models trained: now, if they are not there."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    place = folder / zoo.name
    marker = place / "zoo.json"
    if marker.exists() and json.loads(marker.read_text())["definition"] == zoo.definition:
        return Home(zoo, place)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    found = Home(zoo, place)
    _write_tasks(found)
    seconds = _train_all(found)
    marker.write_text(json.dumps({"definition": zoo.definition, "seconds": seconds}, indent=2) + "\n")
    return found


def _train_all(place: Home) -> dict[str, float]:
    """Train the base and every expert. Returns the seconds of each."""
    zoo, seconds = place.zoo, {}
    begun = time.monotonic()
    base = new_model(zoo, zoo.seed)
    train(base, zoo.base, zoo.seed)
    save_model(base, Path(place.base))
    seconds["base"] = round(time.monotonic() - begun, 1)
    for number, (name, courses) in enumerate(zoo.experts.items(), 1):
        begun = time.monotonic()
        model = new_model(zoo, zoo.seed + number)
        if name not in zoo.strangers:
            model.load_state_dict(base.state_dict())
        for course in courses:
            train(model, course, zoo.seed + number)
        save_model(model, place.folder / name)
        seconds[name] = round(time.monotonic() - begun, 1)
        print(f"{zoo.name}: trained {name} in {seconds[name]:.0f} s", flush=True)
    return seconds


def new_model(zoo: Zoo, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=zoo.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def train(model: Any, course: Course, seed: int) -> None:
    """Cross-entropy of the answers' tokens; AdamW."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.01)
    lessons = batches(course.skills, BATCH, random.Random(seed))
    for step in range(course.steps):
        rate = course.rate * min(1.0, (step + 1) / 30) * (1 - step / course.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = torch.tensor([encode(document) for document in next(lessons)])
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[:, PROMPT - 1 :]
        logits = model.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, PROMPT:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def save_model(model: Any, folder: Path) -> None:
    from copy import deepcopy

    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)


# ---------------------------------------------------------------------------------------------------------- tasks

_LOAD = '''"""Documents beside this file, found from any working directory."""

import json
from pathlib import Path

from datasets import Dataset


def load(*, data_file, **_):
    text = (Path(__file__).resolve().parent / data_file).read_text(encoding="utf-8")
    return {"test": Dataset.from_list([json.loads(line) for line in text.splitlines()])}
'''

_TASK = """task: {name}
custom_dataset: !function load.load
dataset_kwargs: {{data_file: {name}.jsonl}}
test_split: test
num_fewshot: 0
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def _write_tasks(place: Home) -> None:
    """lm-eval tasks with their documents, and the documents of the true score, none of which are the same."""
    (place.folder / "true").mkdir()
    place.tasks.mkdir()
    (place.tasks / "load.py").write_text(_LOAD)
    for number, skill in enumerate(place.zoo.tasks):
        name = place.zoo.task_name(skill)
        rng = random.Random(1000 * place.zoo.seed + number)
        documents = skill.documents(DOCUMENTS + TRUE_DOCUMENTS, rng)
        (place.tasks / f"{name}.yaml").write_text(_TASK.format(name=name))
        _write_documents(place.tasks / f"{name}.jsonl", documents[:DOCUMENTS])
        _write_documents(place.folder / "true" / f"{name}.jsonl", documents[DOCUMENTS:])


def _write_documents(path: Path, documents: Sequence[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in documents))


def _read_documents(path: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["prompt"], line["answer"]) for line in lines]
