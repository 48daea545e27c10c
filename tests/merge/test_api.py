"""A merge from recipe to folder: transformers loads it, everything comes along, and failures leave nothing."""

import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge import api
from heterosis.merge.api import merge_models
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.recipe.recipe import Recipe

MakeLlama = Callable[..., Path]


@pytest.fixture(scope="session")
def family(make_llama: MakeLlama) -> list[Path]:
    base = make_llama("api-base", seed=0)
    return [base, *(make_llama(f"api-{i}", seed=i, noise_from=base) for i in (1, 2))]


@pytest.fixture(scope="session")
def untied(make_llama: MakeLlama) -> Path:
    return make_llama("api-untied", seed=4, tied=False)


def recipe_of(family: list[Path], method: str = "dare_ties", **keys: Any) -> Recipe:
    base, a, b = map(str, family)
    return Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": base,
            "models": [{"model": a}, {"model": b}],
            "parameters": {"weight": 0.7, "density": 0.6},
            **keys,
        }
    )


def load(folder: Path) -> Any:
    """The model as transformers loads it, with nothing missing and nothing left over."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_is_a_whole_model(family: list[Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    base = Path(shutil.copytree(family[0], tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "do_sample": True}))
    (base / "LICENSE").write_text("free")
    (base / "modeling_code.py").write_text("raise SystemExit")
    recipe = recipe_of([base, *family[1:]])
    out = merge_models(recipe, tmp_path / "out")
    model = load(out)
    assert model.dtype == torch.bfloat16
    ids = AutoTokenizer.from_pretrained(out)("the cat sat", return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all()
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert AutoTokenizer.from_pretrained(out).chat_template is not None
    assert GenerationConfig.from_pretrained(out).temperature == 0.3
    assert (out / "LICENSE").read_text() == "free"
    assert not (out / "modeling_code.py").exists()
    assert Recipe.load(out / "recipe.yaml") == recipe
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "merge_method: dare_ties\nbase_model: base\n" in card


def test_shards_and_threads_change_no_tensor(family: list[Path], tmp_path: Path) -> None:
    recipe = recipe_of(family)
    one = load_file(merge_models(recipe, tmp_path / "one", threads=1) / "model.safetensors")
    out = merge_models(recipe, tmp_path / "many", threads=3, memory_limit=2**26, shard_size=3000)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2
    many = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert many.keys() == one.keys()
    assert all(torch.equal(many[name], tensor) for name, tensor in one.items())
    state = load(out).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in one.items())


def test_the_same_recipe_gives_the_same_folder_and_another_seed_other_masks(
    family: list[Path], tmp_path: Path
) -> None:
    recipe = recipe_of(family)
    recipe.dump(tmp_path / "recipe.yaml")
    first = digests(merge_models(recipe, tmp_path / "1"))
    assert digests(merge_models(tmp_path / "recipe.yaml", tmp_path / "2")) == first
    other = merge_models(recipe, tmp_path / "3", seed=1)
    changed = {name for name, digest in digests(other).items() if digest != first[name]}
    assert changed == {"model.safetensors", "recipe.yaml", "README.md"}
    assert digests(merge_models(other / "recipe.yaml", tmp_path / "4")) == digests(other)


def test_what_is_written_names_local_models_for_every_folder(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [Path("org/base"), Path("org/ann"), Path("bob")]
    for name, made in zip(named, family, strict=True):
        shutil.copytree(made, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    out = merge_models(recipe_of(named, tokenizer_source="bob"), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    again = Recipe.load(out / "recipe.yaml")
    assert [ref.path for ref in again.needed_models()] == [f"{tmp_path}/here/{name}" for name in named]
    assert again.tokenizer_source == f"{tmp_path}/here/bob"
    assert digests(merge_models(again, tmp_path / "again")) == digests(out)


def test_a_folder_that_cannot_be_named_whole_is_not_named_like_one_of_the_hub(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [Path("org/base"), Path("org/ann"), Path("bob")]
    for name, made in zip(named, family, strict=True):
        shutil.copytree(made, tmp_path / "me@work" / name)
    monkeypatch.chdir(tmp_path / "me@work")
    out = merge_models(recipe_of(named), tmp_path / "out")
    again = Recipe.load(out / "recipe.yaml")
    assert [ref.path for ref in again.needed_models()] == ["./org/base", "./org/ann", "bob"]


def test_stacked_layers_and_mixed_heads_load(family: list[Path], untied: Path, tmp_path: Path) -> None:
    def stack(*parts: Path) -> Recipe:
        slices = [{"sources": [{"model": str(part), "layer_range": [0, 2]}]} for part in parts]
        return Recipe.model_validate({"merge_method": "passthrough", "slices": slices})

    for i, parts in enumerate([(family[0], family[1], family[0]), (family[0], untied), (untied, family[0])]):
        model = load(merge_models(stack(*parts), tmp_path / str(i)))
        assert model.config.num_hidden_layers == len(model.model.layers) == 2 * len(parts)
        head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
        assert (head.data_ptr() == embedding.data_ptr()) == (untied not in parts)
    mixed = recipe_of([untied, *family[1:]], "linear", base_model=None, parameters={"weight": 1})
    others = [{"model": str(folder)} for folder in (family[1], untied)]
    mixed = Recipe.model_validate({**yaml.safe_load(mixed.to_yaml()), "models": others})
    load(merge_models(mixed, tmp_path / "mixed"))


def test_the_tokenizer_comes_from_its_source(family: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(family[2], tmp_path / "third"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["new"] = 63
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    models = [*family[:2], other]

    def made(name: str, source: str | None) -> str:
        out = merge_models(recipe_of(models, tokenizer_source=source), tmp_path / name)
        kept, given = (json.loads((f / "generation_config.json").read_text()) for f in (out, family[0]))
        assert kept == given
        return digests(out)["tokenizer.json"]

    assert made("none", None) == made("base", "base") == digests(family[0])["tokenizer.json"]
    assert made("other", str(other)) == digests(other)["tokenizer.json"]
    same = merge_models(recipe_of(family, tokenizer_source="union"), tmp_path / "union")
    assert digests(same)["tokenizer.json"] == digests(family[0])["tokenizer.json"]
    for name in ("config.json", "generation_config.json"):
        data = json.loads((other / name).read_text()) | {"eos_token_id": 5}
        (other / name).write_text(json.dumps(data))
    theirs = merge_models(recipe_of(models, tokenizer_source=str(other)), tmp_path / "ids")
    ours = merge_models(recipe_of(models, tokenizer_source="base"), tmp_path / "base-ids")
    for name in ("config.json", "generation_config.json"):
        assert [json.loads((out / name).read_text())["eos_token_id"] for out in (theirs, ours)] == [5, 2]
    union = merge_models(recipe_of(models, tokenizer_source="union"), tmp_path / "more")
    assert json.loads((union / "config.json").read_text())["vocab_size"] == 65
    assert load_file(union / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 65
    with pytest.raises(InputError, match=r"^tokenizer_source: org/x: not a local folder"):
        merge_models(recipe_of(models, tokenizer_source="org/x"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_an_existing_folder_is_replaced_only_on_request(family: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already; choose another folder, or pass --overwrite"):
        merge_models(recipe_of(family), out)
    with pytest.raises(InputError, match=r"out: holds what no merge writes \(mine\), which would be lost"):
        merge_models(recipe_of(family), out, overwrite=True)
    assert names(out) == ["mine"]
    (out / "mine").unlink()
    merge_models(recipe_of(family), out)
    (out / "notes.txt").touch()
    merge_models(recipe_of(family), out, overwrite=True)
    assert "notes.txt" not in names(out)
    load(out)


def test_an_output_in_a_home_folder(family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^~nosuchuser/out: no home folder of ~nosuchuser is known"):
        merge_models(recipe_of(family), "~nosuchuser/out")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert merge_models(recipe_of(family), "~/out") == tmp_path / "home" / "out"
    assert names(tmp_path) == ["home"]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_replaced(dangling: bool, family: list[Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to("elsewhere/model")
    if not dangling:
        merge_models(recipe_of(family), elsewhere / "model")
    recipe = recipe_of(family, "task_arithmetic", parameters={"weight": 0.5})
    assert merge_models(recipe, tmp_path / "link", overwrite=not dangling) == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["elsewhere", "link"]
    assert names(elsewhere) == ["model"]
    assert "task_arithmetic" in (elsewhere / "model/recipe.yaml").read_text()


@pytest.mark.parametrize("method", ["linear", "slerp", "nearswap", "arcee_fusion", "task_arithmetic"])
def test_inputs_are_rounded_however_they_are_stored(method: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(64, 64, generator=generator) for _ in range(3)]
    for name, tensor in zip("abc", tensors, strict=True):
        save_file({"w": tensor}, tmp_path / f"{name}.safetensors")
        torch.save({"w": tensor}, tmp_path / f"{name}.bin")
        save_file({"w": tensor.half().float()}, tmp_path / f"{name}.rounded.safetensors")
    numbers: dict[str, Any] = {"linear": {"weight": 0.5}, "task_arithmetic": {"weight": 0.5}}.get(
        method, {"t": 0.3}
    )

    def merged(kind: str) -> torch.Tensor:
        a, b, base = (str(tmp_path / f"{name}.{kind}") for name in "abc")
        recipe: dict[str, Any] = {"merge_method": method, "dtype": "float16", "parameters": numbers}
        recipe |= {"models": [{"model": a}, {"model": b}]}
        if method != "linear":
            recipe |= {"base_model": base if method == "task_arithmetic" else a}
        if method == "arcee_fusion":
            del recipe["parameters"]
        return load_file(merge_models(Recipe.model_validate(recipe), tmp_path / f"out-{kind}.safetensors"))["w"]

    expected = merged("rounded.safetensors")
    assert torch.equal(merged("safetensors"), expected)
    assert torch.equal(merged("bin"), expected)


def test_an_output_that_holds_a_model_is_refused(family: list[Path], tmp_path: Path) -> None:
    """As a trainer's folder holds its checkpoints, beside a config of its own."""
    trained = tmp_path / "trained"
    held = [Path(shutil.copytree(path, trained / path.name)) for path in family]
    shutil.copy(family[0] / "config.json", trained)
    with pytest.raises(InputError, match=r"trained: holds what no merge writes \(api-1, api-2, api-base\)"):
        merge_models(recipe_of(held), trained, overwrite=True)
    assert names(trained) == sorted([*(path.name for path in family), "config.json"])


def test_an_output_inside_a_model_is_refused(family: list[Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(family[0], tmp_path / "base"))
    (tmp_path / "link").symlink_to(base)
    for out in (base / "out", tmp_path / "link" / "deep" / "out"):
        with pytest.raises(InputError, match=f"out: is inside {base}, which is merged; choose another folder"):
            merge_models(recipe_of([base, *family[1:]]), out)
    assert names(base) == names(family[0])


def test_an_output_that_is_or_is_inside_an_adapter_is_refused(family: list[Path], tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    shutil.copy(family[0] / "config.json", lora)
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)}
    save_file(factors, lora / "adapter_model.safetensors")
    before = digests(lora)
    recipe = recipe_of([family[0], Path(f"{family[1]}+{lora}"), family[2]])
    with pytest.raises(InputError, match=r"lora: holds what no merge writes \(adapter_model.safetensors\)"):
        merge_models(recipe, lora, overwrite=True)
    with pytest.raises(InputError, match=rf"out: is inside {family[1]}\+{lora}, which is merged"):
        merge_models(recipe, lora / "out")
    assert digests(lora) == before


def test_an_output_that_weights_are_linked_from_is_refused(family: list[Path], tmp_path: Path) -> None:
    own = Path(shutil.copytree(family[1], tmp_path / "own"))
    linked = Path(shutil.copytree(family[2], tmp_path / "linked"))
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(own / "model.safetensors")
    before = digests(own)
    with pytest.raises(InputError, match="own: is one of the models that are merged; choose another folder"):
        merge_models(recipe_of([*family[:2], linked]), own, overwrite=True)
    assert digests(own) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_nan_in_an_input_leaves_nothing(threads: int, family: list[Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(family[1], tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = torch.nan
    save_file(tensors, broken / "model.safetensors")
    recipe = recipe_of([family[0], broken, family[2]], "ties")
    gc.collect()
    gc.disable()  # no garbage of the error's keeps files open
    try:
        before = open_models()
        with pytest.raises(MergeError, match=rf"^{name}: the merged tensor has NaN or infinity"):
            merge_models(recipe, tmp_path / "out", threads=threads)
        assert names(tmp_path) == ["broken"]
        assert open_models() == before
    finally:
        gc.enable()


def open_models() -> int:
    return sum(link.exists() and "api-" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir())


def test_a_full_disk_is_seen_before_anything_is_written(
    family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(family)
    size = (merge_models(recipe, tmp_path / "out") / "model.safetensors").stat().st_size
    monkeypatch.setattr(api.shutil, "disk_usage", lambda path: SimpleNamespace(free=size // 2, total=size))
    with pytest.raises(
        InputError, match=r"new/out: the merged model takes [\d.]+ KiB, but only [\d.]+ KiB are free"
    ):
        merge_models(recipe, tmp_path / "new" / "out")
    monkeypatch.setattr(api.shutil, "disk_usage", lambda path: SimpleNamespace(free=0, total=0))
    with pytest.raises(
        InputError, match=r"new/out: cannot be written: .* takes no new files; choose another place"
    ):
        merge_models(recipe, tmp_path / "new" / "out")
    assert names(tmp_path) == ["out"]


def test_the_plan_is_announced_and_files_are_closed(family: list[Path], tmp_path: Path) -> None:
    opened: list[int] = []
    gc.collect()  # what other tests have left to it
    before = open_models()
    merge_models(recipe_of(family), tmp_path / "out", announce=lambda plan: opened.append(open_models() - before))
    assert opened == [3]
    assert open_models() == before


@pytest.mark.parametrize(
    "number", [{"threads": 0}, {"shard_size": -5}, {"memory_limit": "1GiB"}, {"threads": 1.5}]
)
def test_numbers_that_cannot_be_are_refused(family: list[Path], tmp_path: Path, number: dict[str, Any]) -> None:
    (name, value), *_ = number.items()
    said = f"{name}: must be a whole number of at least 1, but got {value!r}"
    with pytest.raises(InputError, match=f"^{said}$"):
        merge_models(recipe_of(family), tmp_path / "out", **number)
    assert not (tmp_path / "out").exists()
