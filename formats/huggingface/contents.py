"""The files of a Hugging Face folder: ``config.json``, safetensors shards, and what lies beside.

Shards are found through ``model.safetensors.index.json``, or there is one ``model.safetensors``.
Every name in the index is held against the shards, and every shard against the index: nothing
outside the folder is opened, nothing is read that was not announced, and nothing announced is
missing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import xxhash

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import AS_STORED, FileSums, ReadOptions, check_all
from flmgrow.formats.companions import GENERATION, is_companion
from flmgrow.formats.elsewhere import without_weights
from flmgrow.formats.fields import shown
from flmgrow.formats.huggingface.safetensors_file import SafetensorsFile, StoredTensor
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.storage.strict_json import read_object
from flmgrow.text import Found, Text

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 256 << 20

_SHARD = re.compile(r"(?!\.)[\w.-]{1,200}\.safetensors", re.ASCII)
_NUMBERED = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_MANIFEST = "flmgrow.json"


def is_huggingface(path: Path) -> bool:
    """Whether a folder looks like a Hugging Face model."""
    return path.is_dir() and (path / CONFIG).exists()


class HuggingFaceFolder:
    """The opened files of a folder.

    ``fields`` is what ``config.json`` says. ``tensors`` are all stored tensors by name, each with
    its shard. ``options`` are what the user said about reading it, ``notes`` what one
    should know of how they lie.
    """

    def __init__(self, folder: Path, options: ReadOptions = AS_STORED) -> None:
        self.folder = folder
        self.options = options
        self.notes: list[str] = []
        self._digest = ""
        self._others: list[ReadOnlyFile] = []
        self.shards: dict[str, SafetensorsFile] = {}
        try:
            self.fields = self._read_json(CONFIG, MAX_CONFIG_BYTES)
            self.tensors = self._open_shards()
        except BaseException:
            self.close()
            raise

    def _read_json(self, name: str, most: int) -> dict[str, object]:
        file = ReadOnlyFile(self.folder / name)
        self._others.append(file)
        return read_object(file, most)

    def _open_shards(self) -> dict[str, tuple[SafetensorsFile, StoredTensor]]:
        single, index = (self.folder / SINGLE).exists(), (self.folder / INDEX).exists()
        numbered = {path.name for path in self.folder.iterdir() if _NUMBERED.fullmatch(path.name)}
        if not index and numbered:
            raise BadCheckpointError(
                f"has {len(numbered)} numbered shards, but no {INDEX}",
                "copy the index, too",
                where=self.folder,
            )
        if not single and not index:
            raise without_weights(self.folder)
        placed, total = self._read_index(numbered) if index else ({}, None)
        names = set(placed.values()) if index else {SINGLE}
        if single and SINGLE not in names:
            raise BadCheckpointError(
                f"has both {SINGLE} and {INDEX}", "remove the one that is stale", where=self.folder
            )
        for name in sorted(names):
            self.shards[name] = SafetensorsFile(self.folder / name)
        found = self._placed(placed) if index else self._all(SINGLE)
        self._check_total(total, sum(tensor.nbytes for _, tensor in found.values()))
        return found

    def _all(self, name: str) -> dict[str, tuple[SafetensorsFile, StoredTensor]]:
        shard = self.shards[name]
        return {tensor.name: (shard, tensor) for tensor in shard.tensors.values()}

    def _placed(self, placed: Mapping[str, str]) -> dict[str, tuple[SafetensorsFile, StoredTensor]]:
        """Return the tensors that the index places; of several copies, the one it names.

        Every tensor of a shard must be in the index, and every tensor of the index in its shard.
        """
        found: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        copies: dict[str, list[str]] = {}
        for name, shard in self.shards.items():
            for tensor in shard.tensors.values():
                if tensor.name not in placed or self._is_lost(tensor.name, placed):
                    raise BadCheckpointError(
                        "the index does not place it there",
                        "copy index and shards again, all from one save",
                        where=(self.folder / name, tensor.name),
                    )
                copies.setdefault(tensor.name, []).append(name)
                if placed[tensor.name] == name:
                    found[tensor.name] = (shard, tensor)
        if missing := sorted(placed.keys() - found.keys()):
            raise BadCheckpointError(
                "not there, but in the index",
                "copy index and shards again, all from one save",
                where=(self.folder / placed[missing[0]], missing[0]),
            )
        self._note_copies(placed, {n: files for n, files in copies.items() if len(files) > 1})
        return found

    def _is_lost(self, name: str, placed: Mapping[str, str]) -> bool:
        """Whether a tensor is not in the shard where the index places it."""
        return name not in self.shards[placed[name]].tensors

    def _note_copies(self, placed: Mapping[str, str], copies: Mapping[str, Sequence[str]]) -> None:
        if not copies:
            return
        first, files = next(iter(copies.items()))
        self.notes.append(
            f"{len(copies)} tensors lie in several shards ({first} in "
            f"{' and '.join(files)}): the index decides, which names {placed[first]}"
        )
        # transformers reads the shards in the order of their names, and keeps what comes last.
        if lost := [name for name, files in copies.items() if placed[name] != max(files)]:
            self.notes.append(
                f"{lost[0]}: transformers does not ask the index, and takes "
                f"the copy in {max(copies[lost[0]])}"
            )

    def _read_index(self, numbered: set[str]) -> tuple[dict[str, str], object]:
        """Return which shard each tensor is in, and how many bytes there shall be in total."""
        where = self.folder / INDEX
        data = self._read_json(INDEX, MAX_INDEX_BYTES)
        metadata, placed = data.get("metadata"), data.get("weight_map")
        metadata = {} if metadata is None else metadata
        if not isinstance(placed, dict) or not placed or not isinstance(metadata, dict):
            raise BadCheckpointError("wanted a weight_map of tensors, and metadata", where=where)
        names: dict[str, str] = {}
        for tensor, name in placed.items():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise BadCheckpointError(
                    Text("is in ", Found(shown(name))),
                    "the index is damaged or hostile: use another copy",
                    where=(where, tensor),
                    wanted="a safetensors file of the same folder",
                )
            names[tensor] = name
        listed = set(names.values())
        if missing := sorted(name for name in listed if not (self.folder / name).exists()):
            raise BadCheckpointError(
                f"{len(missing)} of {len(listed)} shards are missing: {', '.join(missing)}",
                "copy all shards that the index names",
                where=self.folder,
            )
        if extra := sorted(numbered - listed):
            raise BadCheckpointError(
                "is a shard that the index does not name",
                f"remove {' '.join(extra)} if an earlier save left them behind; else copy index "
                "and shards again, all from one save",
                where=self.folder / extra[0],
            )
        return names, metadata.get("total_size")

    def _check_total(self, wanted: object, found: int) -> None:
        """Tell of another size than the index says: many tools write it wrong, and nobody reads it.

        What was lost is found without it, tensor by tensor.
        """
        if wanted is not None and wanted != found:
            self.notes.append(
                Text(
                    f"{INDEX}: total_size: found ",
                    Found(shown(wanted)),
                    f", the tensors have {found} bytes",
                )
            )

    def beside(self) -> dict[str, list[str]]:
        """Return the names of the files that are neither configuration nor weights, by kind."""
        kinds: dict[str, list[str]] = {"generation": [], "tokenizer": [], "code": [], "other": []}
        own = {CONFIG, INDEX, SINGLE, _MANIFEST, *self.shards}
        for path in sorted(self.folder.iterdir()):
            if path.name in own or not path.is_file():
                continue
            kind = "other"
            if path.name == GENERATION:
                kind = "generation"
            elif is_companion(path.name):
                kind = "tokenizer"
            elif path.suffix == ".py":
                kind = "code"
            kinds[kind].append(path.name)
        return kinds

    @property
    def nbytes(self) -> int:
        """The size of all shards."""
        return sum(shard.file.size for shard in self.shards.values())

    @property
    def count(self) -> int:
        """The number of shards."""
        return len(self.shards)

    def _files(self) -> list[ReadOnlyFile]:
        return [*self._others, *(shard.file for shard in self.shards.values())]

    def digest(self) -> str:
        """Return a digest of all bytes of configuration, index and shards."""
        if not self._digest:
            digest = xxhash.xxh3_128()
            for file in self._files():
                digest.update(f"{file.path.name}:{file.size}:".encode())
                for piece in file.chunks(0, file.size):
                    digest.update(piece)
            self._digest = digest.hexdigest()
        return self._digest

    def sums(self) -> Mapping[Path, FileSums]:
        """Return nothing: safetensors files hold no sums."""
        return {file.path: lambda _: () for file in self._files()}

    def verify(self, progress: Callable[[int], object]) -> tuple[str, ...]:
        """Check nothing."""
        return check_all(self.sums(), progress)

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError if a file was changed since it was opened."""
        for file in self._files():
            file.check_unchanged()

    def close(self) -> None:
        """Close all files."""
        for file in self._files():
            file.close()
