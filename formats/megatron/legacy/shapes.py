"""The whole arrays that the rank files of a legacy Megatron checkpoint hold, and their layout."""

import re
from collections.abc import Iterator, Mapping

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.shapes import ArrayShape, ShapeCollector, StoredShapes
from flmgrow.formats.megatron.folders import RankKey
from flmgrow.formats.megatron.legacy.contents import content_of
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.values import TensorRecord

_CHUNK = re.compile(r"model([0-9]{0,3})")
_LAYER = re.compile(r"decoder\.layers\.([0-9]{1,6})\..*", re.DOTALL)
_TABLE = "embedding.word_embeddings.weight"

_Chunk = list[tuple[str, TensorRecord]]


def _chunks(file: TorchFile) -> dict[int, _Chunk]:
    """Return the arrays of every model chunk in a rank's file, by the chunk's number."""
    found: dict[int, _Chunk] = {}
    for key, state in content_of(file).items():
        match = _CHUNK.fullmatch(str(key))
        if match and isinstance(state, dict):
            arrays = [(str(n), v) for n, v in state.items() if isinstance(v, TensorRecord)]
            found[int(match[1] or 0)] = arrays
    return found


def _layers(chunk: _Chunk) -> int:
    return len({match[1] for name, _ in chunk if (match := _LAYER.fullmatch(name))})


def rank_shapes(files: Mapping[RankKey, TorchFile]) -> tuple[StoredShapes, Layout | None]:
    """Return the arrays in all ranks' files together, and their layout, None if it is not whole."""
    tp, pp = (1 + max(rank[place] for rank in files) for place in (0, 1))
    if len(files) != tp * pp:
        return StoredShapes(), None
    chunks = {rank: _chunks(file) for rank, file in files.items()}
    collector = ShapeCollector(tp)
    for (tensor, _), own in chunks.items():
        for chunk in own.values():
            collector.add_chunk(_shapes(chunk), counts=tensor == 0)
    dtypes = [r.dtype for own in chunks.values() for c in own.values() for n, r in c if n == _TABLE]
    vpp = max(len(own) for own in chunks.values())
    try:
        counts = tuple(_layers(chunks[0, p][v]) for v in range(vpp) for p in range(pp))
        layout = Layout(tp, pp, vpp, counts)
    except (KeyError, UsageError):
        layout = None
    return collector.result(pp == 1, dtypes[0] if dtypes else "float32"), layout


def _shapes(chunk: _Chunk) -> Iterator[tuple[str, ArrayShape]]:
    for name, record in chunk:
        yield name, record.shape
