"""Google's XML API in front of moto's S3, as far as the two differ in what flmgrow asks.

Google wrote that API to be S3's: lists, byte ranges, uploads in parts, and errors are the same.
What is not: an object has a generation, which conditions of writing name instead of its tag;
deleting what is not there is an error, and there is no request that deletes many; who asks shows a
token that the key of a service account signed. All this is from Google's documentation: its servers
were not asked.
"""

import base64
import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from object_store import TESTS, ObjectStore, Wsgi

_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>you sent {sent}</Message></Error>"


class ServiceAccount:
    """Somebody who may ask, by the key in a file that a cloud's console would give out."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def write(self, path: Path) -> Path:
        """Write the file that ``GOOGLE_APPLICATION_CREDENTIALS`` names."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        content = {
            "type": "service_account",
            "client_email": "tests@project.iam.gserviceaccount.com",
            "private_key_id": "1",
            "private_key": pem.decode(),
        }
        path.write_text(json.dumps(content))
        return path

    def signed(self, authorization: str) -> bool:
        """Whether a request's token is this account's."""
        signed, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
        try:
            self._key.public_key().verify(
                base64.urlsafe_b64decode(signature + "=="),
                signed.encode(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except (InvalidSignature, ValueError):
            return False
        return True


class GoogleFront:
    """A server like S3's as Google's: ``app`` answers once what differs is dealt with.

    A request that shows ``pass_word`` as its authorization is a test's own, and is let through.
    """

    def __init__(self, app: Wsgi, account: ServiceAccount, pass_word: str) -> None:
        self._app, self._account, self._pass_word = app, account, pass_word
        self._generations: dict[str, int] = {}
        self._next = itertools.count(1_700_000_000_000_001)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        sent = environ.get("HTTP_AUTHORIZATION", "")
        if sent != self._pass_word and not self._account.signed(sent):
            return _refusal("401 Unauthorized", "AuthenticationRequired", environ, start)
        environ["HTTP_AUTHORIZATION"] = self._pass_word  # by S3's rules it would name a region
        with self._lock:
            return self._answer(environ, start)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path, query = (
            environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING")
        )
        there = self._generations.get(path, 0)
        if environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH", str(there)) != str(there):
            return _refusal("412 Precondition Failed", "PreconditionFailed", environ, start)
        if method == "DELETE" and not query and not there:
            return _refusal("404 Not Found", "NoSuchKey", environ, start)
        status, headers, body = _asked(self._app, environ)
        if status.startswith("2"):
            if (method == "PUT" and not query) or (method == "POST" and "uploadId" in query):
                self._generations[path] = next(self._next)
            elif method == "DELETE" and not query:
                del self._generations[path]
        if path in self._generations:
            headers.append(("x-goog-generation", str(self._generations[path])))
        start(status, headers)
        return body


def _asked(app: Wsgi, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], list[bytes]]:
    told: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: object) -> None:
        told.append((status, list(headers)))

    body = list(app(environ, start))
    return (*told[-1], body)


def _refusal(
    status: str, code: str, environ: dict[str, Any], start: Callable[..., Any]
) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    text = _ERROR.format(code=code, sent=environ.get("HTTP_AUTHORIZATION", "")).encode()
    start(status, [("Content-Length", str(len(text))), ("Content-Type", "application/xml")])
    return [text]


@dataclass
class GoogleStore(ObjectStore):
    """Google Cloud Storage's state."""

    SCHEME = "gs"
    KINDS: ClassVar[dict[str, tuple[str, str]]] = {
        **ObjectStore.KINDS,
        "deletion": ("DELETE", "^[^?]*$"),
    }
    credentials: Path = Path()

    def kept_by(self, stack: ExitStack) -> Wsgi:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        account = ServiceAccount()
        self.credentials = account.write(Path(place) / "account.json")
        return GoogleFront(super().kept_by(stack), account, TESTS)

    def environment(self) -> dict[str, str]:
        return {
            "GOOGLE_BASE_URL": self.endpoint,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.credentials),
        }
