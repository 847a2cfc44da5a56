"""What the environment says of an object store, and what a command says of it if that is wrong."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure_store import ACCOUNT
from commands import refused
from google_store import ServiceAccount
from object_store import SECRET, ObjectStore, served
from object_stores import CHECKING_STORES
from pico import make_checkpoint

from flmgrow.storage.remote import store
from flmgrow.storage.remote.addresses import SERVICES

NOWHERE = "http://127.0.0.1:9"
NO_OAUTH = '{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}'
RIGHT = {
    "s3": {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": NOWHERE,
        "AWS_ALLOW_HTTP": "true",
    },
    "gs": {"GOOGLE_SERVICE_ACCOUNT_KEY": NO_OAUTH, "GOOGLE_BASE_URL": NOWHERE},
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": SECRET,
        "AZURE_STORAGE_ENDPOINT": f"{NOWHERE}/{ACCOUNT}",
        "AZURE_ALLOW_HTTP": "true",
    },
}
"""Settings that are understood, of servers that are not there."""
SCHEMES = pytest.mark.parametrize("scheme", RIGHT)
CREDENTIALS = {service.scheme: service.credentials for service in SERVICES}


def refuse(
    patch: pytest.MonkeyPatch,
    place: Path,
    scheme: str,
    code: int,
    found: str,
    **changed: str | None,
) -> None:
    """Inspect an address where the settings are ``changed``, which is refused in one line."""
    for name, value in (RIGHT[scheme] | changed).items():
        patch.delenv(name, raising=False)
        if value is not None:
            patch.setenv(name, value)
    store.forget()
    try:
        outcome = refused(code, found, "inspect", f"{scheme}://bucket/ckpt", place=place)
    finally:
        store.forget()
    assert SECRET not in outcome.err


@SCHEMES
def test_a_server_that_is_not_there_is_one_line(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    refuse(monkeypatch, tmp_path, scheme, 4, "the server cannot be reached")


@pytest.mark.parametrize(
    ("scheme", "missing"),
    [
        ("s3", "AWS_ACCESS_KEY_ID"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY"),
        ("az", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_without_credentials_the_variables_are_named(
    scheme: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):  # where this machine's would be
        monkeypatch.setenv(name, NOWHERE.removeprefix("http://"))
    found = rf"no credentials were found\nhint: set {CREDENTIALS[scheme]} as"
    refuse(monkeypatch, tmp_path, scheme, 4, found, **{missing: None})


@pytest.mark.parametrize(
    ("scheme", "name", "value"),
    [
        ("s3", "AWS_ALLOW_HTTP", "perhaps"),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY", f'{{"private_key": "{SECRET}"}}'),
        ("gs", "GOOGLE_SERVICE_ACCOUNT_KEY", SECRET),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY", "not base64"),
    ],
)
def test_settings_that_are_not_understood_are_one_line(
    scheme: str, name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rf"its settings are not understood\nhint: set {CREDENTIALS[scheme]} as"
    refuse(monkeypatch, tmp_path, scheme, 4, found, **{name: value})


@pytest.mark.parametrize(
    "content", [None, "{}", "no JSON", '{"type": "external_account", "audience": "a"}']
)
def test_a_file_of_credentials_that_holds_none_is_one_line(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials.json"
    if content is not None:
        file.write_text(content)
    changed = {"GOOGLE_SERVICE_ACCOUNT_KEY": None, "GOOGLE_APPLICATION_CREDENTIALS": str(file)}
    found = "its settings are not understood\nhint: set GOOGLE_APPLICATION_CREDENTIALS"
    refuse(monkeypatch, tmp_path, "gs", 4, found, **changed)


@pytest.mark.parametrize(
    ("scheme", "name"), [(each.scheme, name) for each in SERVICES for name in each.endpoints]
)
@pytest.mark.parametrize("value", ["localhost:9000", "nonsense", "http://", "s3://bucket"])
def test_an_endpoint_that_is_no_server_is_one_line(
    scheme: str, name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = f"{name} names no server, wanted https://HOST or http://HOST:PORT"
    refuse(monkeypatch, tmp_path, scheme, 2, found, **{name: value})


@pytest.mark.parametrize("scheme", ["s3", "az"])  # obstore allows it to Google's
def test_an_endpoint_without_a_certificate_is_allowed_or_refused(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = (each for each in RIGHT[scheme] if each.endswith("ALLOW_HTTP"))
    found = rf"its endpoint begins with http://, which is not allowed\nhint: set {name}=true"
    refuse(monkeypatch, tmp_path, scheme, 4, found, **{name: None})


# --- where the store itself says no


@pytest.fixture(scope="module", params=CHECKING_STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, served(patch, request.param) as server:
        yield server


@pytest.mark.parametrize("command", ["inspect STORE/x", "reshard SRC STORE/out --tp 2"])
def test_wrong_credentials_are_one_line(
    command: str, remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "legacy", "llama", dtype="float32")
    wrong = ServiceAccount().write(tmp_path / "another.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(wrong))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", SECRET.swapcase())
    store.forget()
    where = remote.address("wrong")
    words = [str(source) if word == "SRC" else word for word in command.split()]
    outcome = refused(
        4,
        rf"{where}.* failed: its credentials are wrong or have expired\n"
        rf"hint: set {CREDENTIALS[remote.SCHEME]} as",
        *(word.replace("STORE", where) for word in words),
        place=tmp_path,
    )
    assert not re.search(f"Bearer|SharedKey|{SECRET}|{SECRET.swapcase()}", outcome.err)
    store.forget()
