"""The fields that Granite has beside Llama's: what embeddings, scores, branches and logits take.

transformers divides logits where a model description multiplies them, and not every float is the
quotient by another one. What no divisor says to the last bit is said again by a field of our own,
which transformers passes over.
"""

from math import isfinite, ulp
from typing import Any

from flmgrow.formats.huggingface.fields.row import GRANITE, Field, Use, number, optional_number
from flmgrow.formats.huggingface.fields.switch_rows import MULTIPLIER, ONE
from flmgrow.model.config import ModelConfig

_ONLY = (GRANITE,)
_NEAR = range(-2, 3)


def _divisor(config: ModelConfig) -> float | None:
    """Return the number by which logits are divided; the shortest one, if several say the same.

    None for a model whose logits no number divides rightly.
    """
    width, output = config.width_multiplier, config.multipliers.output
    nearest = width / output if output else 0.0
    if not nearest or not isfinite(nearest):
        return None
    around = [nearest + steps * ulp(nearest) for steps in _NEAR]
    exact = [divisor for divisor in around if width / divisor == output]
    return min(exact, key=lambda divisor: len(repr(divisor)), default=nearest)


def _undivided(config: ModelConfig) -> float | None:
    """Return the output multiplier where a divisor says it, but not to the last bit."""
    divisor, output = _divisor(config), config.multipliers.output
    said = divisor is None or config.width_multiplier / divisor == output
    return None if said else output


EMBEDDING = Field(
    "embedding_multiplier",
    (Use(_ONLY, number, 1.0, lambda config: config.multipliers.embedding),),
    neutral=ONE,
    changes=MULTIPLIER,
)
ATTENTION = Field(
    "attention_multiplier",
    (Use(_ONLY, number, 1.0, lambda config: config.attention_factor(0)),),
    neutral=(None,),
    changes=MULTIPLIER,
)
"""In place of 1/sqrt(head_dim), not beside it."""

RESIDUAL = Field(
    "residual_multiplier",
    (Use(_ONLY, number, 1.0, lambda config: config.multipliers.residual),),
    neutral=ONE,
    changes=MULTIPLIER,
)
LOGITS = Field(
    "logits_scaling", (Use(_ONLY, number, 1.0, _divisor),), neutral=ONE, changes=MULTIPLIER
)
OUTPUT = Field(
    "flmgrow_output_multiplier", (Use(_ONLY, optional_number, value=_undivided, optional=True),)
)
"""A field of our own: the output multiplier, where ``LOGITS`` cannot say it to the last bit."""

GRANITE_ROWS: tuple[Field[Any], ...] = (EMBEDDING, ATTENTION, RESIDUAL, LOGITS, OUTPUT)
