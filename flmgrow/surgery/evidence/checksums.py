"""Checksums: every sum that a checkpoint's files carry, and every file against what lists it.

That is the manifest of what flmgrow's surgery wrote, and the training state of what its trainer
saved.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import manifest_of
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.storage.checksums import FileRecord, check_sizes, verify_files
from flmgrow.storage.ranks import ALONE, Ranks
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.sharing import done_in_shares
from flmgrow.surgery.execution import Progress

LISTED = "xxh3"
"""The sum that lists of files have."""


@dataclass(frozen=True)
class ListedFiles:
    """What ``recorded_in`` says of the files in ``folder``."""

    folder: Path
    records: tuple[FileRecord, ...]
    recorded_in: str

    def check(self, progress: Callable[[int], None]) -> None:
        """Raise BadCheckpointError for the first file that is not as it was recorded."""
        verify_files(self.folder, self.records, progress, self.recorded_in)


def listed_files(checkpoint: Checkpoint) -> list[ListedFiles]:
    """Return every list of files that an opened checkpoint has; none of them is empty.

    Raises:
        BadCheckpointError: For one that cannot be read.
    """
    found = []
    if (manifest := manifest_of(checkpoint)) is not None:
        found.append(ListedFiles(checkpoint.path, manifest.files, "manifest"))
    if (training := read_training_state(checkpoint.folder)) is not None:
        found.append(ListedFiles(checkpoint.folder, training.files, TRAINING))
    return [each for each in found if each.records]


Checked = tuple[list[str], str]
"""The kinds of sums that match, and what is wrong, or ""."""


def check_sums(checkpoint: Checkpoint, progress: Progress, ranks: Ranks = ALONE) -> Check:
    """Read all files of ``checkpoint`` and compare every sum there is; ranks share the files."""
    name = f"checksums of {checkpoint.name}"

    def told(nbytes: int) -> None:
        progress(nbytes)
        ranks.report(nbytes)

    jobs = [(cost, partial(_outcome, check, told)) for cost, check in _checks(checkpoint)]
    ranks.watch(progress)
    outcomes = done_in_shares(jobs, ranks, lambda outcome: bool(outcome[1]))
    if outcomes and (wrong := outcomes[-1][1]):
        return Check(name, False, wrong)
    found = {kind for kinds, _ in outcomes for kind in kinds}
    *kinds, last = [*sorted(found - {LISTED}), *sorted(found & {LISTED})] or [""]
    if not last:
        return Check(name, None, "it keeps none")
    named = f"{', '.join(kinds)} and {last}" if kinds else last
    count = checkpoint.contents.count
    return Check(
        name, True, f"{named} of {count} {'file matches' if count == 1 else 'files match'}"
    )


def _checks(checkpoint: Checkpoint) -> Iterator[tuple[int, Callable[[Progress], Iterable[str]]]]:
    """Yield what checks each sum, with the bytes that it reads, in the order that they count in."""
    for path, check in checkpoint.contents.sums().items():
        yield path.stat().st_size if path.is_file() else 0, check
    try:
        lists = listed_files(checkpoint)
    except BadCheckpointError as error:
        yield 0, partial(_raise, error)
        return
    for listed in lists:
        yield 0, partial(_check_sizes, listed)
        for record in listed.records:
            yield record.size, partial(_check_listed, listed, record)


def _check_sizes(listed: ListedFiles, _: Progress) -> Iterable[str]:
    check_sizes(listed.folder, listed.records, listed.recorded_in)
    return [LISTED]


def _check_listed(listed: ListedFiles, record: FileRecord, progress: Progress) -> Iterable[str]:
    verify_files(listed.folder, [record], progress, listed.recorded_in)
    return [LISTED]


def _raise(error: BadCheckpointError, _: Progress) -> Iterable[str]:
    raise error


def _outcome(check: Callable[[Progress], Iterable[str]], progress: Progress) -> Checked:
    try:
        return list(check(progress)), ""
    except BadCheckpointError as error:
        return [], error.message
