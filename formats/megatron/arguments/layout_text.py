"""Megatron-LM's ``pipeline_model_parallel_layout`` strings, such as ``Ett|tt|tL``: one part per
chunk, in model order.
"""

import re

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.layout.placements import Layout

_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")
_REPEAT = re.compile(r"([a-zA-Z|])\*(\d+)")
_MAX_LENGTH = 100_000


def parse_layout_text(text: str, where: str) -> tuple[int, ...]:
    """Return the layers per chunk that a ``pipeline_model_parallel_layout`` string describes.

    Raises:
        BadCheckpointError: For anything but embedding (E), decoder layers (t) and loss (L).
    """
    expanded = text.replace(",", "").replace(" ", "")
    for pattern in (_GROUP, _REPEAT):
        while match := pattern.search(expanded):
            if len(match[1]) * int(match[2]) > _MAX_LENGTH:
                raise BadCheckpointError(f"pipeline layout {text!r} is too long", where=where)
            expanded = (
                expanded[: match.start()] + match[1] * int(match[2]) + expanded[match.end() :]
            )
    chunks = expanded.split("|")
    body = [chunk.removeprefix("E") if i == 0 else chunk for i, chunk in enumerate(chunks)]
    body[-1] = body[-1].removesuffix("L")
    if any(set(chunk) - {"t"} for chunk in body):
        raise BadCheckpointError(
            f"pipeline layout {text!r}: only E, t and L in their usual places are supported",
            where=where,
        )
    return tuple(len(chunk) for chunk in body)


def layout_text(layout: Layout) -> str:
    """Return the layout as Megatron-LM's ``pipeline_model_parallel_layout`` string."""
    chunks = ["t" * count for count in layout.chunk_layers]
    chunks[0] = "E" + chunks[0]
    chunks[-1] += "L"
    return "|".join(chunks)
