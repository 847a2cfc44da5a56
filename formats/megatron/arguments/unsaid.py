"""What Megatron-LM's arguments cannot say of a model, found by saying it.

As with ``config.json``: the arguments of the model are read again, and what comes back changed has
no words there. So no list of abilities can be wrong; what is kept by hand are only reasons.
"""

from collections.abc import Mapping

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.megatron.arguments.model import read_config, written_arguments
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.model.config import ModelConfig
from flmgrow.model.wording import differences
from flmgrow.text import Setting, Text

_ONE_SWITCH = "its block has one switch for the biases of all projections, and one for query, key "
REASONS: Mapping[str, str] = {
    "qkv_bias": f"{_ONE_SWITCH}and value alone",
    "layer_kinds": "its layers that have a window have one, and all rotate by one base",
    "rotary.scaling_slow": "its Llama 3 scaling has Llama 3's own bands",
    "rotary.scaling_fast": "its Llama 3 scaling has Llama 3's own bands",
    "rotary.scaling_context": "its Llama 3 scaling has Llama 3's own bands",
    "rotary.yarn": "its dense models have no such scaling",
    "rotary.longrope": "its dense models have no such scaling",
    "residual": "its block adds attention before the FFN reads",
    "norm_places": "its block has norms in front of its branches",
    "qk_norm_of_all": "its norms of queries and keys measure one head each",
    "score_cap": "its attention caps no scores",
    "logit_cap": "it caps no logits",
    "activation": "Megatron-LM has no argument for an FFN gated by GELU",
    "multipliers.embedding_by_width": "no argument multiplies embeddings by the width",
    "out_bias": f"{_ONE_SWITCH}and value alone",
}
"""Why megatron-core has no place for what a field says."""


def unsaid(config: ModelConfig) -> dict[str, object]:
    """Return the fields of ``config`` that no argument says, with their values."""
    told = written_arguments(new_arguments(config, config.vocab, "float32", "local"), config)
    try:
        return differences(config, read_config(told, "args", config.vocab))
    except BadCheckpointError as error:
        raise UsageError(error.message, error.hint) from None


def refuse_unsaid(config: ModelConfig) -> None:
    """Raise UsageError, with the reasons, if megatron-core has no such model."""
    if lost := unsaid(config):
        listed = ", ".join(f"{name} {value}" for name, value in lost.items())
        why = dict.fromkeys(REASONS[name] for name in lost if name in REASONS)
        raise UsageError(
            f"megatron-core cannot express {listed}",
            Text(
                *(f"{reason}; " for reason in why),
                "keep the model as a Hugging Face folder (",
                Setting("format", "huggingface"),
                "), which every command but training takes as it is",
            ),
        )
