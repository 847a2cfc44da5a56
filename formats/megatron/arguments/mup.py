"""Reading a model's constant factors, from megatron-core's arguments for muP or from ours."""

from math import isclose

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import ArgumentReader
from flmgrow.formats.megatron.arguments import model_rows as rows
from flmgrow.formats.megatron.arguments import mup_rows as mup
from flmgrow.formats.megatron.arguments.row import Arguments
from flmgrow.model.config import Multipliers, Positions
from flmgrow.text import Found, Text


def mup_options(before: Arguments, after: Arguments) -> str:
    """Return the options of Megatron-LM that say what has changed of megatron-core's own muP."""
    if not mup.is_native(after):
        return ""
    changed = [row for row in mup.NATIVE_ROWS if row.get(after) != row.get(before)]
    return " ".join(f"--{row.name.replace('_', '-')} {row.get(after)!r}" for row in changed)


def read_multipliers(
    reader: ArgumentReader, hidden: int, head_dim: int, positions: Positions
) -> Multipliers:
    """Return the multipliers of a model of these sizes and positions.

    Raises:
        BadCheckpointError: For a malformed value, for two arguments that contradict each other, and
            for embeddings that are multiplied with their positions.
    """
    scale = rows.SOFTMAX_SCALE.read(reader)
    base: int | None
    output: float | None
    if mup.USE_MUP.read(reader):
        width = mup.NATIVE_BASE.read(reader) or hidden
        base, output = width, _native_output(reader, hidden / width)
        embedding = _native_embedding(reader, positions)
        scale = _native_scale(reader, head_dim) if scale is None else scale
    else:
        base = mup.MUP_BASE_WIDTH.read(reader)
        embedding = mup.EMBEDDING_MULTIPLIER.read(reader)
        output = mup.OUTPUT_MULTIPLIER.read(reader)
    return Multipliers(
        embedding=embedding,
        output=1.0 if output is None else output,
        mup_base_width=base,
        attention=scale,
        attention_by_inverse_layer=rows.BY_INVERSE_LAYER.read(reader),
        residual=rows.RESIDUAL_MULTIPLIER.read(reader),
    )


def _native_scale(reader: ArgumentReader, head_dim: int) -> float:
    """Return what megatron-core multiplies scores by under muP, if nothing is said of them."""
    base = mup.BASE_HEAD_DIM.read(reader)
    scale: float = (1.0 if base is None else base**0.5) / head_dim ** mup.SCALE_POWER.read(reader)
    return scale


def _native_embedding(reader: ArgumentReader, positions: Positions) -> float:
    factor = mup.NATIVE_EMBEDDING.read(reader)
    if factor != 1.0 and positions == "learned":
        raise BadCheckpointError(
            Text(f"args.{mup.NATIVE_EMBEDDING.name}: found ", Found(f"{factor:g}")),
            "megatron-core multiplies learned positions by it, too, which flmgrow does not support",
            where=reader.where,
            wanted=f"1 where args.{rows.POSITIONS.name} is {rows.POSITION_KINDS[positions]}",
        )
    return factor


def _native_output(reader: ArgumentReader, width: float) -> float:
    """Return the output multiplier of a model ``width`` times as wide as muP's base."""
    said = mup.output_of(mup.NATIVE_OUTPUT.read(reader), width)
    exact = mup.OUTPUT_MULTIPLIER.read(reader)
    if exact is None:
        return said
    if not isclose(exact, said, rel_tol=mup.ROUNDING):
        raise BadCheckpointError(
            Text(f"args.{mup.OUTPUT_MULTIPLIER.name}: found ", Found(f"{exact!r}")),
            f"beside args.{mup.USE_MUP.name}, it says to the last bit what "
            f"args.{mup.NATIVE_OUTPUT.name} says",
            where=reader.where,
            wanted=f"{said!r}, as args.{mup.NATIVE_OUTPUT.name} has it",
        )
    return exact
