"""Writing one ``.pt`` file: the bytes that ``torch.save`` would write, from front to back.

A shard can be larger than memory. :class:`TorchFileWriter` is the inverse of
:class:`flmgrow.formats.torch_file.file.TorchFile`, and holds one piece of one tensor at a time.
"""

import math
import struct
from collections.abc import Callable, Iterable

from flmgrow.formats.torch_file.pickler import to_pickle
from flmgrow.formats.torch_file.trusted_names import refuse_programs
from flmgrow.formats.torch_file.values import (
    STORAGE_DTYPES,
    UNTYPED,
    UNTYPED_DTYPES,
    Storage,
    TensorRecord,
)
from flmgrow.formats.torch_file.zip_writer import ZipWriter
from flmgrow.storage.crc import Bytes, crc32

STORAGE_ALIGNMENT = 64
_VERSION = b"3\n"
_SERIALIZATION_ID_BYTES = 40
_KINDS = {dtype: kind for kind, dtype in STORAGE_DTYPES.items() if not dtype.startswith("q")}


def new_tensor(dtype: str, shape: tuple[int, ...]) -> TensorRecord:
    """Return a contiguous tensor over a storage of its own, to be written to a new file.

    Raises:
        ValueError: If torch has no such dtype.
    """
    count = math.prod(shape)
    if dtype in UNTYPED_DTYPES:
        storage = Storage(UNTYPED, count * UNTYPED_DTYPES[dtype])
    elif dtype in _KINDS:
        storage = Storage(_KINDS[dtype], count)
    else:
        raise ValueError(f"{dtype!r} is not a dtype of torch")
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return TensorRecord(storage, dtype, shape, tuple(reversed(stride)))


def new_scalar(value: float) -> TensorRecord:
    """Return a float32 tensor of no dimensions that holds ``value``, to be written to a file."""
    return TensorRecord(
        Storage("FloatStorage", 1, data=struct.pack("<f", value)), "float32", (), ()
    )


class TorchFileWriter:
    """A file as ``torch.save`` writes it, given out from front to back through ``write``.

    ``root`` is made of inert values. ``storages`` are its storages in the order in which their
    bytes must be given; ``total_size`` is the size of the whole file in bytes. The file is complete
    when :meth:`finish` returns. ``write`` must take all it is given (an unbuffered file may not).

    It is the last gate against programs: what gets here was looked at when it was read.

    Raises:
        BadCheckpointError: If ``root`` names something that whoever loads the file might run.
    """

    storages: list[Storage]
    total_size: int

    def __init__(
        self, root: object, write: Callable[[Bytes], object], prefix: str = "archive"
    ) -> None:
        refuse_programs(root, "the output")
        data, self.storages = to_pickle(root)
        leading = {
            "data.pkl": data,
            ".format_version": b"1",
            ".storage_alignment": str(STORAGE_ALIGNMENT).encode(),
            "byteorder": b"little",
        }
        sizes = {f"{prefix}/{name}": len(content) for name, content in leading.items()}
        for number, storage in enumerate(self.storages):
            sizes[f"{prefix}/data/{number}"] = storage.nbytes
        sizes[f"{prefix}/version"] = len(_VERSION)
        sizes[f"{prefix}/.data/serialization_id"] = _SERIALIZATION_ID_BYTES
        self._names = list(sizes)[:-1]
        self._zip = ZipWriter(sizes, write, STORAGE_ALIGNMENT)
        self.total_size = self._zip.total_size
        self._written = 0
        for content in leading.values():
            self._zip.write_record([content])

    def write_storage(self, storage: Storage, chunks: Iterable[Bytes]) -> None:
        """Write the next storage, whose bytes ``chunks`` together are.

        Raises:
            ValueError: If it is not the turn of ``storage``, or if the chunks are more or fewer
                bytes.
        """
        if self._written == len(self.storages) or storage is not self.storages[self._written]:
            raise ValueError(f"storage {self._written} of {len(self.storages)} comes next")
        self._zip.write_record(chunks)
        self._written += 1

    def finish(self) -> None:
        """Write what follows the storages, all of which must have been written (ValueError)."""
        if self._written != len(self.storages):
            raise ValueError(f"storage {self._written} of {len(self.storages)} is not written")
        self._zip.write_record([_VERSION])
        self._zip.write_record([_serialization_id(self._names, self._zip.crcs)])
        self._zip.finish()


def _serialization_id(names: Iterable[str], crcs: Iterable[int]) -> bytes:
    """Return 40 digits that tell this file from others by its records' names and their CRC32.

    torch makes them with a hash of its C++ library, which nothing else can repeat; it is the only
    thing in which a file written here differs from torch's. It is an id, and is never checked.
    """
    joined_names = "\0".join(names).encode()
    joined_crcs = b"".join(crc.to_bytes(4, "little") for crc in crcs)
    return f"{crc32(joined_names):020d}{crc32(joined_crcs):020d}".encode()
