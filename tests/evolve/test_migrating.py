"""Searches of other programs: configs in their form, and in ours, run with models and tasks of their names."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.space.space import control_points_of, stages_of
from heterosis.merge.methods import methods
from heterosis.merge.recipe.recipe import Recipe

from ..pages import ROOT, Block, blocks

PAGE = "docs/migrating.md"
CONFIGS = [block for block in blocks(PAGE, "yaml") if block.title != "mergenetic"]
EVOLVE = [block for block in CONFIGS if block.title == "mergekit-evolve"]
THEIRS = blocks(PAGE, "yaml")[len(EVOLVE) :: 2]
OURS = blocks(PAGE, "yaml")[len(EVOLVE) + 1 :: 2]

# Keys whose value and default are those of mergekit-evolve.
SAME = "limit num_fewshot shuffle random_init apply_chat_template fewshot_as_multiturn".split()


@pytest.fixture
def named(
    make_llama: Callable[..., Path], toy_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[EvolveConfig], None]:
    """Make models and tasks of the names in a config; local ones go before those of the Hub."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_tasks, "lm_tasks")
    task = Path("lm_tasks/toy_choice.yaml").read_text(encoding="utf-8")

    def make(config: EvolveConfig) -> None:
        base = make_llama("migrating-base", seed=0, layers=16)
        for seed, model in enumerate({*config.genome.models, str(config.genome.base_model)}):
            Path(model).parent.mkdir(exist_ok=True)
            Path(model).symlink_to(make_llama(f"migrating-{seed}", seed=seed, layers=16, noise_from=base))
        for name in (task.name for task in config.tasks):
            Path(f"lm_tasks/{name}.yaml").write_text(task.replace("toy_choice", name), encoding="utf-8")

    return make


def searched_is_better(ask: Any, part: str) -> float:
    return 0.3 if ask.kind in ("parent", "baseline") else 0.6


@pytest.mark.filterwarnings("ignore:tasks. .*well-known benchmark")
@pytest.mark.parametrize("block", CONFIGS, ids=str)
def test_a_config_runs(block: Block, named: Callable[[EvolveConfig], None], pools: Any) -> None:
    config = EvolveConfig.parse(block.text)
    named(config)
    if block.title:  # of mergekit-evolve, which has no key for these
        config = config.updated(
            apply_chat_template=False,
            documents={"search": config.limit or 20, "selection": 20, "holdout": 30},
            include_path=["lm_tasks"],
        )
    summary = search(config, "run", trials=8, workers=1, make_pool=pools(searched_is_better))
    assert summary["status"] == "finished"
    assert summary["trials"]["complete"] + summary["trials"]["pruned"] == 8
    assert yaml.safe_load(Path("run/best.yaml").read_text())["merge_method"] == config.genome.merge_method


def test_mergekit_evolve_accepts_its_configs() -> None:
    from mergekit.evo.config import EvolMergeConfiguration

    assert len(EVOLVE) == 2
    for block in EVOLVE:
        theirs = EvolMergeConfiguration.model_validate(yaml.safe_load(block.text))
        ours = EvolveConfig.parse(block.text)
        assert [str(model.model.path) for model in theirs.genome.models] == list(ours.genome.models)
        for key in SAME:
            assert getattr(theirs, key) == getattr(ours, key), key
    cells = " ".join(re.findall(r"^\| (.*?) \|", page(), re.M))
    keys = {*EvolMergeConfiguration.model_fields, *type(theirs.genome).model_fields} - {"genome", "tasks"}
    assert keys <= set(re.findall(r"`(?:genome\.)?(\w+)`", cells))


@pytest.mark.parametrize("block", EVOLVE, ids=str)
def test_a_result_of_mergekit_evolve_is_a_point_of_the_space(
    block: Block, named: Callable[[EvolveConfig], None]
) -> None:
    import torch
    from mergekit.evo.config import EvolMergeConfiguration
    from mergekit.evo.genome import ModelGenome

    data = yaml.safe_load(block.text)
    if data["genome"]["merge_method"] in ("ties", "dare_ties"):
        data["genome"]["per_model"] = ["density"]
    config = EvolveConfig.parse(yaml.safe_dump(data))
    named(config)
    theirs = ModelGenome(EvolMergeConfiguration.model_validate(yaml.safe_load(block.text)).genome)
    shape = theirs.initial_genotype().shape
    best = theirs.genotype_merge_config(0.2 + 0.6 * torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    space = stages_of(config, 16, methods(), control_points_of(config, 16, methods()))[-1]
    values = space.values_of(Recipe.parse(best.to_yaml()))
    assert values is not None
    assert len(values) == len(space.dimensions)


@pytest.mark.parametrize(("theirs", "ours"), list(zip(THEIRS, OURS, strict=True)), ids=str)
def test_a_config_of_mergenetic_is_brought_over(theirs: Block, ours: Block) -> None:
    assert theirs.title == "mergenetic"
    old, new = yaml.safe_load(theirs.text), EvolveConfig.parse(ours.text)
    assert set(old["models"].values()) <= set(new.genome.models)
    assert old["base_model"] == new.genome.base_model
    assert old["dtype"] == new.genome.dtype
    assert [old["tasks"]["search"][lang] for lang in old["langs"]] == [task.name for task in new.tasks]
    assert {old["metric"]} == {task.metric for task in new.tasks}
    assert old["n_samples"] == new.documents.search
    assert old["pop_size"] * old["n_iter"] == new.trials
    assert (old["eval_batch_size"], old["seed"]) == (new.batch_size, new.seed)
    assert (old["additional_templates_folder"],) == new.include_path
    for key in old:
        assert f"`{key}`" in page() or f"`{key}." in page(), key


def page() -> str:
    return (ROOT / PAGE).read_text(encoding="utf-8")
