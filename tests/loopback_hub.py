"""A Hub on this machine's loopback address: the real client downloads from it and uploads to it, over real HTTP.

Models, and data sets by their `/datasets/` routes, with commits, branches, tags, large files, private repositories and
tokens; what is committed stands in memory. No xet, Spaces, discussions or pull requests. It starts with what lies
in `root/<owner>/<name>` and `root/datasets/<owner>/<name>`, one commit each, all public. It stands in for the
Hub itself, so that our client code runs unchanged.

    with LoopbackHub(tmp_path / "hub") as hub:
        # the client reads its environment when it is imported, so it runs in a process of its own
        subprocess.run([...], env=hub.environment(tmp_path / "home", token=hub.token))
        assert hub.requests == [("GET", "/api/models/owner/name")]
        assert hub.repository("owner/name").files()["config.json"] == b"{}"

A client with no token reads public repositories; `hub.token` is the user `tester`'s, who may write in `tester/` alone.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from card_validation import card_errors

Files = dict[str, bytes]
"""Path in a repository -> content."""


# ---------------------------------------------------------------------------------------------------------------------
# What is stored


@dataclass
class Commit:
    """The files at one point, and the commit before it."""

    files: Files
    title: str
    parent: str | None

    @property
    def sha(self) -> str:
        """A hash that changes with any file and with the history."""
        parts = [str(self.parent).encode(), *(path.encode() + self.files[path] for path in sorted(self.files))]
        return hashlib.sha1(b"".join(parts)).hexdigest()


@dataclass
class Repository:
    """The commits of a repository; branches and tags name them."""

    name: str
    is_private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, title: str, branch: str = "main") -> str:
        """Put a commit with these files on top of a branch; its hash."""
        commit = Commit(dict(sorted(files.items())), title, self.branches.get(branch))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit.sha

    def resolve(self, revision: str | None) -> str | None:
        """The hash of a branch, tag or hash; None if there is no such revision."""
        revision = revision or "main"
        known = {**{sha: sha for sha in self.commits}, **self.tags, **self.branches}
        return known.get(revision.removeprefix("refs/heads/"))

    def files(self, revision: str = "main") -> Files:
        """The files of a revision."""
        return self.commits[str(self.resolve(revision))].files

    def history(self, branch: str = "main") -> list[Commit]:
        """The commits of a branch, the newest first."""
        found, sha = [], self.branches.get(branch)
        while sha is not None:
            found.append(self.commits[sha])
            sha = found[-1].parent
        return found


def read_folder(folder: Path) -> Files:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_large(path: str, size: int) -> bool:
    """Whether the Hub keeps a file by LFS."""
    return size > 0 and (size > 1_000_000 or path.endswith((".safetensors", ".parquet", ".bin", ".png")))


def described(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it: size and git hash, and for a large file its sha256."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if is_large(path, len(content)):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def git_hash(content: bytes) -> str:
    """The hash by which git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The server


class LoopbackHub:
    """A running server.

    Attributes:
        requests: (method, path) of what was asked so far.
        interrupt: Route (`upload_large`, `commit`, ...) -> how many of its next requests lose their connection halfway
            through the body.
        large_files: sha256 -> content of what was uploaded by LFS, committed or not.
    """

    user = "tester"
    token = "hf_loopback"

    def __init__(self, root: Path | None = None):
        self.root = root
        self.requests: list[tuple[str, str]] = []
        self.interrupt: dict[str, int] = {}
        self.large_files: dict[str, bytes] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind, models or datasets, and name
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        for kind, root in (("models", self.root), ("datasets", self.root and self.root / "datasets")):
            for folder in sorted(root.glob("*/*")) if root else []:
                if folder.is_dir() and folder.parent.name != "datasets":
                    self.add(f"{folder.parent.name}/{folder.name}", read_folder(folder), kind)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def add(
        self, name: str, files: Files, kind: str = "models", branch: str = "main", private: bool = False
    ) -> Repository:
        """Commit files to a repository, made if need be, without a client."""
        repository = self.repositories.setdefault((kind, name), Repository(name, private))
        repository.commit(files, "added by the test", branch)
        return repository

    def repository(self, name: str, kind: str = "models") -> Repository:
        """A repository that is there."""
        return self.repositories[kind, name]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a client process that takes this server for the Hub and keeps its cache in `home`."""
        variables = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_CACHE")}
        return {
            **variables,
            **({} if token is None else {"HF_TOKEN": token}),
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


class Refusal(Exception):
    """A request that is not granted: HTTP status, the Hub's code of the error, its message."""

    def __init__(self, status: int, code: str, message: str | None = None):
        super().__init__(message or code)
        self.status, self.code = status, code


API = r"/api/(models|datasets)/([^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", r"/api/repos/create", "create"),
    ("PUT", API + "/settings", "change_settings"),
    ("POST", API + "/preupload/([^/]+)", "ask_upload_modes"),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "ask_large_uploads"),
    ("PUT", r"/large/([0-9a-f]+)", "upload_large"),
    ("POST", API + "/commit/([^/]+)", "commit"),
    ("POST", API + "/branch/([^/]+)", "add_branch"),
    ("POST", API + "/tag/([^/]+)", "add_tag"),
    ("GET", API + "/refs", "list_refs"),
    ("GET", API + "/tree/([^/]+)/?(.*)", "list_files"),
    ("POST", API + "/paths-info/([^/]+)", "describe_paths"),
    ("GET", API + "(?:/revision/([^/]+))?", "describe"),
    ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "download"),
)
"""Method, path, and the method of `HubHandler` that gets the unquoted groups of the path; HEAD is answered as GET."""


class HubHandler(BaseHTTPRequestHandler):
    """Answers one client; each route of `ROUTES` is a method."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def answer_request(self) -> None:
        """Find the route, and answer or refuse."""
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, unquote(path)))
        method = "GET" if self.command == "HEAD" else self.command
        matches = [(re.fullmatch(pattern, path), name) for verb, pattern, name in ROUTES if verb == method]
        match, name = next(((found, name) for found, name in matches if found), (None, ""))
        try:
            if self.is_interrupted(name):
                return
            self.body = self.read_body()
            with self.hub.lock:
                self.check_token()
                if match is None:
                    raise Refusal(404, "RepoNotFound")
                route: Callable[..., None] = getattr(self, name)
                route(*(group and unquote(group) for group in match.groups()))
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self.answer(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer_request

    def is_interrupted(self, name: str) -> bool:
        """Cut the connection in the middle of the body, if the test asked for that."""
        if not self.hub.interrupt.get(name):
            return False
        self.hub.interrupt[name] -= 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        return True

    def read_body(self) -> bytes:
        """The request's body, whole or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    # Who may do what

    def check_token(self) -> None:
        """Refuse a token that is nobody's."""
        if self.headers.get("Authorization") not in (None, f"Bearer {self.hub.token}"):
            raise Refusal(401, "", "Invalid credentials in Authorization header")

    @property
    def is_logged_in(self) -> bool:
        """Whether the client has a token; `check_token` refused a wrong one."""
        return self.headers.get("Authorization") is not None

    def check_rights(self, name: str) -> None:
        """Refuse to write without a token or in somebody else's namespace."""
        if not self.is_logged_in:
            raise Refusal(401, "", "Invalid username or password.")
        if name.partition("/")[0] != self.hub.user:
            raise Refusal(403, "", f"You don't have the rights to write under the namespace {name.partition('/')[0]!r}")

    def readable(self, kind: str | None, name: str) -> Repository:
        """A repository that this client may see; others are as if they were not there."""
        found = self.hub.repositories.get(((kind or "models").rstrip("/"), name))
        if found is None or (found.is_private and not self.is_logged_in):
            raise Refusal(404 if self.is_logged_in else 401, "RepoNotFound", "Repository not found")
        return found

    def writable(self, kind: str | None, name: str) -> Repository:
        """A repository that this client may change."""
        found = self.readable(kind, name)
        self.check_rights(name)
        return found

    # Accounts and repositories

    def whoami(self) -> None:
        """The user of the token."""
        if not self.is_logged_in:
            raise Refusal(401, "", "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        self.answer_json({"type": "user", "id": "0", "name": self.hub.user, "orgs": [], "auth": auth})

    def validate_card(self) -> None:
        """The errors in the metadata of a README.md."""
        errors = card_errors(json.loads(self.body)["content"])
        self.answer_json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def create(self) -> None:
        """A new repository with one commit, as the Hub makes it."""
        asked = json.loads(self.body)
        kind, name = (
            (asked.get("type") or "model") + "s",
            f"{asked.get('organization') or self.hub.user}/{asked['name']}",
        )
        self.check_rights(name)
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repositories:
            self.answer_json({"error": "You already created this model repo", "url": url, "name": name}, 409)
            return
        attributes = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        self.hub.add(name, attributes, kind, private=asked.get("visibility") == "private")
        self.answer_json({"url": url, "name": name})

    def change_settings(self, kind: str, name: str) -> None:
        """Open or close a repository."""
        self.writable(kind, name).is_private = json.loads(self.body)["visibility"] == "private"
        self.answer_json({})

    def describe(self, kind: str, name: str, revision: str | None) -> None:
        """A repository at a revision."""
        repository, sha = self.found(kind, name, revision)
        files = [{"rfilename": path} for path in repository.commits[sha].files]
        self.answer_json(
            {"id": name, "sha": sha, "private": repository.is_private, "tags": [], "downloads": 0, "siblings": files}
        )

    def list_refs(self, kind: str, name: str) -> None:
        """Branches and tags; those of conversions apart."""
        repository = self.readable(kind, name)
        refs: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
        for branch, sha in repository.branches.items():
            where, prefix = ("converts", "") if branch.startswith("refs/convert/") else ("branches", "refs/heads/")
            refs[where].append({"name": branch, "ref": prefix + branch, "targetCommit": sha})
        for tag, sha in repository.tags.items():
            refs["tags"].append({"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha})
        self.answer_json(refs)

    def add_branch(self, kind: str, name: str, branch: str) -> None:
        """A branch from a revision."""
        repository = self.writable(kind, name)
        if branch in repository.branches:
            raise Refusal(409, "", f"Reference already exists: {branch}")
        repository.branches[branch] = self.found(kind, name, json.loads(self.body or b"{}").get("startingPoint"))[1]
        self.answer_json({})

    def add_tag(self, kind: str, name: str, revision: str) -> None:
        """A tag on a revision."""
        repository = self.writable(kind, name)
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise Refusal(409, "", f"Tag already exists: {tag}")
        repository.tags[tag] = self.found(kind, name, revision)[1]
        self.answer_json({})

    # Uploads: the client asks how each file goes, sends large ones, then all others within the commit

    def ask_upload_modes(self, kind: str, name: str, revision: str) -> None:
        """How each file is to be sent, and the hash of the one that is there: an equal one is not sent."""
        files = self.writable(kind, name).files(revision)
        modes = []
        for asked in json.loads(self.body)["files"]:
            path, mode = asked["path"], "lfs" if is_large(asked["path"], asked["size"]) else "regular"
            there = described(path, files[path]) if path in files else {}
            oid = there.get("lfs", there).get("oid")
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer_json({"files": modes})

    def ask_large_uploads(self, kind: str | None, name: str) -> None:
        """Where large files are to be sent; nowhere, if they are there."""
        self.writable(kind, name)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.url}/large/{asked['oid']}", "header": {}}
            actions = {} if asked["oid"] in self.hub.large_files else {"actions": {"upload": upload}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        self.answer_json({"transfer": "basic", "objects": objects})

    def upload_large(self, oid: str) -> None:
        """A large file; its address is the right to send it."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "The content is not that of its hash")
        self.hub.large_files[oid] = self.body
        self.answer(200, b"", {})

    def commit(self, kind: str, name: str, branch: str) -> None:
        """All changes at once, or none."""
        repository = self.writable(kind, name)
        sha = self.found(kind, name, branch)[1]
        files, title = dict(repository.commits[sha].files), ""
        for line in self.body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, sha):
                    raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            elif change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise Refusal(400, "", f"The large file {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif files.pop(value["path"], None) is None:
                raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        new = repository.commit(files, title, branch)
        self.answer_json({"success": True, "commitOid": new, "commitUrl": f"{self.hub.url}/{name}/commit/{new}"})

    # Downloads

    def found(self, kind: str | None, name: str, revision: str | None) -> tuple[Repository, str]:
        """A repository and the hash of a revision of it."""
        repository = self.readable(kind, name)
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, sha

    def list_files(self, kind: str, name: str, revision: str, folder: str) -> None:
        """Files and folders below a folder."""
        repository, sha = self.found(kind, name, revision)
        asked = parse_qs(urlsplit(self.path).query)
        is_recursive = asked.get("recursive", ["false"])[0].lower() in ("true", "1")
        start = f"{folder.strip('/')}/" if folder.strip("/") else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in repository.commits[sha].files.items():
            parts = path.removeprefix(start).split("/")
            if not path.startswith(start):
                continue
            for depth in range(1, len(parts) if is_recursive else min(len(parts), 2)):
                inner = start + "/".join(parts[:depth])
                entries[inner] = self.described_folder(inner)
            if is_recursive or len(parts) == 1:
                entries[path] = described(path, content)
        if start and not entries:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        self.answer_json(list(entries.values()))

    def describe_paths(self, kind: str, name: str, revision: str) -> None:
        """What single paths are; those that are not there are left out."""
        repository, sha = self.found(kind, name, revision)
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        files, answers = repository.commits[sha].files, []
        for path in [paths] if isinstance(paths, str) else paths:
            if path in files:
                answers.append(described(path, files[path]))
            elif any(other.startswith(f"{path}/") for other in files):
                answers.append(self.described_folder(path))
        self.answer_json(answers)

    @staticmethod
    def described_folder(path: str) -> dict[str, Any]:
        """A folder as the Hub lists it."""
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}

    def download(self, kind: str | None, name: str, revision: str, path: str) -> None:
        """A file or a range of it, with the headers that the client names its cache entry by."""
        repository, sha = self.found(kind, name, revision)
        files = repository.commits[sha].files
        if path not in files:
            raise Refusal(404, "EntryNotFound")
        content, about = files[path], described(path, files[path])
        headers = {"ETag": f'"{about.get("lfs", about)["oid"]}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.answer(200, content, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], headers)

    # Answers

    def answer_json(self, value: Any, status: int = 200) -> None:
        """A JSON value."""
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Status, headers and body; of HEAD no body."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: `LoopbackHub.requests` holds what was asked."""
