"""Leases, over obstore's store in memory; other machines are other names in what is put there."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from flmgrow.errors import OutputExistsError, StorageError
from flmgrow.storage import remote_lease as leases
from flmgrow.storage.remote import store, writing
from flmgrow.storage.remote.addresses import address_of
from flmgrow.storage.remote_lease import RemoteLease, SeenLease, _this_process

FOLDER = address_of(Path("s3://bucket/out"))
KEY = "out/.flmgrow/lease"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    found = MemoryStore()
    monkeypatch.setattr(store, "_store", lambda *_: found)
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "EXPIRY", 1.0)
    return found


@pytest.fixture
def taken(memory: MemoryStore) -> Iterator[Callable[[], RemoteLease]]:
    """Takes leases that are released after the test."""
    held: list[RemoteLease] = []

    def take() -> RemoteLease:
        held.append(RemoteLease(FOLDER))
        return held[-1]

    yield take
    for lease in held:
        lease.release()


def content(memory: MemoryStore) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(obstore.get(memory, KEY).bytes()))
    return found


def put_another(memory: MemoryStore, **changed: object) -> None:
    other = {**_this_process(), "holder": "another", "beat": 0, **changed}
    obstore.put(memory, KEY, json.dumps(other).encode())


def test_it_is_kept_up_and_goes_when_it_is_released(memory: MemoryStore) -> None:
    lease = RemoteLease(FOLDER)
    first = content(memory)
    while content(memory)["beat"] <= first["beat"]:
        time.sleep(0.01)
    lease.check()
    assert content(memory)["pid"] == os.getpid()
    lease.release()
    assert not [each for page in obstore.list(memory) for each in page]


def test_a_second_one_is_refused_at_once(
    memory: MemoryStore, taken: Callable[[], RemoteLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = taken()
    monkeypatch.setattr(leases, "EXPIRY", 60.0)
    begin = time.monotonic()
    with pytest.raises(OutputExistsError, match=rf"another run \(pid {os.getpid()} on "):
        RemoteLease(FOLDER)
    assert time.monotonic() - begin < 5
    first.check()


@pytest.mark.parametrize("reaped", [True, False])
def test_that_of_a_process_that_is_gone_is_taken_at_once(
    reaped: bool,
    memory: MemoryStore,
    taken: Callable[[], RemoteLease],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        put_another(memory, pid=child.pid, started=leases._started(child.pid))
        monkeypatch.setattr(leases, "EXPIRY", 60.0)
        with pytest.raises(OutputExistsError, match=rf"another run \(pid {child.pid} on "):
            RemoteLease(FOLDER)
        child.kill()
        if reaped:
            child.wait()
        else:
            while leases._started(child.pid):
                time.sleep(0.01)
        taken().check()
        assert content(memory)["holder"] != "another"


def test_a_number_that_another_process_has_now_is_of_one_that_is_gone(
    memory: MemoryStore, taken: Callable[[], RemoteLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_another(memory, pid=1, started="before")
    monkeypatch.setattr(leases, "EXPIRY", 60.0)
    taken().check()


@pytest.mark.parametrize("where", [{"host": "elsewhere boot"}, {"processes": "pid:[1]"}])
def test_that_of_another_machine_expires(
    where: dict[str, str], memory: MemoryStore, taken: Callable[[], RemoteLease]
) -> None:
    put_another(memory, pid=1, **where)
    begin = time.monotonic()
    taken().check()
    assert time.monotonic() - begin >= leases.EXPIRY


def test_that_of_another_machine_which_is_renewed_does_not(memory: MemoryStore) -> None:
    put_another(memory, host="elsewhere")
    ended = threading.Event()

    def renew() -> None:
        for beat in range(1000):
            if ended.wait(0.05):
                return
            put_another(memory, host="elsewhere", beat=beat)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(OutputExistsError, match=r"another run \(pid \d+ on elsewhere\)"):
            RemoteLease(FOLDER)
    finally:
        ended.set()
        thread.join()
    assert content(memory)["holder"] == "another"


def test_one_that_is_damaged_expires(memory: MemoryStore, taken: Callable[[], RemoteLease]) -> None:
    obstore.put(memory, KEY, b"\x00not JSON")
    taken().check()


def test_of_many_who_find_an_expired_one_one_takes_it(memory: MemoryStore) -> None:
    put_another(memory, host="elsewhere")
    won, lost, ready = list[RemoteLease](), list[str](), threading.Barrier(6)

    def take() -> None:
        ready.wait()
        try:
            won.append(RemoteLease(FOLDER))
        except OutputExistsError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    won[0].check()
    won[0].release()


def test_one_that_another_has_taken_is_noticed_and_not_deleted(memory: MemoryStore) -> None:
    lease = RemoteLease(FOLDER)
    put_another(memory, host="elsewhere")
    while not lease._lost:
        time.sleep(0.01)
    with pytest.raises(OutputExistsError, match="another run has begun to write it"):
        lease.check()
    lease.release()
    assert content(memory)["holder"] == "another"


def test_one_that_cannot_be_renewed_ends_before_it_expires(
    memory: MemoryStore, taken: Callable[[], RemoteLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StorageError("the server is gone")

    lease = taken()
    with monkeypatch.context() as patch:
        patch.setattr(writing, "put_small", fails)
        lease.check()
        time.sleep(0.8 * leases.EXPIRY)
        with pytest.raises(StorageError, match="the server is gone"):
            lease.check()
    lease.check()  # nobody has taken it meanwhile


def test_an_answer_that_was_lost_is_no_loss(
    memory: MemoryStore, taken: Callable[[], RemoteLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = writing.put_small

    def put_and_fail(*arguments: Any) -> None:
        put(*arguments)
        raise StorageError("the answer is lost")

    lease = taken()
    with monkeypatch.context() as patch:
        patch.setattr(writing, "put_small", put_and_fail)
        with pytest.raises(StorageError, match="the answer is lost"):
            lease.renew()
    lease.renew()
    lease.check()


# --- as another rank sees it


def test_another_rank_relies_on_a_lease_that_is_renewed(
    taken: Callable[[], RemoteLease], memory: MemoryStore
) -> None:
    seen = SeenLease(FOLDER, taken().holder)
    until = time.monotonic() + 1.5 * leases.EXPIRY
    while time.monotonic() < until:
        seen.check()
        time.sleep(0.02)


def test_another_rank_stops_when_another_run_has_it(memory: MemoryStore) -> None:
    put_another(memory)
    SeenLease(FOLDER, "another").check()
    with pytest.raises(OutputExistsError, match="another run has begun"):
        SeenLease(FOLDER, "this").check()


def test_another_rank_stops_when_it_is_renewed_no_more(memory: MemoryStore) -> None:
    put_another(memory)
    seen = SeenLease(FOLDER, "another")
    seen.check()
    time.sleep(0.9 * leases.EXPIRY)
    with pytest.raises(StorageError, match="has not renewed its lease"):
        seen.check()
