"""What a search found, as files in its folder: for people, for programs, and as a picture."""

import json
from pathlib import Path

from flmgrow.searching.picture import picture
from flmgrow.searching.report import Report
from flmgrow.searching.wording import markdown
from flmgrow.storage.durable import write_small


def write_report(folder: Path, report: Report) -> None:
    """Write ``report.md``, ``results.json`` and ``search.png``.

    Raises:
        StorageError: The file system failed.
    """
    write_small(folder / "report.md", markdown(report).encode())
    write_small(folder / "results.json", json.dumps(report.to_json(), indent=1).encode())
    write_small(folder / "search.png", picture(report, "png"))
