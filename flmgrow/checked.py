"""Whether one checkpoint is as it was written, by every sum that its files carry."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from flmgrow.given import ReadOptionsGiven
from flmgrow.opened import Source, opened, read_options
from flmgrow.storage.ranks import ALONE, Ranks
from flmgrow.storage.strict_json import Json
from flmgrow.surgery.evidence.check import Check, Verdict
from flmgrow.surgery.evidence.integrity import check_integrity, integrity_bytes
from flmgrow.surgery.evidence.progress import Bar, no_bar
from flmgrow.surgery.evidence.states import with_known_states


@dataclass(frozen=True)
class Integrity(Verdict):
    """What all checks of the checkpoint called ``name`` come to: ``equal`` says that it is intact,
    ``missing`` which files no sum covers.
    """

    name: str

    @property
    def text(self) -> str:
        """The verdict on one line."""
        if not self.equal:
            return "DAMAGED"
        if not self.missing:
            return "intact"
        return f"no damage found, NOT PROVEN: {len(self.missing)} of {len(self.checks)}"

    def to_json(self) -> Json:
        """Return it as plain data."""
        return {
            "checkpoint": self.name,
            "intact": self.equal,
            "proven": self.proven,
            "missing": self.missing,
            "checks": [_check(check) for check in self.checks],
        }


def integrity(
    path: str | os.PathLike[str], iteration: int | None = None, **options: Unpack[ReadOptionsGiven]
) -> Integrity:
    """Check every sum of the checkpoint at ``path``, copies included; ``.equal`` says that nothing
    is damaged, ``.proven`` that a sum covers every file.

    Raises:
        FlmgrowError: As :func:`flmgrow.open` does.
    """
    with Source(opened(Path(path), iteration, read_options(**options))) as source:
        return check_source(source)


def check_source(source: Source, bar: Bar = no_bar, ranks: Ranks = ALONE) -> Integrity:
    """Check every sum of an opened checkpoint. ``ranks``, which all call it, share the files;
    ``bar`` shows how far they are.
    """
    ranks.meet(source.checkpoint.contents.digest())
    checkpoint, unread = with_known_states(source.checkpoint)
    with bar(integrity_bytes(checkpoint), "checking") as progress:
        return Integrity([*unread, *check_integrity(checkpoint, progress, ranks)], checkpoint.name)


def _check(check: Check) -> Json:
    fields = ("name", "passed", "missing", "detail")
    return {field: getattr(check, field) for field in fields}
