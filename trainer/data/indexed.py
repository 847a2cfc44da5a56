"""Writing megatron-core's indexed datasets (``.bin`` and ``.idx``) without importing it.

megatron-core trains from two files, ``.bin`` and ``.idx``, and importing it takes seconds.

So that data can be prepared where there is neither torch nor megatron-core, the format is written
here: ``.bin`` holds all tokens, one document after the other; ``.idx`` says where each begins. The
bytes are those of megatron-core's ``IndexedDatasetBuilder``
(``tests/trainer/data/test_corpora.py``). All numbers are little-endian:

1. nine bytes of magic, the version 1 (uint64), the code of the tokens' type (uint8);
2. the number of sequences, and that of document bounds, one more (both uint64);
3. the tokens in each sequence (int32), the byte of ``.bin`` where it begins (int64);
4. the first sequence of each document, and the number of sequences at the end (int64).

A sequence is a document here, as it is to megatron-core's GPT data.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flmgrow.errors import BadDataError
from flmgrow.text import Found, Text

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES: dict[np.dtype[Any], int] = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
SMALL_VOCABULARY = 65500  # megatron-core's own limit for two bytes per token
BYTES_PER_DOCUMENT = 4 + 8 + 8

Lengths = npt.NDArray[np.int32]


def token_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.int32]:
    """Return the type that megatron-core stores tokens of such a vocabulary in."""
    return np.dtype(np.uint16) if vocab_size < SMALL_VOCABULARY else np.dtype(np.int32)


def index_size(documents: int) -> int:
    """Return the bytes of an ``.idx`` file of so many documents."""
    return HEADER.size + BYTES_PER_DOCUMENT * documents + 8


def index_bytes(
    documents: int, dtype: np.dtype[np.generic], lengths: Callable[[], Iterable[Lengths]]
) -> Iterator[bytes]:
    """Yield an ``.idx`` file in blocks; each call of ``lengths`` gives all lengths in order."""
    yield HEADER.pack(MAGIC, 1, CODES[np.dtype(dtype)], documents, documents + 1)
    for block in lengths():
        yield block.astype("<i4").tobytes()
    begin = 0
    for block in lengths():
        ends = begin + np.cumsum(block, dtype="<i8") * dtype.itemsize
        yield np.concatenate([[begin], ends[:-1]]).astype("<i8").tobytes() if len(block) else b""
        begin = int(ends[-1]) if len(block) else begin
    first = 0
    for block in lengths():
        yield np.arange(first, first + len(block), dtype="<i8").tobytes()
        first += len(block)
    yield np.array([documents], dtype="<i8").tobytes()


@dataclass(frozen=True)
class TokenIndex:
    """What an ``.idx`` file says: the tokens' type, and the tokens in each document."""

    dtype: np.dtype[np.generic]
    lengths: Lengths


def read_index(path: Path) -> TokenIndex:
    """Return what an ``.idx`` file says.

    Raises:
        BadDataError: For one of another kind or size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadDataError(
            f"{error.strerror}", "make it by flmgrow data prepare", where=path
        ) from None
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise BadDataError("not an index of megatron-core's", where=path)
    _, version, code, sequences, documents = HEADER.unpack_from(content)
    types = {number: dtype for dtype, number in CODES.items()}
    if version != 1 or code not in types:
        raise BadDataError(f"version {version} with tokens of type {code} is not read", where=path)
    wanted = HEADER.size + 12 * sequences + 8 * documents
    if len(content) != wanted:
        raise BadDataError(
            Text(Found(len(content)), " bytes"),
            where=path,
            wanted=f"{wanted} for {sequences} sequences",
        )
    lengths = np.frombuffer(content, "<i4", sequences, HEADER.size).astype(np.int32)
    begins = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
    ends = np.frombuffer(content, "<i8", documents, wanted - 8 * documents)
    ordered = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) * types[code].itemsize
    if (lengths < 0).any() or not np.array_equal(begins, ordered[:-1]):
        raise BadDataError("sequences do not lie one behind the other", where=path)
    if documents < 1 or ends[-1] != sequences or ends[0] < 0 or (np.diff(ends) < 0).any():
        raise BadDataError("documents do not end with the last sequence", where=path)
    return TokenIndex(types[code], lengths)
