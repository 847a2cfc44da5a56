"""Checksums: every sum that a checkpoint's files carry, and every file against the manifest."""

from collections.abc import Callable

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.integrity import verify_files
from flmgrow.formats.manifest_file import Json, records_of
from flmgrow.surgery.evidence.check import Check


def check_sums(
    checkpoint: Checkpoint, manifest: Json | None, progress: Callable[[int], None]
) -> Check:
    """Read all files of ``checkpoint`` and compare every sum there is."""
    name = f"checksums of {checkpoint.name}"
    try:
        sums = checkpoint.contents.verify(progress)
        records = [] if manifest is None else records_of(manifest)
        verify_files(checkpoint.path, records, progress)
    except BadCheckpointError as error:
        return Check(name, False, error.message)
    *kinds, last = (*sums, "xxh3") if records else sums or ("",)
    if not last:
        return Check(name, None, "it keeps none")
    named = f"{', '.join(kinds)} and {last}" if kinds else last
    count = checkpoint.contents.count
    return Check(
        name, True, f"{named} of {count} {'file matches' if count == 1 else 'files match'}"
    )
