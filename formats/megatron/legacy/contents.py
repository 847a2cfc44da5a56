"""The files of a legacy Megatron checkpoint: one torch file per (tensor rank, pipeline rank)."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import xxhash

from flmgrow.errors import BadCheckpointError, IncompleteCheckpointError
from flmgrow.formats.checkpoint import FileSums, check_all
from flmgrow.formats.megatron.arguments.given import corrected, with_arguments
from flmgrow.formats.megatron.folders import DISTRIBUTED, RankKey
from flmgrow.formats.torch_file.file import TorchFile, check_records
from flmgrow.formats.torch_file.objects import namespace
from flmgrow.text import Found, Setting, Text


def content_of(file: TorchFile) -> Mapping[object, object]:
    """Return what a rank's file holds.

    Raises:
        BadCheckpointError: If that is no dict.
    """
    if not isinstance(file.root, dict):
        raise BadCheckpointError(
            Text("holds a ", Found(type(file.root).__name__)), where=file.file.path, wanted="a dict"
        )
    return file.root


def digest_files(files: Mapping[RankKey, TorchFile]) -> str:
    """Return a digest of the CRC32 sums the files carry, or of all bytes without them."""
    digest = xxhash.xxh3_128()
    for rank, file in sorted(files.items()):
        digest.update(repr(rank).encode())
        if not file.has_checksums:
            for piece in file.file.chunks(0, file.file.size):
                digest.update(piece)
        for name, record in sorted(file.records.items()):
            digest.update(f"{name}:{record.nbytes}:{record.crc}".encode())
    return digest.hexdigest()


def is_stateless(content: Mapping[object, object]) -> bool:
    """Whether a rank's file holds the settings of an optimizer, but none of its states."""
    optimizer = content.get("optimizer")
    inner = optimizer.get("optimizer") if isinstance(optimizer, dict) else None
    return isinstance(inner, dict) and "state" not in inner


class RankFiles:
    """Opened rank files; the first is that of rank (0, 0).

    ``beside`` are files that lie beside them, opened when the optimizer's state is asked for.
    ``given`` are arguments that take the place of stored ones.
    """

    def __init__(self, files: Mapping[RankKey, TorchFile]) -> None:
        self.files = files
        self.beside: dict[RankKey, TorchFile] = {}
        self.given: Mapping[str, object] = {}

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(file.file.size for file in self._opened())

    @property
    def count(self) -> int:
        """The number of files."""
        return len(self._opened())

    def content(self, rank: RankKey) -> Mapping[object, object]:
        """Return what a rank's file holds."""
        content = content_of(self.files[rank])
        if not self.given:
            return content
        own = namespace(content["args"]) if "args" in content else {}
        return with_arguments(content, corrected(own, self.given))

    def lost_states(self) -> IncompleteCheckpointError | None:
        """Return what says that the states of some ranks are not there, which lie beside those of
        others; None if all are there, or none.
        """
        ranks = [file for file in self.files.values() if is_stateless(content_of(file))]
        paths = [file.file.path.with_name(DISTRIBUTED) for file in ranks]
        missing = [path for path in paths if not path.exists()]
        if not missing or len(missing) == len(paths):
            return None
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return IncompleteCheckpointError(
            Text(f"{missing[0]}{more}: ", Found("not there")),
            Text(
                "copy the rank folders again; expand and reshard go on without with ",
                Setting("no_optimizer", True),
            ),
            wanted=f"one beside each of {len(paths)} ranks",
        )

    def digest(self) -> str:
        """Return a digest of the rank files, whatever lies beside them."""
        return digest_files(self.files)

    def open_beside(self, rank: RankKey, name: str) -> TorchFile:
        """Open the file called ``name`` in the folder of a rank's own; closed with the others."""
        if rank not in self.beside:
            self.beside[rank] = TorchFile(self.files[rank].file.path.with_name(name))
        return self.beside[rank]

    def _opened(self) -> list[TorchFile]:
        return [*self.files.values(), *self.beside.values()]

    def sums(self) -> Mapping[Path, FileSums]:
        """Return what checks every CRC32 of each file."""
        return {file.file.path: partial(check_records, file) for file in self._opened()}

    def verify(self, progress: Callable[[int], object]) -> tuple[str, ...]:
        """Check every CRC32.

        Raises:
            BadCheckpointError: The message names file and record.
        """
        return check_all(self.sums(), progress)

    def check_unchanged(self) -> None:
        """Raise BadCheckpointError if a file was changed since it was opened."""
        for file in self._opened():
            file.file.check_unchanged()

    def close(self) -> None:
        """Close all files."""
        for file in self._opened():
            file.close()
