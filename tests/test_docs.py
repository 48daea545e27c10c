"""The documentation's examples are recipes that parse, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from heterosis.merge.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RECIPES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/recipes.md").read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(RECIPES) == 7


@pytest.mark.parametrize("text", RECIPES)
def test_an_example_is_a_recipe_and_survives_the_round_trip(text: str) -> None:
    recipe = Recipe.parse(text)
    assert Recipe.parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
