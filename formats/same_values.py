"""Telling whether two values that were read are equal, tensors included.

Whether two values that were read are the same, tensors included, is asked of texts of them. Values
out of files are inert: they cannot be compared as what they stand for, and a tensor in one is a
record of where its bytes lie. A text says all of it, as short as a digest.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.torch_file.file import source_chunks
from flmgrow.formats.torch_file.values import Opaque, TensorRecord

_NUMBERS: Mapping[str, np.dtype[Any]] = {
    **DTYPES,
    **{name: np.dtype(name) for name in ("int64", "int32", "bool")},
}
_SMALL = 4096
_LONGEST = 200


def _stored(record: TensorRecord) -> str:
    """Return a stored tensor as text: the number that it is, or a digest of several."""
    dtype = _NUMBERS.get(record.dtype)
    if dtype is not None and record.count == 1 and record.storage.nbytes <= _SMALL:
        data = b"".join(bytes(chunk) for chunk in source_chunks(record.storage))
        return repr(np.frombuffer(data, dtype, 1, record.offset)[0].item())
    digest = xxhash.xxh3_128()
    for chunk in source_chunks(record.storage):
        digest.update(chunk)
    place = (record.dtype, record.shape, record.stride, record.start)
    return f"{place} {digest.hexdigest()}"


def _members(value: object) -> Iterator[object]:
    """Yield what a value is made of; nothing if it has no parts."""
    if isinstance(value, Mapping):
        for pair in value.items():
            yield from pair
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Opaque):
        yield from (str(value.function), value.arguments, value.state, value.items, value.pairs)


def text_of(value: object, known: dict[int, str]) -> str:
    """Return a text that two values share if and only if they are the same.

    ``known`` are the texts of values that were met before, by their id.
    """
    if isinstance(value, TensorRecord):
        return _stored(value)
    if not isinstance(value, Mapping | list | tuple | Opaque):
        return repr(value)
    if id(value) not in known:
        known[id(value)] = "..."  # where it holds itself
        text = f"[{', '.join(text_of(member, known) for member in _members(value))}]"
        short = len(text) <= _LONGEST
        known[id(value)] = text if short else xxhash.xxh3_128_hexdigest(text.encode())
    return known[id(value)]
