"""The fields that Gemma has beside Llama's: what scores are divided by, and caps."""

from typing import Any

from flmgrow.formats.huggingface.fields.row import (
    GEMMA2,
    GEMMA3,
    Field,
    Use,
    number,
    number_or_null,
)
from flmgrow.formats.huggingface.fields.switch_rows import CAPPED, SCALED_SCORES
from flmgrow.model.config import ModelConfig


def _score_scalar(config: ModelConfig) -> float:
    """Return the number whose inverse root scores are multiplied by, whole if it can be."""
    factor = config.attention_factor(0)
    exact = factor**-2 if factor > 0 else 0.0
    whole = round(exact)
    return whole if whole > 0 and whole**-0.5 == factor else exact


QUERY_SCALAR = Field(
    "query_pre_attn_scalar",
    (Use((GEMMA2, GEMMA3), number, 256.0, _score_scalar),),
    neutral=(None,),
    changes=SCALED_SCORES,
)
"""In place of the size of a head."""

SCORE_CAP = Field(
    "attn_logit_softcapping",
    (Use[float | None]((GEMMA2,), number_or_null, 50.0, lambda config: config.score_cap),),
    neutral=(None,),
    changes=CAPPED,
)
"""Gemma 3 has the field, too: transformers passes over it there, other programs cap. So it must be
null.
"""

LOGIT_CAP = Field(
    "final_logit_softcapping",
    (
        Use[float | None]((GEMMA2,), number_or_null, 30.0, lambda config: config.logit_cap),
        Use[float | None]((GEMMA3,), number_or_null, None, lambda config: config.logit_cap),
    ),
    neutral=(None,),
    changes=CAPPED,
)

GEMMA_ROWS: tuple[Field[Any], ...] = (QUERY_SCALAR, SCORE_CAP, LOGIT_CAP)
