"""FLM's ``config.json`` to ``ModelConfig``."""

from collections.abc import Mapping
from dataclasses import replace

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.huggingface.fields import flm_rows as own
from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields.row import Field, FieldReader
from flmgrow.formats.huggingface.parts import exact_heads, read_activation
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings
from flmgrow.text import Found, Text

CODE: Mapping[str, str] = {
    "AutoConfig": "configuration_flm.FLMConfig",
    "AutoModel": "modeling_flm.FLMModel",
    "AutoModelForCausalLM": "modeling_flm.FLMForCausalLM",
}
"""Which class of which shipped file each of transformers' automatic classes stands for."""


def _positive(reader: FieldReader, field: Field[float]) -> float:
    value = field.read(reader)
    if value <= 0:
        raise BadCheckpointError(
            Text("found ", Found(f"{value:g}")),
            where=(reader.where, field.name),
            wanted="a positive number",
        )
    return value


def _rotary(reader: FieldReader) -> RotarySettings:
    return RotarySettings(
        base=_positive(reader, own.THETA),
        interleaved=own.INTERLEAVED.read(reader),
        xpos_scale_base=_positive(reader, own.XPOS_SCALE_BASE),
        xpos_centre=own.XPOS_CENTRE.read(reader) or 0,
    )


def _multipliers(reader: FieldReader, hidden: int) -> Multipliers:
    scores = Multipliers(
        attention=None if rows.SCALED.read(reader) else 1.0,
        attention_by_inverse_layer=rows.BY_INVERSE_LAYER.read(reader),
    )
    if not own.USE_MUP.read(reader):
        return scores
    base = own.BASE_WIDTH.read(reader)
    wanted = own.scale_factor(hidden, base)
    if (found := own.SCALE_FACTOR.read(reader, wanted)) != wanted:
        raise BadCheckpointError(
            Text("found ", Found(f"{found:g}")),
            "only such a factor can follow the width when the model grows",
            where=(reader.where, own.SCALE_FACTOR.name),
            wanted=f"{rows.N_EMBD.name} / {own.BASE_WIDTH.name} ({wanted:g})",
        )
    return replace(
        scores,
        embedding=own.INPUT.read(reader),
        output=own.OUTPUT.read(reader),
        mup_base_width=base,
    )


def read_flm(reader: FieldReader) -> ModelConfig:
    """Return the model that an FLM's ``config.json`` describes.

    Fields that are not there have the defaults of the shipped ``FLMConfig``.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    hidden, heads = rows.N_EMBD.read(reader), rows.N_HEAD.read(reader)
    given = rows.HEAD_DIM.get(reader.arguments) is not None
    own.ENCODING.read(reader)
    return ModelConfig(
        layers=rows.N_LAYER.read(reader),
        hidden=hidden,
        ffn=rows.N_INNER.read(reader, 4 * hidden),
        kv_groups=heads,
        queries_per_group=1,
        head_dim=(
            rows.HEAD_DIM.read(reader) if given else exact_heads(reader, rows.N_EMBD, rows.N_HEAD)
        ),
        vocab=rows.VOCAB.read(reader),
        max_positions=rows.N_POSITIONS.read(reader),
        norm_eps=rows.LAYER_NORM_EPSILON.read(reader),
        activation=read_activation(reader, rows.ACTIVATION_FUNCTION),
        tied=rows.TIED.read(reader),
        positions="xpos" if own.USE_XPOS.read(reader) else "rope",
        rotary=_rotary(reader),
        multipliers=_multipliers(reader, hidden),
    )
