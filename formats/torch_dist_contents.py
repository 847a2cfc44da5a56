"""The files of a distributed checkpoint: shards of items, and ``common.pt`` with all that is not
sharded.

Megatron-core 0.16 to 0.18 write ``common.pt``; 0.19 keeps the common part in a shard, and is
refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import xxhash

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp_items import DcpItems
from flmgrow.formats.dcp_metadata import DcpChunk, DcpMetadata, read_metadata
from flmgrow.formats.inert_values import OrderedMap
from flmgrow.formats.layout import Placement
from flmgrow.formats.torch_zip import TorchFile
from flmgrow.formats.trusted_names import refuse_programs

COMMON = "common.pt"
LAYERS = "decoder.layers."
_EXTRA = re.compile(r"(.+_extra_state)/shard_(\d+)_\d+")


@dataclass(frozen=True, eq=False)
class ItemPiece:
    """A piece that is one chunk of a distributed tensor; its item is opened when it is read."""

    placement: Placement
    dtype: str
    name: str
    chunk: DcpChunk
    items: DcpItems

    def __str__(self) -> str:
        return f"{self.items.folder / self.chunk.file}: {self.name}: chunk {self.chunk.offsets}"

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the chunk's bytes from byte ``offset`` on."""
        file, record = self.items.open_item(self.name, self.dtype, self.chunk)
        if not record.is_contiguous:
            raise BadCheckpointError(f"{self}: is not contiguous, stride {record.stride}")
        try:
            file.read_into(record.storage, record.offset + offset, target)
        except BadCheckpointError as error:
            what = f"{error.message} (it holds {self.name})"
            raise BadCheckpointError(what, error.hint) from None

    def checksum(self) -> int | None:
        """Chunks tile their array, so there is nothing to compare one with."""
        return None


class DistFolder:
    """The files of a distributed checkpoint, and what they hold beside chunks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / COMMON).is_file():
            raise BadCheckpointError(
                f"{folder}: has no {COMMON}",
                "megatron-core 0.19 writes none; save with 0.16 to 0.18, or as --ckpt-format torch",
            )
        self.metadata: DcpMetadata = read_metadata(folder)
        self.items = DcpItems(folder)
        self.common = TorchFile(folder / COMMON)
        refuse_programs(self.common.root, str(folder / COMMON))
        self.models: Mapping[tuple[int, int], Mapping[str, Mapping[str, str]]] = {}
        """Per rank and model chunk: its keys in module order, each with its key in the whole
        model.
        """
        self._digest = ""
        self._states = self._look()

    def _look(self) -> dict[str, tuple[int, int, int]]:
        """Size, time of change and number of every file."""
        paths = [self.folder / name for name in (".metadata", COMMON, *self.shards)]
        found = {path.name: path.stat() for path in paths}
        return {name: (s.st_size, s.st_mtime_ns, s.st_ino) for name, s in found.items()}

    @property
    def shards(self) -> list[str]:
        """The names of the shards."""
        chunks = {c.file for t in self.metadata.tensors.values() for c in t.chunks}
        return sorted(chunks | {item.file for item in self.metadata.objects.values()})

    @property
    def root(self) -> Mapping[object, object]:
        """Return what ``common.pt`` holds."""
        if not isinstance(self.common.root, dict):
            raise BadCheckpointError(f"{self.folder / COMMON}: wanted a dict")
        return self.common.root

    @property
    def nbytes(self) -> int:
        """The size of all shards."""
        return sum(self._states[name][0] for name in self.shards)

    @property
    def count(self) -> int:
        """The number of shards."""
        return len(self.shards)

    @cached_property
    def extra_states(self) -> dict[str, object]:
        """The layers' ``_extra_state`` by key, with the layer's number in it."""
        found: dict[str, object] = {}
        for name, item in self.metadata.objects.items():
            if match := _EXTRA.fullmatch(name):
                key = match[1]
                if key.startswith(LAYERS):
                    key = f"{LAYERS}{int(match[2])}.{key.removeprefix(LAYERS)}"
                data = self.items.open_object(item).root
                found[key] = data[0] if isinstance(data, list) and len(data) == 1 else data
        return found

    def content(self, rank: tuple[int, int]) -> Mapping[object, object]:
        """Return what a rank would save: the common part, and a state dict per model chunk."""
        content = {key: value for key, value in self.root.items() if key != "content_metadata"}
        for chunk, keys in self.models[rank].items():
            states = {key: self.extra_states.get(origin) for key, origin in keys.items()}
            content[chunk] = OrderedMap(states)
        return content

    def digest(self) -> str:
        """Return a digest of all bytes of all files."""
        if not self._digest:
            digest = xxhash.xxh3_128()
            for name in (".metadata", COMMON, *self.shards):
                with (self.folder / name).open("rb") as file:
                    while data := file.read(1 << 20):
                        digest.update(data)
            self._digest = digest.hexdigest()
        return self._digest

    def verify(self, progress: Callable[[int], object]) -> str:
        """Check the CRC32 of every record of every item."""
        self.common.verify(progress)
        for name, tensor in self.metadata.tensors.items():
            for chunk in tensor.chunks:
                self.items.open_item(name, tensor.dtype, chunk)[0].verify(progress)
        for item in self.metadata.objects.values():
            self.items.open_object(item).verify(progress)
        return "CRC32"

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError if a file was changed since it was opened."""
        for name, state in self._look().items():
            if state != self._states[name]:
                raise BadCheckpointError(
                    f"{self.folder / name}: was changed while it was read",
                    "wait until whatever writes it is done",
                )

    def close(self) -> None:
        """Close all files."""
        self.common.close()
        self.items.close()


def param_groups(optimizer: object, where: str) -> tuple[Mapping[object, object], ...]:
    """Return an optimizer's param groups without their parameters.

    Raises BadCheckpointError, naming ``where``, if there are none.
    """
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(g, dict) for g in groups):
        raise BadCheckpointError(
            f"{where}: optimizer: has no param_groups",
            "the optimizer and the weights do not belong together",
        )
    return tuple({k: v for k, v in group.items() if k != "params"} for group in groups)
