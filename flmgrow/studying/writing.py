"""The files of a study's report; and whether they can be made, asked before hours of training."""

import json
from pathlib import Path

from flmgrow.prediction.packages import scipy
from flmgrow.stages.drawing import drawn
from flmgrow.storage.durable import write_small
from flmgrow.studying.picture import picture
from flmgrow.studying.report import StudyReport
from flmgrow.studying.tables import readings_table, runs_table
from flmgrow.studying.wording import markdown

PICTURES = ("study.png", "study.svg")


def check_packages() -> None:
    """Raise UsageError if what a report needs (scipy, matplotlib) is not installed."""
    for part in ("stats", "interpolate"):
        scipy(part)
    drawn("svg", (1.0, 1.0), lambda figure: None)


def write_report(folder: Path, report: StudyReport) -> None:
    """Write ``report.md``, ``results.json``, ``runs.csv``, ``readings.csv`` and pictures.

    Raises:
        StorageError: The file system failed.
        UsageError: When all else is written, if matplotlib is missing.
    """
    results = json.dumps(report.to_json(), indent=1, allow_nan=False)
    for name, text in (
        ("report.md", markdown(report)),
        ("results.json", results),
        ("runs.csv", runs_table(report.measured)),
        ("readings.csv", readings_table(report.measured)),
    ):
        write_small(folder / name, text.encode())
    for name in PICTURES:
        write_small(folder / name, picture(report, name.rpartition(".")[2]))
