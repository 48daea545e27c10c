"""Which documents the search sees, which choose the champion, and which are kept for the report.

The split depends on the seed and the documents' groups only: every process computes the same one, under any
hash seed. A group is never divided, in one task or across tasks, so what a candidate was tuned on cannot
come back, reworded, in the documents that judge it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from heterosis.errors import InputError, collecting

Part: TypeAlias = Literal["search", "selection", "holdout"]
PARTS: tuple[Part, ...] = ("search", "selection", "holdout")
FRACTIONS = {"search": 0.5, "selection": 0.2, "holdout": 0.3}


@dataclass(frozen=True)
class Sizes:
    """Documents per task in each part; None takes a fraction of the task: 0.5, 0.2 and 0.3."""

    search: int | None = None
    selection: int | None = None
    holdout: int | None = None


@dataclass(frozen=True)
class Split:
    """Three disjoint lists of documents for each task, each in the seeded order of the shuffle.

    Any prefix of a list is a fair sample of it, so a race takes prefixes.

    Attributes:
        fingerprints: For each task, hashes when the split was made: of its documents, and of all that decides how
            they are asked and scored.
    """

    search: dict[str, list[int]]
    selection: dict[str, list[int]]
    holdout: dict[str, list[int]]
    fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)

    def size(self, part: str) -> int:
        """How many documents a part has, of all tasks."""
        return sum(map(len, getattr(self, part).values()))

    def documents(self) -> dict[str, list[int]]:
        """All documents of the three parts."""
        return {task: [d for part in PARTS for d in getattr(self, part)[task]] for task in self.search}

    def check(self, fingerprints: Mapping[str, Mapping[str, str]], origin: str = "splits.json") -> None:
        """Compare with the tasks as they are now: scores of others could not be compared.

        Raises:
            InputError: If a task was added or removed, or its documents or its definition have changed.
        """
        faults = []
        for task in sorted(self.fingerprints.keys() | fingerprints.keys()):
            then, now = self.fingerprints.get(task), fingerprints.get(task)
            if then == now:
                continue
            if then is None or now is None:
                what = "is gone" if now is None else "was added"
            else:
                changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
                what = f"its {', '.join(changed)} changed since"
            faults.append(f"{origin}: {task}: {what}; restore the task or start in a new run folder")
        if faults:
            raise InputError(*faults)

    def to_json(self) -> str:
        """What `load` reads from a file."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of what `to_json` gives.

        Raises:
            InputError: If the file is not a saved split.
        """
        try:
            read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**read)
            if not all(isinstance(own, dict) for own in found.fingerprints.values()):
                raise ValueError("fingerprints of an earlier version")
            return found
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: not a saved split ({error}); start in a new run folder") from error


def split_documents(
    groups: Mapping[str, list[str]],
    sizes: Sizes,
    seed: int,
    fingerprints: Mapping[str, Mapping[str, str]] | None = None,
) -> Split:
    """Divide the tasks' documents into search, selection and held-out documents.

    Groups are taken in a random order, each to the part that can use most of its documents, the earlier part
    when equal. So where every task has one document per group, asking for more held-out documents leaves the
    other two parts as they are.

    Args:
        groups: For each task, the group of each document; equal names mean one group, across tasks too.
        sizes: How many documents of each task go where. A number is kept exactly; a fraction as far as
            groups of several documents let it.
        seed: Of the order.
        fingerprints: Saved with the split, for `Split.check`.

    Raises:
        InputError: If a task has too few documents.
    """
    faults: list[str] = []
    lacking: dict[str, dict[str, int]] = {part: {} for part in PARTS}
    for task, names in groups.items():
        with collecting(faults):
            for part, number in _wanted(task, len(names), sizes).items():
                lacking[part][task] = number
    if faults:
        raise InputError(*faults)

    members: dict[str, dict[str, list[int]]] = {}
    for task, names in groups.items():
        for document, name in enumerate(names):
            members.setdefault(name, {}).setdefault(task, []).append(document)

    parts: dict[str, dict[str, list[int]]] = {part: {task: [] for task in groups} for part in PARTS}
    for name in sorted(members, key=lambda name: blake2b(f"{seed}\0{name}".encode()).digest()):
        group = members[name]
        useful = {
            part: sum(min(len(documents), lacking[part][task]) for task, documents in group.items())
            for part in PARTS
        }
        part = max(PARTS, key=useful.__getitem__)
        if not useful[part]:
            continue
        for task, documents in group.items():
            parts[part][task] += documents
            lacking[part][task] = max(0, lacking[part][task] - len(documents))

    for part in PARTS:
        size: int | None = getattr(sizes, part)
        for task, names in groups.items():
            found = parts[part][task]
            if len(found) < (1 if size is None else size):
                faults.append(
                    f"{task}: sizes.{part}: {_asked(size)}, but only {len(found)} of the task's {len(names)} "
                    "documents can be used: groups of documents stay together; ask for fewer"
                )
            elif size is not None:
                del found[size:]
    if faults:
        raise InputError(*faults)
    return Split(**parts, fingerprints={task: dict(own) for task, own in (fingerprints or {}).items()})


def _wanted(task: str, count: int, sizes: Sizes) -> dict[str, int]:
    """How many of a task's `count` documents each part is to get."""
    fixed: dict[str, int] = {part: size for part, size in asdict(sizes).items() if size is not None}
    for part, size in fixed.items():
        if size < 0:
            raise InputError(f"{task}: sizes.{part}: `size >= 0` must hold, but got {size}")
    rest = count - sum(fixed.values())
    free = [part for part in PARTS if part not in fixed]
    if rest < len(free):
        asked = ", ".join(f"{_asked(fixed.get(part))} for {part}" for part in PARTS)
        raise InputError(f"{task}: has {count} documents, too few for the split: {asked}; ask for fewer")
    # A fraction is one of all documents, or of the rest when what is asked for in numbers leaves less.
    whole = min(float(count), rest / sum(FRACTIONS[part] for part in free)) if free else 0.0
    wanted, taken = dict(fixed), 0.0
    for part in free:
        wanted[part] = max(1, round(whole * (taken + FRACTIONS[part])) - round(whole * taken))
        taken += FRACTIONS[part]
    while free and sum(wanted.values()) > count:  # of few documents, each part has one at least
        wanted[max(free, key=wanted.__getitem__)] -= 1
    return wanted


def _asked(size: int | None) -> str:
    return "at least 1" if size is None else str(size)
