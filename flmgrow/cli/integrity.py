"""``flmgrow verify --integrity``: whether one checkpoint is as it was written."""

from pathlib import Path

from flmgrow.checked import check_source
from flmgrow.cli import report
from flmgrow.cli.in_ranks import meeting_beside
from flmgrow.cli.printing import json_text
from flmgrow.cli.progress import progress_bar
from flmgrow.cli.reading import SourceOptions
from flmgrow.storage.world import World


def show_integrity(path: Path, reading: SourceOptions, as_json: bool, world: World) -> int:
    """Check every sum of the checkpoint at ``path``, print what was found; return the exit code.

    The ranks of ``world`` share the files; they meet beside it, or in its scratch folder.
    """
    with (
        reading.open(path) as source,
        meeting_beside(source.path if source.hub else path, world) as ranks,
    ):
        found = check_source(source, progress_bar, ranks)
        if as_json:
            print(json_text(found.to_json()))
        else:
            print("\n".join([*report.check_lines(found.checks), found.text]))
    return found.exit_code
