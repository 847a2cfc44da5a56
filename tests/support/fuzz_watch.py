"""What a parser must not do, whatever it is given; an audit hook and a count of descriptors see it.

It ends by itself or with an error of flmgrow's on one printable line, opens nothing outside its
folder, imports and runs nothing that the file names, and leaves no descriptor open.
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repository import ROOT

from flmgrow.errors import FlmgrowError

SECONDS = 5.0
MEMORY = 600 << 20
LONGEST = 1000

_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "socket.connect", "socket.bind", "urllib.Request", "pickle.find_class",
    "ctypes.dlopen", "os.putenv", "shutil.rmtree", "os.kill", "signal.pthread_kill", "pty.spawn",
    "webbrowser.open", "code.__new__",
)  # fmt: skip
_OURS = tuple(os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, ROOT))
_SYSTEM = ("/proc/self/", "/dev/null", "/sys/", "/etc/localtime")


class Watch:
    """Listens to the interpreter while a parser runs; there is one for all of a process.

    (An audit hook cannot be taken away: it is deaf between two parsers.)
    """

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._folder = ""
        self._data = b""
        self._listening = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._listening:
            return
        self._listening = False  # what this does is no parser's doing
        try:
            if found := self._objection(event, args):
                self.heard.append(f"{event}: {found}")
        finally:
            self._listening = True

    def _objection(self, event: str, args: tuple[Any, ...]) -> str:
        if event in _FORBIDDEN:
            return f"{args!r}"[:200]
        if event == "import" and len(str(args[0])) > 2 and str(args[0]).encode() in self._data:
            return f"{args[0]}, which the file names"
        if event == "open" and not isinstance(args[0], int) and not self._may_open(args[0]):
            return f"{args[0]!r}, outside the folder"[:200]
        return ""

    def _may_open(self, path: Any) -> bool:
        name = os.path.realpath(os.fsdecode(path))
        inside = name.startswith((f"{self._folder}/", *_SYSTEM)) or name == self._folder
        return inside or name.startswith(_OURS)

    def objections(self, read: Callable[[], object], folder: Path, data: bytes) -> list[str]:
        """Run a parser and return what it must not have done, or raised; nothing for a good one."""
        self._folder, self._data = os.path.realpath(folder), data
        before, begin = _descriptors(), time.process_time()
        peak = _peak_memory()
        self.heard, error = [], None
        self._listening = True
        try:
            read()
        except FlmgrowError as refusal:
            error = _unspeakable(refusal)
        except Exception as bug:
            error = f"{type(bug).__name__}: {bug}"[:300]
        finally:
            self._listening = False
        found = [*self.heard, *([error] if error else [])]
        if (after := _descriptors()) > before:
            found.append(f"{after - before} descriptors left open")
        if (took := time.process_time() - begin) > SECONDS:
            found.append(f"took {took:.1f} CPU seconds, wanted at most {SECONDS:g}")
        if (grown := _peak_memory() - peak) > MEMORY:
            found.append(f"took {grown >> 20} MiB, wanted at most {MEMORY >> 20}")
        return found


def _unspeakable(error: FlmgrowError) -> str:
    """What is wrong with an error as a user sees it; empty if nothing is."""
    for text in (str(error), str(error.hint)):
        if not text.isprintable() or len(text) > LONGEST:
            return f"an error that is not one printable line: {text!r}"[:300]
    return ""


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as cheap as can be


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
