"""Hub ids: what is downloaded, what is pinned, and what is said when something is missing."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fake_hub import READER, WRITER, FakeHub, Files
from safetensors.torch import load_file, save_file

from heterosis.merge.hub import pin
from heterosis.merge.models.checkpoint import open_checkpoint
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef

Run = Callable[..., tuple[int, str, list[str]]]
MakeLlama = Callable[..., Path]
PREFIX = "not a local folder, and cannot be fetched from the Hub: "


def files_of(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_recipe(path: Path, *models: str) -> Path:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": model, "parameters": {"weight": 1 + i}} for i, model in enumerate(models)],
        "tokenizer_source": models[1],
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def local(make_llama: MakeLlama, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models in every layout: one file, shards, a pickle; and an adapter."""
    base = make_llama("hub-base", seed=0)
    shards = make_llama("hub-shards", seed=1, noise_from=base, max_shard_size="5KB")
    root = tmp_path_factory.mktemp("local")
    pickle = Path(shutil.copytree(make_llama("hub-third", seed=2, noise_from=base), root / "pickle"))
    torch.save(load_file(pickle / "model.safetensors"), pickle / "pytorch_model.bin")
    (pickle / "model.safetensors").unlink()
    adapter = root / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    stem = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    factors = {f"{stem}A.weight": torch.ones(2, 16), f"{stem}B.weight": torch.ones(32, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    return {"base": base, "shards": shards, "pickle": pickle, "adapter": adapter}


@pytest.fixture(scope="module")
def commits(hub: FakeHub, local: dict[str, Path]) -> dict[str, str]:
    """The models on the Hub, among what else repositories hold."""
    others = (
        "consolidated.safetensors model.fp16.safetensors flax_model.msgpack training_args.bin onnx/config.json "
        "onnx/model.onnx original/model.safetensors model.gguf .gitattributes"
    )
    junk = dict.fromkeys(others.split(), b"not needed")
    index = json.dumps({"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}).encode()
    pickles = {"pytorch_model.bin.index.json": index, "pytorch_model-00001-of-00001.bin": b"not needed"}
    stray = {"model-00099-of-00099.safetensors": b"not needed"}
    second = {"pytorch_model.bin": b"not needed"}
    papers = {"README.md": b"# A model\n", "LICENSE": b"Do as you like.\n"}
    found = {
        "base": hub.add("org/base", junk | papers | second | files_of(local["base"])),
        "shards": hub.add("org/shards", junk | stray | pickles | files_of(local["shards"])),
        "pickle": hub.add("org/pickle", junk | files_of(local["pickle"]), branch="v1"),
        "adapter": hub.add("org/adapter", junk | {"optimizer.bin": b"not needed"} | files_of(local["adapter"])),
    }
    hub.add("org/pickle", {"config.json": b"{}"})
    return found


def test_a_merge_of_hub_ids(
    hub: FakeHub, home: Path, run: Run, local: dict[str, Path], commits: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", "org/base+org/adapter", "org/shards", "org/pickle@v1")
    names = f"{local['base']}+{local['adapter']}", str(local["shards"]), str(local["pickle"])
    assert run("merge", write_recipe(tmp_path / "local.yaml", *names), tmp_path / "local")[0] == 0
    expected = (tmp_path / "local/model.safetensors").read_bytes()
    assert not hub.requests

    # Only what is needed is downloaded: the first weights in the order of preference, and companion files.
    code, _, errors = run("merge", recipe, tmp_path / "first")
    assert code == 0, errors
    assert (tmp_path / "first/model.safetensors").read_bytes() == expected
    wanted = [f"org/{name}/{file}" for name, folder in local.items() for file in files_of(folder)]
    wanted += ["org/base/README.md", "org/base/LICENSE", "org/shards/pytorch_model.bin.index.json"]
    assert not any(request.path.startswith("/cdn/") and request.token for request in hub.requests)
    assert hub.downloaded() == sorted(wanted)
    assert (tmp_path / "first/LICENSE").read_bytes() == b"Do as you like.\n"

    # What is written names the commits, the card's front matter the repositories.
    pinned = yaml.safe_load((tmp_path / "first/recipe.yaml").read_text())
    shards = f"org/shards@{commits['shards']}"
    assert [entry["model"] for entry in pinned["models"]] == [
        f"org/base@{commits['base']}+org/adapter@{commits['adapter']}",
        shards,
        f"org/pickle@{commits['pickle']}",
    ]
    assert pinned["tokenizer_source"] == shards
    front = yaml.safe_load((tmp_path / "first/README.md").read_text().split("---")[1])
    assert sorted(front["base_model"]) == ["org/adapter", "org/base", "org/pickle", "org/shards"]
    assert "base_model" not in (tmp_path / "local/README.md").read_text()

    # The second time, nothing is; nor when the repository has moved on, where a commit is named.
    assert run("inspect", recipe)[::2] == (0, [])
    assert hub.downloaded() == []
    pinned_recipe = tmp_path / "first/recipe.yaml"
    hub.add("org/base", files_of(local["base"]) | {"model.safetensors": b"another"})
    assert run("merge", pinned_recipe, tmp_path / "second")[0] == 0
    assert (tmp_path / "second/model.safetensors").read_bytes() == expected
    assert (tmp_path / "second/recipe.yaml").read_bytes() == pinned_recipe.read_bytes()
    assert not any(request.method == "HEAD" for request in hub.requests)
    assert hub.downloaded() == []

    # Offline, nobody is asked.
    offline = {"HF_HUB_OFFLINE": "1"}
    assert run("inspect", recipe, **offline)[::2] == (0, [])
    assert run("inspect", pinned_recipe, **offline)[::2] == (0, [])
    assert not hub.requests

    # A cache that lacks a shard is not taken for complete, whether or not it has a listing to tell, and only that
    # shard is fetched.
    cache = home / "hub/models--org--shards"
    shard = sorted((cache / "snapshots" / commits["shards"]).glob("model-0*.safetensors"))[1]
    shard.resolve().unlink()
    shard.unlink()
    fault = f"{shards}: {PREFIX}HF_HUB_OFFLINE is set, and the cache has no complete copy; unset it to download"
    assert fails(run("inspect", pinned_recipe, **offline)) == fault
    shutil.rmtree(cache / "trees")
    assert fails(run("inspect", pinned_recipe, **offline)) == f"{fault}; the cached copy lacks {shard.name}"
    assert run("inspect", pinned_recipe)[0] == 0
    assert hub.downloaded() == [f"org/shards/{shard.name}"]


def fails(ran: tuple[int, str, list[str]]) -> str:
    """The one line that a command failed with, without the recipe's name."""
    code, output, errors = ran
    assert (code, output, len(errors)) == (2, "", 1), ran
    assert not any(secret in errors[0] for secret in (READER, WRITER, "Signature"))
    return errors[0].partition(".yaml: ")[2]


def test_what_cannot_be_fetched_is_one_line(
    hub: FakeHub, run: Run, local: dict[str, Path], commits: dict[str, str], tmp_path: Path
) -> None:
    files = files_of(local["base"])
    hub.add("org/private", files, private=True)
    hub.add("org/gated", files, gated=True)
    hub.add("org/gguf", {"config.json": files["config.json"], "model.gguf": b"x"})

    def inspect(model: str, **env: str) -> tuple[int, str, list[str]]:
        recipe = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n")
        return run("inspect", recipe, **env)

    absent = "no such repository, or it is private; check the name, or log in with `hf auth login`"
    for model, env, reason in (
        ("org/nothing", {}, absent),
        ("org/private", {}, absent),
        ("org/private", {"HF_TOKEN": "hf_" + "x" * 34}, "access is refused; log in with `hf auth login`"),
        ("org/gated", {}, "it is gated; ask for access on its page, then log in with `hf auth login`"),
        ("org/base@nope", {}, "the repository has no such revision; check the branch, tag or commit"),
        ("org/nothing", {"HF_ENDPOINT": f"{hub.url}/broken"}, "the Hub has a fault of its own (HTTP 503)"),
        ("org/a--b", {}, "Cannot have -- or .. in repo_id: 'org/a--b'"),
        ("org/nothing", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and the cache has no complete copy"),
    ):
        assert fails(inspect(model, **env)).startswith(f"{model}: {PREFIX}{reason}"), model
    lacks = "the repository has no model.safetensors or pytorch_model.bin; name another model or revision"
    assert fails(inspect("org/gguf")) == f"org/gguf: {lacks}"
    for model in ("org/private", "org/gated"):
        code, _, errors = inspect(model, HF_TOKEN=READER)
        assert (code, errors) == (0, [])

    # Without a network, at once: what is cached is used, with a word where the Hub may have moved on.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nobody = {"HF_ENDPOINT": f"http://127.0.0.1:{held.getsockname()[1]}"}
        gone = "the Hub cannot be reached ([Errno 111] Connection refused); check the network"
        for model in ("org/elsewhere", f"org/elsewhere@{'0' * 40}"):
            assert fails(inspect(model, **nobody)).startswith(f"{model}: {PREFIX}{gone}")
        code, _, errors = inspect("org/private", **nobody)
        assert code == 0
        assert [error.partition(" commit ")[0] for error in errors] == ["warning: org/private: using the cached"]
        assert inspect(f"org/private@{hub.repos['org/private'].branches['main']}", **nobody)[::2] == (0, [])


def test_a_cache_filled_file_by_file(
    hub: FakeHub, home: Path, run: Run, local: dict[str, Path], tmp_path: Path
) -> None:
    """Offline nobody knows whether there is a tokenizer; online it is fetched though the weights are there."""
    commit = hub.add("org/partial", files_of(local["base"]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: passthrough\nmodels: [{model: org/partial}]\n")
    assert run("inspect", recipe)[::2] == (0, [])
    cache = home / "hub/models--org--partial"
    shutil.rmtree(cache / "trees")
    for path in (cache / "snapshots" / commit).glob("*token*"):
        path.unlink()
    hub.downloaded()
    code, _, errors = run("inspect", recipe, HF_HUB_OFFLINE="1")
    assert (code, len(errors)) == (0, 1)
    assert errors[0].startswith("warning: org/partial: the cached copy has no tokenizer")
    assert run("inspect", recipe)[::2] == (0, [])
    assert (cache / "snapshots" / commit / "tokenizer.json").is_file()


def test_local_folders_win_and_two_names_of_one_commit_are_told(
    hub: FakeHub, run: Run, local: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(local["base"], "org/base")
    with open_checkpoint("org/base") as checkpoint:
        assert checkpoint.revision is None
        assert checkpoint.pinned == checkpoint.ref
    hub.add("org/twice", files_of(local["base"]))
    recipe = write_recipe(tmp_path / "recipe.yaml", "org/twice", "org/twice@main")
    code, _, errors = run("merge", recipe, tmp_path / "out")
    assert (code, len(errors)) == (2, 1)
    assert "models must differ, but got 'org/twice@" in errors[0]
    assert not (tmp_path / "out").exists()


STAGES = """\
name: first
merge_method: task_arithmetic
base_model: org/base
models:
- model: org/base@main
- model: ./local
  parameters: {weight: 1.0e-05}
---
merge_method: slerp
base_model: first
slices:
- sources:
  - {model: first, layer_range: [0, 2]}
  - {model: org/base+org/adapter, layer_range: [0, 2]}
parameters: {t: [0.1, 0.30000000000000004]}
tokenizer:
  source: org/base
  tokens:
    <x>: {source: org/base}
heterosis:
  models:
    org/base: {sha256: abc}
"""


def test_pinning_reaches_every_mention() -> None:
    def opened(name: str, pinned: str) -> Any:
        return SimpleNamespace(ref=ModelRef.parse(name), pinned=ModelRef.parse(pinned))

    checkpoints = [
        opened("org/base", "org/base@c1"),
        opened("org/base@main", "org/base@c2"),
        opened("org/base+org/adapter", "org/base@c1+org/adapter@c3"),
        opened("./local", "./local"),
    ]
    expected = STAGES.replace("org/base+org/adapter", "org/BASE@c1+org/adapter@c3").replace(
        "org/base@main", "org/BASE@c2"
    )
    expected = expected.replace("org/base", "org/base@c1").replace("BASE", "base")
    assert pin(Recipe.parse(STAGES), checkpoints).to_yaml() == Recipe.parse(expected).to_yaml()
    recipe = Recipe.parse(STAGES)
    assert pin(recipe, checkpoints[3:]) is recipe
