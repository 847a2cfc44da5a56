"""The arrays that a folder's files hold, under their stored names, whatever model they make up.

Nothing here knows a model: it serves to look at one that is not supported, or whose arguments are
wrong or missing.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flmgrow.formats.dcp.metadata import read_metadata
from flmgrow.formats.huggingface.contents import HuggingFaceFolder, is_huggingface
from flmgrow.formats.megatron.folders import TRACKER, is_distributed, iteration_folder
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.objects import walk_tensors

_OPTIMIZER = "optimizer."
_RANK_FILES = "mp_rank_*/model*rng.pt"


@dataclass(frozen=True)
class ListedArray:
    """An array: its name, its shape, and its dtype by torch's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def stored_arrays(path: Path, iteration: int | None = None) -> dict[str, list[ListedArray]]:
    """Return the model's arrays in a checkpoint by the file that holds them.

    ``path`` and ``iteration`` are as in ``open_checkpoint``. The arrays of a distributed checkpoint
    are whole, and stand under the file that lists them.

    Raises:
        BadCheckpointError: For files that cannot be read.
    """
    if is_huggingface(path) and not (path / TRACKER).exists():
        with closing(HuggingFaceFolder(path)) as contents:
            return {
                name: [ListedArray(t.name, t.shape, t.dtype) for t in shard.tensors.values()]
                for name, shard in contents.shards.items()
            }
    folder = iteration_folder(path, iteration)
    if is_distributed(folder):
        tensors = read_metadata(folder).tensors.values()
        own = [ListedArray(t.name, t.shape, t.dtype) for t in tensors if not _is_optimizers(t.name)]
        return {".metadata": own}
    found = {}
    for file in sorted(folder.glob(_RANK_FILES)):
        with TorchFile(file) as opened:
            found[str(file.relative_to(folder))] = list(_in_rank(opened.root))
    return found


def _is_optimizers(name: str) -> bool:
    return name.startswith(_OPTIMIZER)


def _in_rank(root: object) -> Iterator[ListedArray]:
    """Yield the arrays of the model in a rank's content."""
    if not isinstance(root, Mapping):
        return
    chunks = {key: value for key, value in root.items() if str(key).startswith("model")}
    for keys, record in walk_tensors(chunks):
        prefix, *rest = map(str, keys)
        name = ".".join(rest) if prefix == "model" else f"{prefix}: {'.'.join(rest)}"
        yield ListedArray(name, record.shape, record.dtype)
