"""Layer paths: what points decode to, and that such a recipe runs, is exported and merges to the same model."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.errors import InputError
from heterosis.evaluate import CandidateLoader
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.space.paths import PathSpace
from heterosis.evolve.space.space import SearchSpace
from heterosis.merge import ModelRef, Recipe, merge_models, open_checkpoint
from heterosis.merge.methods import methods

from ..merge.architectures import ARCHITECTURES, build, load, logits, save

Zoo = Callable[..., list[str]]

LLAMA = {
    "input_layernorm.weight": (8,),
    "self_attn.o_proj.weight": (8, 8),
    "mlp.down_proj.weight": (8, 16),
}


def shapes(layers: int, inside: Mapping[str, tuple[int, ...]] = LLAMA, rows: int = 32) -> Any:
    """A model of which only names and shapes are looked at."""
    named = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in inside.items()}
    named |= {"model.embed_tokens.weight": (rows, 8), "model.norm.weight": (8,)}
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in named.items()}
    return SimpleNamespace(tensors=tensors, config={"num_hidden_layers": layers})


def config_of(models: Sequence[str], section: Mapping[str, Any] | bool, **keys: Any) -> EvolveConfig:
    genome = {"models": list(models), "layer_paths": section, **keys.pop("genome", {})}
    return EvolveConfig.parse(yaml.safe_dump({"genome": genome, "tasks": ["task"], **keys}))


def space(
    *layers: int, models: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None, **section: Any
) -> PathSpace:
    """Paths through models ``m/a``, ``m/b``, ... with so many layers."""
    made = models or {f"m/{name}": shapes(n) for name, n in zip("abc", layers, strict=False)}
    return PathSpace.from_config(
        config_of(list(made), section, **(config or {})),
        {ModelRef.parse(name): model for name, model in made.items()},
    )


def start(subject: PathSpace, **changes: Any) -> dict[str, Any]:
    """The first point with some values changed; ``jump_2`` stands for ``jump/2``, and makes that jump active."""
    active = {f"active/{key[5:]}": 1 for key in changes if key.startswith("jump_")}
    return subject.values(subject.initial) | active | {k.replace("_", "/"): value for k, value in changes.items()}


def runs(recipe: Recipe) -> list[tuple[Any, ...]]:
    """(model, first, behind the last, factor of the output projections) of every slice."""
    found = []
    for slice_ in recipe.slices or []:
        (source,) = slice_.sources
        scale = source.parameters.get("scale")
        if scale is not None:
            assert isinstance(scale, list)
            assert [entry.get("filter") for entry in scale] == ["o_proj", "down_proj", None]
            assert scale[0]["value"] == scale[1]["value"]
            assert scale[2]["value"] == 1.0
        name = str(source.model).removeprefix("m/")
        found.append((name, *source.layer_range, scale[0]["value"] if isinstance(scale, list) else 1.0))
    return found


# --- points and recipes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("indicators", [False, True])
def test_a_search_starts_with_the_first_model_whole(indicators: bool) -> None:
    subject = space(6, 4, indicators=indicators)
    assert runs(subject.decode(start(subject))) == [("a", 0, 6, 1.0)]


def test_dimensions_say_what_each_segment_does() -> None:
    names = [dimension.name for dimension in space(8, 8, segments=2).dimensions]
    assert names == ["model/1", "layers/1", "scale/1", "active/2", "jump/2", "model/2", "scale/2", "embeddings"]
    assert [d.name for d in space(8, segments=2, scale=1).dimensions] == ["layers/1", "active/2", "jump/2"]
    one = space(8, 8, segments=2, embeddings="b", scale=1)
    assert [d.name for d in one.dimensions] == ["model/1", "layers/1", "active/2", "jump/2", "model/2"]
    line = space(1, 2, indicators=True, repeats=2, scale=1, embeddings="a").dimensions
    assert [d.name for d in line][:3] == ["use/1/a/layers.0", "use/1/b/layers.0", "use/1/b/layers.1"]
    assert len(line) == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"jump_2": -4, "layers_1": 6}, [("a", 0, 6, 1.0), ("a", 2, 8, 1.0)]),  # upscaling by repeated layers
        ({"jump_3": 2}, [("a", 0, 5, 1.0), ("a", 7, 8, 1.0)]),  # pruning
        ({"jump_3": 2, "active_3": 0}, [("a", 0, 8, 1.0)]),
        ({"model_2": "b"}, [("a", 0, 3, 1.0), ("b", 3, 5, 1.0), ("a", 5, 8, 1.0)]),  # a swap at the same depth
        ({"scale_2": 0.5}, [("a", 0, 3, 1.0), ("a", 3, 5, 0.5), ("a", 5, 8, 1.0)]),
        (  # the last jump as far as 12 layers allow
            {"layers_1": 8, "jump_2": -3, "layers_2": 1, "jump_3": -3},
            [("a", 0, 8, 1.0), ("a", 5, 6, 1.0), ("a", 5, 8, 1.0)],
        ),
    ],
)
def test_what_a_step_from_the_start_does(changes: dict[str, Any], expected: list[Any]) -> None:
    subject = space(8, 8, segments=3, reach=4, embeddings="a")
    assert runs(subject.decode(start(subject, **changes))) == expected


def test_jumps_stop_at_the_limits() -> None:
    subject = space(8, segments=3, reach=8, min_layers=7, max_layers=9, scale=1)
    longest = subject.decode(start(subject, jump_2=-8, jump_3=-8))
    assert runs(longest) == [("a", 0, 3, 1.0), ("a", 2, 8, 1.0)]
    shortest = subject.decode(start(subject, jump_2=8, jump_3=8))
    assert runs(shortest) == [("a", 0, 3, 1.0), ("a", 4, 8, 1.0)]


def test_indicators_within_the_limits() -> None:
    subject = space(3, 3, indicators=True, repeats=2, scale=1, min_layers=2, max_layers=4, embeddings="a")
    every = {dimension.name: 1 for dimension in subject.dimensions}
    assert runs(subject.decode(every))[:2] == [("a", 0, 3, 1.0), ("b", 0, 1, 1.0)]
    none = {dimension.name: 0 for dimension in subject.dimensions}
    assert runs(subject.decode(none)) == [("a", 0, 2, 1.0)]
    some = none | {"use/1/b/layers.1": 1, "use/2/a/layers.0": 1, "use/2/b/layers.1": 1}
    assert runs(subject.decode(some))[1:-1] == [("b", 1, 2, 1.0), ("a", 0, 1, 1.0), ("b", 1, 2, 1.0)]


SPACES = {
    "segments": space(6, 4, 7, segments=5, reach=7),
    "limits": space(6, 6, segments=6, reach=6, min_layers=6, max_layers=6),
    "one": space(1, segments=2),
    "log": space(5, 5, segments=3, scale={"low": 0.25, "high": 4, "log": True}, embeddings="b"),
    "indicators": space(3, 4, indicators=True),
}


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_point_is_a_recipe_and_back(name: str, data: st.DataObject) -> None:
    subject = SPACES[name]
    levels = [axis.levels for axis in subject.axes]
    unit = np.array(
        [data.draw(st.floats(0, 1)) if n is None else (data.draw(st.integers(0, n - 1)) + 0.5) / n for n in levels]
    )
    values = subject.values(unit)
    np.testing.assert_allclose(subject.encode(values), unit, atol=1e-9)
    recipe = subject.decode(values)
    taken = [run for run in runs(recipe) if run[1] < run[2]]
    least, most = {"limits": (6, 6), "segments": (2, 10), "one": (1, 1), "log": (2, 7), "indicators": (1, 6)}[name]
    assert least <= sum(stop - first for _, first, stop, _ in taken) <= most
    for model, _, stop, _ in taken:
        assert stop <= subject.encoding.layers[model]
    assert Recipe.parse(recipe.to_yaml()) == recipe
    again = subject.values_of(recipe)  # perhaps another point of the same recipe
    assert again is None or subject.decode(again) == recipe
    assert again is not None or name != "indicators"  # jumps that a short model cut may be beyond the reach


def test_embeddings_norm_and_head_are_one_models() -> None:
    subject = space(4, 4, segments=2, scale=1)
    recipe = subject.decode(start(subject, model_2="b"))
    assert runs(recipe) == [("a", 0, 2, 1.0), ("b", 2, 4, 1.0), ("a", 0, 0, 1.0)]
    assert str(recipe.donor) == "m/a"
    recipe = subject.decode(start(subject, model_2="b", embeddings="b"))
    assert runs(recipe) == [("b", 0, 0, 1.0), ("a", 0, 2, 1.0), ("b", 2, 4, 1.0)]
    assert str(recipe.donor) == "m/a"  # config and tokenizer stay
    fixed = space(4, 4, segments=2, scale=1, embeddings="b")
    assert str(fixed.decode(start(fixed, model_1="a", model_2="a")).donor) == "m/b"


def test_other_vocabularies_keep_the_first_models_embeddings() -> None:
    models = {"m/a": shapes(2), "m/b": shapes(2, rows=40)}
    assert space(models=models).donors == ("a",)
    assert space(models=models, config={"genome": {"tokenizer_source": "m/a"}}).donors == ("a", "b")
    assert space(models=models, embeddings="m/b").donors == ("b",)


def test_parents_are_points() -> None:
    subject = space(6, 4)
    for name, layers in (("a", 6), ("b", 4)):
        parent = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": f"m/{name}"}]})
        values = subject.values_of(parent)
        assert values is not None
        assert runs(subject.decode(values)) == [(name, 0, layers, 1.0)]
    only = space(6, 4, embeddings="a")
    assert (
        only.values_of(Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": "m/b"}]}))
        is None
    )


SCALE = [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": 0.5}, {"value": 1.0}]


@pytest.mark.parametrize(
    ("slices", "known"),
    [
        ([("a", 0, 6, None)], True),
        ([("a", 0, 3, None), ("b", 2, 4, SCALE), ("a", 4, 6, None)], True),
        ([("a", 0, 2, None), ("a", 2, 4, None), ("a", 4, 5, None), ("a", 5, 6, None)], True),  # joined
        ([("a", 0, 3, 0.5), ("a", 3, 6, None)], False),  # all tensors scaled
        ([("a", 0, 6, [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}])], False),
        ([("a", 0, 5, None), ("a", 1, 6, None)], False),  # beyond the reach
        ([("a", 0, 5, None)], False),  # ends before the last layer
        ([("a", 0, 3, None), ("b", 2, 4, None)], False),  # the head is another model's
        ([("c", 0, 6, None)], False),
        ([("a", 0, 2, None), ("b", 1, 2, None), ("a", 1, 3, None), ("b", 1, 4, None), ("a", 5, 6, None)], False),
    ],
)
def test_recipes_that_are_points(slices: list[tuple[Any, ...]], known: bool) -> None:
    subject = space(6, 4, reach=2, segments=4)
    recipe = Recipe.model_validate(
        {
            "merge_method": "passthrough",
            "slices": [
                {
                    "sources": [
                        {
                            "model": f"m/{model}",
                            "layer_range": [first, stop],
                            **({"parameters": {"scale": scale}} if scale else {}),
                        }
                    ]
                }
                for model, first, stop, scale in slices
            ],
        }
    )
    values = subject.values_of(recipe)
    assert (values is not None) == known
    if values is not None:
        assert [run for run in runs(subject.decode(values)) if run[1] < run[2]] == runs(
            subject.decode(subject.values_of(subject.decode(values)) or {})
        )
    linear = {"merge_method": "linear", "models": [{"model": "m/a", "parameters": {"weight": 1.0}}]}
    assert subject.values_of(Recipe.model_validate(linear)) is None


def test_a_random_start_is_a_function_of_the_seed() -> None:
    starts = [space(6, 6, config={"random_init": True, "seed": seed}).initial for seed in (0, 0, 1)]
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


# --- what a config gets wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "genome", "fault"),
    [
        ({"segmnets": 2}, {}, "genome.layer_paths.segmnets: unknown key; did you mean 'segments'?"),
        ({"after": "params"}, {}, "genome.layer_paths.after: must be one of parameters, but got 'params'"),
        ({"min_layers": 5, "max_layers": 4}, {}, "genome.layer_paths.max_layers: must be at least min_layers, 5"),
        ({"scale": [1.1, 2]}, {}, "genome.layer_paths.scale: `0 < low <= 1 <= high` must hold"),
        ({"segments": 0}, {}, "genome.layer_paths.segments: must be >= 1, but got 0"),
        ({"embeddings": "c"}, {}, "genome.layer_paths.embeddings: must be one of the models, but got 'c'"),
        (
            True,
            {"merge_method": "ties", "base_model": "m/base"},
            "genome.merge_method: has no effect on layer paths",
        ),
        (True, {"subset": 1}, "genome.subset: has no effect on layer paths alone; drop it, or write layer_paths"),
        (5, {}, "genome.layer_paths: must be a mapping, but got 5"),
    ],
)
def test_faults_of_the_section(section: Any, genome: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        config_of(["m/a", "m/b"], section, genome=genome)
    assert caught.value.faults[0].startswith(f"config.yaml: {fault}")


@pytest.mark.parametrize(
    ("models", "section", "fault"),
    [
        (
            {"m/a": shapes(2), "m/b": shapes(2, LLAMA | {"mlp.down_proj.weight": (8, 24)})},
            {},
            "genome.models: layers of a path must have the same tensors, but mlp.down_proj.weight is [8, 16] in a",
        ),
        (
            {"m/a": shapes(2), "m/b": shapes(2, LLAMA | {"self_attn.q_norm.weight": (4,)})},
            {},
            "genome.models: layers of a path must have the same tensors, but self_attn.q_norm.weight is not there",
        ),
        (
            {"m/a": shapes(4), "m/b": shapes(3)},
            {"min_layers": 4},
            "genome.layer_paths.min_layers: must be at most 3",
        ),
        (
            {"m/a": shapes(4), "m/b": shapes(3)},
            {"max_layers": 3},
            "genome.layer_paths.max_layers: must be at least 4",
        ),
        ({"m/a": shapes(0)}, {}, "genome.models: a has no numbered layers"),
        (
            {"m/a": shapes(2, LLAMA | {"post_feedforward_layernorm.weight": (8,)})},
            {"scale": [0.5, 2]},
            "genome.layer_paths.scale: no factor on what layers add can be written",
        ),
        ({"m/a": shapes(2)}, {"segments": 1, "scale": 1}, "genome.layer_paths: nothing is searched"),
    ],
)
def test_models_that_do_not_fit(models: dict[str, Any], section: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        space(models=models, **section)
    assert caught.value.faults[0].startswith(fault)


def test_models_whose_layers_run_under_other_settings_are_told() -> None:
    models = {"m/a": shapes(2), "m/b": shapes(2)}
    models["m/b"].config["rope_theta"] = 1e6
    with pytest.warns(UserWarning, match="b differs from a in rope_theta of config.json"):
        space(models=models)


def test_layers_that_a_config_does_not_count_are_on_no_path() -> None:
    model = shapes(4)
    model.config["num_hidden_layers"] = 3
    model.tensors["model.layers.3.eh_proj.weight"] = SimpleNamespace(shape=(8, 16))
    for models in ({"m/a": model}, {"m/a": model, "m/b": shapes(3)}):
        subject = space(models=models)
        assert runs(subject.decode(subject.values(subject.initial))) == [("a", 0, 3, 1.0)]


def test_the_section_is_written_out_and_read_again() -> None:
    config = config_of(["m/a", "m/b"], {"scale": {"low": 0.5, "high": 2, "log": True}, "embeddings": "m/b"})
    assert EvolveConfig.parse(config.to_yaml()) == config
    assert "embeddings: b\n" in config.to_yaml()
    assert config_of(["m/a", "m/b"], False).genome.layer_paths is None


# --- models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Folders of models of one architecture, with these numbers of layers."""
    root = tmp_path_factory.mktemp("paths")

    def make(name: str, *layers: int, **changes: Any) -> list[str]:
        count = next(iter((ARCHITECTURES[name].stacks or {}).values()))[1]
        folders = [root / f"{name}-{len(changes)}-{seed}-{n}" for seed, n in enumerate(layers)]
        for seed, (folder, n) in enumerate(zip(folders, layers, strict=True)):
            if not folder.exists():
                save(build(name, seed, noise=0.1, **{count: n}, **changes), folder)
        return [str(folder) for folder in folders]

    return make


def opened(models: Sequence[str]) -> dict[ModelRef, Any]:
    return {ModelRef.parse(model): open_checkpoint(ModelRef.parse(model)) for model in models}


def assert_alive(recipe: Recipe, out: Path, name: str, loader: CandidateLoader) -> torch.Tensor:
    """The exported recipe's merge, loaded by transformers, computes what the live model does; its logits."""
    resident = loader.load(recipe)
    merged = merge_models(Recipe.parse(recipe.to_yaml()), out, threads=1)
    found = logits(load(merged, name), name)
    assert torch.equal(found, logits(resident.model, name))
    return found


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral"])
def test_a_path_computes_what_the_paper_says(name: str, zoo: Zoo, tmp_path: Path) -> None:
    """Factors on what layers add are the paper's factors on what enters them, and its order of layers."""
    a, b = zoo(name, 4, 3)
    config = config_of([a, b], {"segments": 3, "embeddings": a}, genome={"dtype": "float32"})
    subject = PathSpace.from_config(config, opened([a, b]))
    short = config.genome.model_names
    values = start(subject, layers_1=3, model_2=short[1], jump_2=-1, layers_2=1, scale_1=0.8, scale_2=1.25)
    values |= {"scale/3": 0.64}
    recipe = subject.decode(values)
    assert [r[1:] for r in runs_of(subject, values)] == [(0, 3, 0.8), (2, 3, 1.25), (3, 4, 0.64)]
    out = merge_models(recipe, tmp_path / "out", threads=1)

    ((path, count),) = (ARCHITECTURES[name].stacks or {}).values()
    parents = {name_: load(Path(folder), name) for name_, folder in zip(short, (a, b), strict=True)}
    expected = copy.deepcopy(parents[short[0]])
    layers = [
        (copy.deepcopy(parents[run.model].get_submodule(path)[i]), run.scale)
        for run in subject.encoding.path(values)
        for i in range(run.start, run.stop)
    ]
    stack = torch.nn.ModuleList(layer for layer, _ in layers)
    before = 1.0
    for index, (layer, scale) in enumerate(layers):
        layer.register_forward_pre_hook(_entering(before / scale))
        before = scale
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    expected.get_submodule(path.rpartition(".")[0]).__setattr__(path.rpartition(".")[2], stack)
    setattr(expected.config, count, len(stack))
    if hasattr(expected.config, "layer_types"):
        expected.config.layer_types = ["full_attention"] * len(stack)
    got = logits(load(out, name), name)
    # But for the epsilon in the norms, which is not scaled along.
    torch.testing.assert_close(got, logits(expected, name), rtol=1e-3, atol=2e-3)
    plain = logits(
        load(
            merge_models(subject.decode(values | {f"scale/{j}": 1.0 for j in (1, 2, 3)}), tmp_path / "plain"), name
        ),
        name,
    )
    assert (got - plain).abs().max() > 0.02


def _entering(factor: float) -> Any:
    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * factor, *args[1:])

    return hook


def runs_of(subject: PathSpace, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(run.model, run.start, run.stop, run.scale) for run in subject.encoding.path(values)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
        (
            "gemma3",
            {"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
        ),
    ],
)
def test_candidates_of_any_depth_run_and_merge(
    name: str, changes: dict[str, Any], zoo: Zoo, tmp_path: Path
) -> None:
    a, b = zoo(name, 4, 4, **changes)
    subject = PathSpace.from_config(
        config_of([a, b], {"segments": 3}, genome={"dtype": "float32"}), opened([a, b])
    )
    loader = CandidateLoader(threads=1)
    rng = np.random.default_rng(0)
    other = subject.config.genome.model_names[1]
    points = [start(subject), start(subject, jump_2=-1), start(subject, jump_3=1, model_2=other, embeddings=other)]
    points += [subject.values(rng.random(len(subject.dimensions))) for _ in range(3)]
    depths, found = set(), []
    for k, values in enumerate(points):
        recipe = subject.decode(values)
        found.append(assert_alive(recipe, tmp_path / str(k), name, loader))
        config = transformers.AutoConfig.from_pretrained(tmp_path / str(k))
        taken = [(run.start, run.stop) for run in subject.encoding.path(values)]
        assert config.num_hidden_layers == sum(stop - first for first, stop in taken)
        if "layer_types" in changes:
            assert config.layer_types == [changes["layer_types"][i] for ends in taken for i in range(*ends)]
        depths.add(config.num_hidden_layers)
    assert len(depths) >= 3
    assert torch.equal(found[0], logits(load(Path(a), name), name))


def test_a_union_of_tokens_is_that_of_all_models(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    a, b = (str(make_llama(f"paths-{vocab}", seed=vocab, vocab=vocab)) for vocab in (64, 70))
    config = config_of([a, b], {"segments": 2, "scale": 1}, genome={"tokenizer_source": "union"})
    subject = PathSpace.from_config(config, opened([a, b]))
    names = config.genome.model_names
    loader = CandidateLoader(threads=1)
    for model, donor in ((names[0], names[0]), (names[0], names[1]), (names[1], names[1])):
        recipe = subject.decode(start(subject, model_1=model, model_2=model, embeddings=donor))
        assert loader.load(recipe).parameters["model.embed_tokens.weight"].shape == (70, 16)
        assert subject.values_of(recipe) == start(subject, model_1=model, model_2=model, embeddings=donor)


def test_the_live_model_is_built_anew_only_for_another_depth(zoo: Zoo) -> None:
    a, b = zoo("llama", 4, 3)
    subject = PathSpace.from_config(config_of([a, b], {"segments": 3, "embeddings": a}), opened([a, b]))
    loader = CandidateLoader(threads=1)
    other = subject.config.genome.model_names[1]
    first = loader.load(subject.decode(start(subject)))
    swapped = loader.load(subject.decode(start(subject, model_2=other, scale_2=0.7)))
    assert swapped is first
    deeper = loader.load(subject.decode(start(subject, jump_2=-1)))
    assert deeper is not first
    assert deeper.tokenizer is first.tokenizer  # whose loading takes longer than the rest


# --- after a search of parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear"])
def test_paths_through_a_merge_and_its_parents(method: str, zoo: Zoo, tmp_path: Path) -> None:
    base, a, b = zoo("llama", 3, 3, 3)
    genome = {"base_model": base, "merge_method": method}
    config = config_of([a, b], {"after": "parameters", "segments": 2}, genome=genome, seed=7)
    before = SearchSpace.from_config(config, 3, methods())
    point = {d.name: 0.4 for d in before.dimensions}
    champion = before.decode(point)
    subject = PathSpace.after(config, champion, opened([a, b, base]))
    loader = CandidateLoader(threads=1)
    whole = loader.load(champion).checksum()
    assert loader.load(subject.decode(start(subject))).checksum() == whole
    assert subject.refine(point, before) == start(subject)
    assert subject.refine(point | {next(iter(point)): 0.5}, before) is None

    parent = config.genome.model_names[1]
    recipe = subject.decode(start(subject, jump_2=-1, model_2=parent, scale_1=0.9))
    written = recipe.to_yaml()
    assert [document["merge_method"] for document in yaml.safe_load_all(written)] == [method, "passthrough"]
    assert [run[0] for run in runs(recipe)] == [config.genome.stage_name, b, config.genome.stage_name]
    assert_alive(Recipe.parse(written), tmp_path / "out", "llama", loader)
    assert subject.values_of(Recipe.parse(written)) == subject.values_of(recipe) is not None
    alone = subject.decode(start(subject, model_1=parent, model_2=parent, embeddings=parent))
    assert (
        loader.load(alone).checksum()
        == loader.load(
            Recipe.parse(f"merge_method: passthrough\nmodels: [{{model: {b}}}]\ndtype: bfloat16")
        ).checksum()
    )


def test_a_merge_is_called_as_no_model_is() -> None:
    assert config_of(["m/a"], True).genome.stage_name is None
    assert config_of(["m/a"], {"after": "parameters"}).genome.stage_name == "champion"
    assert config_of(["m/a", "m/champion"], {"after": "parameters"}).genome.stage_name == "champion-2"
