"""The arguments that say how a model is laid out over ranks."""

from typing import Any

from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.layout_text import layout_text
from flmgrow.formats.megatron.arguments.row import (
    LayoutArgument,
    When,
    as_it_is,
    flag,
    integer,
    optional_integer,
)


def _virtual(layout: Layout) -> int | None:
    return layout.vpp if layout.vpp > 1 else None


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


def _ends(layout: Layout) -> tuple[int | None, int | None]:
    """Return the layers of the first and last rank where the layout can and must be said so."""
    ends = None if layout.even else _as_first_and_last(layout)
    return (None, None) if ends is None else ends


def _needed_text(layout: Layout) -> str | None:
    return None if layout.even or _as_first_and_last(layout) else layout_text(layout)


TP = LayoutArgument(
    "tensor_model_parallel_size",
    integer(1),
    value=lambda layout: layout.tp,
    when=When.ALWAYS,
)
PP = LayoutArgument(
    "pipeline_model_parallel_size",
    integer(1),
    value=lambda layout: layout.pp,
    when=When.ALWAYS,
)
VPP = LayoutArgument(
    "virtual_pipeline_model_parallel_size", integer(1), value=_virtual, when=When.ALWAYS
)
DERIVED_PP = LayoutArgument(
    "transformer_pipeline_model_parallel_size",
    integer(1),
    understood=False,
    value=lambda layout: layout.pp,
    when=When.STORED,
)
"""Megatron-LM derives it from ``PP`` in some versions."""

STAGES_PER_RANK = LayoutArgument(
    "num_virtual_stages_per_pipeline_rank", as_it_is, value=lambda _: None
)
LAYERS_PER_CHUNK = LayoutArgument(
    "num_layers_per_virtual_pipeline_stage",
    as_it_is,
    value=lambda layout: layout.chunk_layers[0] if _virtual(layout) and layout.even else None,
)
EMBEDDING_COUNTS = LayoutArgument(
    "account_for_embedding_in_pipeline_split", flag(), value=lambda _: False
)
LOSS_COUNTS = LayoutArgument("account_for_loss_in_pipeline_split", flag(), value=lambda _: False)
OLDER_FIRST = LayoutArgument(
    "num_layers_in_first_pipeline_stage", optional_integer, value=lambda _: None
)
OLDER_LAST = LayoutArgument(
    "num_layers_in_last_pipeline_stage", optional_integer, value=lambda _: None
)
FIRST = LayoutArgument(
    "decoder_first_pipeline_num_layers",
    optional_integer,
    OLDER_FIRST.name,
    value=lambda layout: _ends(layout)[0],
)
LAST = LayoutArgument(
    "decoder_last_pipeline_num_layers",
    optional_integer,
    OLDER_LAST.name,
    value=lambda layout: _ends(layout)[1],
)
TEXT = LayoutArgument("pipeline_model_parallel_layout", as_it_is, value=_needed_text)

LAYOUT_ROWS: tuple[LayoutArgument[Any], ...] = (
    TP, PP, VPP, DERIVED_PP, STAGES_PER_RANK, LAYERS_PER_CHUNK, EMBEDDING_COUNTS, LOSS_COUNTS,
    FIRST, LAST, OLDER_FIRST, OLDER_LAST, TEXT,
)  # fmt: skip
"""In the order in which they are written."""
