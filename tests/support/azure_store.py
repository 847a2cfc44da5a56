"""Azure's Blob Storage on loopback: Azurite, if there is one, behind a server that can misbehave.

Azurite is a program of node's (``npm install azurite``); ``FLMGROW_AZURITE`` names its
``azurite-blob``. It checks signatures as the service does, so what tests ask past all faults is
signed here.
"""

import base64
import hashlib
import hmac
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.client import HTTPConnection
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree

import requests
from object_store import BUCKET, SECRET, ObjectStore, Wsgi

AZURITE = os.environ.get("FLMGROW_AZURITE", "")
ACCOUNT = "growing"
_VERSION = "2021-12-02"
_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@contextmanager
def azurite(key: str) -> Iterator[str]:
    """Give the address of an empty Azurite, whose account has this key."""
    with tempfile.TemporaryDirectory() as place:
        process = subprocess.Popen(
            [AZURITE, "--inMemoryPersistence", "--blobPort", "0", "--silent", "--disableTelemetry"],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
            cwd=place,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if found := re.search(r"listens on (http://\S+)", line):
                        yield found[1]
                        return
                raise OSError(f"{AZURITE} ended without listening")
            finally:
                process.kill()


def signed(
    endpoint: str, method: str, place: str, key: str, data: bytes = b"", **headers: str
) -> bytes:
    """Return what the store at ``endpoint`` answers to a request for ``/CONTAINER/KEY?QUERY``."""
    path, _, query = place.partition("?")
    sent = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"/{ACCOUNT}{quote(path)}"
    lines = [
        method,
        *("", "", str(len(data) or "")),
        *[""] * 8,
        *(f"{name}:{sent[name]}" for name in sorted(sent)),
        f"/{ACCOUNT}{path}",
        *(f"{name}:{value}" for name, value in sorted(parse_qsl(query, keep_blank_values=True))),
    ]
    digest = hmac.digest(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256)
    sent["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}{path}" + f"?{query}" * bool(query)
    answer = requests.request(method, url, data=data, headers=sent)
    answer.raise_for_status()
    return answer.content


def forwarding(endpoint: str) -> Wsgi:
    """Return an application that hands every request on, as it came."""
    address = urlsplit(endpoint).netloc

    def call(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        headers = {
            name.removeprefix("HTTP_").replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or (name.startswith("CONTENT_") and value)
        }
        data = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        connection = HTTPConnection(address, timeout=900)
        try:
            connection.request(environ["REQUEST_METHOD"], environ["RAW_URI"], data, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        told = [each for each in answer.getheaders() if each[0].lower() not in _HOP]
        if not any(name.lower() == "content-length" for name, _ in told):
            told.append(("Content-Length", str(len(body))))
        start(f"{answer.status} {answer.reason}", told)
        return [body]

    return call


@dataclass
class AzureStore(ObjectStore):
    """Azure Blob Storage's state. Parts that were sent are nobody's upload: they expire."""

    SCHEME = "az"
    KINDS: ClassVar[dict[str, tuple[str, str]]] = {
        "list": ("GET", "comp=list"),
        "part": ("PUT", "comp=block&"),
        "completion": ("PUT", "comp=blocklist"),
        "deletion": ("POST", "comp=batch"),
    }
    behind: str = ""

    def kept_by(self, stack: ExitStack) -> Wsgi:
        self.behind = stack.enter_context(azurite(SECRET))
        return forwarding(self.behind)

    def environment(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": SECRET,
        }

    def make_bucket(self) -> None:
        self._ask("PUT", "?restype=container")

    def put(self, key: str, data: bytes) -> None:
        self._ask("PUT", f"/{key}", data, x_ms_blob_type="BlockBlob")

    def keys(self, prefix: str = "") -> list[str]:
        answer = self._ask("GET", f"?restype=container&comp=list&prefix={prefix}")
        return [each.text or "" for each in ElementTree.fromstring(answer).iter("Name")]

    def uploads(self, prefix: str = "") -> list[str]:
        return []

    def _ask(self, method: str, place: str, data: bytes = b"", **headers: str) -> bytes:
        where = f"/{BUCKET}{place}"
        return signed(self.behind, method.upper(), where, SECRET, data, **headers)
