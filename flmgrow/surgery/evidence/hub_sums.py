"""The sums by which the Hugging Face Hub knows a file that it gave: its SHA-256, or Git's.

Its cache gives a file its sum as a name. A folder that something was downloaded to
(``hf download --local-dir``) has them in ``.cache/huggingface``, each with the moment at which the
file was complete. They are of whole files: which tensor was damaged they cannot tell.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.surgery.execution import Progress

KEPT = (".cache", "huggingface")
"""Where huggingface_hub keeps what it knows, in a folder that it downloads to."""

_DOWNLOADED = (*KEPT, "download")
_RECORD = ".metadata"
_PIECE = 1 << 20
_SECOND = 1.0
"""By so much a file's own time may be later than the moment in its record."""

_KINDS: dict[int, tuple[str, Callable[[], "hashlib._Hash"]]] = {
    64: ("SHA-256 of the Hub", hashlib.sha256),
    40: ("SHA-1 of Git", lambda: hashlib.sha1(usedforsecurity=False)),
}
"""By the digits of a sum."""


@dataclass(frozen=True)
class HubSum:
    """The ``digest`` of a file, and until when nobody has written into it; None for ever."""

    digest: str
    moment: float | None = None

    def is_outdated(self, path: Path) -> bool:
        """Whether the file was written to after it had come."""
        return self.moment is not None and path.stat().st_mtime - _SECOND > self.moment

    def check(self, path: Path, progress: Progress) -> str:
        """Return the kind of sum, or "" if another file has taken the place since.

        Raises:
            BadCheckpointError: If the file is not what came.
        """
        kind, make = _KINDS[len(self.digest)]
        found = make()
        if len(self.digest) == 40:
            found.update(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
                progress(len(piece))
        if found.hexdigest() == self.digest:
            return kind
        if self.is_outdated(path):
            return ""
        raise BadCheckpointError(
            f"damaged: {kind} {found.hexdigest()}, the Hub says {self.digest}",
            "remove it and fetch it again",
            where=path,
        )


def _sum(text: str, moment: float | None = None) -> HubSum | None:
    is_one = len(text) in _KINDS and set(text) <= set("0123456789abcdef")
    return HubSum(text, moment) if is_one else None


def sum_in_cache(path: Path) -> HubSum | None:
    """Return the sum that the Hub's cache names a file by; a cache without links has none."""
    return _sum(path.resolve().name) if path.is_symlink() else None


def sums_beside(root: Path, files: Iterable[Path]) -> dict[Path, HubSum]:
    """Return what the records among the ``files`` in a folder say of files that came to it.

    What is no record says nothing.
    """
    found = {}
    for path in files:
        parts = path.relative_to(root).parts
        if parts[: len(_DOWNLOADED)] != _DOWNLOADED or path.suffix != _RECORD:
            continue
        try:
            _, digest, moment, *_ = path.read_text().split()
            known = _sum(digest, float(moment))
        except (OSError, ValueError):
            continue
        if known is not None:
            found[root.joinpath(*parts[len(_DOWNLOADED) :]).with_suffix("")] = known
    return found


def is_kept_by_hub(root: Path, path: Path) -> bool:
    """Whether a file is huggingface_hub's own, and none of the checkpoint."""
    return path.is_relative_to(root) and path.relative_to(root).parts[: len(KEPT)] == KEPT
