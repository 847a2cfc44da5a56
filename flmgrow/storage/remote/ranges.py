"""An object in byte ranges, for readers who ask for a few bytes at a time.

A request to an object store takes as long as some megabytes do; the readers of checkpoints were
made for disks, and may ask for a row of a matrix, then the next. So small ranges are cut out of
blocks of ``BLOCK`` bytes, of which the last ``MOST_BLOCKS`` are kept, for all objects together; who
asks for a block that is on its way waits for it. Who reads on from one block to the next finds the
``AHEAD`` after it on their way. Of a range as large as a block, nothing is kept; it is requested
``PIECE`` bytes at a time, so that each answer comes within the time a request has.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future

from flmgrow.storage.remote.addresses import Address
from flmgrow.storage.remote.store import FoundObject, read_range

BLOCK = 4 << 20
PIECE = 16 << 20
MOST_BLOCKS = 16
"""So many, as a worker for every core may be reading from a place of its own."""
AHEAD = 3

_Key = tuple[Address, FoundObject, int]
_Block = Future[memoryview]


class _Blocks:
    """Blocks by object and number, least recently used first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[_Key, _Block] = OrderedDict()

    def get(self, address: Address, found: FoundObject, number: int) -> memoryview:
        """Return a block.

        Raises:
            BadCheckpointError: The checkpoint is damaged.
            StorageError: The store failed, or does not answer.
        """
        key: _Key = (address, found, number)
        block, mine = _Block(), False
        try:
            with self.lock:
                reads_on = (address, found, number - 1) in self.kept
                mine = self.kept.setdefault(key, block) is block
                block = self.kept[key]
                self.kept.move_to_end(key)
                self._drop_oldest()
            if reads_on:
                self._begin_ahead(key)
            if mine:
                self._fetch(key, block)
        except BaseException as error:  # an interrupt at any line, too, ends others' waiting
            if mine:
                self._fail(key, block, error)
            raise
        return block.result()

    def drop(self, address: Address) -> None:
        """Keep no block of an object."""
        with self.lock:
            for key in [key for key in self.kept if key[0] == address]:
                del self.kept[key]

    def _begin_ahead(self, key: _Key) -> None:
        """Let the blocks after one be fetched by threads of their own."""
        address, found, number = key
        last = (found.size - 1) // BLOCK
        for after in range(number + 1, min(number + AHEAD, last) + 1):
            block, wanted = _Block(), (address, found, after)
            with self.lock:
                if self.kept.setdefault(wanted, block) is not block:
                    continue
                self._drop_oldest()
            thread = threading.Thread(target=self._fetch, args=(wanted, block), daemon=True)
            thread.start()

    def _fetch(self, key: _Key, block: _Block) -> None:
        """Fetch a block. What goes wrong is told to who asks for it; the next one tries again."""
        address, found, number = key
        start = number * BLOCK
        try:
            block.set_result(read_range(address, found, start, min(BLOCK, found.size - start)))
        except BaseException as error:
            self._fail(key, block, error)

    def _fail(self, key: _Key, block: _Block, error: BaseException) -> None:
        with self.lock:
            if self.kept.get(key) is block:
                del self.kept[key]
        if not block.done():
            block.set_exception(error)

    def _drop_oldest(self) -> None:
        while len(self.kept) > MOST_BLOCKS:
            self.kept.popitem(last=False)


_blocks = _Blocks()


class ObjectRanges:
    """An object as it was when it was listed, read in ranges from any number of threads."""

    def __init__(self, address: Address, found: FoundObject) -> None:
        self.address = address
        self.found = found

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` (flat bytes) with those at ``offset``, all of which are in the object.

        Raises:
            BadCheckpointError: If the object is gone or another now.
            StorageError: The store failed, or does not answer.
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
