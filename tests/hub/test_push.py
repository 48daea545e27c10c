"""Publishing: the repository holds the folder's files, byte for byte, and what is unfit never leaves."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_hub import READER, WRITER, FakeHub, Files

from heterosis.merge import Recipe

Run = Callable[..., tuple[int, str, list[str]]]
MakeLlama = Callable[..., Path]


def held(hub: FakeHub, repo: str, branch: str = "main") -> Files:
    files = dict(hub.repos[repo].files(branch))
    files.pop(".gitattributes")
    return files


def files_of(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def merged(make_llama: MakeLlama, tmp_path: Path) -> Path:
    """A model folder in shards, with a card."""
    made = make_llama("push", seed=0, max_shard_size="5KB")
    folder = Path(shutil.copytree(made, tmp_path / "merged"))
    (folder / "README.md").write_text("---\nbase_model:\n- org/a\n- org/b\n---\n\n# Merge\n")
    return folder


def test_a_folder_is_published(hub: FakeHub, run: Run, merged: Path, make_llama: MakeLlama) -> None:
    writer = {"HF_TOKEN": WRITER}
    files = files_of(merged)
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    (merged / ".recipe.yaml.x7").write_text("left over")  # hidden files stay here
    code, output, errors = run("push", merged, "me/merged", "--message", "First", **writer)
    assert (code, output) == (0, f"{hub.url}/me/merged\n"), errors
    assert held(hub, "me/merged") == files
    assert not hub.repos["me/merged"].private
    assert not any(WRITER in text for text in (output, *errors))
    assert all(request.token is None for request in hub.requests if request.path.startswith("/upload/"))

    # The same again changes nothing, and sends no weights.
    hub.requests.clear()
    before = hub.repos["me/merged"].branches["main"]
    assert run("push", merged, "me/merged", **writer)[:2] == (0, f"{hub.url}/me/merged\n")
    assert hub.repos["me/merged"].branches["main"] == before
    assert not any(request.path.startswith("/upload/") for request in hub.requests)

    # Weights in another layout replace the earlier ones, which would be loaded beside them; the rest is kept.
    kept = {"plot.png": b"kept", "old/model.safetensors": b"kept"}
    hub.add("me/merged", hub.repos["me/merged"].files() | kept)
    one = Path(shutil.copytree(make_llama("push-one", seed=1), merged.parent / "one"))
    (one / "README.md").write_text("# Merge\n")
    assert run("push", one, "me/merged", **writer)[0] == 0
    assert held(hub, "me/merged") == files_of(one) | kept

    # To a branch, and in private.
    code, output, _ = run("push", merged, "me/merged", "--revision", "v2", **writer)
    assert (code, output) == (0, f"{hub.url}/me/merged/tree/v2\n")
    assert files.items() <= held(hub, "me/merged", "v2").items()
    assert "model.safetensors" not in held(hub, "me/merged", "v2")
    assert "model.safetensors" in held(hub, "me/merged")
    assert run("push", merged, "me/secret", "--private", **writer)[0] == 0
    assert hub.repos["me/secret"].private
    assert held(hub, "me/secret") == files


def test_a_recipe_without_folders_is_published_as_it_is(hub: FakeHub, run: Run, merged: Path) -> None:
    text = "# By hand.\nmerge_method: linear\nmodels: [{model: org/a}, {model: org/b}]\n"
    (merged / "recipe.yaml").write_text(text)
    assert run("push", merged, "me/by-hand", HF_TOKEN=WRITER)[0] == 0
    assert held(hub, "me/by-hand")["recipe.yaml"].decode() == text


def test_what_a_search_found_is_published_with_its_recipe(
    hub: FakeHub, run: Run, make_llama: MakeLlama, tmp_path: Path
) -> None:
    """The model, the recipe that gives it again from copies of its parents, and a card on how it was found."""
    base = make_llama("push-base", seed=0)
    children = [make_llama(f"push-{i}", seed=i, noise_from=base, noise=0.1) for i in (1, 2)]
    search = {
        "trial": 7,
        "candidates": 9,
        "objective": "weighted",
        "tasks": {"sums": "acc"},
        "documents": {"search": 20, "selection": 20, "holdout": 30},
        "held_out": {"merge": 0.75, "others": {"ann": 0.5}},
    }
    best = tmp_path / "best.yaml"
    models = [{"model": str(child), "parameters": {"weight": [0.2, 0.8]}} for child in children]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models}
    best.write_text(yaml.safe_dump(recipe | {"heterosis": {"seed": 3, "search": search}}))
    assert run("merge", best, tmp_path / "found")[0] == 0
    assert run("push", tmp_path / "found", "me/found", HF_TOKEN=WRITER)[0] == 0
    published = held(hub, "me/found")
    assert {"config.json", "model.safetensors", "recipe.yaml", "README.md", "tokenizer.json"} <= published.keys()
    card = published["README.md"].decode()
    assert "- Validated on 30 documents that played no part before:" in card
    assert "| **This merge** | 0.7500 |" in card
    assert "heterosis merge recipe.yaml OUT" in card
    assert not any(str(base.parent) in text for text in (card, published["recipe.yaml"].decode()))
    assert str(base.parent) in (tmp_path / "found/recipe.yaml").read_text()

    copies = {model.name: str(model) for model in (base, *children)}
    (tmp_path / "recipe.yaml").write_text(Recipe.parse(published["recipe.yaml"].decode()).to_yaml(copies))
    assert run("merge", tmp_path / "recipe.yaml", tmp_path / "again")[0] == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == published["model.safetensors"]


def test_what_is_refused_is_one_line(hub: FakeHub, run: Run, merged: Path, tmp_path: Path) -> None:
    hub.add("org/public", {".gitattributes": b""})
    hub.requests.clear()

    def fault(*arguments: object, **env: str) -> str:
        code, output, errors = run("push", *arguments, **({"HF_TOKEN": WRITER} | env))
        assert (code, output, len(errors)) == (2, "", 1), errors
        assert not any(token in errors[0] for token in (WRITER, READER))
        return errors[0].removeprefix("heterosis: ")

    # Before the Hub is asked.
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "best.yaml").write_text("merge_method: linear\n")
    assert fault(run_folder, "me/x").startswith(
        f"{run_folder}: is a run folder, not a model; merge its recipe first"
    )
    assert fault(run_folder / "best.yaml", "me/x").startswith(
        f"{run_folder}/best.yaml: is a recipe; merge it first"
    )
    assert fault(merged / "config.json", "me/x").startswith(f"{merged}/config.json: must be a model folder")
    assert fault(tmp_path / "none", "me/x").startswith(f"{tmp_path}/none: no such folder")
    assert fault(merged, "merged") == "merged: must be a Hub id such as user/name"
    assert fault(merged, "me/x", HF_TOKEN="").startswith("me/x: cannot be published: not logged in; run `hf auth")
    assert fault(merged, "me/x", HF_HUB_OFFLINE="1").startswith("me/x: cannot be published: HF_HUB_OFFLINE is set")
    card = (merged / "README.md").read_text()
    for text, reason in (
        (card.replace("org/a", "../models/a"), "base_model: '../models/a' is not a Hub id"),
        ("\n" + card.replace("org/a", "../models/a"), "base_model: '../models/a' is not a Hub id"),
        (card.replace("- org/a", "- : ["), "README.md: front matter: line "),
        (card.replace("base_model", "date: 2024-13-45\nbase_model"), "front matter: not valid YAML: month must"),
    ):
        (merged / "README.md").write_text(text)
        assert reason in fault(merged, "me/x")
    (merged / "README.md").unlink()
    assert fault(merged, "me/x").startswith(f"{merged}: has no model card; write README.md")
    (merged / "README.md").write_text(card)
    (merged / "recipe.yaml").write_text("merge_method: linear\n")
    assert fault(merged, "me/x").startswith(f"{merged}/recipe.yaml: must have 'models' or 'slices'")
    (merged / "recipe.yaml").unlink()
    (merged / "model.safetensors.tmp").write_bytes(b"")
    assert fault(merged, "me/x").startswith(f"{merged}/model.safetensors.tmp: looks half-written")
    (merged / "model.safetensors.tmp").unlink()
    partial = merged.rename(tmp_path / ".merged.partial-12")
    assert fault(partial, "me/x").startswith(f"{partial}: is what an interrupted merge left; run the merge again")
    merged = partial.rename(merged)
    shard = next(merged.glob("model-00002*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"{shard}: " in fault(merged, "me/x")
    shard.unlink()
    assert f"there is no file '{shard.name}'" in fault(merged, "me/x")
    shard.write_bytes(content)
    (merged / "config.json").rename(merged / "other.json")
    assert "has no config.json" in fault(merged, "me/x")
    (merged / "other.json").rename(merged / "config.json")
    assert not hub.requests

    # By the Hub.
    refused = "cannot be published: access is refused; log in with `hf auth login` and a token that may write it"
    assert fault(merged, "me/x", HF_TOKEN=READER) == f"me/x: {refused}"
    assert fault(merged, "org/public", "--private").startswith("org/public: exists and is public; make it private")
    assert hub.repos["org/public"].files() == {".gitattributes": b""}
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert fault(merged, "me/x", **closed).startswith("me/x: cannot be published: the Hub cannot be reached (")
    assert "me/x" not in hub.repos
