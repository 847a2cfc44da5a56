"""Reading the layers of each pipeline rank from Megatron-LM's arguments, and writing them.

Megatron-LM has four ways to say how many layers a pipeline rank holds; a layout is one list. Even
division; a different first and last rank (``decoder_first_pipeline_num_layers`` and
``..._last_...``); counting the embedding or the loss as a layer
(``account_for_..._in_pipeline_split``); and an explicit string such as ``Ett|tt|tL``, one part per
chunk in model order (``pipeline_model_parallel_layout``).
"""

import re
from collections.abc import Mapping

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.layout.placements import Layout, make_layout

_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")
_REPEAT = re.compile(r"([a-zA-Z|])\*(\d+)")
_MAX_LENGTH = 100_000
_MAX_RANKS = 100_000


def parse_layout_text(text: str, where: str) -> tuple[int, ...]:
    """Return the layers per chunk that a ``pipeline_model_parallel_layout`` string describes.

    Raises BadCheckpointError for anything but embedding (E), decoder layers (t) and loss (L).
    """
    expanded = text.replace(",", "").replace(" ", "")
    for pattern in (_GROUP, _REPEAT):
        while match := pattern.search(expanded):
            if len(match[1]) * int(match[2]) > _MAX_LENGTH:
                raise BadCheckpointError(f"{where}: pipeline layout {text!r} is too long")
            expanded = (
                expanded[: match.start()] + match[1] * int(match[2]) + expanded[match.end() :]
            )
    chunks = expanded.split("|")
    body = [chunk.removeprefix("E") if i == 0 else chunk for i, chunk in enumerate(chunks)]
    body[-1] = body[-1].removesuffix("L")
    if any(set(chunk) - {"t"} for chunk in body):
        raise BadCheckpointError(
            f"{where}: pipeline layout {text!r}: only E, t and L in their usual places are "
            "supported"
        )
    return tuple(len(chunk) for chunk in body)


def _accounted(reader: ArgumentReader, layers: int, pp: int, vpp: int) -> tuple[int, ...] | None:
    """The chunks' layers when the embedding or the loss takes a layer's place."""
    first = reader.flag("account_for_embedding_in_pipeline_split")
    last = reader.flag("account_for_loss_in_pipeline_split")
    if not (first or last) or (layers + first + last) % (pp * vpp):
        return None
    counts = [(layers + first + last) // (pp * vpp)] * (pp * vpp)
    counts[0] -= first
    counts[-1] -= last
    return tuple(counts)


def _uneven(reader: ArgumentReader, layers: int, pp: int) -> tuple[int, ...] | None:
    """The ranks' layers when the first or last rank has its own number."""
    first = reader.optional_integer(
        "decoder_first_pipeline_num_layers", "num_layers_in_first_pipeline_stage"
    )
    last = reader.optional_integer(
        "decoder_last_pipeline_num_layers", "num_layers_in_last_pipeline_stage"
    )
    if first is None and last is None:
        return None
    middle = pp - (first is not None) - (last is not None)
    rest = layers - (first or 0) - (last or 0)
    if rest < 0 or (rest % middle if middle else rest):
        raise BadCheckpointError(
            f"{reader.where}: {layers} layers do not fit PP{pp} with {first} first and {last} last"
        )
    counts = [rest // middle if middle else 0] * pp
    counts[0] = counts[0] if first is None else first
    counts[-1] = counts[-1] if last is None else last
    return tuple(counts)


def read_layout(arguments: Mapping[str, object], layers: int, where: str) -> Layout:
    """Return the layout that ``arguments`` describe.

    Raises BadCheckpointError if they contradict.
    """
    reader = ArgumentReader(arguments, where)
    tp = reader.integer("tensor_model_parallel_size", 1)
    pp = reader.integer("pipeline_model_parallel_size", 1)
    vpp = reader.integer("virtual_pipeline_model_parallel_size", 1) if pp > 1 else 1
    if tp * pp * vpp > _MAX_RANKS:
        raise BadCheckpointError(f"{where}: args say TP{tp} x PP{pp} x VPP{vpp}, wanted less")
    text = arguments.get("pipeline_model_parallel_layout")
    counts: tuple[int, ...] | None
    if isinstance(text, str) and pp > 1:
        counts = parse_layout_text(text, where)
        vpp = len(counts) // pp
    elif text is not None and pp > 1:
        raise BadCheckpointError(f"{where}: args.pipeline_model_parallel_layout is no string")
    else:
        counts = _uneven(reader, layers, pp) or _accounted(reader, layers, pp, vpp)
    try:
        return make_layout(layers, tp, pp, vpp, counts)
    except UsageError as error:
        raise BadCheckpointError(f"{where}: {error.message}") from None


def _as_first_and_last(layout: Layout) -> tuple[int, int] | None:
    """The layers of the first and last rank, if all other ranks agree and every rank's chunks do.

    Megatron-LM wants no rank without layers here; only a layout string can say that.
    """
    per_rank = []
    for rank in range(layout.pp):
        counts = {layout.chunk_layers[v * layout.pp + rank] for v in range(layout.vpp)}
        if len(counts) > 1:
            return None
        per_rank.append(counts.pop() * layout.vpp)
    return (per_rank[0], per_rank[-1]) if len(set(per_rank[1:-1])) <= 1 and all(per_rank) else None


def layout_text(layout: Layout) -> str:
    """Return the layout as Megatron-LM's ``pipeline_model_parallel_layout`` string."""
    chunks = ["t" * count for count in layout.chunk_layers]
    chunks[0] = "E" + chunks[0]
    chunks[-1] += "L"
    return "|".join(chunks)


def written_layout(arguments: Mapping[str, object], layout: Layout) -> dict[str, object]:
    """Return what must change in ``arguments`` so that Megatron-LM builds ``layout``."""
    virtual = layout.vpp if layout.vpp > 1 else None
    ends = None if layout.even else _as_first_and_last(layout)
    changes: dict[str, object] = {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": virtual,
    }
    optional: dict[str, object] = {
        "num_virtual_stages_per_pipeline_rank": None,
        "num_layers_per_virtual_pipeline_stage": layout.chunk_layers[0] if virtual else None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "decoder_first_pipeline_num_layers": ends[0] if ends else None,
        "decoder_last_pipeline_num_layers": ends[1] if ends else None,
        "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": None,
        "pipeline_model_parallel_layout": None if layout.even or ends else layout_text(layout),
    }
    if not layout.even:
        optional["num_layers_per_virtual_pipeline_stage"] = None
    if "transformer_pipeline_model_parallel_size" in arguments:
        changes["transformer_pipeline_model_parallel_size"] = layout.pp
    kept = {n: value for n, value in optional.items() if n in arguments or value}
    return changes | kept
