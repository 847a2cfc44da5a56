"""An object store on loopback: moto's S3, as a server, with any misbehaviour wanted.

moto keeps real buckets in memory: conditional requests, multipart uploads and lists in pages. What
no test could ask of it (errors, throttling, bodies that are cut off) is put between. The stores of
other services (``object_stores.py``) say what differs: a request is named by what it is for
(:attr:`ObjectStore.KINDS`), as each has its own.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest
import requests
from hf_folders import make_folder
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pico import make_checkpoint
from pico_dist import make_dist_checkpoint
from werkzeug.serving import WSGIRequestHandler, make_server

from flmgrow.storage.remote import store

BUCKET = "checkpoints"
SECRET = "SecretThatNobodyMaySee0123456789abcdefgh"
_ERROR = "<Error><Code>{code}</Code><Message>you sent {sent}</Message></Error>"
TESTS = "the tests themselves"
_OWN = {"Authorization": TESTS}
_XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}

Wsgi = Callable[..., Iterable[bytes]]


@dataclass
class Fault:
    """What shall go wrong: the next ``times`` requests of this method, whose path and query fit.

    ``status`` answers with an error, of this ``code``, that echoes the credentials; ``cut`` ends a
    body in its middle; ``late`` answers with an error when all is done; ``before`` is called first.
    """

    method: str
    path: str
    status: int = 0
    times: int = 1
    cut: bool = False
    late: bool = False
    code: str = ""
    before: Callable[[], None] = lambda: None


@dataclass
class ObjectStore:
    """The server's state; this one is S3's. ``requests`` are all that came, as method, path, query.

    After ``most`` of them, if that is given, all are refused, as by a server that is lost; the last
    is carried out or not, and its answer is lost, too, if ``late``.
    """

    SCHEME: ClassVar[str] = "s3"
    KINDS: ClassVar[dict[str, tuple[str, str]]] = {
        "list": ("GET", "list-type"),
        "begin": ("POST", "uploads"),
        "part": ("PUT", "partNumber"),
        "completion": ("POST", "uploadId"),
        "deletion": ("POST", r"\?delete"),
    }
    """By what a request is for: its method, and what fits its query. Other words are methods."""

    endpoint: str = ""
    most: int | None = None
    late: bool = False
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def address(self, key: str) -> str:
        """The address of a key."""
        return f"{self.SCHEME}://{BUCKET}/{key}"

    def key_of(self, address: str) -> str:
        """The key at an address."""
        return address.removeprefix(self.address(""))

    def kind(self, kind: str, path: str = "") -> tuple[str, str]:
        """The method of a request of this kind, and a pattern that fits its path and query."""
        method, query = self.KINDS.get(kind, (kind, ""))
        return method, f"{path}.*{query}" if path and query else path or query

    def fail(self, kind: str, path: str = "", **more: Any) -> None:
        """Let requests of this kind go wrong, as ``more`` says (:class:`Fault`)."""
        self.faults.append(Fault(*self.kind(kind, path), **more))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            if self.most is not None and len(self.requests) >= self.most:
                late = self.late and len(self.requests) == self.most
                return Fault(method, path, status=503, late=late)
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, pattern: str) -> int:
        """How many requests came whose method, path and query fit."""
        return sum(re.search(pattern, each) is not None for each in self.requests)

    # --- what differs between services

    def kept_by(self, stack: ExitStack) -> Wsgi:
        """Return what answers; what it needs goes with the ``stack``."""
        app: Wsgi = DomainDispatcherApplication(create_backend_app)
        return app

    def environment(self) -> dict[str, str]:
        """What a command's environment says of the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self) -> None:
        requests.post(f"{self.endpoint}/moto-api/reset", headers=_OWN).raise_for_status()
        self._ask("put", "")

    # --- what tests do with it, past all faults

    def put(self, key: str, data: bytes) -> None:
        self._ask("put", f"/{key}", data)

    def get(self, key: str) -> bytes:
        return self._ask("get", f"/{key}")

    def delete(self, key: str) -> None:
        self._ask("delete", f"/{key}")

    def keys(self, prefix: str = "") -> list[str]:
        return _texts(self._ask("get", f"?list-type=2&prefix={prefix}"), "Key")

    def uploads(self, prefix: str = "") -> list[str]:
        """The keys of multipart uploads that were begun, and neither completed nor aborted."""
        begun = _texts(self._ask("get", "?uploads"), "Key")
        return [key for key in begun if key.startswith(prefix)]

    def put_folder(self, folder: Path, key: str) -> str:
        """Put all files of ``folder`` under ``key``; return the address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())
        return self.address(key)

    def get_folder(self, key: str, folder: Path) -> Path:
        """Put all objects under ``key`` into ``folder``, as files."""
        for each in self.keys(f"{key}/"):
            place = folder / each.removeprefix(f"{key}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.get(each))
        return folder

    def _ask(self, method: str, place: str, data: bytes = b"") -> bytes:
        url = f"{self.endpoint}/{BUCKET}{place}"
        answer = requests.request(method, url, data=data, headers=_OWN)
        answer.raise_for_status()
        return answer.content


def _texts(answer: bytes, name: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(answer).iter(f"{_XML}{name}")]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        pass


def _faulty(app: Wsgi, state: ObjectStore) -> Wsgi:
    """Return moto's application with the faults of ``state`` before it; the tests' own requests
    meet none.
    """

    def call(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        sent = environ.get("HTTP_AUTHORIZATION", "")
        path = environ["PATH_INFO"] + (
            f"?{environ['QUERY_STRING']}" * bool(environ["QUERY_STRING"])
        )
        fault = state.fault(environ["REQUEST_METHOD"], path) if sent != TESTS else None
        if fault is None:
            return app(environ, start)
        fault.before()
        if fault.status and not fault.late:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _refusal(fault, sent, start)
        body = b"".join(app(environ, start if not fault.status else lambda *_: None))
        if fault.status:
            return _refusal(fault, sent, start)
        return [body[: len(body) // 2]] if fault.cut else [body]

    return call


def _refusal(fault: Fault, sent: str, start: Callable[..., Any]) -> Iterable[bytes]:
    text = _ERROR.format(
        code=fault.code or _CODES.get(fault.status, "Other"), sent=f"{sent} {SECRET}"
    ).encode()
    headers = [("Content-Length", str(len(text))), ("Content-Type", "application/xml")]
    start(f"{fault.status} Refused", headers)
    return [text]


@contextmanager
def serving(kind: type[ObjectStore] = ObjectStore) -> Iterator[ObjectStore]:
    """A server with an empty bucket."""
    state = kind()
    with ExitStack() as stack:
        app = _faulty(state.kept_by(stack), state)
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            state.endpoint = f"http://127.0.0.1:{server.server_port}"
            state.make_bucket()
            yield state
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def served(
    patch: pytest.MonkeyPatch, kind: type[ObjectStore] = ObjectStore
) -> Iterator[ObjectStore]:
    """A server that this process's commands speak to, with little patience."""
    with serving(kind) as state:
        for name, value in state.environment().items():
            patch.setenv(name, value)
        patch.setattr(store, "PAUSE", timedelta(milliseconds=2))
        patch.setattr(store, "ATTEMPTS", 5)
        store.forget()
        yield state
        store.forget()


def one_of_each(at: Path) -> dict[str, Path]:
    """Make a checkpoint of every format below ``at``."""
    return {
        "legacy": make_checkpoint(at / "legacy", "llama", dtype="float32"),
        "torch_dist": make_dist_checkpoint(at / "dist", "llama", 2, dtype="float32"),
        "huggingface": make_folder(at / "huggingface", shards=2),
    }
