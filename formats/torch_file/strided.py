"""Reading a tensor whose elements do not lie one after the other in its file.

A column cut that was saved without a copy (as tools do that split a weight over tensor ranks) is a
view: its storage is the whole matrix, and its stride says which elements are its own. A transposed
weight is another. Readers ask for bytes of a tensor in the order of its axes; here they are
gathered by its stride, in spans of bounded size.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.values import TensorRecord

_Elements = NDArray[np.void]

_SMALL = 64 << 10
"""Bytes of a span that is read whole, however few of them are wanted."""

_LARGE = 16 << 20
"""Bytes of a span that is too large to be read whole, however many of them are wanted."""

_DENSE = 4
"""A span of medium size is read whole if it is at most this many times what is wanted of it."""


def read_tensor(file: TorchFile, record: TensorRecord, offset: int, target: memoryview) -> None:
    """Fill ``target`` with bytes of ``record`` from byte ``offset`` on, in the order of its axes.

    Both ends must be at whole elements unless the tensor is contiguous.

    Raises:
        BadCheckpointError: If the file cannot be read.
    """
    if record.is_contiguous:
        file.read_into(record.storage, record.offset + offset, target)
        return
    size = record.itemsize
    assert offset % size == target.nbytes % size == 0, "a strided tensor is read by elements"
    elements = np.frombuffer(target, dtype=f"V{size}")
    at = 0
    for start, shape in _boxes(record.shape, offset // size, elements.size):
        begin = record.start + _place(start, record.stride)
        strides = record.stride[len(record.stride) - len(shape) :]
        count = prod(shape)
        _gather(file, record, begin, strides, elements[at : at + count].reshape(shape))
        at += count


def _boxes(
    shape: tuple[int, ...], first: int, count: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut ``count`` elements from the ``first`` on, in the order of the axes, into boxes.

    Yields where each begins, and its extent along the last axes; along the others it is one.
    """
    if len(shape) == 1:
        yield (first,), (count,)
        return
    inner = prod(shape[1:])
    while count:
        row, within = divmod(first, inner)
        if within == 0 and count >= inner:
            rows = count // inner
            yield (row, *(0,) * (len(shape) - 1)), (rows, *shape[1:])
            taken = rows * inner
        else:
            taken = min(count, inner - within)
            for start, extent in _boxes(shape[1:], within, taken):
                yield (row, *start), extent
        first, count = first + taken, count - taken


def _place(index: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return sum(i * step for i, step in zip(index, stride, strict=True))


def _gather(
    file: TorchFile,
    record: TensorRecord,
    begin: int,
    strides: tuple[int, ...],
    out: _Elements,
) -> None:
    """Fill ``out`` with the elements that lie ``strides`` apart from element ``begin`` on.

    What is too thin to be read whole is halved along the axis that reaches farthest.
    """
    size = record.itemsize
    reaches = [(n - 1) * step for n, step in zip(out.shape, strides, strict=True)]
    span = 1 + sum(reaches)
    if span * size <= _SMALL or span * size <= min(_LARGE, _DENSE * out.nbytes):
        values = np.empty(span, out.dtype)
        file.read_into(record.storage, begin * size, values.view(np.uint8).data)
        out[...] = as_strided(values, out.shape, tuple(step * size for step in strides))
        return
    axis = reaches.index(max(reaches))
    half = out.shape[axis] // 2
    low, high = np.split(out, [half], axis)
    _gather(file, record, begin, strides, low)
    _gather(file, record, begin + half * strides[axis], strides, high)
