"""Setting checkpoints aside that a stage must not go on from.

They are of a model that has grown and then diverged: the same command would go on with it. Nobody
but their owner removes them, so they are moved beside the folder.
"""

from pathlib import Path

from flmgrow.formats.megatron.folders import TRACKER, folder_name
from flmgrow.storage.durable import storage_errors, sync_folder
from flmgrow.storage.folders import make_folders, remove_tree
from flmgrow.trainer.checkpoint.saved import iterations

DIVERGED = ".diverged"


def set_aside(folder: Path) -> Path | None:
    """Move all checkpoints in ``folder`` into one beside it, and return that; None if there are
    none.

    One that was set aside before as the same iteration is replaced.

    Raises:
        StorageError: The file system failed.
    """
    found, beside = iterations(folder), folder.with_name(folder.name + DIVERGED)
    if not found:
        return None
    make_folders(Path(folder.anchor), beside)
    with storage_errors(folder, "setting checkpoints aside"):
        (folder / TRACKER).unlink(missing_ok=True)
        for name in map(folder_name, reversed(found)):  # so what a kill leaves is older
            if (beside / name).exists():
                remove_tree(beside / name)
            (folder / name).rename(beside / name)
    sync_folder(folder)
    sync_folder(beside)
    return beside
