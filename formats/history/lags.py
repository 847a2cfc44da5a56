"""Which parameters of a checkpoint Adam has counted less for, or has no state of.

The files of a checkpoint say of a state that it is missing, but not whether it should be there.
"""

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import manifest_of
from flmgrow.formats.history.training_file import training_state_in
from flmgrow.formats.layout.lags import NO_LAGS, Lags


def lags_of(checkpoint: Checkpoint) -> Lags:
    """Return what an opened checkpoint says of its own optimizer state."""
    if (training := training_state_in(checkpoint.folder)) is not None:
        return training.lags
    manifest = manifest_of(checkpoint)
    return NO_LAGS if manifest is None or manifest.lags is None else manifest.lags.lags
