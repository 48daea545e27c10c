"""The Hub: recipes pinned to its commits, merged models published."""

import glob
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from heterosis.errors import InputError, collecting
from heterosis.merge.models.checkpoint import Checkpoint, open_checkpoint
from heterosis.merge.models.fetching import ASK_SECONDS, HUB_ID, reason
from heterosis.merge.output.card import front_matter, shown_recipe
from heterosis.merge.recipe.recipe import Recipe

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model*.index.json", "pytorch_model*.index.json")
_RECIPE = "recipe.yaml"
_HALF_WRITTEN = ("*.tmp", "*.part", "*.partial", "*.incomplete", "*.lock")
_PARTIAL_FOLDER = re.compile(r"\..+\.(partial|replaced)-\d+")  # as `published_folder` names them


# --- pinning ----------------------------------------------------------------------------------------------------


def pin(recipe: Recipe, checkpoints: Iterable[Checkpoint]) -> Recipe:
    """The recipe with the commit of every Hub model and adapter, so that it gives the same model later.

    Args:
        recipe: A recipe.
        checkpoints: Its models, as they were opened.

    Raises:
        InputError: If two of its models are one commit, and may not be listed twice.
    """
    commits = {str(c.ref): str(c.pinned) for c in checkpoints if c.pinned != c.ref}
    return Recipe.parse(recipe.to_yaml(commits), "recipe with commits") if commits else recipe


# --- publishing -------------------------------------------------------------------------------------------------


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Publish a merged model on the Hub, and return its URL.

    The repository is created if there is none. Its files are replaced by those of the folder; weights of an
    earlier push that the folder does not have are deleted, since they would be loaded instead, and other files
    are kept. Hidden files are not published, nor paths of this machine: its recipe names folders as the card does.

    Args:
        folder: A complete model folder, such as ``heterosis merge`` writes.
        repo_id: ``user/name`` or ``organisation/name``.
        private: Create the repository private; one that exists must be.
        revision: The branch, created if there is none; None for the main branch.
        message: Of the commit.

    Raises:
        InputError: If the folder is not fit to be published, or the Hub refuses; one line with the remedy.
    """
    folder = Path(folder)
    files = _publishable(folder)
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"{repo_id}: must be a Hub id such as user/name")

    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise InputError(f"{repo_id}: cannot be published: HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise InputError(f"{repo_id}: cannot be published: not logged in; run `hf auth login` or set HF_TOKEN")
    api = HfApi()
    try:
        url = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
        if private and not api.model_info(repo_id, timeout=ASK_SECONDS).private:
            raise InputError(f"{repo_id}: exists and is public; make it private there, or leave out --private")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = [
            name
            for name in api.list_repo_files(repo_id, revision=revision)
            if "/" not in name and name not in files and any(fnmatch(name, pattern) for pattern in _WEIGHTS)
        ]
        with _published(folder, files) as published:
            api.upload_folder(
                repo_id=repo_id,
                folder_path=published,
                revision=revision,
                commit_message=message or "Upload a model merged by heterosis",
                delete_patterns=[glob.escape(name) for name in stale],
            )
    except InputError:
        raise
    except Exception as error:  # as in `fetch`
        raise InputError(f"{repo_id}: cannot be published: {reason(error, 'write')}") from None
    return url if revision is None else f"{url}/tree/{revision}"


def _publishable(folder: Path) -> list[str]:
    """The files to publish, relative to a folder that is found to be a complete model with a card.

    Raises:
        InputError: If it is none.
    """
    if folder.is_file() and folder.suffix in (".yaml", ".yml"):
        raise InputError(f"{folder}: is a recipe; merge it first (heterosis merge {folder} OUT), then push OUT")
    if folder.is_file():
        raise InputError(f"{folder}: must be a model folder, but is a file; give the folder that holds it")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that heterosis merge wrote")
    best = folder / "best.yaml"
    if not (folder / "config.json").exists() and (best.exists() or (folder / "study.db").exists()):
        raise InputError(
            f"{folder}: is a run folder, not a model; merge its recipe first (heterosis merge {best} OUT), "
            "then push OUT"
        )
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    faults = [
        f"{folder / name}: looks half-written; wait until it is finished, or remove it"
        for name in files
        if any(fnmatch(name, pattern) for pattern in _HALF_WRITTEN)
    ]
    if _PARTIAL_FOLDER.fullmatch(folder.absolute().name):
        faults.append(f"{folder}: is what an interrupted merge left; run the merge again, and push its result")
    card = folder / "README.md"
    if card.is_file():
        with collecting(faults):
            faults += [
                f"{card}: base_model: {name!r} is not a Hub id, and nobody else has that folder; remove it"
                for name in _base_models(card)
                if not HUB_ID.fullmatch(name) or Path(name).exists()
            ]
    else:
        faults.append(f"{folder}: has no model card; write README.md, or merge again with heterosis merge")
    if _RECIPE in files:
        with collecting(faults):
            Recipe.load(folder / _RECIPE)
    with collecting(faults):
        open_checkpoint(str(folder)).close()
    if faults:
        raise InputError(*faults)
    return files


@contextmanager
def _published(folder: Path, files: Collection[str]) -> Iterator[Path]:
    """A folder of links to the files to publish, with a recipe that tells no paths of this machine."""
    with tempfile.TemporaryDirectory(prefix="heterosis-push-") as name:
        published = Path(name)
        for file in files:
            link = published / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((folder / file).absolute())
        if _RECIPE in files:
            recipe = Recipe.load(folder / _RECIPE)
            if (shown := shown_recipe(recipe)) != recipe.to_yaml():
                (published / _RECIPE).unlink()
                (published / _RECIPE).write_text(shown, encoding="utf-8")
        yield published


def _base_models(card: Path) -> list[str]:
    """What a model card's front matter names as its base models; errors as of `front_matter`."""
    named = front_matter(card).get("base_model")
    return [str(name) for name in (named if isinstance(named, list) else [named]) if name is not None]
