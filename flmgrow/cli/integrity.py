"""``flmgrow verify --integrity``: whether one checkpoint is as it was written."""

from pathlib import Path

from flmgrow.cli import report
from flmgrow.cli.in_ranks import meeting_beside
from flmgrow.cli.printing import json_text
from flmgrow.cli.progress import progress_bar
from flmgrow.cli.reading import Reading
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import World
from flmgrow.surgery.evidence.check import Check, Verdict
from flmgrow.surgery.evidence.integrity import check_integrity, integrity_bytes
from flmgrow.surgery.evidence.states import with_known_states


def show_integrity(
    path: Path, reading: Reading, as_json: bool, world: World, scratch: Path | None
) -> int:
    """Check every sum of the checkpoint at ``path``, print what was found; return the exit code.

    The ranks of ``world`` share the files; they meet beside it, or in ``scratch``.
    """
    with (
        reading.open(path) as opened,
        meeting_beside(opened.path if opened.hub else path, scratch, world) as ranks,
    ):
        ranks.meet(opened.contents.digest())
        checkpoint, unread = with_known_states(opened)
        with progress_bar(integrity_bytes(checkpoint), "checking") as progress:
            verdict = Verdict([*unread, *check_integrity(checkpoint, progress, ranks)])
        if as_json:
            print(json_text(_data(opened.name, verdict)))
        else:
            print("\n".join([*report.check_lines(verdict.checks), _text(verdict)]))
    return verdict.exit_code


def _text(verdict: Verdict) -> str:
    if not verdict.equal:
        return "DAMAGED"
    if not verdict.missing:
        return "intact"
    return f"no damage found, NOT PROVEN: {len(verdict.missing)} of {len(verdict.checks)}"


def _data(name: str, verdict: Verdict) -> Json:
    return {
        "checkpoint": name,
        "intact": verdict.equal,
        "proven": verdict.proven,
        "missing": verdict.missing,
        "checks": [_check(check) for check in verdict.checks],
    }


def _check(check: Check) -> Json:
    fields = ("name", "passed", "missing", "detail")
    return {field: getattr(check, field) for field in fields}
