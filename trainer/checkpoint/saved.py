"""A folder of checkpoints: which iterations are in it, without opening one."""

from pathlib import Path

from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.megatron.folders import folder_name


def iterations(folder: Path) -> list[int]:
    """Return the iterations in a folder of checkpoints, in rising order."""
    names = (path.name.removeprefix("iter_") for path in folder.glob("iter_*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def saved_iterations(folder: Path) -> list[int]:
    """Return those that flmgrow's trainer saved there."""
    return [n for n in iterations(folder) if (folder / folder_name(n) / TRAINING).is_file()]
