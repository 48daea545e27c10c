"""Recipes: every fault in one go, and YAML that survives the round trip, here and in mergekit."""

import errno
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.errors import InputError
from heterosis.merge.models.chat_template import BUILT_IN
from heterosis.merge.recipe.recipe import (
    CHAT_TEMPLATES,
    DTYPE_NAMES,
    InputModel,
    ModelRef,
    ModelToken,
    Module,
    Recipe,
    Slice,
    Source,
    Tokenizer,
    TokenRow,
    ZeroRow,
)

TIES = """
merge_method: ties
base_model: org/base@v1
models:
  - model: org/a+me/lora@main
    parameters: {weight: [1, 2e-1], density: [{filter: mlp, value: 0.5}, {value: 1}]}
  - model: {model: {path: org/b, revision: abc}, lora: {path: me/other}}
    parameters: {weight: 0.5}
parameters: {normalize: true}
dtype: torch.float32
out_dtype: bfloat16
heterosis: {seed: 7, models: {org/a: {sha256: "00"}}}
"""


def faults_of(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        Recipe.parse(text)
    assert all("\n" not in fault and fault.startswith("recipe.yaml: ") for fault in caught.value.faults)
    return [fault.removeprefix("recipe.yaml: ") for fault in caught.value.faults]


def test_reads_a_recipe() -> None:
    recipe = Recipe.parse(TIES)
    assert recipe.models is not None
    assert recipe.base_model == ModelRef("org/base", "v1")
    assert recipe.models[0].model == ModelRef("org/a", None, "me/lora", "main")
    assert recipe.models[1].model == ModelRef("org/b", "abc", "me/other")
    assert recipe.models[0].parameters["weight"] == [1, "2e-1"]  # YAML 1.1 leaves 2e-1 a string
    assert (recipe.dtype, recipe.out_dtype, recipe.seed) == ("float32", "bfloat16", 7)
    assert [str(ref) for ref in recipe.referenced_models()] == [
        "org/base@v1",
        "org/a+me/lora@main",
        "org/b@abc+me/other",
    ]
    assert recipe.donor == recipe.base_model


def test_slices_and_first_mention_order() -> None:
    recipe = Recipe.parse(
        """
        merge_method: slerp
        slices:
          - sources: [{model: b, layer_range: [0, 2]}, {model: a, layer_range: [1, 3]}]
            base_model: b
            parameters: {t: 0.5}
          - sources: [{model: c, layer_range: [0, 1]}]
        """
    )
    assert recipe.slices is not None
    assert recipe.slices[0].sources[1].layer_range == (1, 3)
    assert list(map(str, recipe.referenced_models())) == ["b", "a", "c"]
    assert str(recipe.donor) == "b"
    assert recipe.seed == 0


def test_anchors_and_merge_keys_are_read() -> None:
    recipe = Recipe.parse(
        "merge_method: linear\nmodels:\n"
        "  - {model: a, parameters: &p {weight: 1}}\n  - {model: b, parameters: {<<: *p, other: 2}}\n"
    )
    assert recipe.models is not None
    assert recipe.models[1].parameters == {"weight": 1, "other": 2}
    assert "&" not in recipe.to_yaml()


def test_all_faults_of_a_file_at_once() -> None:
    faults = faults_of(
        """
merge_methd: ties
base_model: a+b+c
tokenizer:
  source: [a]
  pad_to_multiple_of: 0
  toknes: {}
  tokens:
    <a>: {source: {kind: model_token, model: a}}
    <b>: {source: {kind: model_token, modl: a, token: x}}
    <c>: {source: {kind: modeltoken, model: a, token: x}}
    <d>: {source: {kind: zero, model: a}}
    <e>: {source: a+b+c, force: 3}
    <f>: {source: a, froce: true}
    <g>: 3
    <h>: {source: {kind: model_token, model: a, token_id: x, token: 3}}
    <i>: {source: {kind: model_token, model: a, token_id: 1, token: x}}
tokenizer_source: base
chat_template: chtaml
name: a+b
modules:
  text_decoder:
    models:
    - {model: a, wieght: 1}
    - model: a
    slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]}]
  vision:
    paramters: {}
  third: 3
  fourth: {models: []}
models:
  - model: a
    weight: 1
    parameters: {weight: [1, {value: 2}], density: .inf, x: {filtr: a, value: 1}}
  - model: a
  - b
  - model: a@b@c
    paramters: {}
slices:
  - sources:
    - {model: a, layer_range: [3, 1]}
    - {model: b, layer_range: [0, 3], layer_rnge: 1}
    - {model: b, layer_range: [0, 4], parameters: 3}
  - sources: []
    residual_weight: 1
  - {}
dtype: bf16
heterosis: {seed: -1, modles: {}}
"""
    )
    expected = [
        "tokenizer.source: must be a model: a folder or an id such as org/name, but got ['a']",
        "tokenizer.pad_to_multiple_of: must be a whole number in [1, 2**20], but got 0",
        "tokenizer.toknes: unknown key; did you mean 'tokens'?",
        "tokenizer.tokens.<a>.source: must have either 'token' or 'token_id'",
        "tokenizer.tokens.<b>.source.model: must be given",
        "tokenizer.tokens.<b>.source.modl: unknown key; did you mean 'model'?",
        "tokenizer.tokens.<c>.source: unknown kind 'modeltoken'; did you mean 'model_token'?",
        "tokenizer.tokens.<d>.source.model: unknown key",
        "tokenizer.tokens.<e>.source: must be path, path@revision or path+adapter",
        "tokenizer.tokens.<e>.force: must be true or false, but got 3",
        "tokenizer.tokens.<f>.froce: unknown key; did you mean 'force'?",
        "tokenizer.tokens.<g>: must be a mapping with 'source', 'force', but got 3",
        "tokenizer.tokens.<h>.source.token_id: must be a whole number, but got 'x'",
        "tokenizer.tokens.<h>.source.token: must be a text, but got 3; quote it",
        "tokenizer.tokens.<i>.source: must have either 'token' or 'token_id'",
        "tokenizer_source: must not stand beside 'tokenizer'; write it as the section's 'source'",
        "chat_template: must be 'auto', a built-in name or a Jinja template (with braces, at least 20 "
        "characters), but got 'chtaml'; did you mean 'chatml'?",
        "name: must be a text without '+' and '@', but got 'a+b'",
        "modules.text_decoder: must have either 'models' or 'slices'",
        "modules.text_decoder.models[0].wieght: unknown key",
        "modules.text_decoder.models: models must differ, but got 'a' 2 times",
        "modules.text_decoder.slices[0].sources: must all have equally many layers, but got 1, 2",
        "modules.vision.paramters: unknown key; did you mean 'parameters'?",
        "modules.vision: must have either 'models' or 'slices'",
        "modules.third: must be a mapping with 'models', 'slices', 'parameters', but got 3",
        "modules.fourth: must have either 'models' or 'slices'",
        "merge_method: must be given",
        "merge_methd: unknown key; did you mean 'merge_method'?",
        "base_model: must be path, path@revision or path+adapter",
        "models[0].weight: unknown key; valid: model, parameters (settings of the method go under 'parameters')",
        "models[0].parameters.weight: must be all values or all {filter, value} entries",
        "models[0].parameters.density: must be a finite number, but got inf",
        "models[0].parameters.x.filtr: unknown key; did you mean 'filter'?",
        "models: models must differ, but got 'a' 2 times",
        "models[2]: must be a mapping with 'model', 'parameters', but got 'b'",
        "models[3].model: must be path, path@revision",
        "models[3].paramters: unknown key; did you mean 'parameters'?",
        "slices[0].sources[0].layer_range: must satisfy `0 <= from <= to`, but got [3, 1]",
        "slices[0].sources[1].layer_rnge: unknown key; did you mean 'layer_range'?",
        "slices[0].sources[2].parameters: must be a mapping, but got 3",
        "slices[0].sources: models must differ, but got 'b' 2 times",
        "slices[0].sources: must all have equally many layers, but got 3, 4",
        "slices[1].sources: must list at least one source, but is empty",
        "slices[1].residual_weight: has no effect",
        "slices[2].sources: must be given",
        "dtype: unknown dtype 'bf16'; did you mean 'bfloat16'?",
        "heterosis.seed: must be a whole number in [0, 2**64), but got -1",
        "heterosis.modles: unknown key; did you mean 'models'?",
        "must have one of 'models', 'slices' and 'modules', but got 'models' and 'slices' and 'modules'; keep one",
    ]
    for start in expected:
        assert any(fault.startswith(start) for fault in faults), start
    assert len(faults) == len(expected), faults


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("models: []", "models: must list at least one entry, but is empty"),
        ("slices: []", "slices: must list at least one entry, but is empty"),
        ("models:", "must have 'models' or 'slices', but got neither"),
        ("models: 3", "models: must be a list, but got 3"),
        ("modules: {}", "modules: must list at least one entry, but is empty"),
        ("modules: 3", "modules: must be a mapping, but got 3"),
        ("modules: {default: {slices: []}}", "modules.default: must have either 'models' or 'slices'"),
        ("modules: {a: }", "modules.a: must be a mapping with 'models', 'slices', 'parameters', but got None"),
        ("modules: {a: {models: 3}}", "modules.a.models: must be a list, but got 3"),
        ("modules: {1: {models: [{model: a}]}}", "modules: keys must be texts, but got 1; quote it"),
        (
            "modules: {a: {models: [{model: a}], parameters: {t: [1, {value: 2}]}}}",
            "modules.a.parameters.t: must be all values or all {filter, value} entries",
        ),
        (
            "modules: {a: {models: [{model: a}]}}\nmodels: [{model: a}]",
            "must have one of 'models', 'slices' and 'modules', but got 'models' and 'modules'; keep one",
        ),
        ("models: [{model: a}]\nmerge_metod: x", "merge_metod: unknown key; did you mean 'merge_method'?"),
        ("models: [{model: ''}]", "models[0].model: must be path"),
        ("models: [{model: a+}]", "models[0].model: must be path"),
        ("models: [{model: 3}]", "models[0].model: must be a model"),
        ("models: [{model: {model: a, lara: b}}]", "models[0].model: unknown key 'lara'; did you mean 'lora'?"),
        ("models: [{model: {model: a, override_architecture: X}}]", "models[0].model: override_architecture"),
        ("models: [{}]", "models[0].model: must be given"),
        ("models: [{model: a}]\ndtype: int64", "dtype: unknown dtype 'int64'"),
        ("models: [{model: a}]\ntokenizer_source: 3", "tokenizer_source: must be a model: a folder or an id"),
        (
            "models: [{model: a}]\ntokenizer: union",
            "tokenizer: must be a mapping with 'source', 'tokens', 'pad",
        ),
        ("models: [{model: a}]\ntokenizer: {source: }", "tokenizer.source: must be given, but is empty"),
        ("models: [{model: a}]\ntokenizer: {tokens: [x]}", "tokenizer.tokens: must be a mapping, but got ['x']"),
        (
            "models: [{model: a}]\ntokenizer: {tokens: {1: {}}}",
            "tokenizer.tokens: keys must be texts, but got 1; quote it",
        ),
        (
            "models: [{model: a}]\ntokenizer: {pad_to_multiple_of: true}",
            "tokenizer.pad_to_multiple_of: must be a whole number in [1, 2**20], but got True",
        ),
        ("models: [{model: a}]\ntokenizer: {source: a}\ntokenizer_source: a", "tokenizer_source: must not stand"),
        ("models: [{model: a}]\nname: 3", "name: must be a text without '+' and '@', but got 3"),
        ("models: [{model: a}]\nname: ''", "name: must be a text without '+' and '@', but got ''"),
        ("models: [{model: a}]\nchat_template: 3", "chat_template: must be 'auto', a built-in name or a Jinja"),
        ("models: [{model: a}]\nchat_template: Auto", "chat_template: must be 'auto', a built-in name or a Jinja"),
        ("models: [{model: a}]\nchat_template: '{{ x }}'", "chat_template: must be 'auto', a built-in name or a"),
        ("models: [{model: a}]\nheterosis: {seed: true}", "heterosis.seed: must be a whole number"),
        ("models: [{model: a}]\nheterosis: 1", "heterosis: must be a mapping"),
        ("models: [{model: a}]\nheterosis: {sed: 3}", "heterosis.sed: unknown key; did you mean 'seed'?"),
        ("models: [{model: a}]\nmodles: []", "modles: unknown key; did you mean 'models'?"),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 1]}], model: b}]",
            "slices[0].model: unknown key; put it into an entry under 'sources'",
        ),
        (
            "models: [{model: a}]\ntokenizer_source: unoin",
            "tokenizer_source: no such model folder as 'unoin'; did",
        ),
        ("models: [{model: a}]\ntokenizer: {source: bas}", "tokenizer.source: no such model folder as 'bas'; did"),
        ("genome: {models: [a]}\ntasks: [x]", "is a search config, not a recipe; run heterosis evolve on it"),
        (
            "experts: [{source_model: a}]\ngate_mode: hidden",
            "describes a mixture of experts; building those is not",
        ),
        ("models: [{model: a}]\nparameters: {weight: }", "parameters.weight: must be given, but is empty"),
        ("models: [{model: a}]\nparameters: {on: 1}", "parameters: keys must be texts, but got True; quote it"),
        ("models: [{model: a}]\nparameters: {weight: nan}", "parameters.weight: must be a finite number"),
        ("slices: [{sources: [{model: a}]}]", "slices[0].sources[0].layer_range: must be given"),
        (
            "slices: [{sources: [{model: a, layer_range: [-1, 2]}]}]",
            "slices[0].sources[0].layer_range: must satisfy",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [true, 2]}]}]",
            "slices[0].sources[0].layer_range: must be two",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 1.5]}]}]",
            "slices[0].sources[0].layer_range: must be two",
        ),
        ("slices: [{sources: [{model: a, layer_range: 4}]}]", "slices[0].sources[0].layer_range: must be two"),
    ],
)
def test_one_fault_is_one_line(body: str, fault: str) -> None:
    found = faults_of(f"merge_method: linear\n{body}\n")
    assert len(found) == 1, found
    assert found[0].startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must hold a mapping, but is empty"),
        ("just words", "must be a mapping, but got 'just words'"),
        ("a: b: c", "line 1, column 5: not valid YAML"),
        ("a: [", "line 1, column 5: not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("x: 2024-13-45", "not valid YAML"),
        ("a: 1\nx: " + "1" * 101, "line 2: a number has at most 100 digits; quote a text"),
        ("x: " + "1:" * 400_000 + "1", "line 1: a number has at most 100 digits"),
        ("x: 2024-01-01T00:00:00+99:00", "not valid YAML"),
        ("a: [" + "1," * 150_000 + "]", "line 1: must have at most 100,000 entries"),
        ("1: 2", "keys must be texts, but got 1"),
        ("a: &x [*x]", "line 1: an alias contains itself"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tags such as '!!python/object/apply:os.system'"),
        ("a: !!str 1", "line 1: tags such as '!!str'"),
        ("a: 1\n---\n3", "must be a mapping, but got 3"),
        ("a: 1\n---\n1: 2", "keys must be texts, but got 1"),
        ("---\n---\n# nothing\n", "must hold a mapping, but is empty"),
        ("a: 1\n---\n" * 101, "must have at most 100 documents, but has 101"),
        ("a: *x", "line 1, column 4: not valid YAML"),
        ("%YAML 9.9\n---\na: 1", "line 1, column 1: not valid YAML"),
        ("? {a: 1}\n: 2", "line 1, column 3: not valid YAML"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: key 'c' is given twice"),
        ("[" * 100_000, "line 1: nested more than 32 levels deep"),
        ("a: " + "x" * 1_000_001, "must be at most 1,000,000 bytes"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n" for x, y in pairwise("abcdefg")),
            "must have at most 100,000 entries",
        ),
    ],
)  # fmt: skip
def test_hostile_or_broken_yaml(text: str, fault: str) -> None:
    found = faults_of(text)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: é".encode("latin-1"))
    for path, fault in [
        (tmp_path / "none.yaml", "no such recipe file; check the path"),
        (tmp_path, "must be a recipe file, but is a folder; name the YAML file"),
        (latin, "must be UTF-8 text, but byte 3 is not; save it as UTF-8"),
    ]:
        with pytest.raises(InputError) as caught:
            Recipe.load(path)
        assert str(caught.value) == f"{path}: {fault}"


def test_relations_hold_for_recipes_built_in_python() -> None:
    a = ModelRef("a")
    with pytest.raises(ValueError, match="must differ"):
        Recipe(merge_method="linear", models=[InputModel(model=a), InputModel(model=a)])
    with pytest.raises(ValueError, match="equally many layers"):
        Recipe(
            merge_method="slerp",
            slices=[Slice(sources=[Source(model=a, layer_range=(0, 1)), Source(model="b", layer_range=(0, 2))])],  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("text", ["a", "org/a@rev", "a+b", "a@r+b", "a+b@s", "org/a@r+org/b@s", "./x/y z"])
def test_model_references_round_trip(text: str) -> None:
    ref = ModelRef.parse(text)
    assert str(ref) == text
    assert ModelRef.parse(str(ref)) == ref
    assert hash(ref) == hash(ModelRef.parse(text))
    assert ModelRef.parse({"model": "org/a@rev", "lora": "x"}) == ModelRef.parse("org/a@rev+x")


def test_a_slash_at_the_end_of_a_folder_makes_no_other_model() -> None:
    ref = ModelRef("org/a", "main", "me/b")
    assert ref == ModelRef("org/a/", "main", "me/b//") == ModelRef.parse("org/a/@main+me/b/")
    assert ref == ModelRef.parse({"model": {"path": "org/a/", "revision": "main"}, "lora": "me/b/"})
    assert [ModelRef(path).path for path in ("/", " /", "/a/")] == ["/", " /", "/a"]


@pytest.mark.parametrize("text", ["", " ", "@r", "a@", "+b", "a+b+c", "a@b@c", "a+b@c@d", "a@r+"])
def test_malformed_model_references(text: str) -> None:
    with pytest.raises(ValueError, match="must be path"):
        ModelRef.parse(text)


@pytest.mark.parametrize("seed", [-5, 2**64, 1.0, True])
def test_seeds_that_no_recipe_may_have_are_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=r"^seed: must be a whole number in \[0, 2\*\*64\), but got "):
        Recipe.parse(TIES).with_seed(seed)


def test_a_dump_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        Recipe.parse(TIES).dump(tmp_path / "best.yaml")
    assert list(tmp_path.iterdir()) == []


def test_dump_replaces_the_file_and_comments_it(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("old")
    recipe = Recipe.parse(TIES)
    recipe.dump(path, "trial 3\n\nscored 0.5")
    assert path.read_text().startswith("# trial 3\n#\n# scored 0.5\nmerge_method: ties\n")
    assert Recipe.load(path) == recipe
    assert list(tmp_path.iterdir()) == [path]


# --- several documents ------------------------------------------------------------------------------------------


def stage(name: str, *models: str, base: str = "") -> str:
    listed = ", ".join(f"{{model: {model}}}" for model in models)
    lines = [f"name: {name}"] * bool(name) + [f"base_model: {base}"] * bool(base)
    return "\n".join([*lines, "merge_method: linear", f"models: [{listed}]", ""])


def documents(*texts: str) -> str:
    return "---\n".join(texts)


def test_documents_that_are_used_become_stages_in_the_order_of_use() -> None:
    text = documents(
        stage("third", "second", "first"),
        stage("", "third", "org/a@v1", base="second"),
        stage("unused", "x"),
        stage("second", "first", "org/b"),
        stage("first", "org/a", "org/b+lora"),
    )
    recipe = Recipe.parse(text)
    assert recipe.name is None
    assert [s.name for s in recipe.stages] == ["first", "second", "third"]
    assert list(map(str, recipe.referenced_models())) == ["second", "third", "org/a@v1"]
    assert list(map(str, recipe.original_models())) == ["org/a", "org/b+lora", "org/b", "org/a@v1"]
    assert str(recipe.donor) == "second"
    alone = Recipe.parse(text, stage="second")
    assert alone.name == "second"
    assert [s.name for s in alone.stages] == ["first"]
    again = Recipe.parse(recipe.to_yaml())
    assert again == recipe
    assert again.stages == recipe.stages
    assert [s.seed for s in (*recipe.with_seed(5).stages, recipe.with_seed(5))] == [5] * 4
    assert recipe.seed == recipe.stages[0].seed == 0


def test_where_all_documents_have_names_the_last_is_the_recipe() -> None:
    recipe = Recipe.parse(documents(stage("first", "a", "b"), stage("last", "first", "c")))
    assert recipe.name == "last"
    assert [s.name for s in recipe.stages] == ["first"]


def test_modules_slices_bases_and_tokenizers_use_stages_too() -> None:
    uses = [
        "modules: {m: {models: [{model: first}]}}",
        "slices: [{sources: [{model: first, layer_range: [0, 1]}]}]",
        "slices: [{sources: [{model: a, layer_range: [0, 1]}], base_model: first}]",
        "base_model: first\nmodels: [{model: a}]",
        "tokenizer_source: first\nmodels: [{model: a}]",
        "tokenizer: {source: first}\nmodels: [{model: a}]",
    ]
    for use in uses:
        recipe = Recipe.parse(documents(stage("first", "a", "b"), f"merge_method: linear\n{use}\n"))
        assert [s.name for s in recipe.stages] == ["first"], use


@pytest.mark.parametrize(
    ("text", "wanted", "faults"),
    [
        (
            documents(stage("a", "x"), stage("a", "y"), stage("", "a")),
            None,
            ["names must differ, but 'a' is given 2 times; rename one"],
        ),
        (
            documents(stage("", "x"), stage("", "y"), stage("", "z")),
            None,
            ["must have one document without a 'name' at most, but got 3; name the earlier ones"],
        ),
        (
            documents(stage("a", "b"), stage("b", "x", "c"), stage("c", "y", base="a"), stage("", "a")),
            None,
            ["stages must not need each other in a circle, but got a -> b -> c -> a"],
        ),
        (
            documents(stage("", "x"), stage("a", "a")),
            None,
            ["stages must not need each other in a circle, but got a -> a"],
        ),
        (
            documents(stage("first", "x"), stage("b", "first+me/lora"), stage("", "first@v1", "b")),
            None,
            [
                "first+me/lora: is a stage, which has neither revisions nor adapters; write first",
                "first@v1: is a stage, which has neither revisions nor adapters; write first",
            ],
        ),
        (
            documents(stage("first", "x"), stage("", "first")),
            "frist",
            ["has no stage 'frist'; did you mean 'first'?"],
        ),
        (
            stage("", "x"),
            "first",
            ["has only one recipe, so there is no stage 'first'; leave out --stage"],
        ),
        (
            documents(stage("first", "x"), stage("", "frist", "y/first")),
            None,
            ["frist: no such stage or model folder; did you mean 'first'?"],
        ),
        (
            "{model_type: llama, architectures: [X]}",
            None,
            ["is a model's config.json, not a recipe; write a recipe that names the model's folder"],
        ),
        (
            "merge_method: tyes\nmodles: [{model: a}]\nmodels: [{model: a}]\n",
            None,
            [
                "modles: unknown key; did you mean 'models'?",
                "merge_method: unknown method 'tyes'; did you mean 'ties'?",
            ],
        ),
        (
            documents(stage("a@b", "x"), "merge_methd: ties\nmodels: [{model: a}]\n"),
            None,
            [
                "document 1: name: must be a text without '+' and '@', but got 'a@b'",
                "document 2: merge_method: must be given",
                "document 2: merge_methd: unknown key; did you mean 'merge_method'?",
            ],
        ),
        (
            documents(stage("a", "x"), stage("a", "y"), stage("", "z"), stage("", "a")),
            "b",
            [
                "names must differ, but 'a' is given 2 times; rename one",
                "must have one document without a 'name' at most, but got 2; name the earlier ones",
                "has no stage 'b'; valid: a, a",
            ],
        ),
    ],
)
def test_faults_between_documents(text: str, wanted: str | None, faults: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.parse(text, "recipe.yaml", wanted)
    assert [fault.removeprefix("recipe.yaml: ") for fault in caught.value.faults] == faults


def test_a_home_folder_is_no_misspelt_stage() -> None:
    """Whose it is, who opens it finds out."""
    assert Recipe.parse(documents(stage("nosuchuser", "x"), stage("", "~nosuchuser"))).stages == ()


def test_a_long_chain_of_stages() -> None:
    text = documents(*(stage(f"s{i}", f"s{i + 1}") for i in range(98)), stage("s98", "x"), stage("", "s0"))
    assert [s.name for s in Recipe.parse(text).stages] == [f"s{i}" for i in reversed(range(99))]


# --- the sections beside models and slices ----------------------------------------------------------------------


def test_reads_modules_tokenizer_and_chat_template() -> None:
    recipe = Recipe.parse(
        """
        merge_method: linear
        modules:
          text_decoder:
            slices:
              - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
              - sources: [{model: c, layer_range: [3, 3]}]
            parameters: {weight: 0.5}
          vision_tower: {models: [{model: a, parameters: {weight: 1}}]}
        tokenizer:
          source: a@v1
          tokens:
            <x>: {source: b, force: true}
            <y>: {source: {kind: zero}}
            <z>: {source: {kind: model_token, model: {model: c, lora: d}, token: <y>}}
            <n>: {source: {kind: model_token, model: a, token_id: 7}}
          pad_to_multiple_of: 64
        chat_template: chatml
        """
    )
    assert recipe.modules is not None
    parts = dict(recipe.parts())
    assert list(parts) == ["text_decoder", "vision_tower"]
    assert recipe.modules["text_decoder"].slices is not None
    assert recipe.modules["text_decoder"].slices[1].sources[0].layer_range == (3, 3)  # lends its head and norm
    assert list(map(str, recipe.referenced_models())) == ["a", "b", "c"]
    assert recipe.vocabulary is recipe.tokenizer is not None
    a, b, c = ModelRef("a"), ModelRef("b"), ModelRef("c", None, "d")
    assert recipe.tokenizer == Tokenizer(
        source="a@v1",
        tokens={
            "<x>": TokenRow(source=b, force=True),
            "<y>": TokenRow(source=ZeroRow()),
            "<z>": TokenRow(source=ModelToken(model=c, token="<y>")),
            "<n>": TokenRow(source=ModelToken(model=a, token_id=7)),
        },
        pad_to_multiple_of=64,
    )
    assert recipe.chat_template == "chatml"
    whole = Recipe.parse("merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: union")
    assert whole.vocabulary == Tokenizer()
    assert list(whole.parts()) == [(None, whole)]
    mapped = Recipe.parse("merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: {model: b, lora: c}")
    assert mapped.vocabulary == Tokenizer(source="b+c")


def test_an_empty_tokenizer_section_means_union() -> None:
    recipe = Recipe.parse("merge_method: linear\nmodels: [{model: a}]\ntokenizer: {tokens: }")
    assert recipe.vocabulary == Tokenizer(source="union")
    assert Recipe.parse("merge_method: linear\nmodels: [{model: a}]\ntokenizer:").vocabulary is None


def test_the_names_of_chat_templates_are_those_there_are() -> None:
    assert sorted(BUILT_IN) == sorted(CHAT_TEMPLATES)


# --- round trip -------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
paths = st.from_regex(r"[A-Za-z0-9_./ é-]{1,12}", fullmatch=True).filter(str.strip)
refs = st.builds(
    lambda path, revision, adapter: ModelRef(path, revision, *(adapter or (None, None))),
    paths,
    st.none() | paths,
    st.none() | st.tuples(paths, st.none() | paths),
)
scalars = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**20), 10**20)
    | st.booleans()
    | texts.filter(lambda text: text.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity"))
)
values = scalars | st.lists(scalars, max_size=4)
conditionals = st.fixed_dictionaries({"value": values}, optional={"filter": texts})
sections = st.dictionaries(texts, values | conditionals | st.lists(conditionals, max_size=3), max_size=3)
dtypes = st.none() | st.sampled_from(DTYPE_NAMES)
# In its tokenizer section, mergekit 0.1.5 allows one '@' for a model and its adapter together.
token_refs = refs.filter(lambda ref: not (ref.revision and ref.adapter_revision))
tokens = (
    st.just(ZeroRow())
    | token_refs
    | st.builds(ModelToken, model=token_refs, token=texts)
    | st.builds(ModelToken, model=token_refs, token_id=st.integers(0, 10**6))
)
tokenizers = st.builds(
    Tokenizer,
    source=st.sampled_from(["union", "base"]) | token_refs.map(str),
    tokens=st.dictionaries(texts, st.builds(TokenRow, source=st.none() | tokens, force=st.booleans()), max_size=3),
    pad_to_multiple_of=st.none() | st.integers(1, 2**20),
)
# Any characters that YAML can hold, line breaks of all kinds among them.
templates = st.sampled_from(["auto", *CHAT_TEMPLATES]) | st.text(
    st.characters(exclude_categories=["Cs"], include_characters="\n\t\r\x85\u2028{}%"), max_size=40
).map(lambda text: "{{ messages[0].content }}" + text)


@st.composite
def parts(draw: st.DrawFn, models: st.SearchStrategy[ModelRef]) -> dict[str, Any]:
    """What a recipe or a module has of ``models`` and ``slices``."""
    names = draw(st.lists(models, min_size=1, max_size=4, unique=True))
    if draw(st.booleans()):
        return {"models": [InputModel(model=ref, parameters=draw(sections)) for ref in names]}
    start, count = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    sources = [Source(model=ref, layer_range=(start, start + count), parameters=draw(sections)) for ref in names]
    slices = [Slice(sources=sources, base_model=draw(st.none() | models), parameters=draw(sections))]
    return {"slices": slices * draw(st.integers(1, 2))}


@st.composite
def recipes(draw: st.DrawFn, models: st.SearchStrategy[ModelRef] = refs, name: str | None = None) -> Recipe:
    fields = draw(parts(models))
    if draw(st.booleans()):
        modules = draw(st.lists(texts, max_size=2, unique=True))
        fields = {
            "modules": {
                module: Module(**(draw(parts(models)) if i else fields), parameters=draw(sections))
                for i, module in enumerate(["default", *modules])
            }
        }
    if draw(st.booleans()):
        fields["tokenizer"] = draw(tokenizers)
    else:
        fields["tokenizer_source"] = draw(st.none() | st.sampled_from(["union", "base"]) | token_refs.map(str))
    return Recipe(
        name=name,
        merge_method=draw(texts.filter(lambda text: text != "moe")),  # of another kind of file
        base_model=draw(st.none() | models),
        parameters=draw(sections),
        dtype=draw(dtypes),
        out_dtype=draw(dtypes),
        chat_template=draw(st.none() | templates),
        heterosis=draw(st.dictionaries(st.just("models"), values)),
        **fields,
    )


@pytest.mark.parametrize(
    "odd", ["\n", "\n\n ", "\r\n", "\x85", "\u2028", "\u2029", "\t", "\ufeff", "\x00", " ", "\U0001f600"]
)
def test_odd_characters_survive(odd: str) -> None:
    template = f"{{{{ messages[0].content }}}}{odd}end{odd}"
    recipe = Recipe(merge_method=odd + "x", models=[InputModel(model=ModelRef("a"))], chat_template=template)
    assert Recipe.parse(recipe.to_yaml()) == recipe


@st.composite
def recipes_with_stages(draw: st.DrawFn) -> Recipe:
    names = [f"stage {i}" for i in range(draw(st.integers(0, 3)))]
    stages = []
    for i, name in enumerate(names):
        models = refs | st.sampled_from(names[:i]).map(ModelRef) if i else refs
        stages.append(draw(recipes(models, name)))
    last = draw(recipes(refs | st.sampled_from(names).map(ModelRef) if names else refs))
    return last.with_stages(stages)


@settings(max_examples=100, deadline=None)
@given(recipes_with_stages())
def test_yaml_round_trip(recipe: Recipe) -> None:
    text = recipe.to_yaml()
    again = Recipe.parse(text)
    assert again == recipe
    assert again.stages == recipe.stages
    assert again.to_yaml() == text


# --- mergekit reads what we write -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_mergekit_accepts_every_section(recipe: Recipe) -> None:
    config = pytest.importorskip("mergekit.config")
    read = config.MergeConfiguration.model_validate(yaml.safe_load(recipe.to_yaml()))
    # mergekit's order is that of a set, and it forgets a slice's base model.
    assert {str(ref) for ref in read.referenced_models()} <= set(map(str, recipe.referenced_models()))
    assert (read.dtype, read.out_dtype, read.chat_template) == (
        recipe.dtype,
        recipe.out_dtype,
        recipe.chat_template,
    )
    assert (read.tokenizer is None) == (recipe.tokenizer is None)
    if recipe.tokenizer is not None:
        assert read.tokenizer.pad_to_multiple_of == recipe.tokenizer.pad_to_multiple_of
        assert set(read.tokenizer.tokens or ()) == set(recipe.tokenizer.tokens)
    assert set(read.modules or ()) == set(recipe.modules or ())


def test_mergekit_accepts_what_we_write() -> None:
    config = pytest.importorskip("mergekit.config")
    text = Recipe.parse(TIES).to_yaml()
    read = config.MergeConfiguration.model_validate(yaml.safe_load(text))
    assert str(read.base_model) == "org/base@v1"
    assert [str(entry.model) for entry in read.models] == ["org/a+me/lora@main", "org/b@abc+me/other"]
    assert read.models[0].parameters["density"][0].filter == "mlp"
    assert (read.dtype, read.out_dtype) == ("float32", "bfloat16")


def test_reading_recipes_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys, heterosis.merge.recipe.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
