"""Stages: computing earlier merges as they are read equals writing every one of them, bit for bit."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.api import merge_models
from heterosis.merge.computing import executor, input_blocks, stages
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.methods import get_method, methods
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe

MakeLlama = Callable[..., Path]
Document = dict[str, Any]
NAMES = sorted(methods())


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of a base and three fine-tunes, with tensors of several blocks, of one, and of one element."""
    folder = tmp_path_factory.mktemp("stages")
    shapes = {"layers.0.w": (130, 129), "layers.0.bias": (515,), "scale": (1,)}
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made = {}
    for name in ("base", "a", "b", "c"):
        noise = 0.0 if name == "base" else 0.3
        tensors = {n: (t + noise * torch.randn(t.shape, generator=generator)).bfloat16() for n, t in base.items()}
        tensors["ids"] = torch.arange(7)
        save_file(tensors, folder / f"{name}.safetensors")
        made[name] = str(folder / f"{name}.safetensors")
    return made


def document(method: str, base: str, others: Sequence[str], **keys: Any) -> Document:
    """A recipe over a base and as many of the others as the method takes."""
    spec = get_method(method)
    high = spec.inputs[1] or len(others)
    listed = others[: high - (spec.base == "input")]
    settings: dict[str, Any] = {"weight": 0.6, "density": 0.5, "t": 0.3, "scale": 0.9, "epsilon": 0.1}
    if method in ("ram", "ramplus_tl"):
        del settings["epsilon"]  # another one
    return {
        "merge_method": method,
        **({} if spec.base == "ignored" else {"base_model": base}),
        "models": [{"model": model} for model in listed],
        "parameters": {name: value for name, value in settings.items() if name in spec.parameters},
        **keys,
    }


def recipe_of(*documents: Document) -> Recipe:
    return Recipe.parse(yaml.safe_dump_all(documents, sort_keys=False))


def renamed(value: Any, places: Mapping[str, str]) -> Any:
    """A document with places for the names of stages."""
    if isinstance(value, dict):
        return {key: entry if key == "name" else renamed(entry, places) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry, places) for entry in value]
    return places.get(value, value) if isinstance(value, str) else value


def one_by_one(documents: Sequence[Document], folder: Path, suffix: str = "") -> Path:
    """Merge every document into a file or folder, which later ones read, and return the last."""
    folder.mkdir()
    places: dict[str, str] = {}
    out = folder
    for i, data in enumerate(documents):
        out = merge_models(recipe_of(renamed(data, places)), folder / f"{i}{suffix}")
        places[data.get("name", "")] = str(out)
    return out


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def three_levels(method: str, files: Mapping[str, str]) -> list[Document]:
    """Stages that use each other: as an input, as the base, and twice."""
    base, a, b, c = (files[name] for name in ("base", "a", "b", "c"))
    return [
        document(method, base, [a, b], name="first"),
        document(method, "first", [a, c], name="second", dtype="float32", out_dtype="bfloat16"),
        document(method, "first", ["second", b] if method != "passthrough" else ["second"], name="third"),
        document("linear", base, ["third", "first", "second", c], dtype="float32"),
    ]


@pytest.mark.parametrize("method", NAMES)
def test_stages_equal_merges_one_by_one(
    method: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = three_levels(method, files)
    expected = one_by_one(documents, tmp_path / "steps", ".safetensors")
    first = load_file(tmp_path / "steps/0.safetensors")
    assert {t.dtype for n, t in first.items() if n != "ids"} == {torch.bfloat16}  # so that stages round
    recipe = recipe_of(*documents)
    out = merge_models(recipe, tmp_path / "whole.safetensors", threads=1)
    assert digest(out) == digest(expected)
    monkeypatch.setattr(executor, "THREAD_MINIMUM", 1)  # else so little memory would mean a single thread
    for block, threads, memory_limit in [(4096, 1, 2**24), (8192, 4, 500_000 * 2**6), (4096, 3, 2**24)]:
        monkeypatch.setattr(input_blocks, "STREAMING_BLOCK", block)
        monkeypatch.setattr(stages, "STREAMING_BLOCK", block)
        again = merge_models(
            recipe, tmp_path / "again.safetensors", threads=threads, memory_limit=memory_limit, overwrite=True
        )
        assert digest(again) == digest(expected), (block, threads, memory_limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "steps", "whole.safetensors"]


def test_a_stage_reads_any_ranges_alike(files: dict[str, str]) -> None:
    documents = [
        document("della", files["base"], [files["a"], files["b"]], name="first"),
        document("linear", "", ["first", files["c"]]),
    ]
    plan = build_plan(recipe_of(*documents))
    stage = next(model for ref, model in plan.checkpoints.items() if ref.path == "first")
    source = stage.tensors["layers.0.w"]
    whole = torch.empty(130 * 129, dtype=torch.float32)
    source.read(0, len(whole), whole)
    assert torch.equal(whole, whole.bfloat16().float())
    for start, stop in [(0, 1), (5000, 5001), (128, 9000), (4095, 4097), (len(whole) - 1, len(whole)), (7, 7)]:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            part = torch.empty(stop - start, dtype=dtype)
            source.read(start, stop, part)
            assert torch.equal(part.float(), whole[start:stop]), (start, stop, dtype)


def test_the_order_of_documents_does_not_matter(files: dict[str, str], tmp_path: Path) -> None:
    documents = three_levels("dare_ties", files)
    expected = digest(merge_models(recipe_of(*documents), tmp_path / "1.safetensors"))
    assert digest(merge_models(recipe_of(*reversed(documents)), tmp_path / "2.safetensors")) == expected


def test_a_stage_alone_is_what_the_others_use(files: dict[str, str], tmp_path: Path) -> None:
    documents = three_levels("dare_linear", files)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    one_by_one(documents, tmp_path / "steps", ".safetensors")
    for i, name in enumerate(("first", "second", "third")):
        out = merge_models(Recipe.load(path, stage=name), tmp_path / f"{name}.safetensors")
        assert digest(out) == digest(tmp_path / f"steps/{i}.safetensors")


def test_the_seed_reaches_all_stages_and_stages_draw_their_own_masks(
    files: dict[str, str], tmp_path: Path
) -> None:
    base, a = files["base"], files["a"]
    same = {"weight": 1.0, "density": 0.5, "rescale": False}
    documents = [
        document("dare_linear", base, [a], name="first") | {"parameters": same},
        document("dare_linear", base, [a], name="second") | {"parameters": same},
        document("linear", "", ["first", "second"]),
    ]
    recipe = recipe_of(*documents)
    outs = [merge_models(recipe, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    assert digest(outs[0]) == digest(merge_models(recipe, tmp_path / "x.safetensors"))
    assert digest(outs[0]) != digest(outs[1])
    x, y = load_file(base)["layers.0.w"].float(), load_file(a)["layers.0.w"].float()
    merged = load_file(outs[0])["layers.0.w"].float()
    kept = ((merged - x) / (y - x))[(y - x).abs() > 0.05]
    # Half of the elements are in one mask alone, and of the others half in both.
    for share, expected in [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)]:
        assert abs((kept - share).abs().lt(0.2).float().mean().item() - expected) < 0.03


def test_an_unused_stage_is_not_opened(files: dict[str, str], tmp_path: Path) -> None:
    documents = [
        document("linear", "", ["nowhere/at-all"], name="unused"),
        document("linear", "", [files["a"], files["b"]]),
    ]
    recipe = recipe_of(*documents)
    assert recipe.stages == ()
    merge_models(recipe, tmp_path / "out.safetensors")


def test_faults_name_the_stage(files: dict[str, str], tmp_path: Path) -> None:
    broken = document("ties", files["base"], [files["a"]], name="first") | {"parameters": {"densty": 1}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump_all([broken, document("linear", "", ["first", files["b"]])]))
    with pytest.raises(InputError) as caught:
        merge_models(path, tmp_path / "out.safetensors")
    assert caught.value.faults == (
        f"{path}: first: parameters.densty: unknown parameter of 'ties'; did you mean 'density'?",
    )


def test_a_stage_may_not_hide_infinities(files: dict[str, str], tmp_path: Path) -> None:
    # Finite in the end, because the second document rounds to zero what the first makes infinite.
    documents = [
        document("passthrough", "", [files["a"]], name="first", dtype="float16")
        | {"parameters": {"scale": 60000.0}},
        document("ties", files["base"], ["first"]) | {"parameters": {"weight": 1.0, "density": 0.0}},
    ]
    says = "stage first: the merged tensor has NaN or infinity, though no input has; check weights and dtype"
    with pytest.raises(MergeError, match=says):
        merge_models(recipe_of(*documents), tmp_path / "out.safetensors", threads=2)
    assert list(tmp_path.iterdir()) == []


# --- model folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def family(make_llama: MakeLlama) -> dict[str, str]:
    base = make_llama("stages-base", seed=0)
    children = {name: make_llama(f"stages-{name}", seed=i, noise_from=base) for i, name in enumerate("ab", 1)}
    return {name: str(folder) for name, folder in {"base": base, **children}.items()}


def folders_agree(out: Path, expected: Path) -> None:
    """All files but those that hold the recipe."""
    names = {path.name for path in expected.iterdir()} - {"recipe.yaml", "README.md"}
    assert {path.name for path in out.iterdir()} - {"recipe.yaml", "README.md"} == names
    for name in sorted(names):
        assert digest(out / name) == digest(expected / name), name


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


def test_a_stage_of_other_layers(family: dict[str, str], tmp_path: Path) -> None:
    def stack(name: str, *taken: tuple[str, int, int]) -> Document:
        slices = [{"sources": [{"model": family[m], "layer_range": [i, j]}]} for m, i, j in taken]
        return {"name": name, "merge_method": "passthrough", "slices": slices}

    documents = [
        stack("tall", ("a", 0, 2), ("b", 0, 1)),
        stack("other", ("b", 1, 2), ("a", 0, 2)),
        document("slerp", "tall", ["other"]),
    ]
    out = merge_models(recipe_of(*documents), tmp_path / "out")
    folders_agree(out, one_by_one(documents, tmp_path / "steps"))
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3
    assert load(out).config.num_hidden_layers == 3


def test_a_stage_with_its_own_vocabulary(make_llama: MakeLlama, family: dict[str, str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    longer = str(make_llama("stages-longer", seed=7, vocab=80))
    documents = [
        document("linear", "", [family["a"], longer], name="wide", tokenizer={"source": "union"}),
        document("linear", "", ["wide", family["b"], longer], tokenizer={"source": "union"}),
    ]
    out = merge_models(recipe_of(*documents), tmp_path / "out")
    folders_agree(out, one_by_one(documents, tmp_path / "steps"))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 80
    assert len(AutoTokenizer.from_pretrained(out)) == 80
    assert load(out).get_input_embeddings().weight.shape[0] == 80


def test_a_stage_as_the_tokenizers_source(make_llama: MakeLlama, family: dict[str, str], tmp_path: Path) -> None:
    longer = str(make_llama("stages-longer", seed=7, vocab=80))
    documents = [
        document("linear", "", [family["a"], longer], name="wide", tokenizer={"source": "union"}),
        document("linear", "", [family["a"], family["b"]], tokenizer={"source": "wide"}),
    ]
    with pytest.warns(UserWarning, match="no model has a row for"):
        out = merge_models(recipe_of(*documents), tmp_path / "out")
    with pytest.warns(UserWarning, match="no model has a row for"):
        folders_agree(out, one_by_one(documents, tmp_path / "steps"))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 80


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_stage_with_an_adapter(dtype: str | None, family: dict[str, str], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{path}.lora_A.weight": torch.randn(2, 16), f"{path}.lora_B.weight": torch.randn(16, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    keys = {} if dtype is None else {"dtype": dtype, "out_dtype": "bfloat16"}
    documents = [
        document("ties", family["base"], [f"{family['a']}+{adapter}", family["b"]], name="first", **keys),
        document("task_arithmetic", family["base"], ["first", f"{family['base']}+{adapter}"]),
    ]
    out = merge_models(recipe_of(*documents), tmp_path / "out")
    folders_agree(out, one_by_one(documents, tmp_path / "steps"))


def test_the_folder_s_recipe_makes_it_again(family: dict[str, str], tmp_path: Path) -> None:
    documents = [
        document("ties", family["base"], [family["a"], family["b"]], name="first"),
        document("linear", "", ["first", family["base"]]),
    ]
    out = merge_models(recipe_of(*documents), tmp_path / "out")
    again = merge_models(out / "recipe.yaml", tmp_path / "again")
    assert {p.name: digest(p) for p in again.iterdir()} == {p.name: digest(p) for p in out.iterdir()}
    card = (out / "README.md").read_text()
    assert all(Path(folder).name in card for folder in family.values())
    shutil.rmtree(again)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
