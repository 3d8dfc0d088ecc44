"""A server on this machine that speaks the Hub's HTTP protocol, so that the unmodified `huggingface_hub` can be used.

Kept in memory: repositories with commits, branches and tags, large files by their SHA-256, accounts by their token.
Answers can be made to fail, to be slow, or to break off, see [`HubServer.disturb`].

What is spoken follows the client (huggingface_hub 2.4 and 0.36) and the public description of the protocol: create,
preupload, LFS batch (basic and multipart), commit (NDJSON), refs, resolve with redirects to a store, ranges and etags.
Large files go by LFS, from a client that is told so by `HF_HUB_DISABLE_XET=1`; or by xet, to a store in a folder,
which is the road they take to the real Hub. Between the two decides the client.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


LARGE = (".safetensors", ".bin", ".pt", ".parquet", ".onnx", ".png", ".gz")
KINDS = {"models": "model", "datasets": "dataset"}
PIECE = 1 << 14
REPO = r"(?P<repo>[^/]+/[^/]+)"
STORE = rf"/_store/(?P<kind>model|dataset)/{REPO}"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
PLAIN = rf"/(?:(?P<kind>datasets)/)?{REPO}"


def _in_an_hour() -> int:
    return int(time.time()) + 3600


def git_oid(content: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """What a path of a commit holds: the name of its content, and whether that lies in the store of large files."""

    oid: str
    size: int
    large: bool


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        parent = self.branches.get(branch)
        listing = "".join(f"{path}\0{file.oid}\n" for path, file in sorted(files.items()))
        oid = hashlib.sha1(f"{parent}\0{message}\0{len(self.commits)}\0{listing}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, message, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def history(self, branch: str = "main") -> list[Commit]:
        """The commits of a branch, the newest first."""
        commits, oid = [], self.branches.get(branch)
        while oid:
            commits.append(self.commits[oid])
            oid = self.commits[oid].parent
        return commits


@dataclass(frozen=True)
class Account:
    """Who owns a token, where he may write, and whether the token may."""

    name: str
    organizations: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)


ACCOUNTS = {
    "hf_owner": Account("me", ("org",)),
    "hf_reader": Account("me", ("org",), role="read"),
    "hf_other": Account("somebody"),
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    range: str | None = None


class Refusal(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None):
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


@dataclass
class Disturbance:
    method: str
    path: str
    times: int
    status: int = 0
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    seconds: float = 0.0
    late: bool = False
    done: bool = False


class HubServer:
    """
    Attributes:
        url: Its `HF_ENDPOINT`.
        repos: `(kind, "owner/name")` to [`Repo`], with kinds `model` and `dataset`.
        store: Large files by their SHA-256; `blobs`: the others by git's name.
        accounts: By token.
        requests: All that came, in their order.
        part_size: Where it is set, larger files are sent in parts of so many bytes.
        tamper: Called with the files of a commit, which it may change: a Hub that does not keep what it got.
        xet: Folder of the xet store, where there is one.
        xet_hashes: Xet's names of large files by their SHA-256. The real Hub takes them from what is uploaded; here
            whoever runs the server says them, see [`HubServer.expect`].
    """

    def __init__(self, accounts: dict[str, Account]):
        self.accounts = dict(accounts)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.store: dict[str, bytes] = {}
        self.uploaded: set[tuple[str, str, str]] = set()  # kind, repository, SHA-256: each repository gets its own
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[Request] = []
        self.disturbances: list[Disturbance] = []
        self.part_size: int | None = None
        self.tamper: Callable[[dict[str, File]], None] | None = None
        self.xet: Path | None = None
        self.xet_hashes: dict[str, str] = {}
        self.lock = threading.RLock()
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host than the Hub's: the client must not send its token there, nor follow to it for a file's facts.
        self.store_url = f"http://localhost:{self._server.server_port}/_store"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def disturb(self, method: str, path: str, *, times: int = 1, **how) -> Disturbance:
        """Makes the next answers fail.

        Args:
            method, path: Regular expressions; the path's is searched.
            times: How many requests are disturbed.
            status, message, headers: The error that is answered, `late` after doing what was asked; or
            after: How many bytes of the body are received (of an upload) or sent (of a download) before the
                connection is dropped; or
            seconds: How long the answer is waited for; together with the others, or alone.
        """
        self.disturbances.append(Disturbance(method, path, times, **how))
        return self.disturbances[-1]

    def disturbance(self, method: str, path: str) -> Disturbance | None:
        with self.lock:
            for found in self.disturbances:
                if found.times > 0 and re.fullmatch(found.method, method) and re.search(found.path, path):
                    found.times -= 1
                    found.done = True
                    return found
        return None

    def calm(self) -> None:
        """Forgets requests and disturbances."""
        with self.lock:
            self.requests, self.disturbances, self.part_size, self.tamper = [], [], None, None

    def expect(self, files: list[Path]) -> None:
        """Says xet's names of files that are going to be uploaded."""
        import hf_xet

        for file, found in zip(files, hf_xet.hash_files([str(file) for file in files]), strict=True):
            self.xet_hashes[hashlib.sha256(file.read_bytes()).hexdigest()] = found.hash

    def reassemble(self, oid: str, size: int) -> bytes | None:
        """What lies in the xet store under a SHA-256, put together by the library itself; `None` if nothing does."""
        import hf_xet

        if self.xet is None or oid not in self.xet_hashes:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "file")
            access = {"endpoint": f"local://{self.xet}", "token": "xet", "token_expiry_unix_secs": _in_an_hour()}
            with hf_xet.XetSession().new_file_download_group(**access) as group:
                group.start_download_file(hf_xet.XetFileInfo(self.xet_hashes[oid], size), str(file))
            content = file.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == oid else None

    def asked(self, method: str, path: str = "") -> list[str]:
        """Paths of the requests with this method, and this in them."""
        return [each.path for each in self.requests if each.method == method and re.search(path, each.path)]

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def content(self, file: File) -> bytes:
        return (self.store if file.large else self.blobs)[file.oid]

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "model") -> bytes:
        return self.content(self.repo(repo_id, kind).find(revision).files[path])

    def paths(self, repo_id: str, revision: str = "main", kind: str = "model") -> set[str]:
        return set(self.repo(repo_id, kind).find(revision).files)


@contextlib.contextmanager
def hub_server(accounts: dict[str, Account]):
    """A [`HubServer`] for as long as the context lasts."""
    server = HubServer(accounts)
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one piece: in two, the second waits 40 ms for the first to be acknowledged.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server_state: HubServer

    def log_message(self, *arguments):
        """Says nothing."""

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    # one request

    def answer(self) -> None:
        hub = self.server_state
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        path = unquote(address.path)
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with hub.lock:
            hub.requests.append(Request(self.command, path, bearer, self.headers.get("Range")))
        found = hub.disturbance(self.command, path)
        self.cut = found.after if found else None
        if found:
            time.sleep(found.seconds)
        uploads = int(self.headers.get("Content-Length") or 0)
        if self.cut is not None and uploads:
            self.rfile.read(min(self.cut, uploads))
            self._hang_up()
            return
        self.body = self._read_body(uploads)
        self.answer_late = found if found and found.late else None
        try:
            if found and found.status and not found.late:
                raise Refusal(found.status, found.message, headers=found.headers)
            self.account = self._who(bearer)
            self._route(address.path)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message, **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send(refusal.status, {"error": refusal.message}, headers)
        except OSError:
            self.close_connection = True  # who asked is gone

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _who(self, bearer: str | None) -> Account | None:
        if bearer is None or urlsplit(self.path).path.startswith("/_store/"):
            return None
        if bearer not in self.server_state.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.server_state.accounts[bearer]

    def _send(self, status: int, payload=None, headers: dict[str, str] | None = None) -> None:
        late, self.answer_late = self.answer_late, None
        if late:
            raise Refusal(late.status, late.message, headers=late.headers)
        content = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "X-Request-Id": "test", **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, str(value))
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(content), PIECE):
            if self.cut is not None and start + PIECE > self.cut:
                self.wfile.write(content[start : self.cut])
                self.wfile.flush()
                self._hang_up()
                return
            self.wfile.write(content[start : start + PIECE])

    def _route(self, path: str) -> None:
        for methods, pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods:
                parts = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                kind = parts.get("kind") or "models"
                parts["kind"] = KINDS.get(kind, kind)
                parts.update({} if "repo" in parts else {"repo": ""})
                handle(self, **parts)
                return
        raise Refusal(404, f"Sorry, we can't find the page you are looking for: {self.command} {path}")

    # who may do what

    def _repo(self, kind: str, repo: str, *, write: bool = False) -> Repo:
        found = self.server_state.repos.get((kind, repo))
        hidden = found is None or (found.private and not (self.account and self.account.owns(repo)))
        if hidden and self.account is None:
            # The real one answers over https, where the client concludes the code from the address.
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if hidden:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and self.account is None:
            raise Refusal(401, "Invalid username or password.")
        if write and (not self.account.owns(repo) or self.account.role != "write"):
            raise Refusal(403, f"Forbidden: you must have write access to {repo} or its token must have the scope")
        return found

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # accounts and repositories

    def whoami(self, kind: str, repo: str) -> None:
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        organizations = [{"name": name, "type": "org"} for name in self.account.organizations]
        access = {"accessToken": {"displayName": "test", "role": self.account.role}, "type": "access_token"}
        self._send(200, {"type": "user", "name": self.account.name, "orgs": organizations, "auth": access})

    def create(self, kind: str, repo: str) -> None:
        wanted = json.loads(self.body)
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        owner = wanted.get("organization") or self.account.name
        kind, repo_id = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
        if not self.account.owns(repo_id) or self.account.role != "write":
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        url = f"{self.server_state.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        with self.server_state.lock:
            if (kind, repo_id) in self.server_state.repos:
                self._send(409, {"error": f"You already created this {kind} repo", "url": url})
                return
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            made = self.server_state.repos[kind, repo_id] = Repo(private)
            content = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            self.server_state.blobs[git_oid(content)] = content
            made.add("main", "initial commit", {".gitattributes": File(git_oid(content), len(content), False)})
        self._send(200, {"url": url, "name": repo_id, "id": repo_id})

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        found = self._repo(kind, repo)
        commit = self._commit(found, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if self.query.get("blobs"):
            siblings = [{"rfilename": path, **self._entry(path, commit.files[path])} for path in sorted(commit.files)]
        facts = {"_id": repo, "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.oid}
        facts |= {"private": found.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        self._send(200, {**facts, "lastModified": "2026-01-01T00:00:00.000Z", "siblings": siblings})

    def refs(self, kind: str, repo: str) -> None:
        found = self._repo(kind, repo)
        lists = {}
        for name, prefix, refs in (("branches", "heads", found.branches), ("tags", "tags", found.tags)):
            lists[name] = [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": oid} for n, oid in refs.items()]
        self._send(200, {**lists, "converts": []})

    def branch(self, kind: str, repo: str, name: str) -> None:
        found = self._repo(kind, repo, write=True)
        start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
        if name in found.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{name}")
        found.branches[name] = self._commit(found, start).oid
        self._send(200, {"success": True})

    def tag(self, kind: str, repo: str, revision: str) -> None:
        found = self._repo(kind, repo, write=True)
        name = json.loads(self.body)["tag"]
        if name in found.tags:
            raise Refusal(409, f"Tag reference exists already: refs/tags/{name}")
        found.tags[name] = self._commit(found, revision).oid
        self._send(200, {"success": True})

    def validate_yaml(self, kind: str, repo: str) -> None:
        """The real one knows many rules; this one the licence's name and that there is metadata."""
        content = json.loads(self.body)["content"]
        header = re.match(r"---\s*\n(.*?)\n---", content, flags=re.DOTALL)
        faults, warnings = [], [] if header else [{"message": "empty or missing yaml metadata in repo card"}]
        license = re.search(r"^license: *(\S+)", header[1], flags=re.MULTILINE) if header else None
        if license and not re.fullmatch(r"(mit|apache-2\.0|cc-by-(nc-)?4\.0|other)", license[1]):
            faults = [{"message": f'"license" must be one of [apache-2.0, mit, ...], got {license[1]}'}]
        self._send(400 if faults else 200, {"errors": faults, "warnings": warnings})

    # writing

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        commit = self._commit(self._repo(kind, repo, write=True), revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            old = commit.files.get(asked["path"])
            mode = "lfs" if asked["path"].endswith(LARGE) or asked["size"] > 10_000_000 else "regular"
            answer = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(answer | ({"oid": old.oid} if old else {}))
        self._send(200, {"files": files})

    def batch(self, kind: str, repo: str) -> None:
        self._repo(kind, repo, write=True)
        hub, objects = self.server_state, []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size, "authenticated": True}
            if (kind, repo, oid) not in hub.uploaded:
                upload = {"href": f"{hub.store_url}/{kind}/{repo}/{oid}"}
                if hub.part_size and size > hub.part_size:
                    numbers = range(1, -(-size // hub.part_size) + 1)
                    parts = {
                        f"{number:05d}": f"{hub.store_url}/{kind}/{repo}/{oid}/part/{number}" for number in numbers
                    }
                    upload = {"href": f"{hub.store_url}/{kind}/{repo}/{oid}/complete"}
                    upload["header"] = {"chunk_size": str(hub.part_size), **parts}
                verify = {"href": f"{hub.url}/_verify/{kind}/{repo}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        chosen = "multipart" if hub.part_size else "basic"
        self._send(200, {"transfer": chosen, "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def put_large(self, kind: str, repo: str, oid: str, number: str = "") -> None:
        if number:
            self.server_state.parts[oid, int(number)] = self.body
        elif hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this SHA-256")
        else:
            self.server_state.store[oid] = self.body
            self.server_state.uploaded.add((kind, repo, oid))
        self._send(200, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def complete(self, kind: str, repo: str, oid: str) -> None:
        hub = self.server_state
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        content = b"".join(hub.parts.pop((oid, number)) for number in numbers)
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The parts do not have this SHA-256 together")
        hub.store[oid] = content
        hub.uploaded.add((kind, repo, oid))
        self._send(200, {"success": True})

    def verify(self, kind: str, repo: str) -> None:
        asked = json.loads(self.body)
        content = self.server_state.store.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            raise Refusal(404, "The object is not there")
        self._send(200, {"success": True})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        hub, found = self.server_state, self._repo(kind, repo, write=True)
        if revision not in found.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.decode().splitlines()]
        with hub.lock:
            files, message = dict(found.commits[found.branches[revision]].files), ""
            for line in lines:
                value, key = line["value"], line["key"]
                if key == "header":
                    message = value["summary"]
                    if value.get("parentCommit") not in (None, found.branches[revision]):
                        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    content = base64.b64decode(value["content"])
                    hub.blobs[git_oid(content)] = content
                    files[value["path"]] = File(git_oid(content), len(content), False)
                elif key == "lfsFile":
                    if content := hub.reassemble(value["oid"], value["size"]):
                        hub.store[value["oid"]] = content
                        hub.uploaded.add((kind, repo, value["oid"]))
                    if (kind, repo, value["oid"]) not in hub.uploaded:
                        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                    files[value["path"]] = File(value["oid"], len(hub.store[value["oid"]]), True)
                elif key == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refusal(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
                else:
                    raise Refusal(400, f"Unknown key {key}")
            if hub.tamper:
                hub.tamper(files)
            made = found.add(revision, message, files)
        self._send(200, {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.url}/{repo}/commit/{made.oid}"})

    def xet_token(self, kind: str, repo: str, access: str, revision: str) -> None:
        self._commit(self._repo(kind, repo, write=access == "write"), revision)
        if self.server_state.xet is None:
            raise Refusal(404, "This Hub knows no xet")
        facts = {"casUrl": f"local://{self.server_state.xet}", "accessToken": "xet", "exp": _in_an_hour()}
        names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        self._send(200, facts, dict(zip(names, facts.values(), strict=True)))

    # reading

    def _entry(self, path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
        if file.large:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.oid}\nsize {file.size}\n"
            entry |= {"oid": git_oid(pointer.encode()), "blobId": git_oid(pointer.encode())}
            entry["lfs"] = {"oid": file.oid, "sha256": file.oid, "size": file.size, "pointerSize": len(pointer)}
        return entry

    def tree(self, kind: str, repo: str, revision: str, path: str = "") -> None:
        files = self._commit(self._repo(kind, repo), revision).files
        inside = {name: file for name, file in files.items() if not path or name.startswith(path + "/")}
        if path and not inside:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        entries = {}
        for name, file in sorted(inside.items()):
            rest = name[len(path) + 1 if path else 0 :].split("/")
            for depth in range(1, len(rest)):
                folder = "/".join([*([path] if path else []), *rest[:depth]])
                entries[folder] = {"type": "directory", "path": folder, "oid": git_oid(folder.encode()), "size": 0}
            entries[name] = self._entry(name, file)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        level = path.count("/") + 1 if path else 0
        self._send(200, [entry for name, entry in entries.items() if recursive or name.count("/") == level])

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        files = self._commit(self._repo(kind, repo), revision).files
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        asked = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
        self._send(200, [self._entry(path, files[path]) for path in asked if path in files])

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        commit = self._commit(self._repo(kind, repo), revision)
        found = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if found is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{found.oid}"'
        if found.large:
            headers |= {"X-Linked-Etag": f'"{found.oid}"', "X-Linked-Size": str(found.size)}
            headers["Location"] = f"{self.server_state.store_url}/{found.oid}"
            if self.server_state.xet and found.oid in self.server_state.xet_hashes:
                tokens = f"{self.server_state.url}/api/{kind}s/{repo}/xet-read-token/{commit.oid}"
                headers["X-Xet-Hash"] = self.server_state.xet_hashes[found.oid]
                headers["Link"] = f'<{tokens}>; rel="xet-auth"'
            self._send(302, None, headers)
            return
        self._send_content(self.server_state.content(found), headers)

    def get_large(self, kind: str, repo: str, oid: str) -> None:
        if oid not in self.server_state.store:
            raise Refusal(404, "NoSuchKey")
        self._send_content(self.server_state.store[oid], {"ETag": f'"{oid}"'})

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if self.headers.get("If-None-Match") == headers["ETag"]:
            self._send(304, None, headers)
            return
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            self._send(200, content, headers | {"Content-Length": str(len(content))})
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            raise Refusal(416, "Requested range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
        piece = content[start:stop]
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}", "Content-Length": str(len(piece))}
        self._send(206, piece, headers)


_ROUTES = (
    ({"GET"}, r"/api/whoami-v2", _Handler.whoami),
    ({"POST"}, r"/api/repos/create", _Handler.create),
    ({"POST"}, r"/api/validate-yaml", _Handler.validate_yaml),
    ({"GET"}, API, _Handler.info),
    ({"GET"}, rf"{API}/revision/(?P<revision>[^/]+)", _Handler.info),
    ({"GET"}, rf"{API}/refs", _Handler.refs),
    ({"POST"}, rf"{API}/branch/(?P<name>[^/]+)", _Handler.branch),
    ({"POST"}, rf"{API}/tag/(?P<revision>[^/]+)", _Handler.tag),
    ({"POST"}, rf"{API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ({"POST"}, rf"{API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ({"GET"}, rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    ({"POST"}, rf"{API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ({"GET"}, rf"{API}/xet-(?P<access>read|write)-token/(?P<revision>[^/]+)", _Handler.xet_token),
    ({"POST"}, rf"{PLAIN}\.git/info/lfs/objects/batch", _Handler.batch),
    ({"PUT"}, rf"{STORE}/(?P<oid>\w+)(?:/part/(?P<number>\d+))?", _Handler.put_large),
    ({"POST"}, rf"{STORE}/(?P<oid>\w+)/complete", _Handler.complete),
    ({"GET", "HEAD"}, r"/_store/(?P<oid>\w+)", _Handler.get_large),
    ({"POST"}, r"/_verify/.+", _Handler.verify),
    ({"GET", "HEAD"}, rf"{PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)
