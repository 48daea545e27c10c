"""``run.json``: what a run keeps for its later sessions, beside its config, its split and its record."""

import json
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PrivateAttr, ValidationError

from heterosis.errors import InputError
from heterosis.evolve.optimizers import Limits
from heterosis.evolve.record.files import RESTORE, STATE, read_mapping
from heterosis.merge.files import write_text


class ChosenOptimizer(BaseModel):
    """Who proposes in a stage.

    Attributes:
        name: As the registry has it.
        why: It was chosen.
        planned: Candidates of the stage, when that was.
        limits: Of the loss's terms, as they were known then; none in runs of earlier versions.
    """

    name: str
    why: str
    planned: int
    limits: tuple[Limits | None, ...] = ()


class Shortlist(BaseModel):
    """Who comes to the finals, from when they begin until the search goes on.

    Attributes:
        asks: Of the finalists.
        budgets: As of `EvolveConfig.budgets` then; with others the search goes on.
    """

    asks: list[int]
    budgets: dict[str, int | float | None]


class RunState(BaseModel):
    """What a run keeps. Nothing of it is there before the first session.

    Attributes:
        study: The study's name; it is made up when the run begins.
        seconds: Spent so far.
        baselines: What the search began with, as of `Baseline.to_plain`; None before.
        provenance: As of `Preflight.provenance`.
        control_points: As of `Preflight.control_points`.
        layers: Of each model.
        environment: What scores depend on, as of `run.environment`; empty before the first session.
        batch_size: That a probe has found.
        stage_ends: How many asks are counted when each stage ends; None before the baselines are known.
        optimizers: Who proposes in each stage that has begun.
        spent: The budget that ended the search, ``hours`` or ``max_documents``; None for the number of trials.
        sample: How many search documents of each task candidates meet before the best of them meet all; none
            where all race. None before the first session.
        shortlist: Of the last finals that have begun.
        reported: The last champion's ask, from when it is to meet held-out documents.
        holdout_reused: Whether held-out documents were used before what is reported on them was found.
    """

    study: str = ""
    seconds: float = 0.0
    baselines: list[dict[str, Any]] | None = None
    provenance: dict[str, Any] = {}
    control_points: tuple[int, ...] | None = None
    layers: int | None = None
    environment: dict[str, Any] = {}
    batch_size: int | None = None
    stage_ends: list[int] | None = None
    optimizers: dict[int, ChosenOptimizer] = {}
    spent: str | None = None
    sample: dict[str, int] | None = None
    shortlist: Shortlist | None = None
    reported: int | None = None
    holdout_reused: bool = False

    _folder: Path = PrivateAttr()

    @classmethod
    def load(cls, folder: Path) -> "RunState":
        """What earlier sessions have kept in a run folder.

        Raises:
            InputError: If the file is damaged.
        """
        path = folder / STATE
        try:
            state = cls.model_validate(read_mapping(path, RESTORE) if path.exists() else {})
        except ValidationError as error:
            raise InputError(f"{path}: is damaged; {RESTORE}") from error
        state._folder = folder
        return state

    @classmethod
    def begin(cls, folder: Path) -> "RunState":
        """The same, for a session; a first one names the study, which nobody would find again otherwise."""
        state = cls.load(folder)
        if not state.study:
            state.study = f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}"
            state.save()
        return state

    def save(self) -> None:
        """Make it durable."""
        write_text(self._folder / STATE, json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
