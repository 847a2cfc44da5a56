"""What several families of transformers say in the same way: heads, activations, branches."""

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.model.config import Activation, Residual
from flmgrow.text import Found, Text


def grouped_heads(reader: FieldReader) -> tuple[int, int]:
    """Return (groups, queries per group); without a number of groups, mostly one per head."""
    heads = rows.HEADS.read(reader)
    count = rows.GROUPS.read(reader, rows.GROUPS.absent(reader.family) or heads)
    if heads % count:
        raise BadCheckpointError(
            Text("found ", Found(count), f", which does not divide {rows.HEADS.name} {heads}"),
            where=(reader.where, rows.GROUPS.name),
        )
    return count, heads // count


def exact_heads(reader: FieldReader, hidden: Field[int], heads: Field[int]) -> int:
    """Return the size of a head where the heads together are as wide as the model."""
    width, count = hidden.read(reader), heads.read(reader)
    if width % count:
        raise BadCheckpointError(
            Text("found ", Found(width)),
            where=(reader.where, hidden.name),
            wanted=f"a multiple of {heads.name} {count}",
        )
    return width // count


def read_residual(reader: FieldReader, parallel: Residual) -> Residual:
    """Return how attention and FFN follow each other, in parallel as the family does it."""
    return parallel if rows.PARALLEL.read(reader) else "sequential"


def read_activation(reader: FieldReader, field: Field[str]) -> Activation:
    """Return the activation that ``field`` names."""
    return rows.ACTIVATIONS[field.read(reader)]
