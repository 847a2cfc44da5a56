"""Where the metrics of a run lie: in the folder of each stage, or in the one that is named."""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.stages.last_checkpoints import STAGE_FOLDER
from flmgrow.trainer.stage.watching import METRICS


def folder_of(path: Path) -> Path:
    """Return the folder that a run's pictures lie in."""
    return path if path.is_dir() else path.parent


def find_metrics(path: Path) -> list[Path]:
    """Return the files of metrics of a run, a stage, or the file itself, in order.

    Raises:
        UsageError: If there is none.
    """
    if path.is_file():
        return [path]
    if (path / METRICS).is_file():
        return [path / METRICS]
    numbered = [
        (int(match[1]), file)
        for file in path.glob(f"*/{METRICS}")
        if (match := STAGE_FOLDER.fullmatch(file.parent.name))
    ]
    if not numbered:
        raise UsageError(
            "no metrics in it",
            "give the folder of a run, of one of its stages, or the file",
            where=path,
            wanted=f"{METRICS} or folders NN-NAME with one each",
        )
    return [file for _, file in sorted(numbered)]
