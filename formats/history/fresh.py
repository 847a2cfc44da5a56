"""Which indices of which axes a checkpoint's last growth made.

A mask says so, too, but is forgotten when it has opened. What was fresh stays of interest: whoever
watches a training asks whether the new part learns as the old one does, and whoever trains only
what is new must know what that is. A copy counts as fresh, and what it was copied from does not.
What changes no unit (another layout or format) leaves it as it is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import manifest_of
from flmgrow.formats.history.training_file import training_state_in
from flmgrow.model.arrays import IntArray
from flmgrow.model.axes import Axis
from flmgrow.model.masks import Fresh, fresh_from_json
from flmgrow.storage.strict_json import Json


def fresh_of(checkpoint: Checkpoint) -> Fresh:
    """Return what the last growth of an opened checkpoint made; nothing if none is known."""
    if (training := training_state_in(checkpoint.folder)) is not None:
        return training.fresh
    manifest = manifest_of(checkpoint)
    if manifest is None:
        return {}
    if manifest.fresh is None:
        return fresh_in(manifest.growth.axes)
    return fresh_from_json(manifest.fresh)


def fresh_in(axes: Mapping[str, Sequence[Json]]) -> Fresh:
    """Return what a growth made whose axes have these runs, as manifests of earlier versions say
    it; padding, which these do not tell from what is fresh, is among it.
    """
    return {Axis(axis): found for axis, runs in sorted(axes.items())
            if len(found := fresh_indices(runs))}  # fmt: skip


def fresh_indices(runs: Sequence[Json]) -> IntArray:
    """Return the new indices (fresh,) in the runs of a manifest that have no source, or one that an
    earlier index has, too.
    """
    seen = np.zeros(0, np.int64)
    found = [seen]
    for run in runs:
        new = np.arange(*run["new"], dtype=np.int64)
        if "old" not in run:
            found.append(new)
            continue
        old = np.arange(run["old"], run["old"] + len(new), dtype=np.int64)
        found.append(new[np.isin(old, seen)])
        seen = np.concatenate((seen, old))
    return np.concatenate(found)
