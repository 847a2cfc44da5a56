"""Reading and planning safetensors files: a JSON header, then the bytes of every tensor.

The format is simple, and still its header can lie: about sizes, about where a tensor is, by naming
one twice. What the reference implementation accepts and another reader might take otherwise is
refused here, always with the file and the tensor named.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NoReturn

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import parse_object, refuse_pointer
from flmgrow.text import Found, Text

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_TENSORS = 1_000_000
MAX_BYTES = 1 << 50
MAX_DIMENSIONS = 64
LENGTH_BYTES = 8
ALIGNMENT = 8

DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
"""The dtypes weights can have, by torch's name."""

_NAMES = {name: kind for kind, name in DTYPES.items()}

_OTHER_SIZES: Mapping[str, int] = {
    "I64": 8, "U64": 8, "C64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
}  # fmt: skip
_PARTS_OF_BYTES = ("F4", "F6_E2M3", "F6_E3M2")
ITEMSIZES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, **_OTHER_SIZES}
"""Bytes per element of every dtype a file may name."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: its dtype as the file calls it, its shape, and where its bytes begin."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return prod(self.shape) * ITEMSIZES[self.kind]

    @property
    def dtype(self) -> str:
        """The dtype by torch's name, or by the file's where weights cannot have it."""
        return DTYPES.get(self.kind, self.kind)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES


class SafetensorsFile:
    """An opened file and its tensors by name, in the order in which their bytes lie.

    Raises:
        BadCheckpointError: Unless the tensors fill the file exactly, without hole or overlap.
    """

    def __init__(self, path: Path) -> None:
        self.file = ReadOnlyFile(path)
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.file.close()
            raise

    def _refuse(
        self, what: str, hint: str = "use another copy of the file", wanted: object = ""
    ) -> NoReturn:
        raise BadCheckpointError(what, hint, where=self.file.path, wanted=wanted)

    def _read_header(self) -> dict[str, StoredTensor]:
        size = self.file.size
        start = self.file.read(0, min(size, 64))
        refuse_pointer(start, str(self.file.path))
        if size < LENGTH_BYTES:
            self._refuse(f"truncated: has {size} bytes, too few for a safetensors file")
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > MAX_HEADER_BYTES:
            self._refuse(f"its header shall have {length} bytes, at most {MAX_HEADER_BYTES} can be")
        if LENGTH_BYTES + length > size:
            self._refuse(f"truncated: its header shall have {length} bytes, the file has {size}")
        header = self.file.read(LENGTH_BYTES, length)
        if not header.startswith(b"{"):
            self._refuse("its header does not begin with {")
        if header.count(b'"data_offsets"') > MAX_TENSORS:
            self._refuse(f"holds more than {MAX_TENSORS} tensors")
        entries = parse_object(header, f"{self.file.path}: header")
        self._check_metadata(entries.pop("__metadata__", None))
        if len(entries) > MAX_TENSORS:
            self._refuse(f"holds {len(entries)} tensors, at most {MAX_TENSORS} are supported")
        begin = LENGTH_BYTES + length
        found = [self._tensor(name, entry, begin) for name, entry in entries.items()]
        found.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
        self._check_cover(found, begin)
        return {tensor.name: tensor for tensor in found}

    def _check_metadata(self, metadata: object) -> None:
        strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
        if metadata is not None and not strings:
            self._refuse("__metadata__: wanted an object of strings")

    def _tensor(self, name: str, entry: object, begin: int) -> StoredTensor:
        if not name or "\0" in name:
            self._refuse(f"names a tensor {name!r}")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            self._refuse(f"{name}: wanted dtype, shape and data_offsets, no less and no more")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if kind in _PARTS_OF_BYTES:
            self._refuse(f"{name}: is {kind}, so quantized", "give the model it was made from")
        if not isinstance(kind, str) or kind not in ITEMSIZES:
            self._refuse(f"{name}: dtype {kind!r} is not known")
        if not isinstance(shape, list) or not all(map(_whole, shape)):
            self._refuse(Text(f"{name}: shape ", Found(f"{shape!r}")), wanted="whole numbers")
        if len(shape) > MAX_DIMENSIONS or prod(map(max, shape, [1] * len(shape))) > MAX_BYTES:
            self._refuse(f"{name}: shape {shape!r} is too large to be true")
        pair = isinstance(offsets, list) and len(offsets) == 2 and all(map(_whole, offsets))
        if not pair or offsets[0] > offsets[1]:
            self._refuse(
                Text(f"{name}: data_offsets ", Found(f"{offsets!r}")), wanted="begin and end"
            )
        tensor = StoredTensor(name, kind, tuple(shape), begin + offsets[0])
        if tensor.nbytes != offsets[1] - offsets[0]:
            self._refuse(
                f"{name}: {kind} of shape {shape} has {tensor.nbytes} bytes, "
                f"its data_offsets span {offsets[1] - offsets[0]}"
            )
        return tensor

    def _check_cover(self, tensors: Sequence[StoredTensor], begin: int) -> None:
        """All bytes behind the header belong to exactly one tensor."""
        position, before = begin, "the header"
        for tensor in tensors:
            if tensor.offset > position:
                self._refuse(
                    f"{tensor.name}: {tensor.offset - position} bytes before it are a hole"
                )
            if tensor.offset < position:
                self._refuse(f"{tensor.name}: overlaps {before}")
            position, before = position + tensor.nbytes, tensor.name
        if position > self.file.size:
            self._refuse(f"{before}: truncated: the file ends at {self.file.size}")
        if position < self.file.size:
            self._refuse(f"{self.file.size - position} trailing bytes belong to no tensor")

    def read_into(self, tensor: StoredTensor, offset: int, target: memoryview) -> None:
        """Fill ``target`` with bytes of a tensor from its byte ``offset`` on."""
        if offset + target.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes")
        self.file.read_into(tensor.offset + offset, target)

    def close(self) -> None:
        """Give the descriptor back."""
        self.file.close()


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its dtype by torch's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return prod(self.shape) * ITEMSIZES[_NAMES[self.dtype]]


@dataclass(frozen=True)
class SafetensorsPlan:
    """A file to be written, known in full before there is any value."""

    tensors: tuple[NewTensor, ...]
    metadata: tuple[tuple[str, str], ...] = ()

    @cached_property
    def header(self) -> bytes:
        """Everything that comes before the first tensor."""
        entries: dict[str, object] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        position = 0
        for tensor in self.tensors:
            entries[tensor.name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [position, position + tensor.nbytes],
            }
            position += tensor.nbytes
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text

    @property
    def total_size(self) -> int:
        """The size of the whole file in bytes."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)
