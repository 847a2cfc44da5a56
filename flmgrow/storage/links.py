"""Which symbolic links in a checkpoint are followed: one rule for all formats.

Checkpoints are often nothing but links: the cache of huggingface_hub, git-annex and DVC keep files
under their sums elsewhere. So what is read *as something* (a shard, metadata, a manifest) may be a
link to anywhere: it must end at a regular file, which :class:`flmgrow.storage.files.ReadOnlyFile`
sees to, and what is there must be what the format says. What is *copied as it is* (a tokenizer's
file) is another matter: a link might put a file of the user's own into what is then published.
"""

from pathlib import Path

from flmgrow.errors import BadCheckpointError

_STORES = (("annex", "objects"), (".dvc", "cache"))
"""Folders in which git-annex and DVC keep files under their sums."""


def own_file(folder: Path, name: str) -> Path:
    """Return where a file to be copied lies: in its folder, or in a store of files by their sums.

    Raises:
        BadCheckpointError: For a link to anywhere else.
    """
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError):
        raise BadCheckpointError(
            "is a loop of symbolic links", "remove the link", where=folder / name
        ) from None
    cached = root.parent.name == "snapshots" and root.parents[1] / "blobs" in path.parents
    stored = any(pair in zip(path.parts, path.parts[1:], strict=False) for pair in _STORES)
    if root not in path.parents and not cached and not stored:
        raise BadCheckpointError(
            "is a symbolic link out of the folder",
            "put the file itself there if it belongs to the model, or remove the link",
            where=folder / name,
        )
    return path
