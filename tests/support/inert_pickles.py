"""Pickles read as data, programs for the unpickler, and a watch on what it makes Python do."""

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flmgrow.formats.torch_file.pickler import to_pickle
from flmgrow.formats.torch_file.unpickler import unpickle
from flmgrow.formats.torch_file.values import Global, Opaque

WATCHED = {"import", "exec", "compile", "open", "os.system", "os.exec", "subprocess.Popen"}
WATCHED |= {"pickle.find_class", "socket.connect", "os.putenv", "os.remove", "os.rename"}
_events: list[str] = []
_is_watching = False


def _hook(event: str, _: tuple[Any, ...]) -> None:
    if _is_watching and event in WATCHED:
        _events.append(event)


@contextmanager
def watching() -> Iterator[list[str]]:
    """What the interpreter did, of what reading data should never make it do."""
    global _is_watching
    if not getattr(sys, "_flmgrow_hook", False):
        sys.addaudithook(_hook)  # it cannot be taken off again
        sys._flmgrow_hook = True  # type: ignore[attr-defined]
    unpickle(pickle.dumps([b"x", "y"], 2), "warm up", {})  # lets codecs be imported
    _events.clear()
    _is_watching = True
    yield _events
    _is_watching = False


def read(data: bytes) -> Any:
    return unpickle(data, "some.pt: data.pkl", {})


def rewritten(value: object, protocol: int = 2) -> Any:
    """``value`` after it went through inert data and back."""
    return pickle.loads(to_pickle(read(pickle.dumps(value, protocol)))[0])


def storage_id(**changed: object) -> tuple[object, ...]:
    parts: dict[str, object] = {
        "word": "storage",
        "kind": Global("torch", "FloatStorage"),
        "key": "0",
        "location": "cpu",
        "count": 10,
    }
    return tuple({**parts, **changed}.values())


class RawStorage:
    """A persistent id with any content; the project's writer would not write such."""

    def __init__(self, identity: tuple[object, ...]) -> None:
        self.identity = identity


def encode(value: object) -> bytes:
    """Instructions that make ``value``; simpler than the project's writer, and unchecked."""
    match value:
        case RawStorage():
            return encode(value.identity) + pickle.BINPERSID
        case Global():
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case tuple():
            return pickle.MARK + b"".join(map(encode, value)) + pickle.TUPLE
        case Opaque():
            return encode(value.function) + encode(value.arguments) + pickle.REDUCE
        case _:
            return pickle.dumps(value, 2)[2:-1]


def program(value: object) -> bytes:
    return pickle.PROTO + b"\x02" + encode(value) + pickle.STOP
