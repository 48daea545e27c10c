"""The documentation's examples are recipes and configs that parse, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.genome import Genome
from heterosis.evolve.space import control_points_of, stages_of
from heterosis.merge.methods import methods
from heterosis.merge.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def examples(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


RECIPES = examples("docs/recipes.md")
CONFIGS = examples("docs/search-spaces.md")


def test_there_are_examples() -> None:
    assert len(RECIPES) == 7
    assert len(CONFIGS) == 8


@pytest.mark.parametrize("text", RECIPES)
def test_an_example_is_a_recipe_and_survives_the_round_trip(text: str) -> None:
    recipe = Recipe.parse(text)
    assert Recipe.parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("text", CONFIGS)
def test_an_example_of_a_space_has_the_dimensions_that_it_says(text: str) -> None:
    config = EvolveConfig.parse(text)
    if config.genome.layer_paths is None:
        *_, last = stages_of(config, 32, methods(), control_points_of(config, 32, methods()))
        assert text.startswith(f"# {len(last)} dimensions\n")


def test_the_page_on_spaces_has_every_key_of_a_genome() -> None:
    page = (ROOT / "docs/search-spaces.md").read_text(encoding="utf-8")
    table = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", page.split("## Keys of `genome`")[1], re.M)))
    assert set(table) == set(Genome.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
