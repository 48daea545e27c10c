"""What is told about recipes and models without running anything agrees with what running them does."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.inspection import inspect_targets
from heterosis.merge import build_plan, merge_models, open_checkpoint
from heterosis.merge.compatibility import Compatibility, compare
from heterosis.merge.computing.input_blocks import STREAMING_BLOCK
from heterosis.merge.distances import task_vector_distances
from heterosis.merge.inspection import RecipeReport, inspect_recipe
from heterosis.merge.models.checkpoint import Checkpoint
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef, short_names
from heterosis.words import size

MakeLlama = Callable[..., Path]
UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="session")
def family(make_llama: MakeLlama) -> dict[str, Path]:
    base = make_llama("seen/base", seed=0, layers=4)
    children = {
        name: make_llama(f"seen/{name}", seed=i, layers=4, noise_from=base) for i, name in ((1, "ann"), (2, "bob"))
    }
    return {"base": base, **children}


def recipe_of(family: dict[str, Path], **keys: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "merge_method": "ties",
            "base_model": str(family["base"]),
            "models": [{"model": str(family["ann"])}, {"model": str(family["bob"])}],
            "parameters": {"weight": 0.5, "density": 0.25},
            **keys,
        }
    )


def rows_of(report: RecipeReport) -> dict[str, Any]:
    return {row.name: row for row in report.plans[-1].rows}


# --- recipes ----------------------------------------------------------------------------------------------------


def test_equal_layers_are_one_row(family: dict[str, Path]) -> None:
    report = inspect_recipe(recipe_of(family))
    rows = rows_of(report)
    row = rows[UP.format("0-3")]
    assert (row.tensors, row.shape, row.dtype, row.method) == (4, (32, 16), "bfloat16", "ties")
    assert (row.inputs, row.base) == (("ann", "bob"), "base")
    assert row.numbers["weight"] == [0.5, 0.5]
    assert row.numbers["density"] == [0.25, 0.25]
    assert row.numbers["lambda"] == 1.0
    assert next(iter(rows)) == "model.embed_tokens.weight"
    assert list(rows)[-1] == "model.norm.weight"
    assert len(rows) == 2 + 9


def test_numbers_that_change_along_the_depth_unfold(family: dict[str, Path]) -> None:
    rows = rows_of(inspect_recipe(recipe_of(family, parameters={"weight": [0.0, 1.0], "density": 1})))
    assert [rows[UP.format(i)].numbers["weight"][0] for i in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    by_filter = {"weight": [{"filter": "layers.1.", "value": 0}, {"value": 1}], "density": 1}
    rows = rows_of(inspect_recipe(recipe_of(family, parameters=by_filter)))
    assert [name for name in rows if "up_proj" in name] == [UP.format(i) for i in ("0", "1", "2-3")]


def test_full_lists_what_the_plan_has(family: dict[str, Path]) -> None:
    recipe = recipe_of(family)
    report = inspect_recipe(recipe, full=True)
    plan = build_plan(recipe)
    assert sorted(rows_of(report)) == sorted(op.name for op in plan.ops)
    folded = inspect_recipe(recipe).plans[-1]
    assert sum(row.tensors for row in folded.rows) == folded.tensors == len(plan.ops)
    assert sum(row.tensors * math.prod(row.shape) for row in folded.rows) == folded.parameters


def test_totals_are_those_of_the_merge(family: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(family)
    report = inspect_recipe(recipe, place=tmp_path / "not" / "there")
    tensors = load_file(merge_models(recipe, tmp_path / "out") / "model.safetensors")
    assert report.disk_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert report.plans[-1].parameters == sum(tensor.numel() for tensor in tensors.values())
    assert report.plans[-1].bytes_read == 3 * report.disk_bytes
    assert report.free_bytes > 0
    assert report.place == str(tmp_path / "not" / "there")


def test_layers_of_other_models_are_told(family: dict[str, Path]) -> None:
    slices = [
        {"sources": [{"model": str(family["ann"]), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(family["bob"]), "layer_range": [1, 4]}]},
    ]
    rows = rows_of(inspect_recipe(Recipe.model_validate({"merge_method": "passthrough", "slices": slices})))
    assert rows[UP.format("0-1")].inputs == ("ann",)
    assert rows[UP.format("2-4")].inputs == ("bob[1-3]",)
    assert rows["model.embed_tokens.weight"].inputs == ("ann",)
    assert rows["model.norm.weight"].inputs == ("bob",)


def in_stages(family: dict[str, Path]) -> Recipe:
    return Recipe.parse(f"""
name: half
merge_method: slerp
base_model: {family["ann"]}
models: [{{model: {family["bob"]}}}]
parameters: {{t: 0.5}}
---
merge_method: linear
models: [{{model: half, parameters: {{weight: 1}}}}, {{model: {family["base"]}, parameters: {{weight: 1}}}}]
""")


def test_stages_come_first(family: dict[str, Path]) -> None:
    report = inspect_recipe(in_stages(family))
    assert [(plan.name, plan.method) for plan in report.plans] == [("half", "slerp"), (None, "linear")]
    half, last = ({row.name: row for row in plan.rows} for plan in report.plans)
    assert half[UP.format("0-3")].inputs == ("ann", "bob")
    assert last[UP.format("0-3")].inputs == ("half", "base")
    assert set(report.models) == {"ann", "bob", "base"}
    lines = list(inspect_lines(report))
    assert "stage half, computed while it is read: slerp" in lines


def test_what_a_stage_reads_is_read_and_what_it_gives_is_not(family: dict[str, Path]) -> None:
    report = inspect_recipe(in_stages(family))
    half, last = report.plans
    assert (half.bytes_read, last.bytes_read) == (2 * report.disk_bytes, 3 * report.disk_bytes)
    total = f"reads {size(last.bytes_read)}, writes {size(report.disk_bytes)}"
    assert [line for line in inspect_lines(report) if line.startswith("reads")] == [total]


def inspect_lines(report: RecipeReport) -> Any:
    from heterosis.inspection_text import recipe_lines

    return recipe_lines(report)


def test_warnings_are_part_of_the_report(family: dict[str, Path]) -> None:
    recipe = recipe_of(family, parameters={"weight": 1, "density": 1, "t": 0.5})
    (warning,) = inspect_recipe(recipe).warnings
    assert warning == "parameters.t: has no effect with ties"


def test_too_little_disk_is_told(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report = inspect_recipe(recipe_of(family))
    assert not any("TOO LITTLE" in line for line in inspect_lines(report))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5))
    report = inspect_recipe(recipe_of(family))
    assert any("5 bytes free" in line and "TOO LITTLE" in line for line in inspect_lines(report))


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["org/math", "code"], ("math", "code")),
        (["base+loras/math", "base+loras/french"], ("math", "french")),
        (["experts/math/final", "experts/code/final"], ("math-final", "code-final")),
        (["x/m", "x/n", "y/m"], ("x-m", "n", "y-m")),
        (["m@one", "m@two"], ("m", "m-2")),
        (["./m/", "..\\m", "uniform"], ("m", "m-2", "uniform-2")),
        (["/", "."], ("model", "model-2")),
    ],
)
def test_models_have_short_and_unique_names(models: list[str], names: tuple[str, ...]) -> None:
    assert short_names(map(ModelRef.parse, models), reserved=("uniform",)) == names


# --- models -----------------------------------------------------------------------------------------------------


def compared(*folders: Path) -> Compatibility:
    models: list[Checkpoint] = [open_checkpoint(str(folder)) for folder in folders]
    try:
        return compare(models)
    finally:
        for model in models:
            model.close()


def change(folder: Path, out: Path, **keys: Any) -> Path:
    """A copy with other tensors (a function of them) or other config."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    edit = keys.pop("tensors", None)
    if edit is not None:
        edit(tensors)
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | keys))
    return out


def test_relatives_can_be_merged(family: dict[str, Path]) -> None:
    report = compared(*family.values())
    assert report.mergeable
    assert report.verdict == "they can be merged as they are"
    assert report.differences == report.reasons == ()
    facts = report.models[1]
    assert (facts.name, facts.model_type, facts.architectures) == ("ann", "llama", ("LlamaForCausalLM",))
    assert facts.layers == {"model.layers": 4}
    assert (facts.rows, facts.tokens, facts.unused_rows, facts.head, facts.chat_template) == (
        64,
        64,
        0,
        "tied",
        True,
    )
    assert facts.dtypes == {"bfloat16": facts.parameters}
    assert facts.tensors == 38


def test_one_model_is_described(family: dict[str, Path]) -> None:
    report = compared(family["ann"])
    assert report.mergeable
    assert report.verdict.startswith("ann can be read")


@pytest.fixture(scope="session")
def odd(
    make_llama: MakeLlama, family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("odd")
    base = family["base"]

    def padded(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = torch.cat([tensors[name], tensors[name][:8]])

    return {
        "deep": make_llama("seen/deep", seed=3, layers=6),
        "wide": make_llama("seen/wide", seed=3, layers=4, hidden=32),
        "words": make_llama("seen/words", seed=3, layers=4, vocab=80),
        "untied": make_llama("seen/untied", seed=3, layers=4, tied=False),
        "float": make_llama("seen/float", seed=3, layers=4, dtype=torch.float32),
        "padded": change(base, root / "padded", tensors=padded, vocab_size=72),
        "lacking": change(base, root / "lacking", tensors=lambda t: t.pop(UP.format(2))),
        "extra": change(base, root / "extra", tensors=lambda t: t.update(spare=torch.ones(2))),
        "other": change(base, root / "other", model_type="mistral"),
        "inv_freq": change(
            base, root / "inv_freq",
            tensors=lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}),
        ),
    }  # fmt: skip


# What is found, and what it weighs.
FOUND = {
    "deep": ({"layers": "asks"}, "base and deep have 4 and 6 in model.layers"),
    "wide": ({"shapes": "blocks"}, "model.embed_tokens.weight [64, 16] and [64, 32]"),
    "words": ({"vocabulary": "asks", "tokenizer": "note"}, "the embeddings of base and words have 64 and 80 rows"),
    "untied": ({"head": "note"}, "a head of its own"),
    "float": ({"dtype": "note"}, "base and float have bfloat16 and float32"),
    "padded": ({"vocabulary": "asks"}, "64 and 72 rows"),
    "lacking": ({"tensors": "blocks"}, f"{UP.format(2)} of base and lacking only in"),
    "extra": ({"tensors": "blocks"}, "spare of base and extra only in"),
    "other": ({"architecture": "note"}, "model_type llama and mistral"),
    "inv_freq": ({}, ""),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_differs_is_named_and_the_verdict_is_the_planners(
    family: dict[str, Path], odd: dict[str, Path], name: str
) -> None:
    weights, says = FOUND[name]
    pair = [family["base"], odd[name]]
    report = compared(*pair)
    assert {difference.topic: difference.weight for difference in report.differences} == weights
    assert says in "\n".join(map(str, report.differences))
    assert report.mergeable == ("blocks" not in weights.values())
    assert len(report.reasons) == list(weights.values()).count("blocks")
    models = [{"model": str(model), "parameters": {"weight": 1}} for model in pair]

    def plan(**keys: Any) -> None:
        build_plan(Recipe.model_validate({"merge_method": "linear", "models": models} | keys))

    if report.verdict == "they can be merged as they are":
        plan()
    else:
        with pytest.raises(InputError):
            plan()
    if "tokenizer_source: union" in report.verdict:
        plan(tokenizer_source="union")


def test_padding_is_counted(odd: dict[str, Path]) -> None:
    facts = compared(odd["padded"]).models[0]
    assert (facts.rows, facts.tokens, facts.unused_rows) == (72, 64, 8)


def test_tokens_under_other_ids_ask_for_a_union(family: dict[str, Path], tmp_path: Path) -> None:
    other = change(family["ann"], tmp_path / "swapped")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["cat"], words["dog"], words["new"] = words["dog"], words["cat"], words.pop("mat")
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = compared(family["base"], other)
    (difference,) = report.differences
    assert (difference.topic, difference.weight) == ("tokenizer", "asks")
    assert difference.text == (
        "base and swapped have 64 and 64 tokens: 'mat' only in the first, 'new' only in the second, "
        "'cat', 'dog' under other ids"
    )
    assert report.verdict.startswith("they can be merged: add tokenizer_source: union")


def test_vocabularies_without_tokenizers_cannot_be_united(
    family: dict[str, Path], odd: dict[str, Path], tmp_path: Path
) -> None:
    """The differences alone would say yes; the planner knows better."""
    bare = [Path(shutil.copytree(model, tmp_path / model.name)) for model in (family["base"], odd["words"])]
    for folder in bare:
        for path in [*folder.glob("*token*"), *folder.glob("chat_template*")]:
            path.unlink()
    report = compared(*bare)
    assert not report.mergeable
    assert any("has no tokenizer" in reason for reason in report.reasons)


def test_names_with_and_without_a_wrapper_are_the_same(family: dict[str, Path], tmp_path: Path) -> None:
    def bare(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    report = compared(family["base"], change(family["ann"], tmp_path / "bare", tensors=bare))
    assert report.mergeable, report


# --- distances --------------------------------------------------------------------------------------------------


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


def measured(base: Path, *models: Path, threads: int = 1) -> Any:
    opened = {folder.name: open_checkpoint(str(folder)) for folder in models}
    with open_checkpoint(str(base)) as first:
        return task_vector_distances(first, opened, threads=threads)


def test_norms_and_cosines_are_those_of_the_definition(family: dict[str, Path]) -> None:
    base, ann, bob = (tensors_of(family[name]) for name in ("base", "ann", "bob"))

    def expected(names: list[str]) -> tuple[float, float, float]:
        flat = [torch.cat([m[name].flatten() for name in names]) for m in (base, ann, bob)]
        a, b = flat[1] - flat[0], flat[2] - flat[0]
        return (
            float(a.norm() / flat[0].norm()),
            float(b.norm() / flat[0].norm()),
            float(a @ b / (a.norm() * b.norm())),
        )

    found = measured(family["base"], family["ann"], family["bob"])
    groups = {"": list(base), "model.layers.2": [n for n in base if ".2." in n]}
    groups["outside layers"] = [n for n in base if "layers" not in n]
    for group, names in groups.items():
        geometry = found.layers[group] if group else found.overall
        assert (*geometry.norms, geometry.cosines[0][1]) == pytest.approx(expected(names), rel=1e-6)
        assert geometry.cosines[0][0] == pytest.approx(1)
        assert geometry.cosines[1][0] == geometry.cosines[0][1]
    assert list(found.layers) == [*(f"model.layers.{i}" for i in range(4)), "outside layers"]
    assert found.skipped == ()
    assert measured(family["base"], family["ann"], family["bob"], threads=3) == found


def test_a_model_like_its_base_has_no_direction(family: dict[str, Path], odd: dict[str, Path]) -> None:
    found = measured(family["base"], family["base"], odd["words"])
    assert found.overall.norms[0] == 0
    assert found.overall.cosines[0] == (None, None)
    assert found.skipped == ("model.embed_tokens.weight",)


def test_strangers_have_no_distance(family: dict[str, Path], odd: dict[str, Path], tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="has no tensor in common with w"):
        measured(family["base"], tmp_path / "w.safetensors")


@pytest.mark.parametrize("values", [[torch.nan], [torch.inf], [torch.inf, -torch.inf]], ids=str)
def test_models_that_are_not_finite_have_no_distance(
    values: list[float], family: dict[str, Path], tmp_path: Path
) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP.format(1)][0, : len(values)] = torch.tensor(values)

    bad = change(family["ann"], tmp_path / "bad", tensors=broken)
    says = f"{UP.format(1)} has NaN or infinity; use another model"
    with pytest.raises(InputError, match=f"^bad: {says}$"):
        measured(family["base"], family["bob"], bad)
    with pytest.raises(InputError, match=f"^{bad}: {says}$"):
        measured(bad, family["bob"], family["ann"])


def test_models_too_far_apart_for_their_dtype_have_no_distance(tmp_path: Path) -> None:
    for name, value in ("base", -3e38), ("far", 3e38):
        save_file({"w": torch.full((2,), value)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="w: differs by more than its dtype can hold"):
        measured(tmp_path / "base.safetensors", tmp_path / "far.safetensors")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Tensors of many blocks are read with buffers of one."""
    torch.manual_seed(0)
    for name in ("base", "a"):
        save_file({"w": torch.randn(2000, 300)}, tmp_path / f"{name}.safetensors")
    sizes: list[int] = []
    with open_checkpoint(str(tmp_path / "a.safetensors")) as model:
        read = type(model.tensors["w"]).read

        def watched(self: Any, start: int, stop: int, out: torch.Tensor) -> None:
            sizes.append(out.numel())
            read(self, start, stop, out)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.tensors["w"]), "read", watched)
            found = measured(tmp_path / "base.safetensors", tmp_path / "a.safetensors")
    assert max(sizes) <= STREAMING_BLOCK < 600_000
    base, a = (load_file(tmp_path / f"{name}.safetensors")["w"].double() for name in ("base", "a"))
    assert found.overall.norms[0] == pytest.approx(float((a - base).norm() / base.norm()), rel=1e-6)


# --- together ---------------------------------------------------------------------------------------------------


def test_the_json_has_what_the_text_has(family: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe_of(family).dump(recipe)
    report = inspect_targets([str(recipe)], distances=True, threads=1)
    data = json.loads(report.to_json())
    assert data.keys() == {"recipe", "distances"}
    assert data["recipe"]["plans"][0]["rows"][0]["name"] == "model.embed_tokens.weight"
    assert data["distances"]["models"] == ["ann", "bob"]
    text = "\n".join(report.lines())
    assert UP.format("0-3") in text
    assert "everywhere: weight=0.5 density=0.25" in text
    assert f"{report.distances.overall.norms[0]:.4f}" in text
    assert "task vectors from" in text


def test_targets_that_make_no_sense(family: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe_of(family).dump(recipe)
    ann, bob = str(family["ann"]), str(family["bob"])
    for targets, options, says in [
        ([str(recipe), ann], {}, "must stand alone"),
        ([ann, bob], {"distances": True}, "add --base MODEL"),
        ([ann, "/no/a", "/no/b"], {}, "/no/a: no such model folder"),
        ([str(tmp_path / "missing.yaml")], {}, "no such recipe file"),
    ]:
        with pytest.raises(InputError, match=says):
            inspect_targets(targets, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        inspect_targets([ann, "/no/a", "/no/b"])
    assert len(caught.value.faults) == 2
