"""Models fetched from the Hub into its cache, and what can go wrong there."""

import glob
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from heterosis.errors import InputError

# huggingface_hub is imported by the functions that need it: it is slow to import, and local folders need none.

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm")
# Taken along where they can be had; without them a cached model is still complete.
_PAPERS = ("README.md", "LICENSE*", "NOTICE*")
_TOKENIZERS = ("*token*", "vocab*", "*.model", "*.spm", "*.tiktoken")
ASK_SECONDS = 10
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
        HfApi().model_info(repo, revision=revision, timeout=ASK_SECONDS)
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
            warnings.warn(f"{where}: using the cached commit {folder.name}: {reason(away)}", stacklevel=2)
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


# --- what went wrong --------------------------------------------------------------------------------------------


def _not_fetched(where: str, error: BaseException, more: str = "") -> str:
    if Path(where).exists():
        return f"{where}: '@' begins a revision; link the folder of this name under another one"
    return f"{where}: not a local folder, and cannot be fetched from the Hub: {reason(error)}{more}"


def _similar_folder(name: str) -> str:
    """A suffix for the message on a model that is nowhere: a local folder that may be meant."""
    parent = Path(name).parent
    here = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    near = get_close_matches(Path(name).name, here, n=1)
    return f"; did you mean the folder '{parent / near[0]}'?" if near else ""


def reason(error: BaseException, doing: str = "read") -> str:
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
