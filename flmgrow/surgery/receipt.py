"""The receipt: what verification found, kept in the result's manifest."""

from collections.abc import Sequence
from datetime import UTC, datetime

from flmgrow import __version__
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.durable import write_small
from flmgrow.formats.manifest_file import MANIFEST, Json, manifest_of
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.manifest import encode


def receipt(source: Checkpoint, checks: Sequence[Check]) -> Json:
    """Return what verification found, as plain data for the result's manifest."""
    return {
        "flmgrow": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "source": source.name,
        "source_digest": source.contents.digest(),
        "equal": all(check.passed is not False for check in checks),
        "checks": [
            {"name": c.name, "passed": c.passed, "detail": c.detail, **c.numbers} for c in checks
        ],
    }


def write_receipt(result: Checkpoint, content: Json) -> bool:
    """Put the receipt into the result's manifest; return False if there is no manifest."""
    manifest = manifest_of(result)
    if manifest is None:
        return False
    write_small(result.path / MANIFEST, encode({**manifest, "receipt": content}))
    return True
