"""Putting objects into an object store, whole or not at all, and taking them away.

An object appears with its last byte: a small one is one request, a large one an upload in parts
that counts once it is completed. What is broken off leaves no object; of a process that was killed,
the parts it had sent stay with the store until its own rules remove them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flmgrow.errors import BadCheckpointError, FlmgrowError
from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.store import (
    ChangedError,
    FoundObject,
    ask,
    found_in,
    hurried,
    look,
    patiently,
    store_of,
)
from flmgrow.text import Found, Text

if TYPE_CHECKING:
    from obstore import PutMode, WritableFile

PART = 8 << 20
"""Bytes of a part, unless there would be more of them than a store takes."""
AT_ONCE = 4
"""Parts on their way at the same time; as many bytes are in memory."""
_MOST_PARTS = 9000


def put_small(address: Address, data: bytes, instead: FoundObject | None = None) -> None:
    """Put a small object whole, ``instead`` of one that must still be there if that is given.

    Raises:
        ChangedError: If it is another one now.
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    mode: PutMode = "overwrite"
    if instead is not None:
        mode = {"e_tag": instead.tag or ""}
        if instead.version is not None:
            mode["version"] = instead.version
    ask(
        address,
        "writing",
        lambda: obstore.put(store, address.key, data, mode=mode, use_multipart=False),
    )


def put_if_new(address: Address, data: bytes) -> bool:
    """Put a small object, unless there is one: return whether it was put.

    An answer that was lost may say that there is one: this one.

    Raises:
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    def put() -> None:
        obstore.put(store, address.key, data, mode="create", use_multipart=False)

    try:
        ask(address, "writing", put)
    except ChangedError:
        return False
    return True


def read_small(address: Address, most: int) -> tuple[bytes, FoundObject] | None:
    """Return a small object and what it is, None if there is none.

    Raises:
        BadCheckpointError: If it has more than ``most`` bytes.
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    def read() -> tuple[bytes, FoundObject] | None:
        try:
            answer = obstore.get(store, address.key)
        except FileNotFoundError:
            return None
        found = found_in(answer.meta)
        if found.size > most:
            raise BadCheckpointError(
                Text("has ", Found(found.size), " bytes"), where=address, wanted=f"at most {most}"
            )
        return bytes(answer.bytes()), found

    return ask(address, "reading", lambda: patiently(read))


def delete(folder: Address, keys: Iterable[str]) -> None:
    """Delete objects in the bucket of ``folder``; some may be gone already.

    Raises:
        StorageError: The store failed, or does not answer.
    """
    wanted = list(keys)
    store = store_of(folder)
    import obstore

    def deleted() -> None:
        try:
            obstore.delete(store, wanted)
        except FileNotFoundError:  # some services say so of one, and the others may be left
            for key in wanted:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(store, key)

    if wanted:
        ask(folder, "deleting", deleted)


class NewRemoteObject:
    """An object being written from its first byte to its last; made by :func:`new_object`."""

    found: FoundObject
    """What it is, once it is whole."""

    def __init__(self, address: Address, writer: "WritableFile") -> None:
        self.position = 0
        self._address = address
        self._writer = writer

    def write(self, data: memoryview) -> None:
        """Append all of ``data`` (flat bytes).

        Raises:
            StorageError: The store failed, or does not answer.
        """
        doing = f"writing at byte {self.position}"
        ask(self._address, doing, lambda: self._writer.write(data))
        self.position += data.nbytes

    def finish(self) -> None:
        """Let the object appear.

        Raises:
            StorageError: The store failed, or does not answer.
        """
        before = look(self._address)
        try:
            ask(self._address, "completing the upload", self._writer.close)
        except FlmgrowError:
            if not self._has_appeared(before):
                raise
        found = look(self._address)
        if found is None or found.size != self.position:
            raise ChangedError("is not what was put there", "see who else writes", self._address)
        self.found = found

    def _has_appeared(self, before: FoundObject | None) -> bool:
        """Whether it was completed all the same: of an upload whose completion is asked for again,
        as the answer was lost, some services say that there is none.
        """
        with contextlib.suppress(FlmgrowError), hurried():
            now = look(self._address)
            return now is not None and now != before and now.size == self.position
        return False


@contextlib.contextmanager
def new_object(address: Address, size: int) -> Iterator[NewRemoteObject]:
    """Give an object of ``size`` bytes to write; after the block it is there.

    If the block or anything else fails, what was there is as it was.

    Raises:
        StorageError: The store failed, or does not answer.
    """
    store = store_of(address)
    import obstore

    part = max(PART, -(-size // _MOST_PARTS))
    writer = obstore.open_writer(store, address.key, buffer_size=part, max_concurrency=AT_ONCE)
    new = NewRemoteObject(address, writer)
    try:
        yield new
        new.finish()
    except BaseException as error:
        with contextlib.suppress(Exception):  # whatever it says, the upload was not completed
            writer.__exit__(type(error), error, error.__traceback__)
        raise
