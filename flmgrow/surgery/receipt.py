"""The receipt: what verification found, kept in the result's manifest."""

from datetime import UTC, datetime

from flmgrow import __version__
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import MANIFEST, encode, manifest_of
from flmgrow.formats.history.parts import CheckFinding, Receipt
from flmgrow.storage.durable import write_small
from flmgrow.surgery.evidence.check import Verdict
from flmgrow.text import COMMAND_LINE, render


def receipt(source: Checkpoint, verdict: Verdict) -> Receipt:
    """Return what verification found, for the result's manifest.

    ``equal`` says that no difference was found, ``proven`` that no evidence was ``missing``.
    """
    return Receipt(
        flmgrow=__version__,
        date=datetime.now(UTC).date().isoformat(),
        source=source.name,
        source_digest=source.contents.digest(),
        equal=verdict.equal,
        proven=verdict.proven,
        missing=tuple(verdict.missing),
        checks=tuple(
            CheckFinding(
                name=check.name,
                passed=check.passed,
                missing=check.missing,
                detail=render(check.detail, COMMAND_LINE),
                numbers=check.numbers,
            )
            for check in verdict.checks
        ),
    )


def write_receipt(result: Checkpoint, content: Receipt) -> bool:
    """Put the receipt into the result's manifest; return False if there is no manifest."""
    manifest = manifest_of(result)
    if manifest is None:
        return False
    write_small(result.path / MANIFEST, encode(manifest.changed(receipt=content)))
    return True
