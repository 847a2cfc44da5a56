"""Reading the layers of each pipeline rank from Megatron-LM's arguments, and writing them.

Megatron-LM has four ways to say how many layers a pipeline rank holds; a layout is one list. Even
division; a different first and last rank (``decoder_first_pipeline_num_layers`` and
``..._last_...``); counting the embedding or the loss as a layer
(``account_for_..._in_pipeline_split``); and an explicit string such as ``Ett|tt|tL``, one part per
chunk in model order (``pipeline_model_parallel_layout``).
"""

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.layout.placements import Layout, make_layout
from flmgrow.formats.megatron.arguments.layout_rows import (
    EMBEDDING_COUNTS,
    FIRST,
    LAST,
    LAYOUT_ROWS,
    LOSS_COUNTS,
    PP,
    TEXT,
    TP,
    VPP,
)
from flmgrow.formats.megatron.arguments.layout_text import parse_layout_text
from flmgrow.formats.megatron.arguments.row import Arguments
from flmgrow.text import Found, Text

_MAX_RANKS = 100_000


def _accounted(reader: ArgumentReader, layers: int, pp: int, vpp: int) -> tuple[int, ...] | None:
    """The chunks' layers when the embedding or the loss takes a layer's place."""
    first = EMBEDDING_COUNTS.read(reader)
    last = LOSS_COUNTS.read(reader)
    if not (first or last) or (layers + first + last) % (pp * vpp):
        return None
    counts = [(layers + first + last) // (pp * vpp)] * (pp * vpp)
    counts[0] -= first
    counts[-1] -= last
    return tuple(counts)


def _uneven(reader: ArgumentReader, layers: int, pp: int) -> tuple[int, ...] | None:
    """The ranks' layers when the first or last rank has its own number."""
    first = FIRST.read(reader)
    last = LAST.read(reader)
    if first is None and last is None:
        return None
    middle = pp - (first is not None) - (last is not None)
    rest = layers - (first or 0) - (last or 0)
    if rest < 0 or (rest % middle if middle else rest):
        raise BadCheckpointError(
            f"{layers} layers do not fit PP{pp} with {first} first and {last} last",
            where=reader.where,
        )
    counts = [rest // middle if middle else 0] * pp
    counts[0] = counts[0] if first is None else first
    counts[-1] = counts[-1] if last is None else last
    return tuple(counts)


def read_layout(arguments: Arguments, layers: int, where: str) -> Layout:
    """Return the layout that ``arguments`` describe.

    Raises:
        BadCheckpointError: If they contradict.
    """
    reader = ArgumentReader(arguments, where)
    tp = TP.read(reader)
    pp = PP.read(reader)
    vpp = VPP.read(reader) if pp > 1 else 1
    if tp * pp * vpp > _MAX_RANKS:
        raise BadCheckpointError(
            Text("args say ", Found(f"TP{tp} x PP{pp} x VPP{vpp}")), where=where, wanted="less"
        )
    text = TEXT.get(arguments)
    counts: tuple[int, ...] | None
    if isinstance(text, str) and pp > 1:
        counts = parse_layout_text(text, where)
        vpp = len(counts) // pp
    elif text is not None and pp > 1:
        raise BadCheckpointError(f"args.{TEXT.name} is no string", where=where)
    else:
        counts = _uneven(reader, layers, pp) or _accounted(reader, layers, pp, vpp)
    try:
        return make_layout(layers, tp, pp, vpp, counts)
    except UsageError as error:
        raise BadCheckpointError.of(error).with_hint("").at(where) from None


def written_layout(arguments: Arguments, layout: Layout) -> dict[str, object]:
    """Return what must change in ``arguments`` so that Megatron-LM builds ``layout``."""
    changes: dict[str, object] = {}
    for row in LAYOUT_ROWS:
        changes |= row.written(arguments, layout)
    return changes
