"""Whether a pipeline's last rank holds the copy of a shared table, or a head of its own.

With tied embeddings, Megatron-LM keeps a copy of the table as ``output_layer.weight`` on the last
pipeline rank; without, the head lies under the same name. Only values tell the two apart, so
arguments whose ``untie_embeddings_and_output_weights`` was flipped would be believed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.model_rows import UNTIED
from flmgrow.formats.pieces import DTYPES, Piece
from flmgrow.model.arrays import FloatArray
from flmgrow.model.config import ModelConfig
from flmgrow.text import Found, Pass, Setting, Text

_HEAD = "output_layer.weight"
_TABLE = "embedding.word_embeddings.weight"
_ARGUMENT = UNTIED.name
_SAMPLE = 1 << 12
_ALIKE = 0.5


def check_head(
    pieces: Sequence[Piece], config: ModelConfig, given: Mapping[str, object], trusted: bool
) -> None:
    """Raise BadCheckpointError if values contradict what the arguments say of the head.

    A head of its own that is the table to the last bit is only as it comes out of growth that
    unties: fine in what flmgrow wrote, which is ``trusted``, and where the user gave the argument.
    A copy that has drifted a little is left to whoever compares copies.
    """
    known = [piece for piece in pieces if piece.dtype in DTYPES]
    heads = {p.placement.tensor_rank: p for p in known if p.placement.key == _HEAD}
    tables = {p.placement.tensor_rank: p for p in known if p.placement.key == _TABLE}
    pairs = [(tables[rank], head) for rank, head in heads.items() if rank in tables]
    if not pairs or pairs[0][0].placement.pipeline_rank == pairs[0][1].placement.pipeline_rank:
        return
    if config.tied and all(not _equal(p) and _likeness(p) < _ALIKE for p in pairs):
        raise _refusal(pairs[0][1], False, "not the embedding table", True)
    if not config.tied and not trusted and _ARGUMENT not in given and all(map(_equal, pairs)):
        raise _refusal(pairs[0][1], True, "the embedding table, bit for bit", False)


def _refusal(head: Piece, said: bool, found: str, wanted: bool) -> BadCheckpointError:
    begins = Setting("set_arguments", {_ARGUMENT: True})
    doubt = "" if wanted else Text(begins, " says that a head begins as a copy; ")
    return BadCheckpointError(
        Text(f"{head}: is {found}; args.{_ARGUMENT} is ", Found(said)),
        Text(doubt, "if the weights are right, ", Pass("set_arguments", {_ARGUMENT: wanted})),
        wanted=wanted,
    )


def _equal(pair: tuple[Piece, Piece]) -> bool:
    """Whether two pieces hold the same bytes: by their sums, no value is read for that; without
    any, by samples.
    """
    first, second = pair
    sums = first.checksum(), second.checksum()
    if None not in sums:
        return sums[0] == sums[1]
    return bool(np.array_equal(_values(first), _values(second)))


def _values(piece: Piece) -> FloatArray:
    """Return the first values of a piece, as float64."""
    dtype = DTYPES[piece.dtype]
    count = min(_SAMPLE, int(np.prod(piece.placement.shape)))
    data = bytearray(count * dtype.itemsize)
    piece.read_into(0, memoryview(data))
    return np.frombuffer(data, dtype).astype(np.float64)


def _likeness(pair: tuple[Piece, Piece]) -> float:
    """Return the share of the first values that are about the same in both.

    Two that have nothing to do with each other share a fifth; a flipped bit changes one value.
    """
    table, head = map(_values, pair)
    with np.errstate(all="ignore"):
        return float(np.mean(~(np.abs(table - head) > np.abs(table) / 2)))
