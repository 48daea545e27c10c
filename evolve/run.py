"""A run: what all its sessions work on, made by the first of them and found again by the others."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from heterosis.errors import InputError
from heterosis.evaluate.splits import Split
from heterosis.evolve.baselines import Baseline
from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.judging.referee import Referee
from heterosis.evolve.preflight.preflight import Preflight
from heterosis.evolve.record.files import SPLITS
from heterosis.evolve.record.folder import RunFolder
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.storage import study_url
from heterosis.evolve.workers.worker import known_batch_size
from heterosis.merge.files import write_text


@dataclass(frozen=True)
class Run:
    """What a run is made of.

    Attributes:
        checked: Its config, and what that comes to.
        folder: Where it is.
        state: What its sessions keep for each other.
        split: Of its documents.
        baselines: That its search begins with.
        record: Who was asked what, and what came of it.
        referee: Says what scores amount to.
    """

    checked: Preflight
    folder: RunFolder
    state: RunState
    split: Split
    baselines: list[Baseline]
    record: Record
    referee: Referee

    @property
    def config(self) -> EvolveConfig:
        """As this session has it: budgets may change."""
        return self.checked.config

    @classmethod
    def open(
        cls,
        checked: Preflight,
        folder: RunFolder,
        storage: str | None,
        device: str,
        wait_on: Callable[[str], bool],
    ) -> "Run":
        """Begin a run in a folder, or go on with the one that is there.

        Args:
            checked: The config.
            folder: The run folder.
            storage: Optuna storage URL; None for SQLite in the folder.
            device: Where the workers' models live.
            wait_on: As of `StudyWriter`.

        Raises:
            InputError: If new scores could not be compared with those there, or the storage cannot be used.
        """
        path, config = folder.path, checked.config
        splits = path / SPLITS
        if splits.exists():
            split = Split.load(splits)
            split.check(checked.tasks.fingerprints(), str(splits))
        else:
            split = checked.split
        state = RunState.begin(path)
        baselines = _baselines(checked, state)
        state.provenance = checked.provenance(baselines)
        state.control_points, state.layers = checked.control_points, checked.space.depth.n_layers
        state.holdout_reused |= checked.held_out_seen
        _check_environment(folder, state, environment(checked, state, device))
        dimensions = [dimension for own in checked.spaces for dimension in own.dimensions]
        record = Record(
            path,
            storage or study_url(path),
            state.study,
            dimensions,
            len(checked.objective.names),
            guard=folder.check,
            wait_on=wait_on,
        )
        if state.sample is None:  # in runs of versions without samples all go on racing
            state.sample = {} if record.asks else {task: len(own) for task, own in checked.sample.items()}
        sample = checked.sample if state.sample else {}
        referee = Referee(record, checked.objective, split, config.racing, sample)
        folder.adopt(config)
        if not splits.exists():
            write_text(splits, split.to_json())
        state.save()
        return cls(checked, folder, state, split, baselines, record, referee)


def _baselines(checked: Preflight, state: RunState) -> list[Baseline]:
    """What the search begins with, as when the run did: an optimizer starts from it when a run goes on."""
    if state.baselines is None:
        state.baselines = [b.to_plain() for b in checked.baselines()]
    return [Baseline.from_plain(plain) for plain in state.baselines]


def environment(checked: Preflight, state: RunState, device: str) -> dict[str, Any]:
    """What scores depend on beside the config: versions, batch size (None before a probe), models' contents."""
    config = checked.config
    contents = {str(ref): checkpoint.contents for ref, checkpoint in checked.checkpoints.items()}
    packages = {"heterosis": "heterosis", "torch": "torch", "transformers": "transformers", "lm_eval": "lm-eval"}
    packages |= {"cma": "cma", "numpy": "numpy"}
    return {
        **{key: version(package) for key, package in packages.items()},
        "seed": config.seed,
        "batch_size": state.batch_size or known_batch_size(config, device),
        "device": device,
        **_backend(config.backend.name),
        "models": {name: own.weights for name, own in contents.items()},
        "settings": {name: own.settings for name, own in contents.items()},
    }


def _backend(name: str) -> dict[str, str]:
    """The backend, if it is not the usual one, with the version of the package of that name, if there is one."""
    if name == RESIDENT:
        return {}
    try:
        return {"backend": f"{name} {version(name)}"}
    except PackageNotFoundError:
        return {"backend": name}


def _check_environment(folder: RunFolder, state: RunState, now: dict[str, Any]) -> None:
    """Refuse to mix scores that other versions, batch sizes or models may have shifted."""
    then = state.environment = state.environment or now
    of_models = {"models": "other weights", "settings": "another config or tokenizer"}
    differing = [
        f"{key}: {then.get(key)} then, {now[key]} now"
        for key in now
        if key not in of_models and then.get(key) != now[key]
    ]
    for key, says in of_models.items():
        known = then.get(key, now[key])  # settings were not kept at first
        changed = [name for name, sha in now[key].items() if known.get(name) != sha]
        differing += [f"models: {', '.join(changed)}: {says}"] if changed else []
    if differing:
        raise InputError(
            f"{folder.path}: its scores cannot be compared with new ones ({'; '.join(differing)}); "
            "restore that, or choose another --run-dir"
        )
