"""What is found out before the night begins: models, space, tasks, documents; everything that can be refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from heterosis.errors import InputError
from heterosis.evaluate.harness import TaskSet
from heterosis.evaluate.splits import Sizes, Split, split_documents
from heterosis.evolve.baselines import Baseline
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.contamination import task_warnings
from heterosis.evolve.dimensions import Space
from heterosis.evolve.inspection import plan_search
from heterosis.evolve.objective import Objective
from heterosis.evolve.paths import PathSpace
from heterosis.evolve.space import SearchSpace
from heterosis.evolve.worker import task_set
from heterosis.merge import Checkpoint, ModelRef, Recipe, open_checkpoint


@dataclass(frozen=True)
class Preflight:
    """A config that was found to be sound.

    Attributes:
        config: The config.
        stages: Its spaces of parameters, coarse to fine.
        paths: Its space of layer paths, where these alone are searched.
        tasks: Its tasks, with their documents.
        split: Which documents go where.
        objective: What is maximised.
        parameters: Parameters of a candidate.
        checkpoints: Its models, the base included.
        warnings: What is odd, but no fault.
    """

    config: EvolveConfig
    stages: tuple[SearchSpace, ...]
    paths: PathSpace | None
    tasks: TaskSet
    split: Split
    objective: Objective
    parameters: int
    checkpoints: Mapping[ModelRef, Checkpoint]
    warnings: tuple[str, ...] = ()

    @property
    def space(self) -> SearchSpace:
        """The space of the first stage."""
        return self.stages[0]

    @property
    def spaces(self) -> tuple[Space, ...]:
        """What is searched, stage by stage, without the layer paths that come after parameters."""
        return (self.paths,) if self.paths else self.stages

    def baselines(self, extra: bool) -> list[Baseline]:
        """The baselines, with their points in the first space, and with ``extra`` common fixed recipes."""
        found = self.space.baselines(extra=extra)
        return [replace(b, values=self.paths.values_of(b.recipe)) for b in found] if self.paths else found

    def paths_after(self, champion: Recipe) -> PathSpace | None:
        """The last stage's space, where layer paths come after parameters."""
        section = self.config.genome.layer_paths
        if section is None or section.after is None:
            return None
        return PathSpace.after(self.space.config, champion, self.checkpoints)

    @property
    def control_points(self) -> tuple[int, ...] | None:
        """The control points of each stage, for later sessions of the run; None if layers are in groups."""
        points = tuple(stage.depth.points for stage in self.stages)
        return None if None in points or self.config.genome.smooth else tuple(n for n in points if n is not None)

    def provenance(self) -> dict[str, object]:
        """What makes a recipe complete beside its own keys: content hashes and revisions of the models."""
        models = {}
        for ref, checkpoint in self.checkpoints.items():
            models[str(ref)] = {"sha256": checkpoint.content_hash.removeprefix("sha256:")}
            if checkpoint.revision:
                models[str(ref)]["revision"] = checkpoint.revision
        return {"seed": self.config.seed, "models": models}


def preflight(config: EvolveConfig, control_points: Sequence[int] | None = None) -> Preflight:
    """Check all that a search of this config needs, reading headers and task data but no weights.

    Args:
        config: The config.
        control_points: As an earlier session of the run had them; None to choose them now.

    Raises:
        InputError: With every fault of the first kind that was found.
    """
    asked = config.genome
    names = [*asked.models, *([asked.base_model] if asked.base_model else [])]
    opened = {name: open_checkpoint(ModelRef.parse(name)) for name in dict.fromkeys(names)}
    # Recipes name the revision that is searched, so that they give the same model when the Hub's has moved on.
    pinned = {name: checkpoint.pinned for name, checkpoint in opened.items()}
    genome = asked.model_copy(
        update={
            "models": tuple(str(pinned[name]) for name in asked.models),
            "base_model": str(pinned[asked.base_model]) if asked.base_model else None,
        }
    )
    checkpoints = {pinned[name]: checkpoint for name, checkpoint in opened.items()}
    pinned_config = config.model_copy(update={"genome": genome})
    stages, plans = plan_search(pinned_config, checkpoints, control_points)
    alone = genome.layer_paths is not None and genome.layer_paths.after is None
    paths = PathSpace.from_config(pinned_config, checkpoints) if alone else None
    for plan in plans:
        if config.apply_chat_template and plan.tokenizer.chat_template is None:
            raise InputError(
                f"apply_chat_template: the tokenizer of {plan.donor.ref} has no chat template; write "
                "apply_chat_template: false"
            )
    tasks = task_set(config)
    sizes = Sizes(config.documents.search, config.documents.selection, config.documents.holdout)
    split = split_documents(tasks.groups(), sizes, config.documents.seed, tasks.fingerprints())
    warnings = task_warnings({name: tasks.source(name) for name in tasks.specs})
    objective = _objective(config, tasks)
    return Preflight(
        config, stages, paths, tasks, split, objective, plans[0].parameters, checkpoints, tuple(warnings)
    )


def _objective(config: EvolveConfig, tasks: TaskSet) -> Objective:
    weights, metrics, groups = {}, {}, {}
    for name, spec in tasks.specs.items():
        metric = tasks.metric(name)
        if spec.weight < 0 and not metric.higher_is_better:
            raise InputError(
                f"tasks: {name}: {metric.key} is known to be better when lower, and a negative weight would turn "
                f"that round; write weight: {-spec.weight:g}"
            )
        weights[name] = spec.weight if metric.higher_is_better else -spec.weight
        metrics[name] = metric.key
        groups[name] = dict(enumerate(tasks.documents(name).groups))
    return Objective(weights, metrics, groups, config.objective, config.constraints)
