"""Few open descriptors for many files that many threads read.

A process may have so many descriptors open, and a checkpoint may have more files than that. A file
that nobody reads from is closed to make room, and opened again when it is wanted.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_A_MOMENT = 0.001
"""Seconds between two looks for a place among them."""


class Openable(Protocol):
    """A file that can be opened, and opened again."""

    def open_descriptor(self) -> int:
        """Open the file and return its descriptor; check that it is (still) the file wanted."""


class _Descriptor:
    """One open descriptor and who is reading from it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.readers: set[object] = set()


class OpenFiles:
    """The descriptors of all files, least recently used first; those being read stay open.

    An interrupt may end the main thread's work between any two lines, of this class, too. So nobody
    waits here for somebody else to be done, but for a place among so many; and each reader is known
    by an object of its own, not counted: to leave twice, or without having come, changes nothing.
    (The lock is a plain one: it is taken and given back in one instruction. A Condition is not.)
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lock = threading.Lock()
        self.descriptors: OrderedDict[Openable, _Descriptor] = OrderedDict()
        self.dropped: set[_Descriptor] = set()

    @contextmanager
    def borrow(self, file: Openable) -> Iterator[int]:
        """Give a descriptor of ``file`` that stays open until the block ends."""
        reader = object()
        held: list[_Descriptor] = []
        try:
            while not held:
                with self.lock:
                    self._lend(file, reader, held)
                if not held:
                    time.sleep(_A_MOMENT)  # more threads are reading than may have files open
            yield held[0].number
        finally:
            with self.lock:
                for descriptor in held:
                    descriptor.readers.discard(reader)
                    self._close_if_dropped(descriptor)

    def close(self, file: Openable) -> None:
        """Close the descriptor of ``file``; the last to read from it does so if there are any."""
        with self.lock:
            descriptor = self.descriptors.pop(file, None)
            if descriptor is not None:
                self.dropped.add(descriptor)
                self._close_if_dropped(descriptor)

    def _lend(self, file: Openable, reader: object, held: list[_Descriptor]) -> None:
        """Put a descriptor of ``file`` into ``held``, if there is one or room for one."""
        descriptor = self.descriptors.get(file)
        if descriptor is None:
            are_open = len(self.descriptors) + len(self.dropped)
            if are_open >= self.limit and not self._close_an_idle_one():
                return
            descriptor = self.descriptors[file] = _Descriptor(file.open_descriptor())
        self.descriptors.move_to_end(file)
        held.append(descriptor)
        descriptor.readers.add(reader)

    def _close_if_dropped(self, descriptor: _Descriptor) -> None:
        if descriptor in self.dropped and not descriptor.readers:
            self.dropped.remove(descriptor)
            os.close(descriptor.number)

    def _close_an_idle_one(self) -> bool:
        for file, descriptor in self.descriptors.items():
            if not descriptor.readers:
                del self.descriptors[file]
                os.close(descriptor.number)
                return True
        return False
