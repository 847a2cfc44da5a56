"""What a distributed checkpoint holds once: arguments, the iteration, an optimizer's settings.

That common part is a file of its own, ``common.pt``, as megatron-core 0.16 to 0.18 write it, or an
object in a shard, as 0.19 does. Both are read, but not out of one folder: megatron-core would take
the file, and a later save into the same folder has left it behind.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpMetadata, read_metadata
from flmgrow.formats.megatron.arguments.run_rows import FORMAT
from flmgrow.formats.megatron.unsupported import BACKENDS, Unsupported, plain_dcp
from flmgrow.formats.torch_file.bounds import describe
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.objects import namespace
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import read_object
from flmgrow.text import Found, Text

COMMON = "common.pt"
COMMON_STATE = "common_state/shard_0_1"
"""The object that takes its place in 0.19: a list with the same dict in it."""

TORCH_DIST = "torch_dist"
BACKEND_FILE = "metadata.json"
_MAX_BACKEND_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class CommonPart:
    """What is not sharded: ``root``, found at ``where``; ``beside`` is its file if it is in no
    shard.
    """

    root: Mapping[object, object]
    where: str
    beside: TorchFile | None = None


def listed(folder: Path) -> DcpMetadata:
    """Return what the distributed checkpoint in ``folder`` says that it holds.

    Raises:
        BadCheckpointError: For a format that is not read, and anything contradictory.
    """
    _check_backend(folder / BACKEND_FILE)
    return read_metadata(folder)


def read_common(folder: Path, metadata: DcpMetadata, items: DcpItems) -> CommonPart:
    """Return the common part of a ``torch_dist`` folder.

    Raises:
        BadCheckpointError: If there is none, or two; if the folder is of another format.
    """
    in_shard = metadata.objects.get(COMMON_STATE)
    beside = os.path.lexists(folder / COMMON)
    if in_shard and beside:
        raise BadCheckpointError(
            Text("has ", Found(f"a {COMMON} and {COMMON_STATE} in a shard")),
            f"two saves are mixed; if {COMMON} is the older one, remove it",
            where=folder,
            wanted="one of them",
        )
    if in_shard:
        where = f"{folder / in_shard.file}: {COMMON_STATE}"
        root = items.open_object(in_shard).root
        if isinstance(root, list) and len(root) == 1:
            (root,) = root
        return CommonPart(_dict(root, where), where)
    if not beside:
        if other := _plain_dcp(metadata, items):
            raise other.refusal(str(folder))
        raise BadCheckpointError(
            f"has no {COMMON}, and no {COMMON_STATE} in its shards",
            "the checkpoint is not complete: copy the file to it",
            where=folder,
        )
    file = TorchFile(folder / COMMON)
    try:
        return CommonPart(_dict(file.root, str(folder / COMMON)), str(folder / COMMON), file)
    except BaseException:
        file.close()
        raise


def _dict(root: object, where: str) -> Mapping[object, object]:
    if not isinstance(root, dict):
        raise BadCheckpointError(
            Text("found ", Found(describe(root))), where=where, wanted="a dict"
        )
    return root


def _plain_dcp(metadata: DcpMetadata, items: DcpItems) -> Unsupported | None:
    """Return what this is without megatron-core's own file and its common part, if known."""
    said = None
    with suppress(BadCheckpointError):
        args = metadata.objects.get("args")
        said = FORMAT.get(namespace(items.open_object(args).root)) if args else None
    return plain_dcp([*metadata.tensors, *metadata.objects], said)


def _check_backend(path: Path) -> None:
    """Raise BadCheckpointError if megatron-core's file says that a folder is of another format."""
    if not os.path.lexists(path):
        return
    with ReadOnlyFile(path) as file:
        backend = read_object(file, _MAX_BACKEND_BYTES).get("sharded_backend", TORCH_DIST)
    if backend in BACKENDS:
        raise BACKENDS[str(backend)].refusal(f"{path}: sharded_backend {backend}")
    if backend != TORCH_DIST:
        raise BadCheckpointError(
            Text("sharded_backend: found ", Found(describe(backend))),
            "load it with the Megatron-LM that wrote it and --ckpt-convert-format torch "
            "--ckpt-convert-save DIR",
            where=path,
            wanted=TORCH_DIST,
        )
