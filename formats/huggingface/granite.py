"""Granite's multipliers, as ``config.json`` says them, to a model description's."""

from math import isclose

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface.fields import granite_rows as own
from flmgrow.formats.huggingface.fields.flm_rows import BASE_WIDTH, scale_factor
from flmgrow.formats.huggingface.fields.row import FieldReader
from flmgrow.model.config import Multipliers
from flmgrow.text import Found, Text

_ROUNDING = 1e-15


def read_multipliers(reader: FieldReader, hidden: int) -> Multipliers:
    """Return the multipliers of a Granite that is ``hidden`` wide.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    base = BASE_WIDTH.read(reader)
    return Multipliers(
        embedding=own.EMBEDDING.read(reader),
        output=_output(reader, scale_factor(hidden, base)),
        mup_base_width=base,
        attention=own.ATTENTION.read(reader),
        residual=own.RESIDUAL.read(reader),
    )


def _output(reader: FieldReader, width: float) -> float:
    """Return the output multiplier of a model ``width`` times as wide as muP's base."""
    divisor = own.LOGITS.read(reader)
    if not divisor:
        raise BadCheckpointError(
            Text("found ", Found(f"{divisor:g}")),
            "logits are divided by it",
            where=(reader.where, own.LOGITS.name),
            wanted="a number other than 0",
        )
    said, exact = width / divisor, own.OUTPUT.read(reader)
    if exact is None:
        return said
    if not isclose(exact, said, rel_tol=_ROUNDING):
        raise BadCheckpointError(
            Text("found ", Found(f"{exact!r}")),
            f"it says to the last bit what {own.LOGITS.name} says; without it, that alone is read",
            where=(reader.where, own.OUTPUT.name),
            wanted=f"{said!r}, from {own.LOGITS.name}",
        )
    return exact
