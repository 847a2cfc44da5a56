"""The receipt: what verification found, kept in the result's manifest."""

from datetime import UTC, datetime

from flmgrow import __version__
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import MANIFEST, Json, encode, manifest_of
from flmgrow.storage.durable import write_small
from flmgrow.surgery.evidence.check import Verdict


def receipt(source: Checkpoint, verdict: Verdict) -> Json:
    """Return what verification found, as plain data for the result's manifest.

    ``equal`` says that no difference was found, ``proven`` that no evidence was ``missing``.
    """
    return {
        "flmgrow": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "source": source.name,
        "source_digest": source.contents.digest(),
        "equal": verdict.equal,
        "proven": verdict.proven,
        "missing": verdict.missing,
        "checks": [
            {
                "name": c.name,
                "passed": c.passed,
                "missing": c.missing,
                "detail": c.detail,
                **c.numbers,
            }
            for c in verdict.checks
        ],
    }


def write_receipt(result: Checkpoint, content: Json) -> bool:
    """Put the receipt into the result's manifest; return False if there is no manifest."""
    manifest = manifest_of(result)
    if manifest is None:
        return False
    write_small(result.path / MANIFEST, encode({**manifest, "receipt": content}))
    return True
