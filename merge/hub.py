"""The Hub: models fetched into its cache, recipes pinned to commits, merged models published."""

import glob
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from heterosis.errors import InputError

from .recipe import Recipe
from .yaml_file import with_texts

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

# huggingface_hub is imported by the functions that need it: it is slow to import, and local folders need none.

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm")
# Taken along where they can be had; without them a cached model is still complete.
_PAPERS = ("README.md", "LICENSE*", "NOTICE*")
_TOKENIZERS = ("*token*", "vocab*", "*.model", "*.spm", "*.tiktoken")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model*.index.json", "pytorch_model*.index.json")
_HALF_WRITTEN = ("*.tmp", "*.part", "*.partial", "*.incomplete", "*.lock")
_PARTIAL_FOLDER = re.compile(r"\..+\.(partial|replaced)-\d+")  # as `published_folder` names them
_ASK_SECONDS = 10
_BAR_SECONDS = 2


def fetch(repo: str, revision: str | None, weights: Sequence[str]) -> tuple[Path, str]:
    """The cached snapshot of a Hub model or adapter, and its commit; what is missing is downloaded.

    Only files at the top of the repository are taken, and the first weights of ``weights`` that there are: what
    lies in subfolders, and in files of other names, is the same model in other formats.

    Args:
        repo: A Hub id.
        revision: A branch, tag or commit; None for the main branch.
        weights: Names of weight files, the preferred first; ``NAME.index.json`` stands for the shards it lists.

    Raises:
        InputError: If it cannot be had; one line with the remedy.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionNotFoundError
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class LateBar(tqdm):
        """Not shown where everything is in the cache."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"delay": _BAR_SECONDS}))  # type: ignore[no-untyped-call]

    where = repo if revision is None else f"{repo}@{revision}"
    away: Exception | None = None  # why the Hub did not answer
    try:
        # Asked first: a download would retry for long where this fails at once, and would not tell why it fell
        # back on the cache.
        HfApi().model_info(repo, revision=revision, timeout=_ASK_SECONDS)
    except RevisionNotFoundError as error:
        raise InputError(_not_fetched(where, error)) from None
    except Exception as error:  # the Hub's client raises its own, httpx's and the system's errors
        away = error

    def download(patterns: Iterable[str], commit: str | None, ignored: str | None = "*/*") -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=commit,
                allow_patterns=list(patterns),
                ignore_patterns=ignored,
                local_files_only=away is not None,
                tqdm_class=LateBar,
            )
        )

    def complete() -> tuple[Path, list[str]]:
        """The snapshot, and the weights that it still lacks."""
        commit = revision
        for name in weights:
            folder = download((*companions, name), commit)
            commit = folder.name  # for the rest, whatever is pushed meanwhile
            if (folder / name).is_file():
                return folder, []
            index = folder / f"{name}.index.json"
            if index.is_file():
                shards = _shards(index)
                if shards:
                    download(map(glob.escape, shards), commit, ignored=None)
                return folder, [shard for shard in shards if not (folder / shard).is_file()]
        return folder, list(weights)

    companions = _COMPANIONS if away else (*_COMPANIONS, *_PAPERS)
    try:
        folder, missing = complete()
    except Exception as error:
        raise InputError(_not_fetched(where, away or error, _similar_folder(repo))) from None
    if missing and away:
        raise InputError(_not_fetched(where, away, f"; the cached copy lacks {missing[0]}"))
    if missing:
        lacks = " or ".join(missing) if missing == list(weights) else missing[0]
        raise InputError(f"{where}: the repository has no {lacks}; name another model or revision")
    if away:
        if revision != folder.name and not isinstance(away, OfflineModeIsEnabled):
            warnings.warn(f"{where}: using the cached commit {folder.name}: {_reason(away)}", stacklevel=2)
        # A cache that was filled file by file does not know what else the repository holds.
        if (folder / "config.json").is_file() and not any(
            fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in _TOKENIZERS
        ):
            warnings.warn(f"{where}: the cached copy has no tokenizer; fetch it if the Hub has one", stacklevel=2)
    return folder, folder.name


def _shards(index: Path) -> list[str]:
    """The files an index lists; none if it is malformed, which whoever opens it reports."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({file for file in listed.values() if isinstance(file, str)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


# --- pinning ----------------------------------------------------------------------------------------------------


def pin(recipe: Recipe, checkpoints: Iterable["Checkpoint"]) -> Recipe:
    """The recipe with the commit of every Hub model and adapter, so that it gives the same model later.

    Args:
        recipe: A recipe.
        checkpoints: Its models, as they were opened.

    Raises:
        InputError: If two of its models are one commit, and may not be listed twice.
    """
    commits = {str(c.ref): str(c.pinned) for c in checkpoints if c.pinned != c.ref}
    if not commits:
        return recipe

    # As YAML, where models are texts wherever they are named: as inputs, for tokens, in notes on their origin.
    documents = [with_texts(document, commits) for document in yaml.safe_load_all(recipe.to_yaml())]
    return Recipe.parse(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), "recipe with commits")


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
    are kept. Hidden files are not published.

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
        if private and not api.model_info(repo_id, timeout=_ASK_SECONDS).private:
            raise InputError(f"{repo_id}: exists and is public; make it private there, or leave out --private")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = [
            name
            for name in api.list_repo_files(repo_id, revision=revision)
            if "/" not in name and name not in files and any(fnmatch(name, pattern) for pattern in _WEIGHTS)
        ]
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message or "Upload a model merged by heterosis",
            allow_patterns=[glob.escape(name) for name in files],
            delete_patterns=[glob.escape(name) for name in stale],
        )
    except InputError:
        raise
    except Exception as error:  # as in `fetch`
        raise InputError(f"{repo_id}: cannot be published: {_reason(error, 'write')}") from None
    return url if revision is None else f"{url}/tree/{revision}"


def _publishable(folder: Path) -> list[str]:
    """The files to publish, relative to a folder that is found to be a complete model with a card.

    Raises:
        InputError: If it is none.
    """
    # Not at the top: that module imports this one.
    from .checkpoint import open_checkpoint

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
        faults += [
            f"{card}: base_model: {name!r} is not a Hub id, and nobody else has that folder; remove it"
            for name in _base_models(card)
            if not HUB_ID.fullmatch(name) or Path(name).exists()
        ]
    else:
        faults.append(f"{folder}: has no model card; write README.md, or merge again with heterosis merge")
    try:
        open_checkpoint(str(folder)).close()
    except InputError as error:
        faults += error.faults
    if faults:
        raise InputError(*faults)
    return files


def _base_models(card: Path) -> list[str]:
    """What a model card's front matter names as its base models.

    Raises:
        InputError: If the front matter is not YAML.
    """
    front = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        raise InputError(f"{card}: the front matter between the --- lines is not YAML; mend it") from None
    named = data.get("base_model") if isinstance(data, dict) else None
    return [str(name) for name in (named if isinstance(named, list) else [named]) if name is not None]


# --- what went wrong --------------------------------------------------------------------------------------------


def _not_fetched(where: str, error: BaseException, more: str = "") -> str:
    return f"{where}: not a local folder, and cannot be fetched from the Hub: {_reason(error)}{more}"


def _similar_folder(name: str) -> str:
    """A suffix for the message on a model that is nowhere: a local folder that may be meant."""
    parent = Path(name).parent
    here = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    near = get_close_matches(Path(name).name, here, n=1)
    return f"; did you mean the folder '{parent / near[0]}'?" if near else ""


def _reason(error: BaseException, doing: str = "read") -> str:
    """Why the Hub's client failed, and the remedy, in one line without secrets."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes: list[BaseException] = [error]  # the client wraps what happened
    while (inner := causes[-1].__cause__) is not None and inner not in causes:
        causes.append(inner)
    for cause in reversed(causes):
        match cause:
            case OfflineModeIsEnabled():
                return "HF_HUB_OFFLINE is set, and the cache has no complete copy; unset it to download"
            case GatedRepoError():
                return "it is gated; ask for access on its page, then log in with `hf auth login`"
            case RevisionNotFoundError():
                return "the repository has no such revision; check the branch, tag or commit"
            case RepositoryNotFoundError():
                return "no such repository, or it is private; check the name, or log in with `hf auth login`"
            case HfHubHTTPError() if cause.response.status_code in (401, 403):
                return f"access is refused; log in with `hf auth login` and a token that may {doing} it"
            case HfHubHTTPError() if cause.response.status_code == 429:
                return "the Hub asks for fewer requests; wait a few minutes, or log in with `hf auth login`"
            case HfHubHTTPError() if cause.response.status_code >= 500:
                return f"the Hub has a fault of its own (HTTP {cause.response.status_code}); try again later"
            case HfHubHTTPError():
                said = _without_secrets(cause.server_message or "no reason given")
                return f"the Hub refuses (HTTP {cause.response.status_code}): {said}"
            case HFValidationError():
                return _without_secrets(str(cause))
    root = causes[-1]
    said = _without_secrets(str(root)) or type(root).__name__
    # The network's errors are httpx's, whose name depends on the version of the Hub's client.
    network = any(type(cause).__module__.partition(".")[0] in ("httpx", "httpx2") for cause in causes)
    if network or isinstance(root, ConnectionError | TimeoutError):
        return f"the Hub cannot be reached ({said}); check the network, and HF_ENDPOINT if it is set"
    if isinstance(root, OSError) and root.strerror:  # of the cache, or of the folder
        return root.strerror if root.filename is None else f"{root.strerror}: {root.filename}"
    return said


def _without_secrets(text: str) -> str:
    """A message in one line, without tokens and without the signatures in addresses."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "***") if token else text
    text = re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", text)
    return "; ".join(line.strip() for line in re.sub(r"\?\S+", "", text).splitlines() if line.strip())
