"""Unpickling a DCP folder's ``.metadata`` without calling or importing anything.

A DCP ``.metadata`` is one large pickle, and torch itself runs whatever such a pickle names.

It can hold hundreds of thousands of small records, for which
:mod:`flmgrow.formats.torch_file.unpickler` is too slow; so Python's own unpickler, which is written
in C, builds them here. Two things make that safe, and bounded by the size of the file:

* Names are not imported: each must be one of the few of :mod:`flmgrow.formats.dcp.records`, and
  gets a class of that module, which only keeps what it is given. Any other name ends the reading.
* The instructions are checked before the first is carried out: only those that torch's metadata
  has, no reference beyond what the file can hold, no length beyond its end. And dicts become lists
  (of key, value, key, value, ...), so that nothing out of the file is ever hashed or compared: to
  hash tuples nested a million deep would end the process.

What can exist while the pickle is read is thus None, booleans, numbers, strings, tuples, lists and
those classes, and nothing that could be called does more than make one of them.
"""

import io
import pickle
import re
from collections.abc import Iterator
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.records import KNOWN, Metadata
from flmgrow.formats.torch_file.bounds import describe, refuse
from flmgrow.garbage import no_garbage_collection
from flmgrow.text import Found, Text

READ_AHEAD = 1 << 17

BYTES_PER_CONTAINER = 4
"""A file may make at most one list, dict or tuple in so many bytes; torch's make one in 12."""


class _InertUnpickler(pickle.Unpickler):
    """The C unpickler, without its way to import, on instructions that were checked."""

    def find_class(self, module: str, name: str) -> object:
        found = KNOWN.get((module, name))
        if found is None:
            _refuse_name(module[:80], name[:80])
        return found


_OF_ANOTHER_VERSION = re.compile(
    r"(torch\.distributed|megatron|nvidia_resiliency_ext)(\.\w+)+\.[A-Z]\w*"
)
"""Classes of those that write such files: most likely just newer, or older, than is known here."""


def _refuse_name(module: str, name: str) -> NoReturn:
    """Refuse a name that no known metadata has: it is of another version, or an attack."""
    if not _OF_ANOTHER_VERSION.fullmatch(f"{module}.{name}"):
        refuse(f"names {module}.{name}, which no DCP metadata has; nothing was run")
    raise BadCheckpointError(
        f"names {module}.{name}, which is not known; nothing was run",
        "a version of torch or megatron-core wrote it that flmgrow does not know: load it with "
        "that version and --ckpt-convert-format torch --ckpt-convert-save DIR; report the name",
    )


# --- the check of the instructions

_CONTAINERS = (
    pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3
)  # fmt: skip
_EMPTY_DICT, _EMPTY_LIST, _SETITEM, _SETITEMS, _APPENDS, _FRAME, _GLOBAL, _STOP = (
    pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.SETITEM + pickle.SETITEMS + pickle.APPENDS
    + pickle.FRAME + pickle.GLOBAL + pickle.STOP
)  # fmt: skip
_SHORT_BINUNICODE, _BINUNICODE = pickle.SHORT_BINUNICODE + pickle.BINUNICODE
_SINGLE_BYTES = (
    pickle.MARK + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.EMPTY_TUPLE
    + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3 + pickle.EMPTY_LIST
    + pickle.APPEND + pickle.APPENDS + pickle.REDUCE + pickle.NEWOBJ + pickle.BUILD
    + pickle.MEMOIZE + pickle.STACK_GLOBAL
)  # fmt: skip
_INTEGERS = b"|".join(rb"\x8a\x%02x.{%d}" % (count, count) for count in range(1, 10))


def _plain_instructions(size: int) -> re.Pattern[bytes]:
    """Return what matches any number of the instructions that are harmless wherever they are."""
    # A value that is referred to later is kept at an index of an array, which one hostile number
    # could make enormous. But whoever counts up needs six bytes or more for each.
    high = min(size // 6 >> 16, 0xFF)
    return re.compile(
        b"(?:[%b]|[hKq].|M..|[jJ]....|r..[\\x00-\\x%02x]\\x00|%b)*+"
        % (re.escape(_SINGLE_BYTES), high, _INTEGERS),
        re.DOTALL,
    )


def _checked(data: bytearray) -> bytearray:
    """Refuse what torch does not write; return the rest with lists for dicts.

    EMPTY_DICT becomes EMPTY_LIST, and SETITEMS becomes APPENDS. SETITEM (one pair) becomes TUPLE2
    and APPEND, which is a byte longer.
    """
    size = len(data)
    if size < 3 or data[:1] != pickle.PROTO or not 2 <= data[1] <= 5:
        refuse(Text("found ", Found("no pickle of protocol 2 to 5")), wanted="DCP metadata")
    containers = sum(map(data.count, _CONTAINERS))
    if containers > size // BYTES_PER_CONTAINER + 4096:
        refuse(
            Text("found ", Found(containers), f" containers in {size} bytes"),
            wanted="no more than torch writes",
        )
    match_plain = _plain_instructions(size).match
    single_pairs: list[int] = []
    position = 2
    while True:
        plain = match_plain(data, position)
        assert plain is not None  # it matches no instruction, too
        position = plain.end()
        code = data[position] if position < size else None
        if code == _EMPTY_DICT:
            data[position] = _EMPTY_LIST
            position += 1
        elif code == _SETITEMS:
            data[position] = _APPENDS
            position += 1
        elif code == _SHORT_BINUNICODE:
            position += 2 + int.from_bytes(data[position + 1 : position + 2], "little")
        elif code == _BINUNICODE:
            position += 5 + int.from_bytes(data[position + 1 : position + 5], "little")
        elif code == _SETITEM:
            single_pairs.append(position)
            position += 1
        elif code == _GLOBAL:
            position = _after_line(data, _after_line(data, position))
        elif code == _FRAME:
            position += 9
            if int.from_bytes(data[position - 8 : position], "little") > size - position:
                refuse(f"truncated: a frame that begins at byte {position} has no end")
        elif code == _STOP and position + 1 == size:
            break
        else:
            found = f"no end at byte {size}" if code is None else f"{code:#x} at byte {position}"
            refuse(
                Text("broken or truncated pickle: found ", Found(found)),
                wanted="an instruction of torch's",
            )
    if not single_pairs:
        return data
    return bytearray(pickle.TUPLE2 + pickle.APPEND).join(_cut(data, single_pairs))


def _cut(data: bytearray, positions: list[int]) -> Iterator[bytearray]:
    """Yield what is between the bytes at these positions."""
    start = 0
    for position in positions:
        yield data[start:position]
        start = position + 1
    yield data[start:]


def _after_line(data: bytearray, start: int) -> int:
    end = data.find(b"\n", start, start + 256)
    if end < 0:
        refuse("broken pickle: found a name without end")
    return end + 1


# --- reading it


def load(data: bytearray) -> Metadata:
    """Return the metadata that the pickle ``data`` holds; ``data`` is used up.

    Nothing in it is run.

    Raises:
        BadCheckpointError: If it is damaged, names something no metadata has, or is no metadata;
            the message lacks the name of the file.
    """
    checked = _checked(data)
    with no_garbage_collection():
        try:
            # Without something to peek into, the unpickler asks for one byte at a time.
            source = io.BufferedReader(io.BytesIO(checked), READ_AHEAD)
            root = _InertUnpickler(source).load()
        except _MISUSE as error:
            refuse(Text("broken pickle: found ", Found(error)), wanted="what torch writes")
    if type(root) is not Metadata:
        refuse(
            Text("found ", Found(describe(root))),
            wanted="DCP metadata (Metadata, or MCoreMetadata)",
        )
    return root


_MISUSE = (
    pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, LookupError
)  # fmt: skip
"""What the unpickler raises when an instruction meets a value it is not meant for."""
