"""Setting checkpoints aside that a stage must not go on from.

They are of a model that has diverged: the same command would go on with it. Nobody but their owner
removes them, so they are moved beside the folder.
"""

from pathlib import Path

from flmgrow.formats.megatron.folders import TRACKER, folder_name
from flmgrow.storage.durable import storage_errors, sync_folder
from flmgrow.storage.folders import make_folders, remove_tree
from flmgrow.trainer.checkpoint.saved import iterations
from flmgrow.trainer.checkpoint.saving import point_to

DIVERGED = ".diverged"


def set_aside(folder: Path, after: int | None = None) -> Path | None:
    """Move all checkpoints in ``folder`` into one beside it, and return that; None if there are
    none. With ``after``, only those of later iterations: that one is the newest then.

    One that was set aside before as the same iteration is replaced.

    Raises:
        StorageError: The file system failed.
    """
    beside = folder.with_name(folder.name + DIVERGED)
    found = [each for each in iterations(folder) if after is None or each > after]
    if after is not None:
        point_to(folder, after)
    if not found:
        return None
    make_folders(Path(folder.anchor), beside)
    with storage_errors(folder, "setting checkpoints aside"):
        if after is None:
            (folder / TRACKER).unlink(missing_ok=True)
        for name in map(folder_name, reversed(found)):  # so what a kill leaves is older
            if (beside / name).exists():
                remove_tree(beside / name)
            (folder / name).rename(beside / name)
    sync_folder(folder)
    sync_folder(beside)
    return beside
