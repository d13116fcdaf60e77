"""The part of the Hugging Face Hub's protocol that huggingface_hub uses, on loopback, in memory, for tests.

Repositories, rights, branches and tags, preupload, Git LFS, commits, trees, and downloads with ranges. Beyond that a
server can be told to fail (`HubServer.fail_next`), and it remembers what it was asked (`HubServer.requests`).

    with HubServer() as server:
        subprocess.run([sys.executable, "-c", code], env=server.environment(), check=True)

huggingface_hub reads its environment variables when it is imported, so that a client is always a child process.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

OWNER_TOKEN = "hf_owner"
READER_TOKEN = "hf_reader"
READ_ONLY_TOKEN = "hf_read_only"

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".mp4", ".onnx", ".pt2", ".tar", ".zip")
LARGEST_REGULAR_FILE = 10 * 1024**2
LFS_MEDIA_TYPE = "application/vnd.git-lfs+json"
MOVED_TO_STORAGE = 302

REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space", "": "model"}
API_PREFIX = r"/api/(?P<repo_kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
GIT_PREFIX = r"/(?:(?P<repo_kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"


class HubError(Exception):
    """A refusal in the words of the Hub: a status and, where a client looks for one, an `X-Error-Code`."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and whether that token may write."""

    name: str
    organizations: tuple[str, ...] = ()
    can_write: bool = True

    def is_member_of(self, namespace: str) -> bool:
        return namespace in (self.name, *self.organizations)


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit: its bytes, or, with `sha256`, the address of its bytes in the LFS store."""

    size: int
    git_oid: str
    data: bytes = b""
    sha256: str | None = None

    @classmethod
    def regular(cls, data: bytes) -> "StoredFile":
        return cls(size=len(data), git_oid=git_blob_oid(data), data=data)

    @classmethod
    def in_lfs(cls, sha256: str, size: int) -> "StoredFile":
        return cls(size=size, git_oid=git_blob_oid(lfs_pointer(sha256, size)), sha256=sha256)

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.git_oid}"'

    def describe(self, path: str) -> dict:
        entry: dict = {"type": "file", "path": path, "size": self.size, "oid": self.git_oid}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry

    def describe_as_sibling(self, path: str, *, with_blobs: bool) -> dict:
        sibling: dict = {"rfilename": path}
        if with_blobs:
            sibling |= {"size": self.size, "blobId": self.git_oid}
        if with_blobs and self.sha256:
            sibling["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return sibling

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.sha256 or "", self.size))


Tree = dict[str, StoredFile]


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    tree: Tree
    title: str
    parent: str | None
    date: str


@dataclass
class Repository:
    """A repository with all its commits."""

    repo_id: str
    repo_type: str
    is_private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.add_commit("main", {".gitattributes": StoredFile.regular(attributes.encode())}, "initial commit")

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a commit's hash."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[oid]

    def files(self, revision: str = "main") -> Tree:
        return self.resolve(revision).tree

    def add_commit(self, branch: str, tree: Tree, title: str) -> Commit:
        oid = secrets.token_hex(20)
        commit = Commit(oid=oid, tree=tree, title=title, parent=self.branches.get(branch), date=now())
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit

    def history(self, revision: str) -> Iterator[Commit]:
        """The commits from a revision back to the first."""
        commit: Commit | None = self.resolve(revision)
        while commit:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None


@dataclass(frozen=True)
class Request:
    """What a client sent. `query` holds the last value of each name."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    origin: str

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" and token else None

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass
class Reply:
    """What a client is sent back."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class RequestRecord:
    """One line of the log. `status` is None where the connection was cut, `kind` where the path is unknown."""

    method: str
    path: str
    kind: str | None
    user: str | None
    has_token: bool
    byte_range: str | None
    status: int | None = None


@dataclass
class Fault:
    """How the next requests of a kind fail; see `HubServer.fail_next`."""

    kind: str
    status: int
    after_bytes: int | None
    is_applied: bool
    num_to_pass: int
    num_left: int


@dataclass(frozen=True)
class Route:
    """A kind of request, how it is recognised, and what answers it."""

    kind: str
    method: str
    pattern: re.Pattern[str]
    answer: Callable[..., Reply]


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def json_reply(content: object, *, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), headers={k.replace("_", "-"): v for k, v in headers.items()})


def error_reply(error: HubError) -> Reply:
    return Reply(error.status, json.dumps({"error": str(error)}).encode(), headers=error.headers)


def ranged_reply(data: bytes, byte_range: str | None, headers: dict[str, str]) -> Reply:
    """The bytes of a file, or the part of them that a `Range` header asks for."""
    headers = headers | {"Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range or "")
    if match is None:
        return Reply(200, data, "application/octet-stream", headers)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        return Reply(416, b"", "text/plain", headers | {"Content-Range": f"bytes */{len(data)}"})
    headers |= {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Reply(206, data[first : last + 1], "application/octet-stream", headers)


def folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": git_blob_oid(path.encode())}


def list_tree(tree: Tree, folder: str, *, is_recursive: bool) -> list[dict]:
    """The files and folders below a folder; "" is the root."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict] = {}
    for path, stored in sorted(tree.items()):
        if not path.startswith(prefix):
            continue
        parents = path[len(prefix) :].split("/")[:-1]
        for depth in range(1, len(parents) + 1 if is_recursive else min(len(parents), 1) + 1):
            parent = prefix + "/".join(parents[:depth])
            entries.setdefault(parent, folder_entry(parent))
        if is_recursive or not parents:
            entries[path] = stored.describe(path)
    return list(entries.values())


class HubServer:
    """A Hub on a free port of 127.0.0.1. Use it as a context manager.

    Tokens from the start: `OWNER_TOKEN` may write to tester/* and org/*, `READ_ONLY_TOKEN` belongs to the same user
    but may only read, `READER_TOKEN` belongs to somebody else.

    Args:
        xet_store: where the Xet client is to write LFS files, `local:///folder`. None: a Hub without Xet. A file whose
            sha256 has a Xet hash in `xet_hashes` is read from there too.
    """

    def __init__(self, *, xet_store: str | None = None):
        self.users = {
            OWNER_TOKEN: User("tester", ("org",)),
            READ_ONLY_TOKEN: User("tester", ("org",), can_write=False),
            READER_TOKEN: User("reader"),
        }
        self.repositories: dict[str, Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[RequestRecord] = []
        self.xet_store = xet_store
        self.xet_hashes: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._signing_key = secrets.token_bytes(16)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler_class(self))
        self._http.daemon_threads = True
        self._folder = Path(tempfile.mkdtemp(prefix="hub_server_"))

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        shutil.rmtree(self._folder)

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """Where LFS files are fetched. The host name differs: a client follows a redirect to its own host silently and
        then misses the headers of the redirect."""
        return f"http://localhost:{self.port}"

    def environment(self, *, token: str | None = OWNER_TOKEN, hf_home: Path | str | None = None) -> dict[str, str]:
        """The whole environment of a child process whose Hub is this server.

        Args:
            token: the token the child is logged in with. None: nobody.
            hf_home: folder of the child's cache; one folder for the server's life when None.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        hub = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home or self._folder),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        xet = {} if self.xet_store else {"HF_HUB_DISABLE_XET": "1"}
        return kept | hub | xet | ({"HF_TOKEN": token} if token else {})

    def add_user(self, token: str, name: str, *, organizations: tuple[str, ...] = (), can_write: bool = True) -> None:
        """Let a token in. The same name may have several."""
        self.users[token] = User(name, organizations, can_write)

    def add_repository(self, repo_id: str, *, repo_type: str = "model", is_private: bool = False) -> Repository:
        """Make a repository without a client."""
        repository = Repository(repo_id, repo_type, is_private)
        self.repositories[repository_key(repo_type, repo_id)] = repository
        return repository

    def fail_next(
        self,
        kind: str,
        *,
        status: int = 500,
        after_bytes: int | None = None,
        is_applied: bool = False,
        num_to_pass: int = 0,
        num_times: int = 1,
    ) -> None:
        """Make coming requests of a kind fail, with a status or by a cut of the connection.

        Args:
            kind: a name of the route table (`HubServer.kinds`).
            status: answered where the connection is not cut. huggingface_hub tries most requests again, with growing
                pauses, after 5xx and after a cut; after 4xx it gives up.
            after_bytes: cut the connection when so many bytes of the body were read (uploads and commits) or sent
                (downloads).
            is_applied: do what was asked, then cut the connection instead of answering.
            num_to_pass: requests of the kind that still succeed before.
            num_times: requests that fail.
        """
        if kind not in self.kinds():
            raise ValueError(f"no kind of request is called {kind!r}; kinds: {', '.join(sorted(self.kinds()))}")
        with self._lock:
            self._faults.append(Fault(kind, status, after_bytes, is_applied, num_to_pass, num_times))

    def clear_faults(self) -> None:
        """Nothing fails any more."""
        with self._lock:
            self._faults.clear()

    @staticmethod
    def kinds() -> set[str]:
        """What `fail_next` and `num_requests` know: the names of the routes, and for HEAD `resolve-head` and so on."""
        return {name for route in ROUTES for name in (route.kind, f"{route.kind}-head")}

    def num_requests(self, kind: str) -> int:
        return sum(record.kind == kind for record in self.requests)

    def take_fault(self, kind: str | None) -> Fault | None:
        """The fault that meets a request of this kind now."""
        with self._lock:
            for fault in self._faults:
                if fault.kind == kind and fault.num_to_pass > 0:
                    fault.num_to_pass -= 1
                elif fault.kind == kind:
                    fault.num_left -= 1
                    if fault.num_left == 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def record(self, request: Request, kind: str | None) -> RequestRecord:
        user = self.users.get(request.token or "")
        record = RequestRecord(
            method=request.method,
            path=request.path,
            kind=kind,
            user=user.name if user else None,
            has_token=request.token is not None,
            byte_range=request.headers.get("range"),
        )
        self.requests.append(record)
        return record

    def answer(self, request: Request, route: Route | None, groups: dict[str, str]) -> Reply:
        """One request at a time, so that a commit is seen by others wholly or not at all."""
        with self._lock:
            try:
                if route is None:
                    raise HubError(404, f"{request.method} {request.path} is not a route of this server")
                return route.answer(self, request, **groups)
            except HubError as error:
                return error_reply(error)

    def user_of(self, request: Request) -> User | None:
        """Who asks. None: a request without a token."""
        if request.token is None:
            return None
        if request.token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[request.token]

    def readable(self, request: Request, repo_kind: str, repo_id: str) -> Repository:
        """A repository that the asker may see. One that is hidden from them answers as one that does not exist."""
        user = self.user_of(request)
        repository = self.repositories.get(repository_key(REPO_TYPES[repo_kind], repo_id))
        if repository is None or (repository.is_private and not (user and user.is_member_of(repository.namespace))):
            raise HubError(404 if user else 401, "Repository not found", code="RepoNotFound")
        return repository

    def writable(self, request: Request, repo_kind: str, repo_id: str) -> Repository:
        repository = self.readable(request, repo_kind, repo_id)
        self.check_write_access(request, repository.namespace)
        return repository

    def check_write_access(self, request: Request, namespace: str) -> User:
        user = self.user_of(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not user.is_member_of(namespace):
            raise HubError(403, f"You don't have the rights to write to the namespace {namespace}")
        if not user.can_write:
            raise HubError(403, "This token has the role read; a token with the role write is needed")
        return user

    def signature(self, oid: str, purpose: str) -> str:
        return hmac.new(self._signing_key, f"{purpose} {oid}".encode(), "sha256").hexdigest()

    def check_signature(self, request: Request, oid: str, purpose: str) -> None:
        """A link to the storage is good for one object and one purpose; no token is asked for there."""
        if not hmac.compare_digest(request.query.get("signature", ""), self.signature(oid, purpose)):
            raise HubError(403, "Access denied: the link to the storage is not signed")


def repository_key(repo_type: str, repo_id: str) -> str:
    return repo_id if repo_type == "model" else f"{repo_type}s/{repo_id}"


def whoami(server: HubServer, request: Request) -> Reply:
    user = server.user_of(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if user.can_write else "read"
    return json_reply(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name,
            "orgs": [{"name": name} for name in user.organizations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
        }
    )


def validate_card(server: HubServer, request: Request) -> Reply:
    return json_reply({"errors": [], "warnings": []})


def create_repository(server: HubServer, request: Request) -> Reply:
    wanted = request.json()
    repo_type = wanted.get("type") or "model"
    repo_id = full_repo_id(server, request, wanted)
    server.check_write_access(request, repo_id.split("/")[0])
    key = repository_key(repo_type, repo_id)
    url = f"{request.origin}/{key}"
    if key in server.repositories:
        message = f"You already created this {repo_type} repo"
        return json_reply({"error": message, "url": url}, status=409, X_Error_Message=message)
    is_private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    server.add_repository(repo_id, repo_type=repo_type, is_private=is_private)
    return json_reply({"url": url, "name": repo_id, "id": repo_id})


def delete_repository(server: HubServer, request: Request) -> Reply:
    unwanted = request.json()
    repo_type = unwanted.get("type") or "model"
    repository = server.writable(request, f"{repo_type}s", full_repo_id(server, request, unwanted))
    del server.repositories[repository_key(repo_type, repository.repo_id)]
    return Reply(200, b"OK", "text/plain")


def full_repo_id(server: HubServer, request: Request, named: dict) -> str:
    user = server.user_of(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return f"{named.get('organization') or user.name}/{named['name']}"


def repository_info(
    server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str = "main"
) -> Reply:
    repository = server.readable(request, repo_kind, repo_id)
    commit = repository.resolve(revision)
    with_blobs = "blobs" in request.query
    files = sorted(commit.tree.items())
    return json_reply(
        {
            "_id": "0" * 24,
            "id": repo_id,
            "modelId": repo_id,
            "author": repository.namespace,
            "sha": commit.oid,
            "private": repository.is_private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [stored.describe_as_sibling(path, with_blobs=with_blobs) for path, stored in files],
            "createdAt": next(iter(repository.commits.values())).date,
            "lastModified": commit.date,
        }
    )


def check_access(server: HubServer, request: Request, repo_kind: str, repo_id: str) -> Reply:
    server.readable(request, repo_kind, repo_id)
    return json_reply({})


def list_refs(server: HubServer, request: Request, repo_kind: str, repo_id: str) -> Reply:
    repository = server.readable(request, repo_kind, repo_id)

    def describe(refs: dict[str, str], folder: str) -> list[dict]:
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in refs.items()]

    branches, tags = describe(repository.branches, "heads"), describe(repository.tags, "tags")
    return json_reply({"branches": branches, "tags": tags, "converts": []})


def list_commits(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    repository = server.readable(request, repo_kind, repo_id)
    authors = [{"user": repository.namespace}]
    commits = repository.history(revision)
    return json_reply(
        [{"id": c.oid, "title": c.title, "message": "", "authors": authors, "date": c.date} for c in commits]
    )


def create_branch(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    repository = server.writable(request, repo_kind, repo_id)
    if revision in repository.branches:
        raise HubError(409, f"Reference already exists: {revision}")
    start = request.json().get("startingPoint") or "main"
    repository.branches[revision] = repository.resolve(start).oid
    return Reply(201, b"Created", "text/plain")


def delete_branch(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    repository = server.writable(request, repo_kind, repo_id)
    if revision == "main":
        raise HubError(403, "The branch main cannot be deleted")
    if repository.branches.pop(revision, None) is None:
        raise HubError(404, f"Reference not found: {revision}", code="RevisionNotFound")
    return Reply(200, b"OK", "text/plain")


def create_tag(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    repository = server.writable(request, repo_kind, repo_id)
    tag = request.json()["tag"]
    if tag in repository.tags:
        raise HubError(409, f"Reference already exists: {tag}")
    repository.tags[tag] = repository.resolve(revision).oid
    return Reply(201, b"Created", "text/plain")


def delete_tag(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    repository = server.writable(request, repo_kind, repo_id)
    if repository.tags.pop(revision, None) is None:
        raise HubError(404, f"Reference not found: {revision}", code="RevisionNotFound")
    return Reply(200, b"OK", "text/plain")


def preupload(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    """Which way each file is to take, and what stands in its place now: a client leaves out what would not change."""
    tree = server.writable(request, repo_kind, repo_id).files(revision)
    return json_reply(
        {"files": [upload_advice(wanted, tree.get(wanted["path"])) for wanted in request.json()["files"]]}
    )


def upload_advice(wanted: dict, current: StoredFile | None) -> dict:
    is_lfs = wanted["path"].endswith(LFS_SUFFIXES) or wanted["size"] > LARGEST_REGULAR_FILE
    advice = {"path": wanted["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
    return advice | ({"oid": current.sha256 or current.git_oid} if current else {})


def make_commit(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    """All operations of a commit on a copy of the tree; an error in one leaves the repository as it was."""
    repository = server.writable(request, repo_kind, repo_id)
    if revision not in repository.branches:
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    parent = repository.resolve(revision)
    operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(operation["value"] for operation in operations if operation["key"] == "header")
    if header.get("parentCommit") not in (None, "", parent.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(parent.tree)
    for operation in operations:
        apply_operation(server, tree, operation["key"], operation["value"])
    new = repository.add_commit(revision, tree, header["summary"])
    url = f"{request.origin}/{repository_key(repository.repo_type, repo_id)}/commit/{new.oid}"
    return json_reply({"success": True, "commitOid": new.oid, "commitUrl": url, "hookOutput": ""})


def apply_operation(server: HubServer, tree: Tree, key: str, value: dict) -> None:
    if key == "file":
        tree[value["path"]] = StoredFile.regular(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        tree[value["path"]] = committed_lfs_file(server, value)
    elif key == "deletedFile":
        if tree.pop(value["path"], None) is None:
            raise HubError(404, f"A file to delete does not exist: {value['path']}", code="EntryNotFound")
    elif key == "deletedFolder":
        for path in [path for path in tree if path.startswith(value["path"].rstrip("/") + "/")]:
            del tree[path]
    elif key != "header":
        raise HubError(400, f"Unknown operation: {key}")


def committed_lfs_file(server: HubServer, value: dict) -> StoredFile:
    oid = value["oid"]
    if oid in server.lfs_objects:
        return StoredFile.in_lfs(oid, len(server.lfs_objects[oid]))
    if server.xet_store is None:
        raise HubError(400, f"The LFS object of {value['path']} was not uploaded: {oid}")
    return StoredFile.in_lfs(oid, value["size"])


def lfs_batch(server: HubServer, request: Request, repo_kind: str, repo_id: str) -> Reply:
    server.writable(request, repo_kind, repo_id)
    batch = request.json()
    is_xet = server.xet_store is not None and "xet" in batch.get("transfers", ())
    objects = [lfs_upload_offer(server, request, wanted) for wanted in batch["objects"]]
    reply = json_reply({"transfer": "xet" if is_xet else "basic", "objects": objects})
    reply.content_type = LFS_MEDIA_TYPE
    return reply


def lfs_upload_offer(server: HubServer, request: Request, wanted: dict) -> dict:
    """Where an object is to go; nothing to do for one that is in the store already."""
    oid = wanted["oid"]
    offer: dict = {"oid": oid, "size": wanted["size"], "authenticated": True}
    if oid not in server.lfs_objects:
        upload = f"{request.origin}/_lfs/{oid}?signature={server.signature(oid, 'upload')}"
        verify = f"{request.origin}/_lfs/verify"
        offer["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
    return offer


def lfs_upload(server: HubServer, request: Request, oid: str) -> Reply:
    server.check_signature(request, oid, "upload")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "The provided sha256 does not match what was computed")
    server.lfs_objects[oid] = request.body
    return Reply(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def lfs_verify(server: HubServer, request: Request) -> Reply:
    wanted = request.json()
    is_there = len(server.lfs_objects.get(wanted["oid"], b"")) == wanted["size"]
    return json_reply({}, status=200 if is_there else 422)


def lfs_download(server: HubServer, request: Request, oid: str) -> Reply:
    server.check_signature(request, oid, "download")
    if oid not in server.lfs_objects:
        raise HubError(404, "Not in the storage")
    return ranged_reply(server.lfs_objects[oid], request.headers.get("range"), {"ETag": f'"{oid}"'})


def read_tree(
    server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str, folder: str = ""
) -> Reply:
    files = server.readable(request, repo_kind, repo_id).files(revision)
    is_recursive = request.query.get("recursive", "").lower() in ("1", "true")
    entries = list_tree(files, folder, is_recursive=is_recursive)
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on '{revision}'", code="EntryNotFound")
    return json_reply(entries)


def paths_info(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str) -> Reply:
    """What is known of some paths; those that do not exist are left out."""
    files = server.readable(request, repo_kind, repo_id).files(revision)
    is_json = request.body.lstrip().startswith(b"{")
    paths = request.json()["paths"] if is_json else parse_qs(request.body.decode())["paths"]
    folders = {entry["path"]: entry for entry in list_tree(files, "", is_recursive=True)}
    return json_reply([folders[path] for path in paths if path in folders])


def resolve_file(server: HubServer, request: Request, repo_kind: str, repo_id: str, revision: str, path: str) -> Reply:
    """A file's bytes, or, for an LFS file, the way to the storage."""
    repository = server.readable(request, repo_kind, repo_id)
    found = repository.resolve(revision)
    headers = {"X-Repo-Commit": found.oid}
    stored = found.tree.get(path)
    if stored is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
    if stored.sha256 is None:
        return ranged_reply(stored.data, request.headers.get("range"), headers | {"ETag": stored.etag})
    location = f"{server.storage}/_lfs/{stored.sha256}?signature={server.signature(stored.sha256, 'download')}"
    linked = {"Location": location, "X-Linked-ETag": stored.etag, "X-Linked-Size": str(stored.size)}
    if stored.sha256 in server.xet_hashes:
        api = f"{request.origin}/api/{repository.repo_type}s/{repo_id}"
        linked["X-Xet-Hash"] = server.xet_hashes[stored.sha256]
        linked["X-Xet-Refresh-Route"] = f"{api}/xet-read-token/{found.oid}"
    return Reply(MOVED_TO_STORAGE, b"", "text/plain", headers | linked)


def xet_token(server: HubServer, request: Request, repo_kind: str, repo_id: str, access: str, revision: str) -> Reply:
    if server.xet_store is None:
        raise HubError(404, "This Hub has no Xet storage")
    (server.writable if access == "write" else server.readable)(request, repo_kind, repo_id)
    token, expiration = "xet_token", int(time.time()) + 3600
    return json_reply(
        {"accessToken": token, "casUrl": server.xet_store, "exp": expiration},
        X_Xet_Cas_Url=server.xet_store,
        X_Xet_Access_Token=token,
        X_Xet_Token_Expiration=str(expiration),
    )


def api_route(kind: str, method: str, rest: str, answer: Callable[..., Reply]) -> Route:
    return Route(kind, method, re.compile(API_PREFIX + rest), answer)


ROUTES = (
    Route("whoami", "GET", re.compile("/api/whoami-v2"), whoami),
    Route("validate-card", "POST", re.compile("/api/validate-yaml"), validate_card),
    Route("create", "POST", re.compile("/api/repos/create"), create_repository),
    Route("delete", "DELETE", re.compile("/api/repos/delete"), delete_repository),
    api_route("info", "GET", "", repository_info),
    api_route("info", "GET", f"/revision/{REVISION}", repository_info),
    api_route("auth-check", "GET", "/auth-check", check_access),
    api_route("refs", "GET", "/refs", list_refs),
    api_route("commits", "GET", f"/commits/{REVISION}", list_commits),
    api_route("branch", "POST", f"/branch/{REVISION}", create_branch),
    api_route("branch", "DELETE", f"/branch/{REVISION}", delete_branch),
    api_route("tag", "POST", f"/tag/{REVISION}", create_tag),
    api_route("tag", "DELETE", f"/tag/{REVISION}", delete_tag),
    api_route("preupload", "POST", f"/preupload/{REVISION}", preupload),
    api_route("commit", "POST", f"/commit/{REVISION}", make_commit),
    api_route("tree", "GET", f"/tree/{REVISION}(?:/(?P<folder>.+?))?/?", read_tree),
    api_route("paths-info", "POST", f"/paths-info/{REVISION}", paths_info),
    api_route("xet-token", "GET", f"/xet-(?P<access>read|write)-token/{REVISION}", xet_token),
    Route("lfs-batch", "POST", re.compile(GIT_PREFIX + r"\.git/info/lfs/objects/batch"), lfs_batch),
    Route("lfs-upload", "PUT", re.compile(r"/_lfs/(?P<oid>[0-9a-f]{64})"), lfs_upload),
    Route("lfs-download", "GET", re.compile(r"/_lfs/(?P<oid>[0-9a-f]{64})"), lfs_download),
    Route("lfs-verify", "POST", re.compile("/_lfs/verify"), lfs_verify),
    Route("resolve", "GET", re.compile(GIT_PREFIX + f"/resolve/{REVISION}/(?P<path>.+)"), resolve_file),
)
KINDS_WITH_A_BODY_TO_CUT = {"commit", "lfs-upload", "preupload"}


def find_route(method: str, path: str) -> tuple[Route | None, dict[str, str]]:
    """The route of a request and the named parts of its path. HEAD is GET without the body."""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match and route.method == ("GET" if method == "HEAD" else method):
            return route, named_parts(match)
    return None, {}


def kind_of(route: Route | None, method: str) -> str | None:
    suffix = "-head" if method == "HEAD" else ""
    return f"{route.kind}{suffix}" if route else None


def named_parts(match: re.Match[str]) -> dict[str, str]:
    """A path is split first and unquoted then: a branch `a/b` is `a%2Fb` in it."""
    parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
    return parts | ({"repo_kind": parts.get("repo_kind", "")} if "repo_kind" in match.groupdict() else {})


class CutConnectionError(Exception):
    """A fault ends this connection."""


class HubRequestHandler(BaseHTTPRequestHandler):
    """Reads requests from a socket, writes replies to it, and cuts it where a fault says so."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
        """Nothing on stderr: the log is `HubServer.requests`."""

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        route, groups = find_route(self.command, address.path)
        kind = kind_of(route, self.command)
        fault = self.hub.take_fault(kind)
        record = self.hub.record(self.read_request(b""), kind)
        with self.may_be_cut():
            request = self.read_request(self.read_body(cut_while_reading(fault)))
            reply = self.faulty_reply(request, route, groups, fault)
            record.status = reply.status
            self.send_reply(reply, cut_while_sending(fault))

    def read_request(self, body: bytes) -> Request:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, address.path, query, headers, body, f"http://{headers['host']}")

    def read_body(self, after_bytes: int | None) -> bytes:
        chunks = []
        for chunk in self.body_chunks():
            chunks.append(chunk)
            if after_bytes is not None and sum(map(len, chunks)) >= after_bytes:
                raise CutConnectionError
        if after_bytes is not None:
            raise CutConnectionError
        return b"".join(chunks)

    def body_chunks(self, size: int = 16 * 1024) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            yield from self.transfer_chunks()
            return
        num_left = int(self.headers.get("Content-Length") or 0)
        while num_left > 0:
            chunk = self.rfile.read(min(size, num_left))
            if not chunk:
                raise CutConnectionError
            num_left -= len(chunk)
            yield chunk

    def transfer_chunks(self) -> Iterator[bytes]:
        while num_bytes := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(num_bytes)
            self.rfile.readline()
        self.rfile.readline()

    def faulty_reply(
        self, request: Request, route: Route | None, groups: dict[str, str], fault: Fault | None
    ) -> Reply:
        if fault and fault.is_applied:
            self.hub.answer(request, route, groups)
            raise CutConnectionError
        if fault and fault.after_bytes is None:
            return error_reply(HubError(fault.status, f"{fault.kind} was told to fail"))
        return self.hub.answer(request, route, groups)

    def send_reply(self, reply: Reply, after_bytes: int | None) -> None:
        self.send_response(reply.status)
        lengths = {"Content-Type": reply.content_type, "Content-Length": str(len(reply.body))}
        for name, value in (lengths | {"X-Request-Id": secrets.token_hex(8)} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[:after_bytes])
        if after_bytes is not None:
            raise CutConnectionError

    @contextmanager
    def may_be_cut(self) -> Iterator[None]:
        try:
            yield
        except CutConnectionError:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815 (http.server looks for these names)


def handler_class(hub: HubServer) -> type[HubRequestHandler]:
    """A handler of one server; http.server makes an object of it for each connection."""
    return type("BoundHubRequestHandler", (HubRequestHandler,), {"hub": hub})


def cut_while_reading(fault: Fault | None) -> int | None:
    is_meant = fault is not None and fault.kind in KINDS_WITH_A_BODY_TO_CUT and not fault.is_applied
    return fault.after_bytes if fault and is_meant else None


def cut_while_sending(fault: Fault | None) -> int | None:
    is_meant = fault is not None and fault.kind not in KINDS_WITH_A_BODY_TO_CUT
    return fault.after_bytes if fault and is_meant else None
