"""An object in byte ranges, for readers who ask for a few bytes at a time.

A request to an object store takes as long as some megabytes do; the readers of checkpoints were
made for disks, and may ask for a row of a matrix, then the next. So small ranges are cut out of
blocks of ``BLOCK`` bytes, of which the last ``MOST_BLOCKS`` are kept, for all objects together; who
asks for a block that is on its way waits for it. Of a range as large as a block, nothing is kept;
it is requested ``PIECE`` bytes at a time, so that each answer comes within the time a request has.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future

from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.store import Found, read_range

BLOCK = 4 << 20
PIECE = 16 << 20
MOST_BLOCKS = 16
"""So many, as a worker for every core may be reading from a place of its own."""

_Key = tuple[Address, Found, int]


class _Blocks:
    """Blocks by object and number, least recently used first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[_Key, Future[memoryview]] = OrderedDict()

    def get(self, address: Address, found: Found, number: int) -> memoryview:
        """Return a block. Whatever ends this, an interrupt at any line too, ends waiting for it."""
        key, mine = (address, found, number), Future[memoryview]()
        try:
            with self.lock:
                block = self.kept.setdefault(key, mine)
                self.kept.move_to_end(key)
                while len(self.kept) > MOST_BLOCKS:
                    self.kept.popitem(last=False)
            if block is mine:
                start = number * BLOCK
                mine.set_result(read_range(address, found, start, min(BLOCK, found.size - start)))
        except BaseException as error:
            with self.lock:
                if self.kept.get(key) is mine:
                    del self.kept[key]
            mine.set_exception(error)
            raise
        return block.result()

    def drop(self, address: Address) -> None:
        with self.lock:
            for key in [key for key in self.kept if key[0] == address]:
                del self.kept[key]


_blocks = _Blocks()


class Ranges:
    """An object as it was when it was listed, read in ranges from any number of threads."""

    def __init__(self, address: Address, found: Found) -> None:
        self.address = address
        self.found = found

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` (flat bytes) with those at ``offset``, all of which are in the object.

        Raises BadCheckpointError if the object is gone or another now, StorageError.
        """
        if target.nbytes >= BLOCK:
            for start in range(0, target.nbytes, PIECE):
                piece = target[start : start + PIECE]
                piece[:] = read_range(self.address, self.found, offset + start, piece.nbytes)
            return
        done = 0
        while done < target.nbytes:
            number, start = divmod(offset + done, BLOCK)
            part = _blocks.get(self.address, self.found, number)[start:][: target.nbytes - done]
            target[done : done + part.nbytes] = part
            done += part.nbytes

    def close(self) -> None:
        """Keep nothing of it."""
        _blocks.drop(self.address)
