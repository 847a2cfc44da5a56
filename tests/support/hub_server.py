"""A Hub on loopback: the parts of its API that huggingface_hub speaks, and any misbehaviour wanted.

It keeps real repositories (commits, branches, LFS objects by their sum), so that a test can look at
what is there; it is written from what the library sends and wants back, and speaks no Xet.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_TestTokenThatNobodyMaySee0123456789"
LFS_SUFFIXES = (".safetensors", ".bin", ".model")

Json = dict[str, Any]


def blob_id(data: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Repository:
    """Files by commit, and the commits that branches are at."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, branch: str, files: Mapping[str, bytes], drop: tuple[str, ...] = ()) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = {path: data for path, data in before.items() if path not in drop} | dict(files)
        text = f"{len(self.commits)} {sorted((p, blob_id(d)) for p, d in after.items())}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = after
        self.branches[branch] = oid
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Fault:
    """What shall go wrong: the next ``times`` requests of this method and path.

    ``status`` answers with an error, ``cut`` closes the connection in the middle of the body,
    ``late`` does so when everything is done. An error's text echoes what the server was sent.
    """

    method: str
    path: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    cut: bool = False
    late: bool = False


class Hub:
    """The server's state. ``requests`` are all that came, as method and path."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.endpoint = ""

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def count(self, method: str, part: str) -> int:
        return sum(m == method and re.search(part, p) is not None for m, p in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub = self.hub
        hub.requests.append((self.command, path))
        hub.tokens.append(self.headers.get("Authorization", ""))
        fault = hub.fault(self.command, path) or Fault("", "")
        if fault.cut and self.command != "GET":
            self.rfile.read(self.length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(self.length)
        if fault.status:
            self.refuse(fault.status, fault.headers)
            return
        self.cut = fault.cut
        self.late = fault.late
        for method, pattern, answer in ROUTES:
            if (match := re.fullmatch(pattern, path)) and self.command in method:
                answer(self, body, *match.groups())
                return
        self.refuse(404)

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def reply(self, data: object, status: int = 200) -> None:
        self.send(json.dumps(data).encode(), status, {"Content-Type": "application/json"})

    def send(self, data: bytes, status: int, headers: Mapping[str, str]) -> None:
        if self.late:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.cut:
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an error that echoes the request's credentials wherever it can."""
        self.cut = self.late = False
        said = f"you sent {self.headers.get('Authorization')} to http://me:secret@proxy/x?sig=abc"
        echo = {
            "Content-Type": "application/json",
            "X-Error-Message": said,
            "X-Request-Id": said,
            "X-HF-Warning": f"auth; {said}",
            **(headers or {}),
        }
        self.send(json.dumps({"error": said}).encode(), status, echo)

    def repository(self, name: str) -> Repository | None:
        """The repository of that name, if whoever asks may see it; else it is refused."""
        found = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not known):
            self.refuse(404 if known else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    # --- what the API offers

    def info(self, _: bytes, name: str, revision: str | None) -> None:
        if (found := self.repository(name)) is None:
            return
        if (commit := found.resolve(revision or "main")) is None:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
            return
        self.reply({"id": name, "sha": commit, "private": found.private})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401)
        elif name in self.hub.repositories:
            self.reply({"url": f"{self.hub.endpoint}/{name}"}, 409)
        else:
            private = asked.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private)
            self.reply({"url": f"{self.hub.endpoint}/{name}"})

    def branch(self, _: bytes, name: str, branch: str) -> None:
        if (found := self.repository(name)) is None:
            return
        if branch in found.branches:
            self.refuse(409)
            return
        found.branches[branch] = found.branches["main"]
        self.reply({})

    def validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        assert text.startswith("---\n")
        self.reply({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if (found := self.repository(name)) is None:
            return
        there = found.files(revision)
        answers = []
        for file in json.loads(body)["files"]:
            path, data = file["path"], there.get(file["path"])
            lfs = path.endswith(LFS_SUFFIXES)
            oid = None if data is None else lfs_id(data) if lfs else blob_id(data)
            mode = "lfs" if lfs else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        answers: list[Json] = []
        for item in json.loads(body)["objects"]:
            answer: Json = dict(item)
            if item["oid"] not in self.hub.objects:
                place = f"{self.hub.endpoint}/lfs/{item['oid']}"
                answer["actions"] = {"upload": {"href": place}}
            answers.append(answer)
        self.reply({"transfer": "basic", "objects": answers})

    def upload(self, body: bytes, oid: str) -> None:
        assert lfs_id(body) == oid
        self.hub.objects[oid] = body
        self.reply({})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        if (found := self.repository(name)) is None:
            return
        files: dict[str, bytes] = {}
        drop: list[str] = []
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value["parentCommit"] != found.branches[branch]:
                    self.refuse(412)
                    return
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                drop.append(value["path"])
        oid = found.commit(branch, files, tuple(drop))
        url = f"{self.hub.endpoint}/{name}/commit/{oid}?echo={self.headers['Authorization']}"
        self.reply({"commitUrl": url, "commitOid": oid})

    @staticmethod
    def entry(path: str, data: bytes) -> Json:
        entry: Json = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        if path.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": lfs_id(data), "size": len(data), "pointerSize": 134}
        return entry

    def tree(self, _: bytes, name: str, revision: str) -> None:
        if (found := self.repository(name)) is not None:
            self.reply([self.entry(path, data) for path, data in found.files(revision).items()])

    def paths(self, body: bytes, name: str, revision: str) -> None:
        if (found := self.repository(name)) is not None:
            files = found.files(revision)
            wanted = parse_qs(body.decode())["paths"]
            self.reply([self.entry(path, files[path]) for path in wanted if path in files])

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        if (found := self.repository(name)) is None:
            return
        commit = found.resolve(revision) or ""
        data = found.commits[commit].get(path)
        if data is None:
            self.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        etag = lfs_id(data) if path.endswith(LFS_SUFFIXES) else blob_id(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin is None:
            self.send(data, 200, {**headers, "Content-Length": str(len(data))})
            return
        rest = data[int(begin[1]) :]
        span = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
        self.send(rest, 206, {**headers, "Content-Length": str(len(rest)), "Content-Range": span})


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", rf"/api/models/{_NAME}/paths-info/(.+)", _Handler.paths),
    ("GET", rf"/api/models/{_NAME}/tree/(.+)", _Handler.tree),
    ("GET", rf"/api/models/{_NAME}(?:/revision/(.+))?", _Handler.info),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(\w+)", _Handler.upload),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a Hub in a thread of its own; it is at ``endpoint``."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
