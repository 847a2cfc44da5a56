"""States beside the weights, where nothing says that they must be understood."""

from dataclasses import replace

from flmgrow.errors import BadCheckpointError, IncompleteCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.opening import with_optimizer
from flmgrow.model.states import State
from flmgrow.surgery.evidence.check import Check


def with_known_states(checkpoint: Checkpoint) -> tuple[Checkpoint, list[Check]]:
    """Return ``checkpoint`` with its optimizer state found; if that is not understood, it is
    missing.

    Raises:
        IncompleteCheckpointError: For one of which a part is not there.
    """
    try:
        return with_optimizer(checkpoint), []
    except IncompleteCheckpointError:
        raise
    except (BadCheckpointError, UsageError) as error:
        detail = "not compared: " + error.message
        return checkpoint, [Check("optimizer", None, detail, missing="unproven")]


def with_masters_like(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return ``checkpoint`` with its float32 weights as its masters, if ``other`` has masters.

    An optimizer that is not distributed keeps none of float32 weights: they are what it updates.
    """
    own = checkpoint.state_readers
    wanted = State.MASTER in other.state_readers and State.MASTER not in own
    if not (wanted and own and checkpoint.dtype == "float32"):
        return checkpoint
    return replace(checkpoint, state_readers={State.MASTER: checkpoint.reader, **own})
