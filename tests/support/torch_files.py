"""Files that torch writes: copying them through flmgrow, and comparing what is loaded."""

import argparse
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmgrow.formats.torch_file.file import TorchFile, source_chunks
from flmgrow.formats.torch_file.file_writer import TorchFileWriter
from flmgrow.formats.torch_file.objects import walk_tensors
from flmgrow.formats.torch_file.values import Storage, TensorRecord

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def written(root: object, prefix: str = "archive") -> bytes:
    """The file of ``root``, with the bytes of each storage from where it came."""
    output = bytearray()
    writer = TorchFileWriter(root, output.extend, prefix)
    for storage in writer.storages:
        writer.write_storage(storage, source_chunks(storage))
    writer.finish()
    assert len(output) == writer.total_size
    return bytes(output)


def copied(path: Path) -> bytes:
    with TorchFile(path) as file:
        return written(file.root)


def loaded(data: bytes, **options: Any) -> Any:
    return torch.load(io.BytesIO(data), **options)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def same(one: Any, two: Any) -> bool:
    """Whether two saved objects are equal, tensors bit for bit and with their layout."""
    if isinstance(one, torch.Tensor):
        facts = ("dtype", "shape", "requires_grad")
        return (
            type(one) is type(two)
            and all(getattr(one, fact) == getattr(two, fact) for fact in facts)
            and one.stride() == two.stride()
            and raw(one) == raw(two)
            and vars(one) == vars(two)
        )
    if isinstance(one, np.ndarray):
        return type(one) is type(two) and one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, argparse.Namespace):
        return same(vars(one), vars(two))
    return bool(type(one) is type(two) and one == two)


def values_of(file: TorchFile, record: TensorRecord) -> list[bytes]:
    """The bytes of each element, in the order of the axes, read one by one."""
    places = [record.start]
    for size, stride in zip(record.shape, record.stride, strict=True):
        places = [place + index * stride for place in places for index in range(size)]
    size = record.itemsize
    return [file.read(record.storage, place * size, size) for place in places]


def records_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def storage_of(file: TorchFile, name: str) -> Storage:
    return dict(walk_tensors(file.root))[(name,)].storage
