"""What the documentation shows is there: recipes and configs parse, commands and messages exist, links lead on."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from heterosis import cli
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.config.genome import Genome
from heterosis.evolve.space.space import control_points_of, stages_of
from heterosis.merge.methods import methods
from heterosis.merge.recipe.recipe import Recipe

from .pages import GUIDE, ROOT, Block, blocks, heterosis_commands

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RECIPES = blocks("docs/recipes.md", "yaml")
SPACES = blocks("docs/search-spaces.md", "yaml")
THEIRS = "mergenetic"  # the title of another program's config
YAML = [block for page in GUIDE for block in blocks(page, "yaml") if block.title != THEIRS]
BASH = [block for page in GUIDE for block in blocks(page, "bash")]
# What a config must have, for examples that show some keys of one.
REST = {"models": ["org/math-7b", "org/french-7b"], "tasks": ["gsm8k", "my_task"]}


def test_there_are_examples() -> None:
    assert len(RECIPES) == 7
    assert len(SPACES) == 8
    assert len(YAML) >= 25
    assert len(BASH) >= 10


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_an_example_is_a_recipe_and_survives_the_round_trip(block: Block) -> None:
    recipe = Recipe.parse(block.text)
    assert Recipe.parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("block", SPACES, ids=str)
def test_an_example_of_a_space_has_the_dimensions_that_it_says(block: Block) -> None:
    config = EvolveConfig.parse(block.text)
    if config.genome.layer_paths is None:
        *_, last = stages_of(config, 32, methods(), control_points_of(config, 32, methods()))
        assert block.text.startswith(f"# {len(last.dimensions)} dimensions\n")


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_a_task_a_recipe_or_some_of_a_config(block: Block) -> None:
    first, *_ = yaml.safe_load_all(block.text)
    if "task" in first:
        from lm_eval.api.task import TaskConfig

        TaskConfig(**first)
    elif "merge_method" in first and "tasks" not in first:
        Recipe.parse(block.text)
    elif first.keys() & {"genome", "models"}:
        EvolveConfig.parse(block.text)
    else:
        EvolveConfig.parse(yaml.safe_dump(REST | first))


def test_the_page_on_spaces_has_every_key_of_a_genome() -> None:
    page = (ROOT / "docs/search-spaces.md").read_text(encoding="utf-8")
    table = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", page.split("## Keys of `genome`")[1], re.M)))
    assert set(table) == set(Genome.model_fields)


def test_the_page_on_configs_has_every_key_and_its_default() -> None:
    page = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.M))
    assert set(defaults) == set(EvolveConfig.model_fields)
    config = EvolveConfig.parse(yaml.safe_dump(REST))
    for key, text in defaults.items():
        if text.startswith("`"):
            assert config == config.updated(**{key: yaml.safe_load(text.strip("`"))}), key


# --- commands ---------------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> None:
    """Let the command line parse a command, and no more."""
    app: Any = typer.main.get_command(cli.app)
    _, arguments = cli._imports_apart([argument for argument in arguments if argument != "--debug"])  # anywhere
    context = app.make_context("heterosis", arguments.copy())
    name, command, rest = app.resolve_command(context, arguments)
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("block", BASH, ids=str)
def test_commands_are_there(block: Block) -> None:
    for arguments in heterosis_commands(block):
        parse(arguments)
    for script in re.findall(r"(?:bash|python) (scripts/\S+)", block.text):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_commands_within_sentences_are_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for command in re.findall(r"`heterosis ([a-z][^`]*)`", text):
        if " " in command:  # otherwise it is the name of one
            parse(command.split())


# --- messages ---------------------------------------------------------------------------------------------------


def templates() -> Iterator[str]:
    """All texts of the sources, with an ellipsis for what is put into them."""
    for folder in ("heterosis", "merge", "evaluate", "evolve"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value.replace("{}", "…")


def test_messages_on_the_page_are_the_programs() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`+) ?(.+?) ?\1 \| .+\|$", page, re.M)
    told = {re.sub("…+", "…", text) for text in templates()}
    assert len(rows) >= 25
    assert len(rows) == len(re.findall(r"^\| `", page, re.M))
    assert [message for _, message in rows if not any(message in text for text in told)] == []


# --- links ------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in re.findall(r"^#+ (.+)$", text, re.M))
    return {heading.strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """In the README and the changelog, which MkDocs does not see, and on GitHub."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            if anchor:
                assert anchor in anchors(file), f"{target}#{anchor}"


# Of links to elsewhere only the form is checked: whether they lead on, only a network can tell. Who adds a host
# has followed the link.
ELSEWHERE = {
    "arcee.ai": "/?",
    "arxiv.org": r"/abs/\d{4}\.\d{5}",
    "dl.acm.org": r"/doi/10\.\d{4}/[\d.]+",
    "docs.ray.io": r"(/en/latest/[\w/-]+)?",
    "github.com": r"/[\w.-]+/[\w.-]+",
    "goddard.blog": r"/posts/[\w-]+",
    "huggingface.co": r"/[\w.-]+/[\w.-]+",
}


def test_links_to_elsewhere_are_well_formed() -> None:
    found = {
        url.rstrip(".,")
        for page in PAGES
        for url in re.findall(r"\w+://[^\s)\"'`<>|\]]+", page.read_text(encoding="utf-8"))
        if url.startswith("http")
    }
    assert len(found) >= 15
    for url in sorted(found):
        parts = urlsplit(url)
        assert parts.scheme == "https", url
        assert re.fullmatch(ELSEWHERE[parts.netloc], parts.path), url
        assert not parts.query + parts.fragment, url
