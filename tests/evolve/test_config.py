"""The config file: what it accepts, what it says about mistakes, and what counts as the same search."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig, Racing
from heterosis.evolve.config.ranges import Span

MERGEKIT_EVOLVE = """
genome:
  models:
    - org/math
    - org/code
  merge_method: dare_ties
  base_model: org/base
  tokenizer_source: base
  layer_granularity: 8
  normalize: true
  allow_negative_weights: false
  smooth: false
  filters: [self_attn, mlp]
tasks:
  - name: arithmetic
    weight: 0.25
    metric: exact_match,none
  - translation
limit: 128
num_fewshot: 3
shuffle: true
random_init: false
apply_chat_template: false
fewshot_as_multiturn: false
"""


def plain(**changes: Any) -> dict[str, Any]:
    data = {
        "genome": {"models": ["a", "b"], "merge_method": "task_arithmetic", "base_model": "base"},
        "tasks": ["task"],
    }
    for key, value in changes.items():
        if isinstance(value, dict) and key == "genome":
            value = data["genome"] | value  # type: ignore[operator]
        data[key] = value
    return data


def parse(data: dict[str, Any]) -> EvolveConfig:
    return EvolveConfig.parse(yaml.safe_dump(data))


def faults(data: dict[str, Any] | str) -> list[str]:
    with pytest.raises(InputError) as caught:
        EvolveConfig.parse(data if isinstance(data, str) else yaml.safe_dump(data))
    return list(caught.value.faults)


def test_reads_a_file_of_mergekit_evolve_as_it_is() -> None:
    config = EvolveConfig.parse(MERGEKIT_EVOLVE)
    assert config.genome.models == ("org/math", "org/code")
    assert config.genome.base_model == "org/base"
    assert config.genome.filters == ("self_attn", "mlp")
    assert config.genome.layer_granularity == 8
    assert [(t.name, t.weight, t.metric) for t in config.tasks] == [
        ("arithmetic", 0.25, "exact_match,none"),
        ("translation", 1.0, None),
    ]
    assert (config.limit, config.num_fewshot, config.shuffle) == (128, 3, True)
    assert (config.apply_chat_template, config.fewshot_as_multiturn) == (False, False)
    assert config.documents.search == 128


def test_mergekit_accepts_the_same_file() -> None:
    evo = pytest.importorskip("mergekit.evo.config")
    theirs = evo.EvolMergeConfiguration.model_validate(yaml.safe_load(MERGEKIT_EVOLVE))
    assert [str(m) for m in theirs.genome.models] == list(EvolveConfig.parse(MERGEKIT_EVOLVE).genome.models)


def test_defaults_are_mergekit_evolves() -> None:
    evo = pytest.importorskip("mergekit.evo.config")
    data = plain()
    theirs = evo.EvolMergeConfiguration.model_validate(data)
    ours = parse(data)
    for key in ("limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn"):
        assert getattr(ours, key) == getattr(theirs, key), key
    for key in ("normalize", "allow_negative_weights", "smooth", "tokenizer_source"):
        assert getattr(ours.genome, key) == getattr(theirs.genome, key), key
    assert ours.genome.layer_granularity is None  # not 0: a config that says nothing leaves it to the search


def test_our_own_keys() -> None:
    config = parse(
        plain(
            genome={
                "dtype": "torch.float32",
                "out_dtype": "bfloat16",
                "ranges": {"weight": [-1, 2], "lambda": [0.5, 2]},
            },
            documents={"search": 10, "selection": 20, "holdout": 30, "group_by": "pair", "seed": 4},
            include_path="tasks",
            batch_size=4,
            optimizer={"name": "random"},
            trials=7,
            hours=1.5,
            workers=2,
            seed=9,
            finalists=3,
            max_length=512,
            timeout=60,
            failures={"max_failure_rate": 0.25},
        )
    )
    assert config.genome.dtype == "float32"
    assert config.genome.ranges == {"weight": {"*": Span(-1.0, 2.0)}, "lambda": {"*": Span(0.5, 2.0)}}
    assert config.include_path == ("tasks",)
    assert config.optimizer.name == "random"
    assert config.failures.max_failure_rate == 0.25
    assert config.documents.group_by == "pair"


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("{weight: 0.5}", {"*": Span(0.5, 0.5)}),
        ("{weight: {low: 1e-3, high: 1, log: true}}", {"*": Span(0.001, 1.0, True)}),
        ("{weight: {low: 0, high: 1}}", {"*": Span(0.0, 1.0)}),
        ("{weight: {math: [0, 1], '*': 1}}", {"math": Span(0.0, 1.0), "*": Span(1.0, 1.0)}),
        ("{weight: {org/math: [0, 1], mlp: [0, 2]}}", {"math": Span(0.0, 1.0), "mlp": Span(0.0, 2.0)}),
        ("{weight: {org/math/mlp: [0, 1]}}", {"math/mlp": Span(0.0, 1.0)}),
        ("{weight: {math/*: [0, 1]}}", {"math/*": Span(0.0, 1.0)}),
    ],
)
def test_ranges_have_several_forms(text: str, spans: dict[str, Span]) -> None:
    genome = {"models": ["org/math", "org/code"], "filters": ["mlp"], "ranges": yaml.safe_load(text)}
    config = parse(plain(genome=genome))
    assert config.genome.ranges == {"weight": spans}
    again = EvolveConfig.parse(config.to_yaml())
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_new_keys_of_a_search() -> None:
    config = parse(
        plain(
            genome={"merge_method": ["ties", "dare_linear"], "control_points": [1, 3, 5], "subset": 2},
            tasks=["x", "y"],
            objective="gain",
            constraints={"x": 0.01},
            racing={"first": 8, "factor": 1.5, "alpha": 0.1, "order": "random"},
            ordered=4,
            warm_start="runs/first",
            optimizer="auto",
        )
    )
    assert config.genome.methods == ("ties", "dare_linear")
    assert config.genome.control_points == (1, 3, 5)
    assert config.constraints == {"x": 0.01}
    assert config.racing == Racing(first=8, factor=1.5, alpha=0.1, order="random")
    assert config.warm_start == ("runs/first",)
    assert EvolveConfig.parse(config.to_yaml()) == config


def test_defaults_of_the_new_keys() -> None:
    config = parse(plain())
    assert (config.objective, config.optimizer.name) == ("weighted", "auto")
    assert config.racing == Racing(enabled=True, first=None, factor=2.0, alpha=0.2, order="informative")
    assert (config.constraints, config.ordered, config.warm_start) == ({}, 0, ())
    assert (config.genome.control_points, config.genome.subset) == (None, None)


@pytest.mark.parametrize("on", [True, False])
def test_racing_may_be_a_switch(on: bool) -> None:
    assert parse(plain(racing=on)) == parse(plain(racing={"enabled": on}))
    assert parse(plain(racing=on)).racing.enabled is on


def test_one_control_point_or_method_may_stand_in_a_list() -> None:
    assert parse(plain(genome={"control_points": 3})) == parse(plain(genome={"control_points": [3]}))
    assert parse(plain(genome={"merge_method": "ties"})) == parse(plain(genome={"merge_method": ["ties"]}))


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("{models: [a, b], tasks: [task]}", "linear"),
        ("{models: [a, b], base_model: base, tasks: [task]}", "task_arithmetic"),
        ("{models: [a, b], base_model: base, merge_method: ties, tasks: [task]}", "ties"),
        ("{genome: {models: [a, b]}, tasks: [task]}", "linear"),
        ("{genome: {models: [a, b], base_model: base}, tasks: [task]}", "task_arithmetic"),
    ],
)
def test_models_and_tasks_are_a_config(text: str, method: str) -> None:
    config = EvolveConfig.parse(text)
    assert config.genome.merge_method == method
    assert config.genome.models == ("a", "b")
    assert "genome" in yaml.safe_load(config.to_yaml())


def test_faults_of_a_short_config_name_its_own_keys() -> None:
    assert faults("{models: [a, a], tasks: [task], base_model: 3, trails: 3}") == [
        "config.yaml: models: each may be listed once, but got 'a' 2 times",
        "config.yaml: base_model: must be a model: a folder or an id such as org/name, but got 3",
        "config.yaml: trails: unknown key; did you mean 'trials'?",
    ]
    (line,) = faults("{models: [a, b], merge_method: ties}\n")
    assert line == "config.yaml: is a recipe, not a search config; run heterosis merge on it"


def test_task_search_path_means_include_path() -> None:
    assert parse(plain(task_search_path=["x", "y"])).include_path == ("x", "y")
    assert parse(plain(task_search_path="y", include_path=["x"])).include_path == ("x", "y")


def test_a_model_may_be_given_as_mergekits_mapping() -> None:
    models = [{"model": {"path": "a", "revision": "main"}, "lora": {"path": "x"}}, "b"]
    assert parse(plain(genome={"models": models})).genome.models == ("a@main+x", "b")


def test_an_optimizer_may_be_just_a_name() -> None:
    assert parse(plain(optimizer="random")) == parse(plain(optimizer={"name": "random"}))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (
            plain(genome={"layer_granularty": 2}),
            "genome.layer_granularty: unknown key; did you mean 'layer_granularity'?",
        ),
        (plain(trails=3), "trails: unknown key; did you mean 'trials'?"),
        (plain(tasks=[{"name": "x", "wieght": 2}]), "tasks[0].wieght: unknown key; did you mean 'weight'?"),
        (plain(documents={"serch": 3}), "documents.serch: unknown key; did you mean 'search'?"),
        (plain(genome={"models": []}), "genome.models: must list at least one entry, but is empty"),
        (plain(genome={"models": ["a", "a"]}), "genome.models: each may be listed once, but got 'a' 2 times"),
        (
            plain(genome={"models": ["a", "b+c+d"]}),
            "genome.models[1]: must be path, path@revision or path+adapter",
        ),
        (plain(genome={"base_model": None}), "genome.base_model: 'task_arithmetic' needs it"),
        (
            plain(genome={"models": ["base"]}),
            "genome.models: 'task_arithmetic' merges at least 1, but got 0 besides",
        ),
        (
            plain(genome={"merge_method": "tise"}),
            "genome.merge_method: unknown method 'tise'; did you mean 'ties'?",
        ),
        (
            plain(genome={"merge_method": "slerp", "models": ["a", "b", "c"], "base_model": None}),
            "genome.models: 'slerp' merges exactly 2, but got 3",
        ),
        (
            plain(genome={"merge_method": "slerp"}),
            "genome.models: 'slerp' merges exactly 2, but got 3 with the base",
        ),
        (plain(genome={"layer_granularity": -1}), "genome.layer_granularity: must be >= 0, but got -1"),
        (
            plain(genome={"filters": ["mlp", "mlp.up"]}),
            "genome.filters[1]: 'mlp.up' would never apply after 'mlp'",
        ),
        (plain(genome={"filters": ["*"]}), "genome.filters[0]: must be part of a tensor name, but got '*'"),
        (plain(genome={"dtype": "bf16"}), "genome.dtype: unknown dtype 'bf16'; did you mean 'bfloat16'?"),
        (
            plain(genome={"dtype": "torch.bf16"}),
            "genome.dtype: unknown dtype 'torch.bf16'; did you mean 'bfloat16'?",
        ),
        (
            plain(genome={"models": ["a", "\ud800"], "ranges": {"weight": {"c": 1}}}),
            "genome.ranges.weight.c: must be a model or a filter, or '*'; valid: *, a, \\ud800",
        ),
        (plain(genome={"ranges": {"weight": [2, 1]}}), "genome.ranges.weight: `low <= high` must hold"),
        (
            plain(genome={"ranges": {"weight": "two"}}),
            "genome.ranges.weight: must be a finite number, but got 'two'",
        ),
        (
            plain(genome={"ranges": {"weight": [1, 2, 3]}}),
            "genome.ranges.weight: must be a number, a range [low, high] or {low, high, log: true}, but got",
        ),
        (plain(genome={"ranges": {"weight": True}}), "genome.ranges.weight: must be a number, a range"),
        (plain(genome={"ranges": {"weight": {"low": 1}}}), "genome.ranges.weight: must be a number, a range"),
        (plain(genome={"ranges": {"weight": {}}}), "genome.ranges.weight: must hold at least one range, but is"),
        (plain(genome={"ranges": [1, 2]}), "genome.ranges: must be a mapping, but got [1, 2]"),
        (
            plain(genome={"ranges": {"weight": {"low": 0, "high": 1, "log": True}}}),
            "genome.ranges.weight: `0 < low` must hold on a log scale, but got [0.0, 1.0]",
        ),
        (
            plain(genome={"ranges": {"weight": {"low": 1, "high": 2, "log": "yes"}}}),
            "genome.ranges.weight: log must be true or false, but got 'yes'",
        ),
        (
            plain(genome={"ranges": {"weight": {"low": 1, "high": 2, "lgo": True}}}),
            "genome.ranges.weight: unknown key 'lgo'; did you mean 'log'?",
        ),
        (plain(genome={"ranges": {"weight": [0, ".inf"]}}), "genome.ranges.weight: must be a finite number"),
        (
            plain(genome={"ranges": {"weight": {"c": [0, 1], "*": [0, 2]}}}),
            "genome.ranges.weight.c: must be a model or a filter, or '*'; valid: *, a, b",
        ),
        (
            plain(genome={"ranges": {"weight": {"a": [2, 1]}}}),
            "genome.ranges.weight.a: `low <= high` must hold, but got [2.0, 1.0]",
        ),
        (
            plain(genome={"ranges": {"lambda": {"a": [0, 1]}}}),
            "genome.ranges.lambda.a: lambda belongs to the merge, not to a model; name filters only",
        ),
        (
            plain(genome={"models": ["x/a", "b"], "ranges": {"weight": {"a": [0, 1], "x/a": [0, 2]}}}),
            "genome.ranges.weight: a model is named twice, but gets one range",
        ),
        (
            plain(genome={"merge_method": "ties", "ranges": {"density": {"b": [0, 1.5]}}}),
            "genome.ranges.density.b: `0 <= density <= 1` must hold, but got density=1.5",
        ),
        (
            plain(genome={"merge_method": "karcher", "ranges": {"max_iter": [1, 2.5]}}),
            "genome.ranges.max_iter: must be between whole numbers, evenly, but got 2.5",
        ),
        (
            plain(genome={"merge_method": ["ties", "task_arithmetic"], "ranges": {"t": [0, 1]}}),
            "genome.ranges.t: unknown parameter of 'ties' or 'task_arithmetic'",
        ),
        (
            plain(genome={"merge_method": ["ties", "tise"]}),
            "genome.merge_method: unknown method 'tise'; did you mean 'ties'?",
        ),
        (plain(genome={"merge_method": []}), "genome.merge_method: must list at least one entry, but is empty"),
        (plain(genome={"merge_method": 3}), "genome.merge_method: must be a text or a list of texts, but got 3"),
        (
            plain(genome={"merge_method": ["ties", "ties"]}),
            "genome.merge_method: each may be listed once, but got 'ties' 2 times",
        ),
        (
            plain(genome={"merge_method": ["ties", "slerp"], "models": ["a", "b", "c"]}),
            "genome.models: 'slerp' merges exactly 2, but got 4 with the base model",
        ),
        (
            plain(genome={"control_points": 0}),
            "genome.control_points: must be a whole number from 1, or an ascending list of them, but got 0",
        ),
        (plain(genome={"control_points": [3, 2]}), "genome.control_points: must be a whole number from 1"),
        (plain(genome={"control_points": []}), "genome.control_points: must be a whole number from 1"),
        (plain(genome={"control_points": True}), "genome.control_points: must be a whole number from 1"),
        (
            plain(genome={"control_points": 3, "layer_granularity": 2}),
            "genome.control_points: must not be given beside layer_granularity",
        ),
        (
            plain(genome={"control_points": 3, "smooth": True}),
            "genome.control_points: must not be given beside smooth",
        ),
        (plain(genome={"subset": 0}), "genome.subset: must be >= 1, but got 0"),
        (plain(genome={"subset": 3}), "genome.subset: must be at most the number of models, 2, but got 3"),
        (
            plain(genome={"subset": 1, "merge_method": "nuslerp", "base_model": None}),
            "genome.subset: 'nuslerp' merges exactly 2, but got at most 1",
        ),
        (
            plain(genome={"subset": 2, "merge_method": "slerp", "models": ["a", "b", "c"]}),
            "genome.subset: 'slerp' merges exactly 2, but got at most 2 and the base",
        ),
        (plain(objective="best"), "objective: must be one of weighted, gain, worst, pareto, but got 'best'"),
        (plain(log_to=["mlfow"]), "log_to[0]: must be one of tensorboard, mlflow, wandb, but got 'mlfow'"),
        (
            plain(tasks=["task", "other"], objective="pareto", optimizer="cma"),
            "optimizer: cma takes one objective, but pareto has one for each task; write auto, or one of gp, ",
        ),
        (plain(constraints={"task": -0.1}), "constraints.task: must be >= 0, but got -0.1"),
        (plain(constraints={"task": True}), "constraints.task: must be a number, but got true"),
        (
            plain(tasks=[{"name": "task", "weight": 1e300}]),
            "tasks[0].weight: must be 0 or between 1e-09 and 1e+09 in magnitude, but got 1e+300",
        ),
        (plain(racing={"frist": 2}), "racing.frist: unknown key; did you mean 'first'?"),
        (plain(racing={"first": 0}), "racing.first: must be >= 1, but got 0"),
        (plain(racing={"factor": 1}), "racing.factor: must be > 1, but got 1"),
        (plain(racing={"alpha": 1.0}), "racing.alpha: must be < 1, but got 1.0"),
        (plain(racing={"order": "best"}), "racing.order: must be one of random, informative, but got 'best'"),
        (plain(racing="on"), "racing: must be a mapping, but got 'on'"),
        (plain(ordered=-1), "ordered: must be >= 0, but got -1"),
        (plain(ordered=True), "ordered: must be a number, but got true"),
        (plain(warm_start=[3]), "warm_start[0]: must be a text, but got 3"),
        (
            plain(genome={"ranges": {"weigth": [0, 1]}}),
            "genome.ranges.weigth: unknown parameter of 'task_arithmetic'",
        ),
        (plain(genome={"ranges": {"normalize": [0, 1]}}), "genome.ranges.normalize: unknown parameter of"),
        (
            plain(genome={"merge_method": "ties", "per_model": ["densty"]}),
            "genome.per_model[0]: must be a parameter that each model has in ties, but got 'densty'; did you mean",
        ),
        (plain(tasks=[]), "tasks: must list at least one entry, but is empty"),
        (plain(tasks=["x", "x"]), "tasks: each may be listed once, but got 'x' 2 times"),
        (
            plain(tasks=[{"name": "x", "weight": float("inf")}]),
            "tasks[0].weight: must be a finite number, but got inf",
        ),
        (
            plain(tasks=[{"name": "x", "weight": float("nan")}]),
            "tasks[0].weight: must be a finite number, but got nan",
        ),
        (plain(tasks=[{"name": "x", "weight": 0}]), "tasks: at least one weight must differ from 0"),
        (
            plain(limit=0.5),
            "limit: must be a number of documents, but got 0.5; give a count instead of a fraction",
        ),
        (plain(limit=True), "limit: must be a number, but got true"),
        (plain(limit=0), "limit: must be >= 1, but got 0"),
        (plain(limit=4, documents={"search": 5}), "documents.search: must agree with limit, but got 5 and 4"),
        (plain(optimizer="cam"), "optimizer.name: unknown optimizer 'cam'; did you mean 'cma'?"),
        (plain(optimizer={"popsize": 2}), "optimizer.popsize: must be >= 4, but got 2"),
        (plain(hours=-1), "hours: must be > 0, but got -1"),
        (plain(trials=2.5), "trials: must be a whole number, but got 2.5"),
        (plain(workers=True), "workers: must be a number, but got true"),
        (plain(seed=-1), "seed: must be >= 0, but got -1"),
        (plain(seed=2**64), f"seed: must be < {2**64}, but got {2**64}"),
        (plain(failures={"max_failure_rate": 2}), "failures.max_failure_rate: must be <= 1, but got 2"),
        (plain(shuffle="perhaps"), "shuffle: must be true or false, but got 'perhaps'"),
        (plain(include_path=[3]), "include_path[0]: must be a text, but got 3"),
        (plain(genome=None), "genome: must be a mapping, but got None"),
        ({"genome": plain()["genome"]}, "tasks: must be given"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_rule_and_remedy(data: dict[str, Any], fault: str) -> None:
    lines = faults(data)
    assert len(lines) == 1
    assert lines[0].startswith(f"config.yaml: {fault}")
    assert "\n" not in lines[0]


def test_all_faults_are_reported_at_once() -> None:
    lines = faults(plain(genome={"merge_method": "tise", "smoth": True}, limit=-1, tasks=["x", "x"], hurs=2))
    assert sorted(line.split(": ")[1] for line in lines) == [
        "genome.merge_method",
        "genome.smoth",
        "hurs",
        "limit",
        "tasks",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("genome: [", "config.yaml: line 1, column 10: not valid YAML"),
        ("", "config.yaml: must hold a mapping, but is empty"),
        ("- a", "config.yaml: must be a mapping, but got ['a']"),
        ("seed: 1\nseed: 2", "config.yaml: line 2: key 'seed' is given twice; keep one"),
        ("seed: !!python/object/apply:os.getcwd []", "config.yaml: line 1: tags such as"),
        ("1: 2", "config.yaml: keys must be texts, but got 1; quote it"),
        ("seed: 2026-13-45", "config.yaml: not valid YAML"),
    ],
)
def test_yaml_that_is_no_config(text: str, fault: str) -> None:
    (line,) = faults(text)
    assert line.startswith(fault)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such config file"):
        EvolveConfig.load(tmp_path / "nowhere.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"seed: \xe9")
    with pytest.raises(InputError, match=r"latin\.yaml: must be UTF-8 text, but byte 6 is not"):
        EvolveConfig.load(latin)


def test_the_dump_gives_the_same_config_again(tmp_path: Path) -> None:
    config = EvolveConfig.parse(MERGEKIT_EVOLVE)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = EvolveConfig.load(path)
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert again.fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"trials": 3},
        {"hours": 2.0},
        {"workers": 3},
        {"finalists": 2},
        {"timeout": 5.0},
        {"failures": {"max_failure_rate": 0.1}},
        {"log_to": ["mlflow"]},
        {"shuffle": True},
    ],
)
def test_budgets_do_not_change_the_fingerprint(change: dict[str, Any]) -> None:
    config = parse(plain())
    changed = config.updated(**change)
    assert changed != config
    assert changed.fingerprint() == config.fingerprint()
    assert changed.diff(config) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed: 1, was 0"),
        ({"batch_size": 4}, "batch_size: 4, was 16"),
        ({"batch_size": "auto"}, 'batch_size: "auto", was 16'),
        ({"backend": "hf"}, 'backend.name: "hf", was "resident"'),
        ({"documents": {"search": 5}}, "documents.search: 5, was null"),
        ({"tasks": [{"name": "task", "weight": 2}]}, "tasks[0].weight: 2.0, was 1.0"),
        ({"optimizer": "random"}, 'optimizer.name: "random", was "auto"'),
        ({"num_fewshot": 2}, "num_fewshot: 2, was null"),
        ({"objective": "worst"}, 'objective: "worst", was "weighted"'),
        ({"constraints": {"task": 0.5}}, "constraints.task: 0.5, was not there"),
        ({"racing": {"alpha": 0.1}}, "racing.alpha: 0.1, was 0.2"),
        ({"ordered": 4}, "ordered: 4, was 0"),
        ({"warm_start": ["runs/first"]}, 'warm_start: ["runs/first"], was []'),
        ({"include_path": ["x"]}, 'include_path: ["x"], was []'),
        ({"max_length": 64}, "max_length: 64, was null"),
        ({"system_instruction": "Be brief."}, 'system_instruction: "Be brief.", was null'),
    ],
)
def test_what_changes_a_score_changes_the_fingerprint(change: dict[str, Any], difference: str) -> None:
    config = parse(plain())
    changed = config.updated(**change)
    assert changed.fingerprint() != config.fingerprint()
    assert changed.diff(config) == [difference]


def test_a_new_range_shows_as_a_difference() -> None:
    before, after = parse(plain()), parse(plain(genome={"ranges": {"weight": [0, 1]}}))
    assert after.diff(before) == ["genome.ranges.weight: [0.0, 1.0], was not there"]
    assert before.diff(after) == ["genome.ranges.weight: not there, was [0.0, 1.0]"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"control_points": 3}, "genome.control_points: [3], was null"),
        ({"subset": 1}, "genome.subset: 1, was null"),
        ({"merge_method": ["ties", "sce"]}, 'genome.merge_method: ["ties", "sce"], was "task_arithmetic"'),
        ({"ranges": {"weight": 1}}, "genome.ranges.weight: 1.0, was not there"),
    ],
)
def test_what_changes_the_space_shows_as_a_difference(change: dict[str, Any], difference: str) -> None:
    assert parse(plain(genome=change)).diff(parse(plain())) == [difference]


def test_limit_and_search_documents_are_the_same_thing() -> None:
    assert parse(plain(limit=5)).fingerprint() == parse(plain(documents={"search": 5})).fingerprint()


def test_a_config_is_frozen_and_updates_are_checked() -> None:
    config = parse(plain())
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(InputError, match=r"^--trials: trials: must be >= 1, but got 0$"):
        config.updated("--trials", trials=0)
    with pytest.raises(InputError, match=r"^options: genome\.merge_method: unknown method 'tise'; did you mean"):
        config.updated(genome={"models": ["a", "b"], "merge_method": "tise"})
    assert config.updated(include_path=["x"]).include_path == ("x",)


def test_a_config_of_a_mapping_is_checked_like_a_file() -> None:
    short = {"models": [Path("m/a"), "m/b"], "merge_method": "linear", "tasks": "sums", "include_path": Path("t")}
    with pytest.raises(InputError, match=r"^config: tasks: must be a list"):
        EvolveConfig.from_dict(short)
    config = EvolveConfig.from_dict(short | {"tasks": ["sums"]})
    assert (config.genome.models, config.include_path) == (("m/a", "m/b"), ("t",))
    assert config == EvolveConfig.parse(config.to_yaml())


def test_options_add_to_lists_and_replace_the_rest() -> None:
    config = parse(plain(include_path=["a"], log_to=["mlflow"], seed=3))
    assert config.with_options(trials=None, include_path=(), log_to=None) is config
    changed = config.with_options(trials=7, include_path=Path("b"), log_to="wandb")
    assert changed == config.updated(trials=7, include_path=["a", "b"], log_to=["mlflow", "wandb"])
    assert config.with_options(include_path=["b", Path("c")]).include_path == ("a", "b", "c")


def test_one_model_alone_is_refused_where_weights_are_divided_by_their_sum() -> None:
    one = {"models": ["m/a"], "base_model": None, "merge_method": "linear"}
    with pytest.raises(InputError, match="one is divided by its own weight in linear"):
        parse(plain(genome=one))
    parse(plain(genome=one | {"normalize": False}))
    parse(plain(genome={"models": ["m/a"], "layer_paths": True}))


def test_the_valid_keys_are_listed_once() -> None:
    first, second = faults(plain(qqqq=1, zzzz=2))
    assert first.startswith("config.yaml: qqqq: unknown key; valid: apply_chat_template, ")
    assert second == "config.yaml: zzzz: unknown key"
