"""A Hub on this machine: as much of its HTTP API as huggingface_hub needs to read and fill repositories."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import yaml

WRITER = "hf_" + "w" * 34
READER = "hf_" + "r" * 34
Files = dict[str, bytes]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_lfs(name: str) -> bool:
    """Whether a file lies in the store of large files, and its repository holds a pointer to it."""
    return name.endswith((".safetensors", ".bin", ".msgpack", ".onnx"))


def blob_id(name: str, data: bytes) -> str:
    """As git names it; a large file is known by its content."""
    return sha256(data) if is_lfs(name) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository: its commits by id, and its branches."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        listing = "\n".join(f"{name} {sha256(data)}" for name, data in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}\n{listing}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def files(self, branch: str = "main") -> Files:
        return self.commits[self.branches[branch]]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None


class FakeHub:
    """The server. Large files are served from another host name, as the real one's come from a CDN.

    Attributes:
        repos: Repositories by id; tests add to them.
        requests: Everything that was asked for, in order.
        url: For HF_ENDPOINT.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.store: Files = {}
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo_id: str, files: Files, *, branch: str = "main", **options: bool) -> str:
        """Commit files to a repository, made if need be. Returns the commit."""
        return self.repos.setdefault(repo_id, Repo(**options)).commit(files, branch)

    def downloaded(self) -> list[str]:
        """``repo/file`` of every file whose content was sent since the last call, and forgets all requests."""
        names = []
        for request in self.requests:
            at_hub = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", request.path)
            at_cdn = re.fullmatch(r"/cdn/([^/]+/[^/]+)/[0-9a-f]{64}/(.+)", request.path)
            found = at_cdn or at_hub
            if request.method == "GET" and found:
                names.append(f"{found[1]}/{found[2]}")
        self.requests.clear()
        return sorted(names)


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    # --- answering ----------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self._chunk, b""))
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization")
        self.token = token.removeprefix("Bearer ") if token else None
        self.path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, self.path, self.token))
        try:
            for pattern, route in _ROUTES:
                match = re.fullmatch(pattern, f"{self.command} {self.path}")
                if match:
                    route(self, **match.groupdict())
                    return
            raise _Refusal(404, "", f"not in the fake: {self.command} {self.path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, {"error": refusal.message}, {k: v for k, v in headers.items() if v})

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self) -> Any:
        return json.loads(self.body)

    # --- who may what -------------------------------------------------------------------------------------------

    def _repo(self, repo_id: str, *, content: bool = False) -> Repo:
        """A repository that the asker may see; its ``content`` too, which a gated one hides."""
        if self.token not in (None, READER, WRITER):
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token is None):
            # The real one does not tell strangers whether there is one.
            raise _Refusal(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        if content and repo.gated and self.token is None:
            raise _Refusal(401, "GatedRepo", "Access to this model is restricted")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _writable(self, repo_id: str) -> Repo:
        repo = self._repo(repo_id)
        if self.token != WRITER:
            raise _Refusal(403, "", "You do not have write access")
        return repo

    def broken(self, rest: str) -> None:
        raise _Refusal(503, "", f"no {rest} today")

    # --- reading ------------------------------------------------------------------------------------------------

    def info(self, repo: str, rev: str | None = None) -> None:
        held = self._repo(repo)
        sha = self._commit(held, rev or "main")
        siblings = [{"rfilename": name} for name in sorted(held.commits[sha])]
        self._send(
            200, {"id": repo, "sha": sha, "private": held.private, "gated": held.gated, "siblings": siblings}
        )

    def tree(self, repo: str, rev: str) -> None:
        held = self._repo(repo)
        files = held.commits[self._commit(held, rev)]
        rows: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            for folder in sorted({name.rpartition("/")[0] for name in files if "/" in name})
        ]
        for name, data in sorted(files.items()):
            row: dict[str, Any] = {"type": "file", "oid": blob_id(name, data), "size": len(data), "path": name}
            if is_lfs(name):
                row["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
            rows.append(row)
        self._send(200, rows)

    def resolve(self, repo: str, rev: str, name: str) -> None:
        held = self._repo(repo, content=True)
        sha = self._commit(held, rev)
        if name not in held.commits[sha]:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        data = held.commits[sha][name]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob_id(name, data)}"'}
        if not is_lfs(name):
            self._send(200, data, headers)
            return
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data))}
        # Signed, as the real one's are: whoever has the address may read.
        address = f"{self.hub.cdn}/cdn/{repo}/{sha256(data)}/{name}?Signature=secret-{sha256(data)[:8]}"
        self.hub.store[sha256(data)] = data
        self._send(302, b"", headers | {"Location": address})

    def download(self, repo: str, oid: str, name: str) -> None:
        self._send(200, self.hub.store[oid], {"ETag": f'"{oid}"'})

    # --- writing ------------------------------------------------------------------------------------------------

    def create(self) -> None:
        asked = self._json()
        repo_id = f"{asked['organization']}/{asked['name']}"
        if self.token not in (READER, WRITER):
            raise _Refusal(401, "", "Invalid username or password.")
        if self.token == READER:
            raise _Refusal(403, "", "You do not have the rights to create a model under this namespace")
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repos:
            self._send(409, url | {"error": "You already created this model repo"})
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self._send(200, url)

    def validate_yaml(self) -> None:
        front = re.match(r"---\n(.*?)\n---\n", self._json()["content"], re.DOTALL)
        try:
            yaml.safe_load(front[1] if front else "")
        except yaml.YAMLError:
            self._send(400, {"errors": [{"message": "front matter is not YAML"}], "warnings": []})
            return
        self._send(200, {"errors": [], "warnings": []})

    def branch(self, repo: str, name: str) -> None:
        held = self._writable(repo)
        if name in held.branches:
            raise _Refusal(409, "", "Reference already exists")
        held.branches[name] = held.branches["main"]
        self._send(200, {})

    def preupload(self, repo: str, rev: str) -> None:
        held = self._writable(repo)
        files = held.commits[self._commit(held, rev)]
        answers = []
        for file in self._json()["files"]:
            name = file["path"]
            mode = "lfs" if is_lfs(name) else "regular"
            oid = blob_id(name, files[name]) if name in files else None
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answers})

    def lfs_batch(self, repo: str) -> None:
        self._writable(repo)
        objects = []
        for item in self._json()["objects"]:
            upload = {"href": f"{self.hub.cdn}/upload/{item['oid']}?Signature=secret"}
            todo = {} if item["oid"] in self.hub.store else {"actions": {"upload": upload}}
            objects.append({"oid": item["oid"], "size": item["size"], **todo})
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if sha256(self.body) != oid:
            raise _Refusal(400, "", "the content has another hash")
        self.hub.store[oid] = self.body
        self._send(200, b"")

    def commit(self, repo: str, rev: str) -> None:
        held = self._writable(repo)
        if rev not in held.branches:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        files = dict(held.files(rev))
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.store[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = held.commit(files, rev)
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})


_REPO = r"(?P<repo>[^/ ]+/[^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /broken/(?P<rest>.+)", _Handler.broken),
    (rf"GET /api/models/{_REPO}", _Handler.info),
    (rf"GET /api/models/{_REPO}/revision/(?P<rev>.+)", _Handler.info),
    (rf"GET /api/models/{_REPO}/tree/(?P<rev>.+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<rev>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (rf"GET /cdn/{_REPO}/(?P<oid>[0-9a-f]+)/(?P<name>.+)", _Handler.download),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"POST /api/models/{_REPO}/branch/(?P<name>.+)", _Handler.branch),
    (rf"POST /api/models/{_REPO}/preupload/(?P<rev>.+)", _Handler.preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /upload/(?P<oid>[0-9a-f]+)", _Handler.upload),
    (rf"POST /api/models/{_REPO}/commit/(?P<rev>.+)", _Handler.commit),
]
