"""The files of a distributed checkpoint: shards of items, and somewhere all that is not sharded.

That common part is a file of its own, ``common.pt``, as megatron-core 0.16 to 0.18 write it, or an
object in a shard, as 0.19 does. Both are read, but not out of one folder: megatron-core would take
the file, and a later save into the same folder has left it behind.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from pathlib import Path

import xxhash

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import FileSums, check_all
from flmgrow.formats.dcp.items import DcpItems
from flmgrow.formats.dcp.metadata import DcpChunk, DcpMetadata, DcpObject, read_metadata
from flmgrow.formats.megatron.arguments.given import with_arguments
from flmgrow.formats.megatron.arguments.run_rows import FORMAT
from flmgrow.formats.megatron.torch_dist.integrity import check_sum, read_integrity
from flmgrow.formats.megatron.torch_dist.objects import extra_state_key
from flmgrow.formats.megatron.unsupported import BACKENDS, Unsupported, plain_dcp
from flmgrow.formats.torch_file.bounds import describe
from flmgrow.formats.torch_file.file import TorchFile, check_records
from flmgrow.formats.torch_file.foreign_objects import check_content
from flmgrow.formats.torch_file.hidden_pickles import refuse_hidden_programs
from flmgrow.formats.torch_file.objects import namespace
from flmgrow.formats.torch_file.trusted_names import refuse_programs
from flmgrow.formats.torch_file.values import OrderedMap
from flmgrow.storage.file_states import known_state, state_of
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import read_object
from flmgrow.text import Found, Text

Progress = Callable[[int], object]

_Item = tuple[str, Callable[[], TorchFile]]
"""What an item holds, and what opens it."""

COMMON = "common.pt"
COMMON_STATE = "common_state/shard_0_1"
"""The object that takes its place in 0.19: a list with the same dict in it."""

BACKEND_FILE = "metadata.json"
_BACKEND = "torch_dist"
_MAX_BACKEND_BYTES = 1 << 16


class DistFolder:
    """The files of a distributed checkpoint, and what they hold beside chunks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _check_backend(folder / BACKEND_FILE)
        self.metadata: DcpMetadata = read_metadata(folder)
        self.items = DcpItems(folder)
        self.arguments: Mapping[str, object] | None = None
        """What stands in the place of the stored arguments, if anything does."""
        with ExitStack() as undo:
            undo.callback(self.items.close)
            self.common = undo.enter_context(self._open_common())
            check_content(self.root, self.where)
            self.integrity = read_integrity(folder, self.files)
            undo.pop_all()
        self.models: Mapping[tuple[int, int], Mapping[str, Mapping[str, str]]] = {}
        """Per rank and model chunk: its keys in module order, each with its key in the whole
        model.
        """
        self._digest = ""
        self._states = {name: known_state(folder / name) for name in self.files}

    @property
    def in_shard(self) -> bool:
        """Whether the common part is an object in a shard."""
        return COMMON_STATE in self.metadata.objects

    @property
    def where(self) -> str:
        """The place of the common part, for messages."""
        if not self.in_shard:
            return str(self.folder / COMMON)
        return f"{self.folder / self.metadata.objects[COMMON_STATE].file}: {COMMON_STATE}"

    @property
    def files(self) -> list[str]:
        """The names of the files that are read."""
        return [".metadata", *([] if self.in_shard else [COMMON]), *self.shards]

    def _open_common(self) -> TorchFile:
        beside = os.path.lexists(self.folder / COMMON)
        if self.in_shard and beside:
            raise BadCheckpointError(
                Text("has ", Found(f"a {COMMON} and {COMMON_STATE} in a shard")),
                f"two saves are mixed; if {COMMON} is the older one, remove it",
                where=self.folder,
                wanted="one of them",
            )
        if self.in_shard:
            return self.items.open_object(self.metadata.objects[COMMON_STATE])
        if not beside:
            if other := self._plain_dcp():
                raise other.refusal(str(self.folder))
            raise BadCheckpointError(
                f"has no {COMMON}, and no {COMMON_STATE} in its shards",
                "the checkpoint is not complete: copy the file to it",
                where=self.folder,
            )
        return TorchFile(self.folder / COMMON)

    def _plain_dcp(self) -> Unsupported | None:
        """Return what this is without megatron-core's own file and its common part, if known."""
        objects = self.metadata.objects
        said = None
        with suppress(BadCheckpointError):
            args = self.items.open_object(objects["args"]).root if "args" in objects else None
            said = FORMAT.get(namespace(args))
        return plain_dcp([*self.metadata.tensors, *objects], said)

    @property
    def shards(self) -> list[str]:
        """The names of the shards."""
        chunks = {c.file for t in self.metadata.tensors.values() for c in t.chunks}
        return sorted(chunks | {item.file for item in self.metadata.objects.values()})

    @property
    def root(self) -> Mapping[object, object]:
        """Return the common part."""
        root = self.common.root
        if self.in_shard and isinstance(root, list) and len(root) == 1:
            (root,) = root
        if not isinstance(root, dict):
            raise BadCheckpointError(
                Text("found ", Found(describe(root))), where=self.where, wanted="a dict"
            )
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
        if not self.in_shard:
            items[COMMON].append(("", lambda: self.common))
        for name, tensor in self.metadata.tensors.items():
            for chunk in tensor.chunks:
                opening = partial(self._opened_item, name, tensor.dtype, chunk)
                items[chunk.file].append((name, opening))
        for name, item in self.metadata.objects.items():
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
        self.common.close()
        self.items.close()


def _check_backend(path: Path) -> None:
    """Raise BadCheckpointError if megatron-core's file says that a folder is of another format."""
    if not os.path.lexists(path):
        return
    with ReadOnlyFile(path) as file:
        backend = read_object(file, _MAX_BACKEND_BYTES).get("sharded_backend", _BACKEND)
    if backend in BACKENDS:
        raise BACKENDS[str(backend)].refusal(f"{path}: sharded_backend {backend}")
    if backend != _BACKEND:
        raise BadCheckpointError(
            Text("sharded_backend: found ", Found(describe(backend))),
            "load it with the Megatron-LM that wrote it and --ckpt-convert-format torch "
            "--ckpt-convert-save DIR",
            where=path,
            wanted=_BACKEND,
        )


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
