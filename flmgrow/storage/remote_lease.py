"""The right to write a folder in an object store, which one run has at a time.

There are no locks in an object store, and nothing there ends with a process. But an object can be
put if there is none, and replaced if it is still the one that was read. So ``.flmgrow/lease`` names
the run that may write, which replaces it every ``BEAT`` seconds. Who finds one waits: one that
stays as it is for ``EXPIRY`` seconds is of a run that is dead, and is replaced; of two who do that,
one succeeds. If the run was on this machine and its process is gone, nobody waits.

A run that could not renew its lease in time stops writing before another may begin: it counts from
when it last began to renew, and allows for less than ``EXPIRY``. Of several ranks the first holds
the lease; the others look at it, and stop as it does when it is renewed no more.
"""

import contextlib
import json
import math
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import FlmgrowError, OutputExistsError, StorageError
from flmgrow.storage.durable import RESUME
from flmgrow.storage.remote import writing
from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.marker import LEASE
from flmgrow.storage.remote.store import ChangedError, FoundObject, hurried
from flmgrow.storage.sign import this_machine
from flmgrow.storage.strict_json import Json

BEAT = 10.0
EXPIRY = 60.0
"""Seconds."""
_TRUSTED = 0.75
"""The part of ``EXPIRY`` for which a run relies on a lease that it could not renew."""
_MOST_BYTES = 10_000
_TRIES = 5

_own: set[str] = set()
"""The holders that this process is at the moment."""


@dataclass(frozen=True)
class _Held:
    """A lease as it was read."""

    content: Json
    found: FoundObject

    @property
    def holder(self) -> str:
        return str(self.content.get("holder"))

    @property
    def who(self) -> str:
        return f"pid {self.content.get('pid')} on {str(self.content.get('host')).partition(' ')[0]}"

    @property
    def is_gone(self) -> bool:
        """Whether its process was on this machine, and is there no more."""
        return self._is_of_this_machine and not self.is_here

    @property
    def is_here(self) -> bool:
        """Whether its process is on this machine."""
        pid, started = self.content.get("pid"), self.content.get("started")
        if not self._is_of_this_machine or _started(pid) != started:
            return False
        return pid != os.getpid() or self.holder in _own

    @property
    def _is_of_this_machine(self) -> bool:
        own = _this_process()
        same = all(self.content.get(key) == own[key] for key in ("host", "processes"))
        return same and bool(own["started"])  # else nothing is known of processes here


class RemoteLease:
    """The lease on a folder; it is kept up until it is released.

    Raises:
        OutputExistsError: If another run has it.
        StorageError: The store failed, or does not answer.
    """

    def __init__(self, folder: Address) -> None:
        self.folder = folder
        self._address = folder.below(LEASE)
        self._content = {"holder": secrets.token_hex(16), **_this_process(), "beat": 0}
        self._lock = threading.Lock()
        self._lost = False
        self._begun = time.monotonic()
        _own.add(self._content["holder"])
        try:
            self._found = self._take()
        except BaseException:
            _own.discard(self._content["holder"])
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise OutputExistsError or StorageError unless the folder is still this run's."""
        if time.monotonic() - self._begun > _TRUSTED * EXPIRY:
            self.renew()
        if self._lost:
            raise _lost_error(self.folder)

    def renew(self) -> None:
        """Put the lease anew.

        Raises:
            StorageError: If that fails.
        """
        with self._lock:
            begun = time.monotonic()
            self._content["beat"] += 1
            found = self._replace(self._found)
            if found is None:
                self._lost = True
            else:
                self._found, self._begun = found, begun

    def release(self) -> None:
        """Let another run have it. What fails is left to its expiry."""
        _own.discard(self._content["holder"])
        self._ended.set()
        self._thread.join(1.0)  # what it may still be sending is no lease without the one before
        with contextlib.suppress(FlmgrowError), hurried():
            if self._own(self._read()) is not None:
                writing.delete(self.folder, [self._address.key])

    @property
    def holder(self) -> str:
        """The word by which this run is known."""
        return str(self._content["holder"])

    def _keep_up(self) -> None:
        while not self._ended.wait(BEAT) and not self._lost:
            with contextlib.suppress(FlmgrowError):  # ``check`` tells how long that may go on
                self.renew()

    def _take(self) -> FoundObject:
        for _ in range(_TRIES):
            writing.put_if_new(self._address, self._encoded)
            held = self._read()
            if (found := self._own(held)) is not None:
                return found
            if held is None:  # it was released just now
                continue
            if not held.is_gone and self._shows_life(held):
                raise self._held_error(held.who)
            if (found := self._replace(held.found)) is not None:
                return found
        raise self._held_error("several take turns")

    def _held_error(self, who: str) -> OutputExistsError:
        return OutputExistsError(
            f"another run ({who}) is writing it",
            "wait for it to finish or stop it, or choose another output folder",
            where=self.folder,
        )

    def _shows_life(self, held: _Held) -> bool:
        """Whether somebody renews a lease, or its process is known to be there."""
        if held.is_here:
            return True
        end = time.monotonic() + EXPIRY
        while time.monotonic() < end:
            time.sleep(min(BEAT, EXPIRY) / 4)
            now = self._read()
            if now is None or now.found.tag != held.found.tag:
                return now is not None
        return False

    def _replace(self, found: FoundObject) -> FoundObject | None:
        """Replace a lease by this run's, if it is still there; return what is there then."""
        with contextlib.suppress(ChangedError):
            writing.put_small(self._address, self._encoded, found)
        return self._own(self._read())  # whatever the answer was: it may have been lost

    def _read(self) -> _Held | None:
        return _read(self._address)

    def _own(self, held: _Held | None) -> FoundObject | None:
        mine = held is not None and held.holder == self._content["holder"]
        return held.found if held is not None and mine else None

    @property
    def _encoded(self) -> bytes:
        return json.dumps(self._content).encode()


class SeenLease:
    """The lease that the first rank of this run has as ``holder``, as another rank sees it."""

    def __init__(self, folder: Address, holder: str) -> None:
        self._folder = folder
        self._holder = holder
        self._tag: str | None = None
        self._looked = -math.inf
        self._renewed = time.monotonic()

    def check(self) -> None:
        """See that the folder is still this run's.

        Raises:
            OutputExistsError: Another run has it.
            StorageError: It may be: the lease was not renewed in time.
        """
        now = time.monotonic()
        if now - self._looked >= BEAT:
            self._looked = now
            with contextlib.suppress(StorageError):  # it may answer at the next look
                self._look(now)
        if time.monotonic() - self._renewed > _TRUSTED * EXPIRY:
            raise StorageError(
                f"rank 0 has not renewed its lease for {_TRUSTED * EXPIRY:g} seconds",
                RESUME,
                where=self._folder,
            )

    def _look(self, now: float) -> None:
        held = _read(self._folder.below(LEASE))
        if held is None or held.holder != self._holder:
            raise _lost_error(self._folder)
        if held.found.tag != self._tag:
            self._tag, self._renewed = held.found.tag, now


def _read(address: Address) -> _Held | None:
    answer = writing.read_small(address, _MOST_BYTES)
    if answer is None:
        return None
    try:
        content = json.loads(answer[0])
    except ValueError:
        content = {}
    return _Held(content if isinstance(content, dict) else {}, answer[1])


def _lost_error(folder: Address) -> OutputExistsError:
    return OutputExistsError(
        "another run has begun to write it, as this one gave no sign of life",
        "see which is wanted, and stop the other",
        where=folder,
    )


def _this_process() -> Json:
    """Return what tells this process from all others, and from those that had its number before."""
    pid = os.getpid()
    return {
        "host": this_machine(),
        "processes": _link("/proc/self/ns/pid"),
        "pid": pid,
        "started": _started(pid),
    }


def _started(pid: object) -> str:
    """Return when a process began, as the system counts; empty if there is none."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) <= 19 or fields[0] in ("Z", "X"):  # it has ended, and nobody has asked how
        return ""
    return fields[19]  # the 22nd of all; two stand before the bracket


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    return ""


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return str(Path(path).readlink())
    return ""
