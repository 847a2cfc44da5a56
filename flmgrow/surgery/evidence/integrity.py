"""Whether the files of one checkpoint are what they were when they were written.

Nothing is compared with another checkpoint: only with the sums that the files carry or that lie
beside them. Disks rot, copies break off; which file it hit is what one wants to know, and which
files nobody could tell it of.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.formats.checkpoint import Checkpoint, FileSums
from flmgrow.formats.history.manifest import MANIFEST, read_manifest
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.formats.megatron.folders import TRACKER
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.integrity import INTEGRITY
from flmgrow.formats.torch_file.file import TorchFile, check_records
from flmgrow.storage.ranks import ALONE, Ranks
from flmgrow.storage.remote.marker import FOLDER as MARKS
from flmgrow.surgery.evidence.arguments import check_iteration
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.checksums import ListedFiles, listed_files
from flmgrow.surgery.evidence.copies import check_copies
from flmgrow.surgery.evidence.hub_sums import (
    HubSum,
    is_kept_by_hub,
    sum_in_cache,
    sums_beside,
)
from flmgrow.surgery.evidence.manifests import check_manifest
from flmgrow.surgery.evidence.sharing import described, done_in_shares, told_by
from flmgrow.surgery.execution import Progress

_ARCHIVE = b"PK\x03\x04"
_FOR_PEOPLE = re.compile(r"README\.md|LICENSE(\..+)?|NOTICE(\..+)?|\.gitattributes")
"""Files that may be edited at any time, as a model card is, without harm to the model."""


@dataclass(frozen=True, eq=False)
class _Files:
    """The files of a checkpoint, and what is known of each."""

    checkpoint: Checkpoint

    @cached_property
    def there(self) -> list[Path]:
        """Every file in the iteration's folder."""
        found = self.checkpoint.folder.rglob("*")
        return [path for path in found if path.is_file() and MARKS not in path.parts]

    @cached_property
    def downloaded(self) -> dict[Path, HubSum]:
        """What is known of files that were downloaded to the folder."""
        return sums_beside(self.checkpoint.folder, self.there)

    def of_hub(self, path: Path) -> HubSum | None:
        """Return the sum by which the Hub knows a file."""
        in_cache = sum_in_cache(path) if self.checkpoint.hub is not None else None
        return in_cache or self.downloaded.get(path)

    @property
    def paths(self) -> list[Path]:
        """Every file of the iteration's folder, and those of the root that belong to all."""
        root = self.checkpoint.path
        found = {path for path in self.there if not is_kept_by_hub(root, path)}
        found |= {path for path in (root / MANIFEST, root / TRACKER) if path.is_file()}
        found |= self.listed.keys()
        return sorted(found | self.sums.keys())

    @cached_property
    def sums(self) -> dict[Path, FileSums]:
        return dict(self.checkpoint.contents.sums())

    @cached_property
    def listed(self) -> dict[Path, ListedFiles]:
        """What a list says of each file alone; nothing if a list cannot be read."""
        try:
            lists = listed_files(self.checkpoint)
        except BadCheckpointError:
            return {}
        return {
            each.folder / record.path: replace(each, records=(record,))
            for each in lists
            for record in each.records
        }

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.checkpoint.path))

    def kinds(self, path: Path, progress: Progress) -> Iterator[str]:
        """Yield the kinds of sums that match.

        Raises:
            BadCheckpointError: For one that does not.
        """
        if path in self.sums:
            yield from self.sums[path](progress)
        elif path.suffix == ".pt" and _is_archive(path):  # what it holds was not understood
            with TorchFile(path) as file:
                yield from check_records(file, progress)
        if (listed := self.listed.get(path)) is not None:
            listed.check(progress)
            yield "xxh3"
        if (known := self.of_hub(path)) is not None and (kind := known.check(path, progress)):
            yield kind
        if path.name == MANIFEST and (manifest := read_manifest(path.parent)) is not None:
            yield from ["its own sum"] if manifest.has_sum else []
        if path.name == TRAINING and (state := read_training_state(path.parent)) is not None:
            yield from ["its own sum"] if state.has_sum else []
        if path.name == TRACKER:
            yield "the iteration that it names"
        if path.name == INTEGRITY and isinstance(self.checkpoint.contents, DistFolder):
            yield "its list"


def _is_archive(path: Path) -> bool:
    """Whether a file begins as those that torch.save writes, which carry sums."""
    with path.open("rb") as file:
        return file.read(len(_ARCHIVE)) == _ARCHIVE


def _check_file(files: _Files, path: Path, progress: Progress) -> Check:
    name = files.name(path)
    try:
        kinds = list(files.kinds(path, progress))
    except (BadCheckpointError, StorageError) as error:
        return Check(name, False, error.relative_to(path).message)
    if not kinds and _FOR_PEOPLE.fullmatch(path.name):
        return Check(name, None, "no checksum covers it; it is for people, and nothing loads it")
    if not kinds:
        edited = "it was changed after the Hub gave it: " if files.of_hub(path) else ""
        return Check(name, None, f"{edited}no checksum covers it", missing="unproven")
    *most, last = kinds
    named = f"{', '.join(most)} and {last}" if most else last
    return Check(name, True, f"{named} {'matches' if len(kinds) == 1 else 'match'}")


def check_integrity(
    checkpoint: Checkpoint, progress: Progress, ranks: Ranks = ALONE
) -> list[Check]:
    """Return a check for every file of a checkpoint, and for its copies, manifests and iteration.

    States beside the weights are looked at if they are at hand. Ranks share the files.
    """
    files = _Files(checkpoint)

    def told(nbytes: int) -> None:
        progress(nbytes)
        ranks.report(nbytes)

    def outcome(path: Path) -> dict[str, Any]:
        return described(_check_file(files, path, told))

    ranks.watch(progress)
    jobs = [(_size(path), partial(outcome, path)) for path in files.paths]
    checks = [told_by(found) for found in done_in_shares(jobs, ranks)]
    checks += check_iteration(checkpoint)
    if all(check.passed is not False for check in checks):  # else their values are not to be had
        checks += check_copies(checkpoint)
        checks += [check for check in check_manifest(checkpoint) if check.passed is False]
    return checks


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def integrity_bytes(checkpoint: Checkpoint) -> int:
    """Return how many bytes are read for it, about."""
    files = _Files(checkpoint)
    passes = 2 if files.listed or files.downloaded or checkpoint.hub is not None else 1
    return checkpoint.nbytes * passes
