"""The model card: the Hub can read it, what it says of the parents is true, and its code runs."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from heterosis.merge import build_plan, merge_models, open_checkpoint
from heterosis.merge.hub import pin
from heterosis.merge.methods import methods
from heterosis.merge.models.checkpoint import Checkpoint
from heterosis.merge.output.card import model_card
from heterosis.merge.recipe.recipe import Recipe

MakeLlama = Callable[..., Path]
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def parents(make_llama: MakeLlama, tmp_path: Path) -> list[Path]:
    """Fresh copies of three models."""
    base = make_llama("card-base", seed=0)
    made = [base, *(make_llama(f"card-{i}", seed=i, noise_from=base) for i in (1, 2))]
    folders = [tmp_path / "private" / name for name in ("base", "ann", "bob")]
    return [Path(shutil.copytree(model, folder)) for model, folder in zip(made, folders, strict=True)]


def recipe_of(parents: list[Path], **keys: Any) -> Recipe:
    base, a, b = map(str, parents)
    data: dict[str, Any] = {
        "merge_method": "ties",
        "base_model": base,
        "models": [
            {"model": a, "parameters": {"weight": [0.25, 0.75]}},
            {"model": b, "parameters": {"weight": 1}},
        ],
        "parameters": {"density": 0.5},
    }
    return Recipe.model_validate(data | keys)


def card_of(recipe: Recipe, hub: dict[str, str] | None = None) -> str:
    """The card; ``hub`` has folders that are taken to be snapshots of repositories."""
    opened: list[Checkpoint] = []

    def open_model(ref: Any) -> Checkpoint:
        checkpoint = open_checkpoint(ref)
        if hub and ref.path in hub:
            checkpoint.ref, checkpoint.revision = replace(ref, path=hub[ref.path]), COMMIT
        opened.append(checkpoint)
        return checkpoint

    plan = build_plan(recipe, open_model)
    text = recipe.to_yaml()
    for path, repo in (hub or {}).items():
        text = text.replace(path, repo)
    card = model_card(plan, pin(Recipe.parse(text), opened), opened)
    for checkpoint in opened:
        checkpoint.close()
    return card


def say(folder: Path, **front: Any) -> None:
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# It\n")


def table_in(card: str) -> list[list[str]]:
    """The cells of the table of parents, its header first."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return [rows[0], *rows[2:]]


def recipe_in(card: str) -> str:
    match = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[2]


def code_in(card: str) -> str:
    match = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert match is not None
    return match[1]


def test_hub_models_have_ids_commits_and_a_licence(parents: list[Path]) -> None:
    for folder in parents:
        say(folder, license="apache-2.0", pipeline_tag="text-generation")
    hub = dict(zip(map(str, parents), ("org/base", "ann/one", "bob/two"), strict=True))
    card = card_of(recipe_of(parents), hub)
    assert ModelCard(card).data.to_dict() == {
        "base_model": ["org/base", "ann/one", "bob/two"],
        "base_model_relation": "merge",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["heterosis", "merge"],
    }
    row = f"| [ann/one](https://huggingface.co/ann/one) | `{COMMIT[:12]}` | apache-2.0 |"
    assert row in card.splitlines()
    assert "# Merge of org/base, ann/one and bob/two" in card
    assert f"by the method [ties]({methods()['ties'].paper}), with org/base as the base model." in card
    assert "- ann/one: `weight` [0.25, 0.75]" in card
    assert "`density` 0.5" in card
    assert f"base_model: org/base@{COMMIT}" in recipe_in(card)
    assert "local folder" not in card


def test_no_path_of_this_machine_is_told(parents: list[Path], tmp_path: Path) -> None:
    recipe = recipe_of(parents, tokenizer_source=str(parents[1]))
    card = card_of(recipe)
    assert str(tmp_path) not in card
    assert "private" not in card
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "# Merge of base, ann and bob" in card
    assert "a local folder (base, ann, bob)" in card
    shown = Recipe.parse(recipe_in(card))
    assert [str(ref) for ref in shown.referenced_models()] == ["base", "ann", "bob"]
    assert shown.tokenizer_source == "ann"
    assert shown.parameters == recipe.parameters
    mixed = card_of(recipe, {str(parents[0]): "org/base"})
    assert str(tmp_path) not in mixed
    assert ModelCard(mixed).data.base_model == ["org/base"]
    assert Recipe.parse(recipe_in(mixed)).referenced_models()[0].revision == COMMIT


def test_hashes_of_models_that_are_not_merged_tell_no_path_either(parents: list[Path], tmp_path: Path) -> None:
    models = {str(tmp_path / "private/eve"): {"sha256": "ab" * 32}, "": {}}
    card = card_of(recipe_of(parents, heterosis={"models": models}))
    assert str(tmp_path) not in card
    assert Recipe.parse(recipe_in(card)).heterosis["models"].keys() == {"eve", ""}


def test_folders_of_one_name_are_told_apart(parents: list[Path], tmp_path: Path) -> None:
    twin = Path(shutil.copytree(parents[2], tmp_path / "elsewhere" / "ann"))
    card = card_of(recipe_of([*parents[:2], twin]))
    assert [str(ref) for ref in Recipe.parse(recipe_in(card)).referenced_models()] == ["base", "ann", "ann (2)"]
    assert "| ann (2) |" in card


def test_only_models_are_called_otherwise(
    parents: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/ties", "ties"):
        shutil.copytree(parents[1], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shown = Recipe.parse(recipe_in(card_of(recipe_of([parents[0], Path("a/ties"), Path("ties")]))))
    assert shown.merge_method == "ties"
    assert [str(ref) for ref in shown.referenced_models()] == ["base", "ties", "ties (2)"]


MIT = "MIT License\n\nCopyright (c) somebody"
APACHE = "Apache License\n  Version 2.0, January 2004"
OWN = {"license": "other", "license_name": "own-1", "license_link": "https://example.org/own"}
NONE = ["not stated"] * 3
# What each parent says (a text is that of a LICENSE file), the front matter, the table.
LICENCES: dict[str, tuple[list[Any], dict[str, str], list[str]]] = {
    "none": ([None, None, None], {}, NONE),
    "one kind": (
        [APACHE, {"license": "apache-2.0"}, {"license": ["Apache-2.0"]}],
        {"license": "apache-2.0"},
        ["apache-2.0"] * 3,
    ),
    "different": (
        [{"license": "mit"}, {"license": "apache-2.0"}, MIT],
        {"license": "other"},
        ["mit", "apache-2.0", "mit"],
    ),
    "one silent": ([{"license": "mit"}, MIT, None], {"license": "other"}, ["mit", "mit", "not stated"]),
    "custom": ([OWN] * 3, OWN, ["own-1"] * 3),
    "hostile": ([{"license": "a\nb: c"}, {"license": {"x": 1}}, {"license": "x|y"}], {}, NONE),
    "unknown text": (["Do as you like."] * 3, {}, NONE),
}


@pytest.mark.parametrize("name", LICENCES)
def test_licences(parents: list[Path], name: str) -> None:
    said, front, table = LICENCES[name]
    for folder, one in zip(parents, said, strict=True):
        if isinstance(one, str):
            (folder / "LICENSE.txt").write_text(one)
        elif one is not None:
            say(folder, **one)
    card = card_of(recipe_of(parents))
    data = ModelCard(card).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == front
    assert [row[1] for row in table_in(card)] == ["Licence", *table]
    assert ("licences differ" in card) == (len(set(table)) > 1)


@pytest.mark.parametrize(
    "front", ["no front matter", "---\n{", "---\n- a\n---\n", "---\na: &a [*a]\n---\n", b"---\n\xff\n---\n"]
)
def test_a_parents_broken_card_does_not_matter(parents: list[Path], front: str | bytes) -> None:
    (parents[0] / "README.md").write_bytes(front if isinstance(front, bytes) else front.encode())
    assert "| base | not stated |" in card_of(recipe_of(parents))


def test_hashes_that_the_recipe_states_are_told(parents: list[Path]) -> None:
    digest = "ab" * 32
    models = {str(parents[1]): {"sha256": digest}, str(parents[2]): {"sha256": "<script>"}}
    card = card_of(recipe_of(parents, heterosis={"models": models}))
    assert f"| ann | not stated | `{digest}` |" in card
    assert "| bob | not stated |  |" in card
    for odd in (3, ["x"], {str(parents[1]): 3}):
        assert "SHA-256" not in card_of(recipe_of(parents, heterosis={"models": odd}))


SEARCH: dict[str, Any] = {
    "trial": 31,
    "numbers": 6,
    "candidates": 36,
    "stopped_early": 16,
    "optimizers": ["cma"],
    "objective": "worst",
    "tasks": {"sums_fr": "exact_match,sum", "a|b`c\n# d": "acc"},
    "documents": {"search": 64, "selection": 120, "holdout": 240},
    "held_out": {"merge": 0.73751, "others": {"ann": 0.0, "<img src=x> | [b](http://x)": 0.3875}},
    "outcome": "Trial 31 beats the best parent: +0.35 against <script>.",
    "versions": {"heterosis": "0.1.0", "lm_eval": "0.4.13"},
    "config": "ab" * 32,
}


def test_how_a_search_found_it_is_told(parents: list[Path]) -> None:
    lines = card_of(recipe_of(parents, heterosis={"seed": 3, "search": SEARCH})).splitlines()
    at = lines.index("## How it was found")
    assert at < lines.index("## How to make it again")
    text = "\n".join(lines[at:])
    assert "scored 36 candidates, 16 of them on some of the documents only. This is number 31: " in text
    assert "a point of a space of 6 numbers, proposed by `cma`." in text
    assert "- Searched on 64 documents of `sums_fr` (`exact_match,sum`) and `a|b'c # d` (`acc`)." in text
    assert "- Maximised: the smallest gain over the parents." in text
    assert "- Chosen among the best candidates on 120 other documents." in text
    assert "- Validated on 240 documents that played no part before:" in text
    assert "| **This merge** | 0.7375 |\n| ann | 0.0000 |\n" in text
    assert r"| \<img src=x\> \| \[b\](http://x) | 0.3875 |" in text
    assert r"+0.35 against \<script\>." in text
    assert f"heterosis 0.1.0, lm\\_eval 0.4.13; its config has the SHA-256 `{'ab' * 32}`." in text


def test_what_was_not_validated_is_said_to_be_so(parents: list[Path]) -> None:
    search = {k: v for k, v in SEARCH.items() if k not in ("held_out", "outcome", "numbers", "stopped_early")}
    card = card_of(recipe_of(parents, heterosis={"search": search}))
    assert "scored 36 candidates. This is number 31: a fixed recipe." in card
    assert "- Not validated: it was not compared on held-out documents." in card
    assert "Chosen" not in card
    assert "beats" not in card


@pytest.mark.parametrize(
    "odd", [3, [], {"trial": 3}, SEARCH | {"tasks": 3}, SEARCH | {"held_out": {"merge": "x"}}]
)
def test_a_note_on_a_search_that_does_not_fit_is_left_out(parents: list[Path], odd: object) -> None:
    assert "How it was found" not in card_of(recipe_of(parents, heterosis={"search": odd}))
    assert "How it was found" not in card_of(recipe_of(parents))


def test_a_merged_folders_code_runs(
    parents: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for template in (True, False):
        if not template:
            (parents[0] / "chat_template.jinja").unlink()
        out = merge_models(recipe_of(parents), tmp_path / str(template))
        code = code_in((out / "README.md").read_text())
        assert ("apply_chat_template" in code) == template
        monkeypatch.chdir(out)
        exec(code.replace("max_new_tokens=64", "max_new_tokens=2"), {})
        assert capsys.readouterr().out.strip()


OTHERS = {
    "BertForMaskedLM": ({}, "AutoModelForMaskedLM", "fill-mask"),
    "GPT2LMHeadModel": ({}, "AutoModelForCausalLM", "text-generation"),
    "T5ForConditionalGeneration": ({}, "AutoModelForSeq2SeqLM", None),
    "WhisperForConditionalGeneration": (
        {"num_mel_bins": 8},
        "AutoModelForSpeechSeq2Seq",
        "automatic-speech-recognition",
    ),
    "LlavaForConditionalGeneration": ({"vision_config": {}}, "AutoModelForImageTextToText", "image-text-to-text"),
    "BertModel": ({}, "AutoModel", "feature-extraction"),
    "Wav2Vec2ForCTC": ({}, "Wav2Vec2ForCTC", None),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_the_class_and_task_of_other_architectures(parents: list[Path], architecture: str) -> None:
    import transformers

    more, cls, task = OTHERS[architecture]
    config = json.loads((parents[0] / "config.json").read_text())
    (parents[0] / "config.json").write_text(json.dumps(config | {"architectures": [architecture]} | more))
    card = card_of(recipe_of(parents))
    assert f"{cls}.from_pretrained(model_id" in code_in(card)
    assert hasattr(transformers, cls)
    assert ModelCard(card).data.pipeline_tag == task


def test_stages_and_slices_are_described(parents: list[Path]) -> None:
    base, a, b = map(str, parents)
    text = f"""
name: first
merge_method: slerp
base_model: {a}
models: [{{model: {b}}}]
parameters: {{t: 0.5}}
---
merge_method: passthrough
slices:
- sources: [{{model: first, layer_range: [0, 2]}}]
- sources: [{{model: {base}, layer_range: [1, 2]}}]
chat_template: "{{{{ '```' }}}} and more than twenty characters"
"""
    card = card_of(Recipe.parse(text))
    assert "`first` is a merge of ann, bob by the method [slerp]" in card
    assert "This model is a merge of first, base by the method" in card
    assert "put together from 2 slices" in card
    shown = Recipe.parse(recipe_in(card))
    assert [str(ref) for ref in shown.original_models()] == ["ann", "bob", "base"]
    assert "```" in (shown.chat_template or "")
    assert [row[0] for row in table_in(card)] == ["Model", "ann", "bob", "base"]


def test_files_of_weights_have_a_card_without_transformers(tmp_path: Path) -> None:
    models = []
    for i in (1, 2):
        save_file({"w": torch.ones(3) * i}, tmp_path / f"m{i}.safetensors")
        models.append({"model": str(tmp_path / f"m{i}.safetensors"), "parameters": {"weight": 1}})
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")  # of something else that lies there
    card = card_of(Recipe.model_validate({"merge_method": "linear", "models": models}))
    assert ModelCard(card).data.to_dict() == {"tags": ["heterosis", "merge"]}
    assert "```python" not in card
    assert "| m1.safetensors | not stated |" in card
