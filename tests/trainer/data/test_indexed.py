"""An index that is believed makes a run read other tokens than were written: no byte may lie."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadDataError
from flmgrow.trainer.data.indexed import (
    CODES,
    Lengths,
    TokenIndex,
    index_bytes,
    index_size,
    read_index,
)

LENGTHS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)
DTYPES = st.sampled_from(list(CODES))


def written(path: Path, lengths: list[int], dtype: np.dtype[np.generic]) -> bytes:
    content = b"".join(index_bytes(len(lengths), dtype, lambda: [np.array(lengths, np.int32)]))
    path.write_bytes(content)
    return content


def same(found: TokenIndex, lengths: list[int], dtype: np.dtype[np.generic]) -> bool:
    return found.dtype == dtype and found.lengths.tolist() == lengths


def bytes_of(lengths: Lengths, dtype: np.dtype[np.generic]) -> int:
    return int(lengths.sum(dtype=np.int64)) * dtype.itemsize


@given(LENGTHS, DTYPES)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: np.dtype[np.generic]
) -> None:
    path = tmp_path_factory.mktemp("index") / "data.idx"
    assert len(written(path, lengths, dtype)) == index_size(len(lengths))
    assert same(read_index(path), lengths, dtype)


@given(LENGTHS, DTYPES, st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_found_or_says_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    dtype: np.dtype[np.generic],
    place: int,
    change: int,
) -> None:
    path = tmp_path_factory.mktemp("index") / "data.idx"
    content = bytearray(written(path, lengths, dtype))
    content[place % len(content)] ^= change
    path.write_bytes(content)
    try:
        found = read_index(path)
    except BadDataError:
        return
    if not same(found, lengths, dtype):  # the last length: the .bin has another size then
        other = bytes_of(found.lengths, found.dtype) != bytes_of(np.array(lengths), dtype)
        assert other or not any(lengths)


@given(LENGTHS, DTYPES, st.integers(1, 60))
def test_a_cut_index_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    dtype: np.dtype[np.generic],
    less: int,
) -> None:
    path = tmp_path_factory.mktemp("index") / "data.idx"
    content = written(path, lengths, dtype)
    path.write_bytes(content[: max(0, len(content) - less)])
    with pytest.raises(BadDataError):
        read_index(path)
    path.write_bytes(content + b"\0" * less)
    with pytest.raises(BadDataError):
        read_index(path)
