"""Fields to ``ModelConfig`` for Gemma 1 to 3.

All multiply embeddings by the root of the width, store gains less one, and gate their FFN by GELU.
Gemma 2 norms what branches add, too, caps scores and logits, and lets every second layer slide.
Gemma 3 norms queries and keys in place of the caps; layers that slide rotate by their own base.
"""

from dataclasses import replace
from typing import Any

from flmgrow.formats.huggingface.fields import model_rows as rows
from flmgrow.formats.huggingface.fields.gemma_rows import LOGIT_CAP, QUERY_SCALAR, SCORE_CAP
from flmgrow.formats.huggingface.fields.row import FieldReader
from flmgrow.formats.huggingface.llama import decoder
from flmgrow.formats.huggingface.parts import exact_heads
from flmgrow.formats.huggingface.rotary import not_positive
from flmgrow.model.config import ModelConfig, Multipliers


def _gemma(reader: FieldReader, **parts: Any) -> ModelConfig:
    biased = rows.ATTENTION_BIAS.read(reader)
    usual: dict[str, object] = {
        "activation": rows.GATED_ACTIVATIONS[rows.HIDDEN_ACTIVATION.read(reader)],
        "multipliers": Multipliers(embedding_by_width=True),
    }
    return decoder(
        reader,
        norm="rmsnorm",
        norm_eps=rows.RMS_NORM_EPS.read(reader),
        zero_centred_gain=True,
        linear_bias=False,
        qkv_bias=biased,
        out_bias=biased,
        **{**usual, **parts},
    )


def read_gemma(reader: FieldReader) -> ModelConfig:
    """Gemma 1: a Llama with another gate, other gains, and larger embeddings."""
    rows.HIDDEN_ACT.read(reader)
    return _gemma(reader)


def _normed_around(reader: FieldReader) -> ModelConfig:
    """What Gemma 2 and 3 have in common."""
    exact_heads(reader, rows.HIDDEN, rows.HEADS)  # transformers 5 insists on it
    scalar = QUERY_SCALAR.read(reader)
    if scalar <= 0:
        raise not_positive(reader, QUERY_SCALAR.name, scalar)
    return _gemma(
        reader,
        norm_places="around",
        logit_cap=LOGIT_CAP.read(reader),
        multipliers=Multipliers(embedding_by_width=True, attention=scalar**-0.5),
    )


def read_gemma2(reader: FieldReader) -> ModelConfig:
    """Gemma 2, which caps its scores."""
    return replace(_normed_around(reader), score_cap=SCORE_CAP.read(reader))


def read_gemma3(reader: FieldReader) -> ModelConfig:
    """Gemma 3, of text: norms of queries and keys in place of the cap."""
    return replace(_normed_around(reader), qk_norm=True)
