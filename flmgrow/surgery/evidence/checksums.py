"""Checksums: every sum that a checkpoint's files carry, and every file against what lists it.

That is the manifest of what flmgrow's surgery wrote, and the training state of what its trainer
saved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import manifest_of
from flmgrow.formats.history.training_state import TRAINING, read_training_state
from flmgrow.storage.checksums import FileRecord, verify_files
from flmgrow.surgery.evidence.check import Check


@dataclass(frozen=True)
class Listed:
    """What ``recorded_in`` says of the files in ``folder``."""

    folder: Path
    records: tuple[FileRecord, ...]
    recorded_in: str

    def check(self, progress: Callable[[int], None]) -> None:
        """Raise BadCheckpointError for the first file that is not as it was recorded."""
        verify_files(self.folder, self.records, progress, self.recorded_in)


def listed_files(checkpoint: Checkpoint) -> list[Listed]:
    """Return every list of files that an opened checkpoint has; none of them is empty.

    Raises BadCheckpointError for one that cannot be read.
    """
    found = []
    if (manifest := manifest_of(checkpoint)) is not None:
        found.append(Listed(checkpoint.path, manifest.files, "manifest"))
    if (training := read_training_state(checkpoint.folder)) is not None:
        found.append(Listed(checkpoint.folder, training.files, TRAINING))
    return [each for each in found if each.records]


def check_sums(checkpoint: Checkpoint, progress: Callable[[int], None]) -> Check:
    """Read all files of ``checkpoint`` and compare every sum there is."""
    name = f"checksums of {checkpoint.name}"
    try:
        sums = checkpoint.contents.verify(progress)
        lists = listed_files(checkpoint)
        for listed in lists:
            listed.check(progress)
    except BadCheckpointError as error:
        return Check(name, False, error.message)
    *kinds, last = (*sums, "xxh3") if lists else sums or ("",)
    if not last:
        return Check(name, None, "it keeps none")
    named = f"{', '.join(kinds)} and {last}" if kinds else last
    count = checkpoint.contents.count
    return Check(
        name, True, f"{named} of {count} {'file matches' if count == 1 else 'files match'}"
    )
