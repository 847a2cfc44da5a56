"""Sources in an object store that change while they are read, and servers that fail.

What passes is waited for; what does not is told in one line, which shows no secret, and leaves no
output.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, refused
from object_store import SECRET, ObjectStore, served
from object_stores import STORES
from pico import make_checkpoint
from sampling import sample


@pytest.fixture(scope="module", params=STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, served(patch, request.param) as server:
        yield server


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("folders")
    return {
        "legacy": make_checkpoint(at / "legacy", "llama", dtype="float32"),
    }


@pytest.fixture(scope="module")
def addresses(remote: ObjectStore, folders: dict[str, Path]) -> dict[str, str]:
    return {
        name: remote.put_folder(folder, f"sources/{folder.name}")
        for name, folder in folders.items()
    }


@pytest.fixture(autouse=True)
def _as_it_was(remote: ObjectStore) -> Iterator[None]:
    yield
    remote.faults.clear()


@pytest.fixture
def legacy(remote: ObjectStore, folders: dict[str, Path], request: Any) -> str:
    """The address of a checkpoint that a test may change."""
    name = re.sub(r"\W+", "-", request.node.name)
    return remote.put_folder(folders["legacy"], f"{name}/ckpt")


def test_an_object_that_changes_after_it_was_listed_is_refused(
    remote: ObjectStore, legacy: str, tmp_path: Path
) -> None:
    (key,) = [key for key in remote.keys(remote.key_of(legacy)) if ".pt" in key]
    data = remote.get(key)
    other = bytes([*data[:-1], data[-1] ^ 1])
    remote.fail("GET", r"\.pt", before=lambda: remote.put(key, other))
    pattern = rf"{key}: changed while it was being used"
    refused(3, pattern, "reshard", legacy, tmp_path / "out", "--tp", "2", place=tmp_path)


def test_an_object_that_changes_after_it_was_read_leaves_no_output(
    remote: ObjectStore, legacy: str, tmp_path: Path
) -> None:
    (key,) = [key for key in remote.keys(remote.key_of(legacy)) if ".pt" in key]
    remote.fail("HEAD", r"\.pt", before=lambda: remote.put(key, b"another"))
    pattern = rf"{key}: changed while it was being read"
    refused(3, pattern, "reshard", legacy, tmp_path / "out", "--tp", "2", place=tmp_path)


PASSING = [
    {"status": 500, "times": 3},
    {"status": 503, "times": 3},
    {"status": 429, "times": 3},
    {"cut": True, "times": 3},
]


@pytest.mark.parametrize("fault", sample(PASSING, *PASSING[2:]), ids=str)
@pytest.mark.parametrize("asked", [("list", ""), ("GET", r"\.pt")])
def test_what_passes_is_waited_for(
    asked: tuple[str, str],
    fault: dict[str, Any],
    remote: ObjectStore,
    addresses: dict[str, str],
    tmp_path: Path,
) -> None:
    remote.fail(*asked, **fault)
    accepted("reshard", addresses["legacy"], tmp_path / "out", "--tp", "2")
    assert remote.faults[0].times == 0


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ({"status": 500}, "the server answers 500"),
        ({"status": 503}, "the server answers 503"),
        ({"status": 403}, "its credentials do not allow this.*hint: set (AWS|GOOGLE|AZURE)_"),
        ({"cut": True}, "the server broke off its answer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("asked", [("list", ""), ("GET", r"\.pt")])
def test_what_does_not_pass_is_one_line(
    asked: tuple[str, str],
    fault: dict[str, Any],
    found: str,
    remote: ObjectStore,
    addresses: dict[str, str],
    tmp_path: Path,
) -> None:
    remote.fail(*asked, times=100, **fault)
    command = ("reshard", addresses["legacy"], tmp_path / "out", "--tp", "2")
    outcome = refused(4, f"{addresses['legacy']}.*{found}", *command, place=tmp_path)
    assert SECRET not in outcome.err
    assert "Signature" not in outcome.err


@pytest.mark.parametrize(
    ("status", "code", "found"),
    [
        (403, "InvalidObjectState", "it is archived.*hint: restore it from the archive first"),
        (403, "SignatureDoesNotMatch", "its credentials are wrong or have expired"),
        (400, "ExpiredToken", "its credentials are wrong or have expired"),
        (301, "PermanentRedirect", "the bucket is in another region.*AWS_REGION"),
        (501, "NotImplemented", "the store does not know such requests"),
    ],
)
def test_what_a_server_means_is_said(
    status: int,
    code: str,
    found: str,
    remote: ObjectStore,
    addresses: dict[str, str],
    tmp_path: Path,
) -> None:
    remote.fail("GET", r"\.pt", status=status, code=code, times=100)
    outcome = refused(4, found, "inspect", addresses["legacy"], place=tmp_path)
    assert SECRET not in outcome.err


def test_one_who_may_not_list_the_parent_reads_all_the_same(
    remote: ObjectStore, addresses: dict[str, str]
) -> None:
    remote.fail("GET", "prefix=sources%2F(&|$)", status=403, times=9)
    accepted("inspect", addresses["legacy"])
