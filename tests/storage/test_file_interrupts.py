"""An interrupt may end a read or a close between any two lines, and later ones must not wait."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from flmgrow.storage import files, open_files
from flmgrow.storage.files import ReadOnlyFile

LOCKING: list[Callable[..., Any]] = [
    open_files.OpenFiles.borrow.__wrapped__,  # type: ignore[attr-defined]
    open_files.OpenFiles.close,
    open_files.OpenFiles._lend,
    open_files.OpenFiles._close_if_dropped,
    open_files.OpenFiles._close_an_idle_one,
]


def lines_of(function: Callable[..., Any]) -> list[int]:
    code = function.__code__
    return sorted({line for _, _, line in code.co_lines() if line} - {code.co_firstlineno})


class _Interrupter:
    """Raises KeyboardInterrupt before the line is run, the first time that it would be."""

    def __init__(self, code: CodeType, line: int) -> None:
        self.code, self.line, self.was_there = code, line, False

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not self.code:
            return None
        if event == "line" and frame.f_lineno == self.line and not self.was_there:
            self.was_there = True
            sys.settrace(None)
            raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


def opened(folder: Path, count: int) -> list[ReadOnlyFile]:
    found = []
    for number in range(count):
        path = folder / str(number)
        path.write_bytes(b"%d" % number)
        found.append(ReadOnlyFile(path))
    return found


def in_time(work: Callable[[], object]) -> None:
    """Fail, instead of waiting for ever."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for ever"


def test_an_interrupt_at_any_line_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = set()
    for function in LOCKING:
        for line in lines_of(function):
            monkeypatch.setattr(files, "_open_files", open_files.OpenFiles(2))
            kept = opened(tmp_path, 3)  # more than may be open: one is closed on the way
            interrupter = _Interrupter(function.__code__, line)

            def work(kept: list[ReadOnlyFile] = kept) -> None:
                for file in kept:
                    file.read(0, 1)
                kept[1].close()

            interrupter.during(work)
            if interrupter.was_there:
                reached.add((function.__name__, line))

            def after(kept: list[ReadOnlyFile] = kept) -> None:
                assert [file.read(0, 1) for file in kept] == [b"0", b"1", b"2"]
                for file in kept:
                    file.close()

            in_time(after)
            assert files._open_files.lock.acquire(timeout=1)
    names = {name for name, _ in reached}
    assert names == {function.__name__ for function in LOCKING}
    total = sum(len(lines_of(function)) for function in LOCKING)
    assert len(reached) > 0.8 * total, "the sweep misses lines"


def test_a_file_is_closed_while_it_is_read(tmp_path: Path) -> None:
    """The reader keeps its descriptor to the end, and nobody waits for it."""
    (file,) = opened(tmp_path, 1)
    with files._open_files.borrow(file) as number:
        in_time(file.close)
        assert os.pread(number, 1, 0) == b"0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(number, 1, 0)
    assert file.read(0, 1) == b"0"
    file.close()


class _Counting(open_files.OpenFiles):
    """The control: readers are counted, and an interrupt may come between count and block."""

    count = 0

    @contextlib.contextmanager
    def borrow(self, file: open_files.Openable) -> Iterator[int]:
        self.count += 1
        number = 0
        try:
            yield number
        finally:
            self.count -= 1


def test_the_sweep_finds_what_an_interrupt_leaves_behind(tmp_path: Path) -> None:
    (file,) = opened(tmp_path, 1)
    left = []
    borrow: Any = _Counting.borrow
    for line in lines_of(borrow.__wrapped__):
        counting = _Counting(2)

        def work(counting: _Counting = counting) -> None:
            with counting.borrow(file):
                pass

        _Interrupter(borrow.__wrapped__.__code__, line).during(work)
        left.append(counting.count)
    assert 1 in left
