"""Inert values: what the objects in a checkpoint's pickle are read as.

A checkpoint holds objects of classes that must not be imported to look at their data. A ``.pt``
file is a pickle: it names classes and functions of Megatron, numpy or anybody, and asks the reader
to call them. Here nothing is called. What the pickle asks for is kept as plain data, in the values
of this module, so that a checkpoint can be inspected on a machine without Megatron, and written
back with everything that was not understood still in its place.

Dicts, lists, strings, numbers and the like are themselves. A dense tensor is a
:class:`TensorRecord` over a :class:`Storage`, which knows where in which file its bytes lie.
Everything else is :class:`Opaque`.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text, Wanted

MAX_DIMENSIONS = 64
MAX_BYTES = 1 << 50
"""No count, size or stride of a tensor may exceed this: a petabyte is a mistake or an attack."""

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
}
"""The kinds of storage that torch names, with the dtype of their elements."""

UNTYPED = "UntypedStorage"
"""The kind of storage of the dtypes that came after torch stopped naming kinds; counts bytes."""

UNTYPED_DTYPES = {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}
"""Bytes per element of the dtypes whose tensors lie in untyped storages."""

ITEMSIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    **UNTYPED_DTYPES,
}
"""Bytes per element of every dtype a file can hold."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, never imported.

    A line break in it, written to a new file, would begin an instruction of its own.

    Raises:
        BadCheckpointError: If it is not a dotted name.
    """

    module: str
    name: str

    def __post_init__(self) -> None:
        for part in (*self.module.split("."), *self.name.split(".")):
            if not part.isidentifier():
                raise BadCheckpointError(
                    f"names {self.module[:60]!r} {self.name[:60]!r}, which no class is called",
                    "the file is damaged or hostile: use another copy",
                )

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Opaque:
    """An object the pickle asks to be made: what it would call, and with what.

    ``how`` is 'reduce' (call ``function``) or 'newobj' (call its ``__new__``). ``state`` is what
    the object would be told to become, ``items`` what would be appended to it and ``pairs`` what
    would be set in it. The object is equal only to itself, as an object of an unknown class is.
    """

    how: str
    function: Global
    arguments: tuple[object, ...]
    state: object = None
    items: list[object] = field(default_factory=list)
    pairs: list[tuple[object, object]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.function} as data>"


class OrderedMap(dict[object, object]):
    """An OrderedDict. ``state`` holds its attributes, such as the _metadata of a state dict."""

    state: object = None


class SizeTuple(tuple[int, ...]):
    """A torch.Size."""

    __slots__ = ()


class StoredBytes(NamedTuple):
    """Where the bytes of one storage lie: ``nbytes`` bytes at ``offset`` of ``file``.

    ``name`` is the record's; ``crc`` its CRC32, or None in a file that was written without sums.
    """

    file: ReadOnlyFile
    name: str
    offset: int
    nbytes: int
    crc: int | None


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A run of ``count`` elements in memory or in a file; several tensors may share it.

    ``kind`` is torch's name, ``location`` the device it was on. ``file``, ``name``, ``offset`` and
    ``crc`` are as in :class:`StoredBytes`; ``file`` is None for one that is to be written, and
    ``data`` its bytes where they are few and known.
    """

    kind: str
    count: int
    location: str = "cpu"
    file: ReadOnlyFile | None = None
    name: str = ""
    offset: int = 0
    crc: int | None = None
    data: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * storage_itemsize(self.kind)


def storage_itemsize(kind: str) -> int:
    """Return the bytes per element of a kind of storage (KeyError when torch has no such kind)."""
    return 1 if kind == UNTYPED else ITEMSIZES[STORAGE_DTYPES[kind]]


@dataclass(frozen=True, eq=False, slots=True)
class TensorRecord:
    """A dense tensor: a view of its storage, as torch describes it.

    ``stride`` and ``start`` count elements. ``attributes`` are what was set on the tensor object
    (Megatron marks its fp32 master weights so), None when nothing was.

    Raises:
        BadCheckpointError: If sizes are not plausible, or if the tensor reaches outside its
            storage.
    """

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int = 0
    requires_grad: bool = False
    is_parameter: bool = False
    attributes: object = None

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS:
            raise bad_tensor(
                Text(
                    Found(f"{len(self.shape)} sizes and {len(self.stride)} strides"),
                    Wanted(f"as many of each and at most {MAX_DIMENSIONS}"),
                )
            )
        for number in (self.start, *self.shape, *self.stride):
            if type(number) is not int or not 0 <= number <= MAX_BYTES:
                raise bad_tensor("a size, stride or start that is not a plausible number")
        count = self.count
        if count > MAX_BYTES:
            raise bad_tensor(f"a shape of more than {MAX_BYTES} elements")
        if count and self._end * self.itemsize > self.storage.nbytes:
            raise bad_tensor(
                f"{self.dtype} {list(self.shape)} with stride {list(self.stride)} from element "
                f"{self.start} reaches outside its storage {self.storage.name} of "
                f"{self.storage.nbytes} bytes"
            )

    @property
    def _end(self) -> int:
        """The first element of the storage after the last one of a tensor that is not empty."""
        end = self.start + 1
        for size, stride in zip(self.shape, self.stride, strict=True):
            end += (size - 1) * stride
        return end

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return ITEMSIZES[self.dtype]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements; more than the storage has if elements are repeated (expanded)."""
        return self.count * self.itemsize

    @property
    def offset(self) -> int:
        """Where the first element lies: bytes from the start of the storage."""
        return self.start * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other in the order of the axes."""
        if not self.count:
            return True
        wanted = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != wanted:
                return False
            wanted *= size
        return True


def bad_tensor(found: str) -> BadCheckpointError:
    """Return the error of a tensor that cannot be."""
    return BadCheckpointError(
        f"broken tensor: {found}", "the file is damaged or hostile: use another copy"
    )
