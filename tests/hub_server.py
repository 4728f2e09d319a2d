"""A small Hub on the loopback address, for the real client of huggingface_hub: repositories in memory, no storage."""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


ROOT = Path(__file__).resolve().parent.parent
WRITER, READER, STRANGER = "hf_writer000", "hf_reader000", "hf_stranger0"
# Files of these names are kept as large ones, as the Hub's .gitattributes says.
LARGE = re.compile(r".*\.(safetensors|bin|onnx|png)")

Files = dict[str, tuple[bytes, bool]]


@dataclass
class Repo:
    """A repository: every commit is the whole set of files, path to content and whether it is a large one."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files, message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: content for path, (content, _) in self.commits[self.resolve(revision) or ""].items()}


class HubServer(ThreadingHTTPServer):
    """The server and all that it holds; tests read and set its attributes directly, clients post them to /control.

    Attributes:
        accounts: for each token its name, organisations and role, "write" or "read".
        cut_uploads: how many of the next uploads of a large file lose their connection half-way.
        fail_commits: how many of the next commits end in an error of the server.
        requests: method, path and token of all that was asked.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_uploads = self.fail_commits = 0
        self.accounts: dict[str, dict[str, Any]] = {
            WRITER: {"name": "ada", "orgs": ["lab"], "role": "write"},
            READER: {"name": "ada", "orgs": ["lab"], "role": "read"},
            STRANGER: {"name": "eve", "orgs": [], "role": "write"},
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is no news."""


class Refused(Exception):
    """An answer other than success: status, code and message as the Hub words them."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        with self.server.lock:
            self.server.requests.append((self.command, unquote(path), token))
        try:
            if token is not None and token not in self.server.accounts:
                raise Refused(401, message="Invalid credentials in Authorization header")
            self.account: dict[str, Any] | None = self.server.accounts.get(token) if token else None
            for method, pattern, action in ROUTES:
                if method == self.command and (match := pattern.fullmatch(path)):
                    parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    action(self, **parts)
                    return
            raise Refused(404, message=f"no such page: {self.command} {path}")
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.answer({"error": refusal.message or refusal.code}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            if text:
                self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        # What was sent with a request that is refused may not have been read.
        if status >= 400:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- Who may do what ----

    def may_write(self, namespace: str) -> bool:
        account = self.account
        if account is None or account["role"] != "write":
            return False
        return namespace in (account["name"], *account["orgs"])

    def readable(self, repo: str) -> Repo:
        found, account = self.server.repos.get(repo), self.account
        namespace = repo.partition("/")[0]
        if found is None or (
            found.private and (account is None or namespace not in (account["name"], *account["orgs"]))
        ):
            raise Refused(404 if account else 401, "RepoNotFound", "Repository not found")
        return found

    def writable(self, repo: str) -> Repo:
        found = self.readable(repo)
        if not self.may_write(repo.partition("/")[0]):
            raise Refused(403 if self.account else 401, message="You don't have write access to this repository")
        return found

    def at(self, repo: Repo, revision: str) -> str:
        commit = repo.resolve(revision or "main")
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- Pages ----

    def whoami(self) -> None:
        if self.account is None:
            raise Refused(401, message="Invalid username or password.")
        orgs = [{"name": name} for name in self.account["orgs"]]
        access = {"accessToken": {"role": self.account["role"]}}
        self.answer({"type": "user", "name": self.account["name"], "orgs": orgs, "auth": access})

    def validate_yaml(self) -> None:
        content = json.loads(self.body())["content"]
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(block[1]) if block else {}
        errors = [] if isinstance(metadata, dict) else [{"message": "the metadata is no mapping"}]
        if not errors and "model-index" in metadata:
            for entry in metadata["model-index"]:
                for result in entry["results"]:
                    if not {"task", "dataset", "metrics"} <= result.keys() or "type" not in result["dataset"]:
                        errors.append({"message": f'"model-index" of {entry["name"]} is incomplete'})
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> None:
        asked = json.loads(self.body())
        if self.account is None:
            raise Refused(401, message="Invalid username or password.")
        namespace: str = asked.get("organization") or self.account["name"]
        if not self.may_write(namespace):
            raise Refused(
                403, message=f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )
        name = f"{namespace}/{asked['name']}"
        with self.server.lock:
            if exists := name in self.server.repos:
                status, message = 409, "You already created this model repo"
            else:
                repo = self.server.repos[name] = Repo(private=asked.get("visibility") == "private")
                repo.commit("main", {".gitattributes": (b"*.safetensors filter=lfs\n", False)}, "initial commit")
        url = {"url": f"{self.server.url}/{name}", "name": name}
        self.answer({**url, "error": message} if exists else url, status if exists else 200)

    def delete(self) -> None:
        asked = json.loads(self.body())
        name = f"{asked.get('organization') or (self.account or {}).get('name')}/{asked['name']}"
        self.writable(name)
        del self.server.repos[name]
        self.answer({})

    def info(self, repo: str, revision: str = "main") -> None:
        found = self.readable(repo)
        commit = self.at(found, revision)
        siblings = [{"rfilename": path} for path in sorted(found.commits[commit])]
        facts = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": found.private, "tags": []}
        self.answer({**facts, "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z"})

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        found = self.readable(repo)
        files = found.commits[self.at(found, revision)]
        entries = [describe(path, *files[path]) for path in sorted(files) if path.startswith(folder)]
        if folder and not entries:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        self.answer(entries)

    def paths_info(self, repo: str, revision: str) -> None:
        found = self.readable(repo)
        files = found.commits[self.at(found, revision)]
        text = self.body()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(text)["paths"]
        else:
            wanted = parse_qs(text.decode())["paths"]
        self.answer([describe(path, *files[path]) for path in wanted if path in files])

    def refs(self, repo: str) -> None:
        found = self.readable(repo)

        def named(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

        self.answer({"branches": named("heads", found.branches), "tags": named("tags", found.tags), "converts": []})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.readable(repo)
        commit = self.at(found, revision)
        if path not in found.commits[commit]:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            self.answer({"error": "Entry not found"}, 404, headers)
            return
        content, large = found.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_oid(content)}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        if partial := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(partial[1]), int(partial[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.answer(content[first : last + 1], 206, headers)
        else:
            self.answer(content, 200, headers)

    def branch(self, repo: str, name: str) -> None:
        found = self.writable(repo)
        asked = json.loads(self.body() or b"{}")
        if name in found.branches:
            raise Refused(409, message="Reference already exists")
        found.branches[name] = self.at(found, asked.get("startingPoint", "main"))
        self.answer({})

    def tag(self, repo: str, revision: str) -> None:
        found = self.writable(repo)
        name = json.loads(self.body())["tag"]
        if name in found.tags:
            raise Refused(409, message="Reference already exists")
        found.tags[name] = self.at(found, revision)
        self.answer({})

    def preupload(self, repo: str, revision: str) -> None:
        found = self.writable(repo)
        files = found.commits[self.at(found, revision)]
        answers = []
        for asked in json.loads(self.body())["files"]:
            path = asked["path"]
            mode = "lfs" if LARGE.fullmatch(path) else "regular"
            oid = None
            if path in files:
                content, large = files[path]
                oid = sha256(content) if large else git_oid(content)
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        self.writable(repo)
        objects = []
        for asked in json.loads(self.body())["objects"]:
            oid, size = asked["oid"], asked["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.server.blobs:
                upload = {"href": f"{self.server.url}/upload/{oid}"}
                verify = {"href": f"{self.server.url}/{repo}.git/info/lfs/objects/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        with self.server.lock:
            cut = self.server.cut_uploads > 0
            self.server.cut_uploads -= cut
        if cut:
            self.rfile.read(16)
            # Closing at once, with what was sent unread, resets the connection.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        content = self.body()
        if sha256(content) != oid:
            raise Refused(400, message="the content has another hash")
        self.server.blobs[oid] = content
        self.answer(b"")

    def verify(self, repo: str) -> None:
        self.writable(repo)
        asked = json.loads(self.body())
        if len(self.server.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, message="no such object")
        self.answer({"success": True})

    def commit(self, repo: str, revision: str) -> None:
        found = self.writable(repo)
        lines = [json.loads(line) for line in self.body().splitlines()]
        with self.server.lock:
            if self.server.fail_commits:
                self.server.fail_commits -= 1
                raise Refused(500, message="Internal error, try again")
            parent = self.at(found, revision)
            if revision not in found.branches:
                raise Refused(400, message="a commit goes to a branch")
            files, message = dict(found.commits[parent]), ""
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                    if value.get("parentCommit", parent) != parent:
                        raise Refused(412, message="A commit has happened since. Please refresh and try again.")
                elif line["key"] == "file":
                    files[value["path"]] = (base64.b64decode(value["content"]), False)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.server.blobs:
                        raise Refused(400, message=f"LFS pointer to a file that does not exist: {value['path']}")
                    files[value["path"]] = (self.server.blobs[value["oid"]], True)
                elif line["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
                elif line["key"] == "deletedFolder":
                    files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
            oid = found.commit(revision, files, message)
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def control(self) -> None:
        for name, value in json.loads(self.body()).items():
            setattr(self.server, name, value)
        self.answer({})

    def nothing(self) -> None:
        self.answer({})


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe(path: str, content: bytes, large: bool) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    return {**entry, "lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 130}} if large else entry


def route(method: str, path: str, action: Any) -> tuple[str, re.Pattern, Any]:
    """A path with {names}; {repo} is "owner/name", {path} may hold slashes."""
    pattern = path.replace("{repo}", "(?P<repo>[^/]+/[^/]+)").replace("{path}", "(?P<path>.+)")
    return method, re.compile(re.sub(r"(?<!\?P)\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)), action


ROUTES = [
    route("POST", "/control", Handler.control),
    route("GET", "/api/whoami-v2", Handler.whoami),
    route("GET", "/api/agent-harnesses", Handler.nothing),
    route("POST", "/api/validate-yaml", Handler.validate_yaml),
    route("POST", "/api/repos/create", Handler.create),
    route("DELETE", "/api/repos/delete", Handler.delete),
    route("GET", "/api/models/{repo}", Handler.info),
    route("GET", "/api/models/{repo}/revision/{revision}", Handler.info),
    route("GET", "/api/models/{repo}/refs", Handler.refs),
    route("GET", "/api/models/{repo}/tree/{revision}", Handler.tree),
    route("GET", "/api/models/{repo}/tree/{revision}/{folder}", Handler.tree),
    route("POST", "/api/models/{repo}/paths-info/{revision}", Handler.paths_info),
    route("POST", "/api/models/{repo}/branch/{name}", Handler.branch),
    route("POST", "/api/models/{repo}/tag/{revision}", Handler.tag),
    route("POST", "/api/models/{repo}/preupload/{revision}", Handler.preupload),
    route("POST", "/api/models/{repo}/commit/{revision}", Handler.commit),
    route("POST", "/{repo}.git/info/lfs/objects/batch", Handler.lfs_batch),
    route("POST", "/{repo}.git/info/lfs/objects/verify", Handler.verify),
    route("PUT", "/upload/{oid}", Handler.upload),
    route("HEAD", "/{repo}/resolve/{revision}/{path}", Handler.resolve),
    route("GET", "/{repo}/resolve/{revision}/{path}", Handler.resolve),
]

# Refuses our packages, as if they were not installed.
WITHOUT_PACKAGES = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("modeling_magic", "training", "hub_configs"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""
# One thread, no waiting between the client's own tries, and the switches of the server.
QUICK = """
import json, os, time, urllib.request
import torch
torch.set_num_threads(1)
import huggingface_hub.utils._http
huggingface_hub.utils._http.time.sleep = lambda seconds: None
def control(**switches):
    urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/control", json.dumps(switches).encode()).read()
"""


@contextlib.contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server that runs while the block does."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def run_client(
    code: str, home: Path, url: str | None = None, token: str | None = None, packages: bool = True
) -> subprocess.CompletedProcess:
    """Runs `code` in a process of its own, whose caches are in `home`; fails where that fails.

    Args:
        url: the Hub it sees; without one it is offline.
        packages: whether it may import ours.
    """
    home.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {
        "HF_HOME": str(home / "cache"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"HF_ENDPOINT": url} if url else {"HF_HUB_OFFLINE": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    if packages:
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", ("" if packages else WITHOUT_PACKAGES) + QUICK + code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
