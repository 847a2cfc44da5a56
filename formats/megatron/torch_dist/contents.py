"""The files of a distributed checkpoint: shards of items, and somewhere all that is not sharded."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

import xxhash

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import FileSums, check_all
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpChunk, DcpMetadata, DcpObject
from flmgrow.formats.megatron.arguments.given import with_arguments
from flmgrow.formats.megatron.torch_dist.common import (
    COMMON,
    TORCH_DIST,
    CommonPart,
    read_common,
)
from flmgrow.formats.megatron.torch_dist.integrity import check_sum, read_integrity
from flmgrow.formats.megatron.torch_dist.objects import extra_state_key
from flmgrow.formats.torch_file.file import TorchFile, check_records
from flmgrow.formats.torch_file.foreign_objects import check_content
from flmgrow.formats.torch_file.hidden_pickles import refuse_hidden_programs
from flmgrow.formats.torch_file.trusted_names import refuse_programs
from flmgrow.formats.torch_file.values import OrderedMap
from flmgrow.storage.file_states import known_state, state_of
from flmgrow.text import Found, Text

Progress = Callable[[int], object]

_Item = tuple[str, Callable[[], TorchFile]]
"""What an item holds, and what opens it."""


class DistFolder:
    """The files of a distributed checkpoint, and what they hold beside chunks.

    ``stored`` lists the items under the names that they have in the files, ``metadata`` those that
    are not in the ``common`` part, under the names of ``torch_dist``; None where that is the same.
    ``main_weights``: where the args say a dtype of 16 bits, float32 weights are the optimizer's
    main ones. ``fused`` says whether names in the files fuse norms, None where the args say it.
    """

    def __init__(
        self,
        folder: Path,
        stored: DcpMetadata,
        items: DcpItems,
        common: CommonPart,
        metadata: DcpMetadata | None = None,
        *,
        file_format: str = TORCH_DIST,
        main_weights: bool = False,
        fused: bool | None = None,
    ) -> None:
        self.folder = folder
        self.stored = stored
        self.metadata = stored if metadata is None else metadata
        self.items = items
        self.common = common
        self.format = file_format
        self.main_weights = main_weights
        self.fused = fused
        self.arguments: Mapping[str, object] | None = None
        """What stands in the place of the stored arguments, if anything does."""
        check_content(self.root, self.where)
        self.integrity = read_integrity(folder, self.files)
        self.models: Mapping[tuple[int, int], Mapping[str, Mapping[str, str]]] = {}
        """Per rank and model chunk: its keys in module order, each with its key in the whole
        model.
        """
        self._digest = ""
        self._states = {name: known_state(folder / name) for name in self.files}

    @property
    def where(self) -> str:
        """The place of the common part, for messages."""
        return self.common.where

    @property
    def files(self) -> list[str]:
        """The names of the files that are read."""
        return [".metadata", *([COMMON] if self.common.beside else []), *self.shards]

    @property
    def shards(self) -> list[str]:
        """The names of the shards."""
        chunks = {c.file for t in self.stored.tensors.values() for c in t.chunks}
        return sorted(chunks | {item.file for item in self.stored.objects.values()})

    @property
    def root(self) -> Mapping[object, object]:
        """Return the common part."""
        root = self.common.root
        return root if self.arguments is None else with_arguments(root, self.arguments)

    @property
    def nbytes(self) -> int:
        """The size of all shards."""
        return sum(self._states[name].size for name in self.shards)

    @property
    def count(self) -> int:
        """The number of shards."""
        return len(self.shards)

    @cached_property
    def extra_states(self) -> dict[str, object]:
        """Every ``_extra_state`` by its key in the whole model, with a layer's number in it."""
        found: dict[str, object] = {}
        for name, item in self.metadata.objects.items():
            if key := extra_state_key(name):
                if key in found:
                    raise BadCheckpointError(
                        Text("found ", Found(key), " twice"),
                        "two saves are mixed: use another copy",
                        where=(self.folder, name),
                        wanted="it once",
                    )
                found[key] = self.open_object(item)
        return found

    def open_object(self, item: DcpObject) -> object:
        """Return what is no tensor, as inert data.

        Raises:
            BadCheckpointError: For a program.
        """
        file = self.items.open_object(item)
        refuse_programs(file.root, f"{file.file.path}: {item.name}")
        if "_extra_state/" in item.name:
            refuse_hidden_programs(file.root, f"{file.file.path}: {item.name}")
        root = file.root
        return root[0] if isinstance(root, list) and len(root) == 1 else root

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
            for name in self.files:
                with (self.folder / name).open("rb") as file:
                    while data := file.read(1 << 20):
                        digest.update(data)
            self._digest = digest.hexdigest()
        return self._digest

    def sums(self) -> Mapping[Path, FileSums]:
        """Return what checks the CRC32 of every record of every item of each file, and its sum in
        ``integrity.json``.
        """
        items: dict[str, list[_Item]] = {name: [] for name in self.files}
        if beside := self.common.beside:
            items[COMMON].append(("", lambda: beside))
        for name, tensor in self.stored.tensors.items():
            for chunk in tensor.chunks:
                opening = partial(self._opened_item, name, tensor.dtype, chunk)
                items[chunk.file].append((name, opening))
        for name, item in self.stored.objects.items():
            items[item.file].append((str(name), partial(self.items.open_object, item)))
        listed = {**{name: [] for name in self.integrity}, **items}
        return {
            self.folder / name: partial(self._check_file, name, own) for name, own in listed.items()
        }

    def _opened_item(self, name: str, dtype: str, chunk: DcpChunk) -> TorchFile:
        return self.items.open_item(name, dtype, chunk)[0]

    def _check_file(
        self,
        name: str,
        items: Sequence[_Item],
        progress: Progress,
    ) -> tuple[str, ...]:
        kinds: tuple[str, ...] = ()
        for held, opening in items:
            try:
                kinds = check_records(opening(), progress) or kinds
            except BadCheckpointError as error:
                raise error.with_more(f" (it holds {held})" if held else "") from None
        if name in self.integrity:
            check_sum(self.folder / name, self.integrity[name])
            kinds = (*kinds, "SHA-256")
        return kinds

    def verify(self, progress: Progress) -> tuple[str, ...]:
        """Check the CRC32 of every record of every item, and the sums in ``integrity.json``."""
        return check_all(self.sums(), progress)

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError if a file was changed since it was opened."""
        for name, state in self._states.items():
            if state_of(self.folder / name) != state:
                raise BadCheckpointError(
                    "was changed while it was read",
                    "wait until whatever writes it is done",
                    where=self.folder / name,
                )

    def close(self) -> None:
        """Close all files."""
        if self.common.beside:
            self.common.beside.close()
        self.items.close()


def dist_folder(folder: Path, metadata: DcpMetadata) -> DistFolder:
    """Return the ``torch_dist`` checkpoint in ``folder``, opened; ``metadata`` lists its items.

    Raises:
        BadCheckpointError: If its common part is not there, or hostile.
    """
    with ExitStack() as undo:
        items = DcpItems(folder)
        undo.callback(items.close)
        common = read_common(folder, metadata, items)
        if common.beside:
            undo.callback(common.beside.close)
        contents = DistFolder(folder, metadata, items, common)
        undo.pop_all()
    return contents


def param_groups(optimizer: object, where: str) -> tuple[Mapping[object, object], ...]:
    """Return an optimizer's param groups without their parameters.

    Raises:
        BadCheckpointError: If there are none; the message names ``where``.
    """
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(g, dict) for g in groups):
        raise BadCheckpointError(
            "optimizer: has no param_groups",
            "the optimizer and the weights do not belong together",
            where=where,
        )
    return tuple({k: v for k, v in group.items() if k != "params"} for group in groups)
