"""Recipes: every fault in one go, and YAML that survives the round trip, here and in mergekit."""

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
from heterosis.merge.recipe import DTYPE_NAMES, InputModel, ModelRef, Recipe, Slice, Source

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
heterosis: {seed: 7, sources: {org/a: "sha256:00"}}
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
tokenizer: {source: union}
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
heterosis: {seed: -1}
"""
    )
    expected = [
        "tokenizer: is not accepted",
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
        "slices[0].sources[0].layer_range: must satisfy `0 <= from < to`, but got [3, 1]",
        "slices[0].sources[1].layer_rnge: unknown key; did you mean 'layer_range'?",
        "slices[0].sources[2].parameters: must be a mapping, but got 3",
        "slices[0].sources: models must differ, but got 'b' 2 times",
        "slices[0].sources: must all have equally many layers, but got 3, 4",
        "slices[1].sources: must list at least one source, but is empty",
        "slices[1].residual_weight: has no effect",
        "slices[2].sources: must be given",
        "dtype: unknown dtype 'bf16'; did you mean 'bfloat16'?",
        "heterosis.seed: must be a whole number in [0, 2**64), but got -1",
        "must have either 'models' or 'slices', but got both",
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
        ("modules: {default: {slices: []}}", "modules: is not accepted by this version"),
        ("models: [{model: a}]\nmerge_metod: x", "merge_metod: unknown key; did you mean 'merge_method'?"),
        ("models: [{model: ''}]", "models[0].model: must be path"),
        ("models: [{model: a+}]", "models[0].model: must be path"),
        ("models: [{model: 3}]", "models[0].model: must be a model"),
        ("models: [{model: {model: a, lara: b}}]", "models[0].model: unknown key 'lara'; did you mean 'lora'?"),
        ("models: [{model: {model: a, override_architecture: X}}]", "models[0].model: override_architecture"),
        ("models: [{}]", "models[0].model: must be given"),
        ("models: [{model: a}]\ndtype: int64", "dtype: unknown dtype 'int64'"),
        ("models: [{model: a}]\ntokenizer_source: {model: a}", "tokenizer_source: must be 'union', 'base' or a"),
        ("models: [{model: a}]\nchat_template: chatml", "chat_template: is not accepted by this version; "),
        ("models: [{model: a}]\nheterosis: {seed: true}", "heterosis.seed: must be a whole number"),
        ("models: [{model: a}]\nheterosis: 1", "heterosis: must be a mapping"),
        ("models: [{model: a}]\nparameters: {weight: }", "parameters.weight: must be a number"),
        ("models: [{model: a}]\nparameters: {on: 1}", "parameters: keys must be texts, but got True; quote it"),
        ("models: [{model: a}]\nparameters: {weight: nan}", "parameters.weight: must be a finite number"),
        ("slices: [{sources: [{model: a}]}]", "slices[0].sources[0].layer_range: must be given"),
        (
            "slices: [{sources: [{model: a, layer_range: [-1, 2]}]}]",
            "slices[0].sources[0].layer_range: must satisfy",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [2, 2]}]}]",
            "slices[0].sources[0].layer_range: must satisfy",
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
        ("x: " + "1" * 6000, "not valid YAML"),
        ("1: 2", "keys must be texts, but got 1"),
        ("a: &x [*x]", "line 1: an alias contains itself"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tags such as '!!python/object/apply:os.system'"),
        ("a: !!str 1", "line 1: tags such as '!!str'"),
        ("a: 1\n---\nb: 1", "line 2: files of several documents are not accepted"),
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


@pytest.mark.parametrize("text", ["", " ", "@r", "a@", "+b", "a+b+c", "a@b@c", "a+b@c@d", "a@r+"])
def test_malformed_model_references(text: str) -> None:
    with pytest.raises(ValueError, match="must be path"):
        ModelRef.parse(text)


def test_dump_replaces_the_file_and_comments_it(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("old")
    recipe = Recipe.parse(TIES)
    recipe.dump(path, "trial 3\n\nscored 0.5")
    assert path.read_text().startswith("# trial 3\n#\n# scored 0.5\nmerge_method: ties\n")
    assert Recipe.load(path) == recipe
    assert list(tmp_path.iterdir()) == [path]


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


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    names = draw(st.lists(refs, min_size=1, max_size=4, unique=True))
    fields: dict[str, Any] = {}
    if draw(st.booleans()):
        fields["models"] = [InputModel(model=ref, parameters=draw(sections)) for ref in names]
    else:
        start, count = draw(st.integers(0, 9)), draw(st.integers(1, 9))
        sources = [
            Source(model=ref, layer_range=(start, start + count), parameters=draw(sections)) for ref in names
        ]
        slices = [Slice(sources=sources, base_model=draw(st.none() | refs), parameters=draw(sections))]
        fields["slices"] = slices * draw(st.integers(1, 2))
    return Recipe(
        merge_method=draw(texts),
        base_model=draw(st.none() | refs),
        parameters=draw(sections),
        dtype=draw(dtypes),
        out_dtype=draw(dtypes),
        tokenizer_source=draw(st.none() | st.sampled_from(["union", "base"])),
        heterosis=draw(st.dictionaries(texts.filter(lambda key: key != "seed"), values, max_size=2)),
        **fields,
    )


@settings(max_examples=150, deadline=None)
@given(recipes())
def test_yaml_round_trip(recipe: Recipe) -> None:
    text = recipe.to_yaml()
    again = Recipe.parse(text)
    assert again == recipe
    assert again.to_yaml() == text


def test_mergekit_accepts_what_we_write() -> None:
    config = pytest.importorskip("mergekit.config")
    text = Recipe.parse(TIES).to_yaml()
    read = config.MergeConfiguration.model_validate(yaml.safe_load(text))
    assert str(read.base_model) == "org/base@v1"
    assert [str(entry.model) for entry in read.models] == ["org/a+me/lora@main", "org/b@abc+me/other"]
    assert read.models[0].parameters["density"][0].filter == "mlp"
    assert (read.dtype, read.out_dtype) == ("float32", "bfloat16")


def test_reading_recipes_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys, heterosis.merge.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
