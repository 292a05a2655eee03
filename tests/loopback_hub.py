"""A Hub for downloads on this machine's loopback address: models served over HTTP from `root/<owner>/<name>`.

Only what a download asks for: a model's description, its list of files, and the files. No uploads, tokens or data sets;
every model has the one revision `main`. It stands in for the Hub itself, so that our client code runs unchanged.

    with LoopbackHub(tmp_path / "hub") as hub:
        subprocess.run([...], env=hub.environment(tmp_path / "home"))      # read when huggingface_hub is imported
        assert hub.requests == [("GET", "/api/models/owner/name")]
"""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    """A running server; `requests` holds (method, path) of what was asked so far."""

    def __init__(self, root: Path):
        self.root = root
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (DownloadHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a client process that takes this server for the Hub and keeps its cache in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


class DownloadHandler(BaseHTTPRequestHandler):
    """Answers the three questions of a download."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self.answer_api(*api.groups())
        elif file:
            self.answer_file(*file.groups())
        else:
            self.refuse("RepoNotFound")

    do_HEAD = do_GET

    def answer_api(self, name: str, question: str | None, revision: str | None) -> None:
        """The description of a model, or the list of its files."""
        files = self.files_of(name)
        if not files:
            self.refuse("RepoNotFound")
        elif revision not in (None, "main", commit_of(files)):
            self.refuse("RevisionNotFound")
        elif question == "tree":
            self.answer_json([{"type": "file", "path": path, **described(content)} for path, content in files.items()])
        else:
            self.answer_json({"id": name, "sha": commit_of(files), "siblings": [{"rfilename": path} for path in files]})

    def answer_file(self, name: str, revision: str, path: str) -> None:
        """One file, with the headers that the client names its cache entry by."""
        files = self.files_of(name)
        if path not in files:
            self.refuse("EntryNotFound")
            return
        headers = {"ETag": f'"{described(files[path])["oid"]}"', "X-Repo-Commit": commit_of(files)}
        self.answer(200, files[path], headers)

    def files_of(self, name: str) -> dict[str, bytes]:
        folder = self.hub.root / name
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.answer(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: `LoopbackHub.requests` holds what was asked."""


def commit_of(files: dict[str, bytes]) -> str:
    """A commit hash that changes with any file."""
    return hashlib.sha1(b"".join(path.encode() + files[path] for path in sorted(files))).hexdigest()


def described(content: bytes) -> dict[str, Any]:
    """Size and git hash of a file."""
    return {"size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
