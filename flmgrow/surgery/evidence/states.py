"""States beside the weights, where nothing says that they must be understood."""

from flmgrow.errors import BadCheckpointError, IncompleteCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.opening import with_optimizer
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
