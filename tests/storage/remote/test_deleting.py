"""Deleting what is partly gone already: some stores say so, and must not be left at that."""

from collections.abc import Iterator
from typing import Any

import pytest
from object_store import ObjectStore, served
from object_stores import STORES

from flmgrow.storage.remote import writing
from flmgrow.storage.remote.addresses import SERVICES, Address

COUNT = 30


@pytest.fixture(scope="module", params=STORES)
def remote(request: Any) -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, served(patch, request.param) as server:
        yield server


def deleted(remote: ObjectStore, key: str, gone: set[int]) -> list[str]:
    """Delete many objects, some of which are gone; return what is left."""
    keys = [f"{key}/{number:02d}" for number in range(COUNT)]
    for number, each in enumerate(keys):
        if number not in gone:
            remote.put(each, b"1")
    (service,) = (each for each in SERVICES if each.scheme == remote.SCHEME)
    writing.delete(Address(service, "checkpoints", key), keys)
    return remote.keys(f"{key}/")


@pytest.mark.parametrize("gone", [{0}, {COUNT - 1}, {0, 7, 8}, set(range(COUNT)), set()], ids=str)
def test_all_others_go(gone: set[int], remote: ObjectStore) -> None:
    remote.put("others/stay", b"1")
    assert deleted(remote, f"some-{len(gone)}-{min(gone, default=0)}", gone) == []
    assert remote.keys("others/") == ["others/stay"]


def test_an_answer_that_is_lost_is_no_failure(remote: ObjectStore) -> None:
    remote.fail("deletion", status=503, late=True)
    assert deleted(remote, "late", set()) == []
    assert remote.faults.pop().times == 0
