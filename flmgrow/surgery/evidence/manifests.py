"""Manifests: what says how a checkpoint came about must itself be what was written.

Its sum was compared when it was read (:mod:`flmgrow.formats.history.manifest`). It lies in two
places, as an iteration is often moved alone, and either may be read: both must say the same.
"""

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import content_of, manifests_of
from flmgrow.surgery.evidence.check import Check


def check_manifest(checkpoint: Checkpoint) -> list[Check]:
    """Compare the manifests of a checkpoint with their sums and with each other; [] without any."""
    found = manifests_of(checkpoint)
    if not found:
        return []
    name = f"manifest of {checkpoint.name}"
    (first, manifest), *others = found.items()
    for path, other in others:
        if content_of(other.to_json()) != content_of(manifest.to_json()):
            where = [each.relative_to(checkpoint.path) for each in (path, first)]
            return [Check(name, False, f"{where[0]} and {where[1]} do not say the same")]
    if not all(manifest.has_sum for manifest in found.values()):
        return [Check(name, None, "has no sum: an earlier version of flmgrow wrote it")]
    return [Check(name, True, "its own sum matches" + (", in both places" if others else ""))]
