"""What the ranks of a checkpoint hold beside weights: arguments, and everything that is carried."""

from collections.abc import Mapping

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import shown
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.torch_file.objects import namespace
from flmgrow.text import Found, Text

EXTRA_STATE = "_extra_state"

KINDS: Mapping[str, str] = {
    "optimizer": "optimizer state",
    "opt_param_scheduler": "learning-rate schedule",
    "rng_state": "random number state",
    "rerun_state_machine": "rerun state",
    EXTRA_STATE: "scales of Transformer Engine (_extra_state)",
}
"""What a checkpoint may hold beside weights and arguments, by key, in words."""


def arguments_in(content: Mapping[object, object], where: str) -> dict[str, object]:
    """Return the attributes of the ``args`` in a rank's content; ``where`` names its file."""
    if "args" not in content:
        raise BadCheckpointError(
            "has no args", "the model cannot be known without the training arguments", where=where
        )
    version = content.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or not 2.0 <= version <= 3.0:
        raise BadCheckpointError(
            Text("checkpoint_version ", Found(shown(version))),
            "older versions order query, key and value otherwise; "
            "load and save it with Megatron-LM once",
            where=where,
            wanted="2 or 3",
        )
    try:
        return namespace(content["args"])
    except BadCheckpointError as error:
        raise error.at(where, "args") from None


def chunk_key(chunk: int, layout: Layout) -> str:
    """Return the key of a model chunk in a rank's file: ``model``, or ``model0`` and so on."""
    return "model" if layout.vpp == 1 else f"model{chunk}"
