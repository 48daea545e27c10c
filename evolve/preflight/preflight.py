"""What is found out before the night begins: models, space, tasks, documents; everything that can be refused.

``heterosis evolve`` begins with it, and ``heterosis inspect`` shows it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from heterosis.errors import InputError, collecting, did_you_mean
from heterosis.evaluate.harness import TaskSet, check_backend
from heterosis.evaluate.splits import Sizes, Split, split_documents
from heterosis.evolve.baselines import RECIPES_BUDGET, Baseline, baselines_of
from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.judging.finals import finals_documents
from heterosis.evolve.judging.objective import Objective
from heterosis.evolve.judging.sampling import sample_of
from heterosis.evolve.preflight.contamination import task_warnings
from heterosis.evolve.record.state import RunState
from heterosis.evolve.space.dimensions import Space
from heterosis.evolve.space.genes import METHOD
from heterosis.evolve.space.paths import PathSpace
from heterosis.evolve.space.space import SearchSpace, control_points_of, stages_of
from heterosis.evolve.warm_start import seen_before, warm_starts
from heterosis.evolve.workers.pool import DocumentIds
from heterosis.evolve.workers.worker import task_set
from heterosis.merge import Checkpoint, MergePlan, ModelRef, Recipe, build_plan, open_checkpoint
from heterosis.merge.methods import methods, own_modules
from heterosis.merge.models.checkpoint import OpenModels, open_all
from heterosis.merge.models.layout import main_stack, stack_sizes

# Documents that a trial takes, baselines and selection included, as a share of the search documents. On the zoos
# of docs/search.md it was 0.65 with 26 trials, and 0.5 with 150.
SHARE_OF_TRIAL = 0.6


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
        sample: The search documents that all candidates meet, before the best of them meet all; none where they
            race.
        expected_trials: That the budgets pay for, about: what depends on the budget is chosen by them.
        plan: The first candidate's.
        checkpoints: Its models, the base included.
        warm: What a search that has not begun starts from, with points in its first space.
        warnings: What is odd, but no fault.
        held_out_seen: Whether runs that the search starts from have searched on its held-out documents.
    """

    config: EvolveConfig
    stages: tuple[SearchSpace, ...]
    paths: PathSpace | None
    tasks: TaskSet
    split: Split
    objective: Objective
    sample: DocumentIds
    expected_trials: int
    plan: MergePlan
    checkpoints: Mapping[ModelRef, Checkpoint]
    warm: tuple[Baseline, ...] = ()
    warnings: tuple[str, ...] = ()
    held_out_seen: bool = False

    @property
    def space(self) -> SearchSpace:
        """The space of the first stage."""
        return self.stages[0]

    @property
    def spaces(self) -> tuple[Space, ...]:
        """What is searched, stage by stage, without the layer paths that come after parameters."""
        return (self.paths,) if self.paths else self.stages

    def baselines(self) -> list[Baseline]:
        """What is scored first, with its points in the first space: baselines, then what the search starts from.

        Common fixed recipes are among the baselines if the budget is large.
        """
        return [*_baselines(self.space, self.paths, _with_recipes(self.expected_trials)), *self.warm]

    @property
    def most_finalists(self) -> int:
        """How many may be on the shortlist: parents, the uniform merge, the best other baseline, and candidates.

        These are the best few and the optimizer's mean, or twice as many of a front.
        """
        size = self.config.shortlisted(self.expected_trials)
        candidates = 2 * size if self.config.objective == "pareto" else size + 1
        return len(self.config.genome.models) + 2 + candidates

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

    def own_methods(self, baselines: Iterable[Baseline]) -> dict[str, str]:
        """The modules of all methods that the search may merge by and that are not heterosis' own."""
        given = [recipe for first in baselines for recipe in (first.recipe, *first.recipe.stages)]
        return own_modules({*self.config.genome.methods, *(recipe.merge_method for recipe in given)})

    def provenance(self, baselines: Iterable[Baseline]) -> dict[str, object]:
        """What makes a recipe complete beside its own keys.

        They are content hashes and revisions of the models, and the modules of `own_methods`.
        """
        models = {}
        for ref, checkpoint in self.checkpoints.items():
            models[str(ref)] = {"sha256": checkpoint.contents.weights}
            if checkpoint.revision:
                models[str(ref)]["revision"] = checkpoint.revision
        methods = self.own_methods(baselines)
        return {"seed": self.config.seed, "models": models, **({"methods": methods} if methods else {})}


def preflight(config: EvolveConfig, state: RunState | None = None, tasks: TaskSet | None = None) -> Preflight:
    """Check all that a search of this config needs, reading headers and task data but no weights.

    Args:
        config: The config.
        state: What an earlier session of the run has kept: its control points, its sample of documents, and
            baselines, for which `warm_start` is not read again.
        tasks: The config's, if they are loaded already.

    Raises:
        InputError: With the first faults of the models, of the backend and of the tasks.
    """
    faults: list[str] = []
    of_tasks: list[str] = []
    trials, kept = config.trials, state or RunState()
    starts = config.warm_start if kept.baselines is None else ()
    with collecting(of_tasks):
        loaded = tasks or task_set(config)
        objective = _objective(config, loaded)
        sizes = Sizes(config.documents.search, config.documents.selection, config.documents.holdout)
        split = split_documents(loaded.groups(), sizes, config.documents.seed, loaded.fingerprints())
        loaded.hold_back(split)
        finals = _least_finals(config, objective, split)
        most = None if config.max_documents is None else config.max_documents - finals
        sample = (
            sample_of(objective, split, config.racing, config.trials, most)
            if kept.sample is None
            else {task: split.search[task][:size] for task, size in kept.sample.items()}
        )
        trials = _expected_trials(config, split, finals, sample)
    with collecting(faults):
        pinned, checkpoints = _opened(config)
        stages, paths = _spaces(pinned, checkpoints, kept.control_points, trials)
        _check_filters(pinned.genome.filters, checkpoints)
        plan = _planned(pinned, checkpoints, stages, paths)
        _check_paths_after(pinned, stages[-1], checkpoints)
        _check_trials(config.trials, len(_baselines(stages[0], paths, extra=False)))
        known = _baselines(stages[0], paths, _with_recipes(trials))
        warm = warm_starts(starts, paths or stages[0], checkpoints, known)
        seen = list(seen_before(starts, split)) if not of_tasks else []
    with collecting(faults):
        if config.backend.name != RESIDENT:
            check_backend(config.backend.name, config.batch_size, config.max_length, config.backend.args)
    if faults or of_tasks:
        raise InputError(*faults, *of_tasks)
    warnings = [
        *task_warnings({name: loaded.source(name) for name in loaded.specs}),
        *_budget_warnings(config, split, finals),
        *(
            f"{baseline.name}: is no point of this space; it is scored, but no search begins there"
            for baseline in warm
            if baseline.values is None
        ),
        *seen,
    ]
    return Preflight(
        config,
        stages,
        paths,
        loaded,
        split,
        objective,
        sample,
        trials,
        plan,
        checkpoints,
        tuple(warm),
        tuple(warnings),
        held_out_seen=bool(seen),
    )


def _opened(config: EvolveConfig) -> tuple[EvolveConfig, dict[ModelRef, Checkpoint]]:
    """The models, and the config with the revisions that were found.

    Recipes name the revision that is searched, so that they give the same model when the Hub's has moved on.
    """
    asked = config.genome
    opened = open_all([*asked.models, *([asked.base_model] if asked.base_model else [])], open_checkpoint)
    pinned = {name: checkpoint.pinned for name, checkpoint in opened.items()}
    genome = asked.model_copy(
        update={
            "models": tuple(str(pinned[name]) for name in asked.models),
            "base_model": str(pinned[asked.base_model]) if asked.base_model else None,
        }
    )
    checkpoints = {pinned[name]: checkpoint for name, checkpoint in opened.items()}
    return config.model_copy(update={"genome": genome}), checkpoints


def _spaces(
    config: EvolveConfig,
    checkpoints: Mapping[ModelRef, Checkpoint],
    control_points: Sequence[int] | None,
    trials: int,
) -> tuple[tuple[SearchSpace, ...], PathSpace | None]:
    """A config's spaces of parameters, coarse to fine, and that of layer paths where these alone are searched.

    Raises:
        InputError: If a space cannot be had.
    """
    first = next(iter(checkpoints.values()))
    stack = main_stack(first.tensors, first.config)
    layers = stack_sizes(first.tensors).get(stack or "", 0)
    if layers < 1:
        raise InputError(f"genome.models: {first.ref} has no numbered layers; nothing can be grouped by depth")
    section, registry = config.genome.layer_paths, methods()
    paths = PathSpace.from_config(config, checkpoints) if section is not None and section.after is None else None
    if paths is None:
        _check_depths(checkpoints)
    points = control_points if control_points is not None else control_points_of(config, layers, registry, trials)
    return stages_of(config, layers, registry, points), paths


def _baselines(space: SearchSpace, paths: PathSpace | None, extra: bool) -> list[Baseline]:
    """The baselines, with their points in the space of paths if there is one.

    Models of several depths have none but themselves.
    """
    found = baselines_of(space, extra)
    if paths is None:
        return found
    one_depth = len(set(paths.encoding.layers.values())) == 1
    return [replace(b, values=paths.values_of(b.recipe)) for b in found if one_depth or b.kind == "parent"]


def _with_recipes(expected_trials: int) -> bool:
    """Whether a budget pays for common fixed recipes among the baselines."""
    return expected_trials >= RECIPES_BUDGET


def _planned(
    config: EvolveConfig,
    checkpoints: Mapping[ModelRef, Checkpoint],
    stages: Sequence[SearchSpace],
    paths: PathSpace | None,
) -> MergePlan:
    """The plan of the first candidate; it and the baselines can be merged.

    Raises:
        InputError: If a plan cannot be had, or a tokenizer lacks the chat template that is asked for.
    """
    open_model = OpenModels(checkpoints)  # a tokenizer may come from another model
    space = paths or stages[-1]
    start = space.values(space.initial)
    recipes = [("the first candidate", space.decode(start))]
    recipes += [
        (f"the first candidate with {method.name}", space.decode(start | {METHOD: method.name}))
        for method in (() if paths else stages[-1].methods[1:])
    ]
    recipes += [(baseline.name, baseline.recipe) for baseline in _baselines(stages[0], paths, extra=True)]
    plans = [build_plan(recipe, open_model, origin=name) for name, recipe in recipes]
    for plan in plans:
        if plan.tokenizer.folder is None:
            raise InputError(
                f"{plan.donor.ref}: has no tokenizer, so what has its tokens cannot be scored; add one to its "
                "folder, or write genome.tokenizer_source with a model that has one"
            )
        if config.apply_chat_template and plan.tokenizer.chat_template is None:
            others = (ref for ref, model in plan.checkpoints.items() if model.tokenizer.chat_template is not None)
            better = f"genome.tokenizer_source: {other}, or " if (other := next(others, None)) else ""
            raise InputError(
                f"apply_chat_template: the tokenizer of {plan.donor.ref} has no chat template; write {better}"
                "apply_chat_template: false"
            )
    return plans[0]


def _check_paths_after(
    config: EvolveConfig, space: SearchSpace, checkpoints: Mapping[ModelRef, Checkpoint]
) -> None:
    """Refuse layer paths after parameters that no merge of the space has: that stage begins late in a search."""
    section = config.genome.layer_paths
    if section is not None and section.after is not None:
        PathSpace.after(config, space.decode(space.values(space.initial)), checkpoints)


def _least_finals(config: EvolveConfig, objective: Objective, split: Split) -> int:
    """Documents that finals with a candidate take at least.

    Where the objective compares with all the parents, they and their uniform merge are finalists too.
    """
    models = len(config.genome.models)
    return finals_documents(split, models, models + 2 if objective.needs_parents else 0)


def _expected_trials(config: EvolveConfig, split: Split, finals: int, sample: DocumentIds) -> int:
    """Trials that the budgets pay for, about.

    Raises:
        InputError: If the documents would not reach for the parents and the finals.
    """
    most = config.max_documents
    if most is None:
        return config.trials
    search = split.size("search")
    least = search + finals  # at least one meets all search documents
    if most < least:
        raise InputError(
            f"max_documents: must be at least {least}, {search} for the search and {finals} for the finals of "
            f"champion, parents and uniform merge, but got {most}"
        )
    taken = sum(map(len, sample.values())) if sample else SHARE_OF_TRIAL * search
    return min(config.trials, max(1, round((most - finals) / taken)))


def _budget_warnings(config: EvolveConfig, split: Split, finals: int) -> Iterator[str]:
    """What to say of a budget of documents that baselines may use up."""
    most, first = config.max_documents, (len(config.genome.models) + 2) * split.size("search")
    if most is not None and most < first + finals:
        yield (
            f"max_documents: {most} may leave nothing for candidates; parents, their uniform merge and a first "
            f"candidate take up to {first}, the finals {finals}"
        )


def _check_trials(trials: int, least: int) -> None:
    """Refuse a budget that does not reach for the parents: nothing could be said of the others."""
    if trials < least:
        raise InputError(
            f"trials: must be at least {least}, as the parents and their uniform merge are scored first, but got "
            f"{trials}"
        )


def _check_filters(filters: Sequence[str], checkpoints: Mapping[ModelRef, Checkpoint]) -> None:
    """Refuse filters that no tensor fits: what they are to search has no effect."""
    names = {name for checkpoint in checkpoints.values() for name in checkpoint.tensors}
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    for i, text in enumerate(filters):
        if not any(text in name for name in names):
            raise InputError(f"genome.filters[{i}]: no tensor's name has {text!r}{did_you_mean(text, parts)}")


def _check_depths(checkpoints: Mapping[ModelRef, Checkpoint]) -> None:
    """Refuse models of different depth in one line, not in one for every tensor that only one of them has."""
    sizes = {ref: max(stack_sizes(model.tensors).values(), default=0) for ref, model in checkpoints.items()}
    (first, layers), *others = sizes.items()
    for ref, size in others:
        if size != layers:
            raise InputError(
                f"genome.models: layers must be equally many, but got {layers} in {first} and {size} in {ref}; "
                "name models of one depth"
            )


def _objective(config: EvolveConfig, tasks: TaskSet) -> Objective:
    weights, metrics, groups = dict[str, float](), dict[str, str](), dict[str, Mapping[int, str]]()
    lower = set[str]()
    for name, spec in tasks.specs.items():
        metric = tasks.metric(name)
        if spec.weight < 0 and not metric.higher_is_better:
            raise InputError(
                f"tasks: {name}: {metric.key} is known to be better when lower, and a negative weight would turn "
                f"that round; write weight: {-spec.weight:g}"
            )
        weights[name] = abs(spec.weight)
        if spec.weight < 0 or not metric.higher_is_better:
            lower.add(name)
        metrics[name] = metric.key
        groups[name] = dict(enumerate(tasks.documents(name).groups))
    if config.objective == "pareto" and sum(w > 0 for w in weights.values()) < 2:
        raise InputError("objective: pareto needs at least two tasks with a weight; write weighted, or add a task")
    if unknown := [name for name in config.constraints if name not in tasks.members]:
        raise InputError(
            *(f"constraints.{n}: is not one of the tasks{did_you_mean(n, tasks.members)}" for n in unknown)
        )
    constraints = {task: limit for name, limit in config.constraints.items() for task in tasks.members[name]}
    probable = frozenset(name for name in tasks.specs if tasks.gives_probability(name))
    return Objective(weights, metrics, groups, config.objective, constraints, frozenset(lower), probable)
