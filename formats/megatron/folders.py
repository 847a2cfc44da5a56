"""Which iteration of a checkpoint is meant, and which others there are.

``ROOT/latest_checkpointed_iteration.txt`` (the tracker) holds a number or ``release``, and
``ROOT/iter_NNNNNNN`` or ``ROOT/release`` what was saved. A run that was killed while it saved, or a
copy that was cut short, leaves a folder with less in it than there should be; the one before is
what its user wants then. Anything may lie in a folder under such a name, and none of it is read
beyond what a sound one would have.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.formats.layout.placements import Layout
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text

DISTRIBUTED = "distrib_optim.pt"

RankKey = tuple[int, int]

TRACKER = "latest_checkpointed_iteration.txt"
FILE_NAME = "model_optim_rng.pt"
RELEASE = "release"
ITERATION = re.compile(r"iter_(\d{7,18})")
RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?(_\d+)?")

_MAX_TRACKER = 64
_MOST_DIGITS = 18
_DISTRIBUTED = (".metadata", "metadata.json", ".metadata.tmp")
_HALF = (".part", ".tmp")
"""Endings of files that are still being written or copied."""


def is_distributed(folder: Path) -> bool:
    """Whether a folder has a file of a distributed checkpoint, whatever that is worth."""
    if any(os.path.lexists(folder / name) for name in _DISTRIBUTED):
        return True
    return folder.is_dir() and any(name.endswith(".distcp") for name in names_in(folder))


def is_megatron(folder: Path) -> bool:
    """Whether a folder holds anything that a checkpoint of Megatron's is known by."""
    return any(
        name in (TRACKER, *_DISTRIBUTED) or RANK.fullmatch(name) or ITERATION.fullmatch(name)
        for name in names_in(folder)
    )


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted.

    Raises:
        BadCheckpointError: If there is no such folder.
        StorageError: If it cannot be listed.
    """
    try:
        return sorted(child.name for child in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise BadCheckpointError(
            "no such folder", "give a Megatron checkpoint folder", where=folder
        ) from None
    except PermissionError:
        raise BadCheckpointError(
            "may not be read by this user", "check its permissions", where=folder
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadCheckpointError(
                "is a loop of symbolic links", "correct the link", where=folder
            ) from None
        what = f"{folder}: cannot be listed: {error.strerror}"
        if error.errno == errno.ENAMETOOLONG:
            raise BadCheckpointError(what, "correct the path") from None
        raise StorageError(what, "check the disk or the mount") from None


def iteration_folder(path: Path, iteration: int | None = None) -> Path:
    """Return the folder of the iteration that ``path`` stands for.

    ``path`` is a checkpoint's root with a tracker, or an iteration's folder. ``iteration``
    overrides the tracker.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    inside = names_in(path)
    if is_distributed(path) or any(RANK.fullmatch(name) for name in inside):
        return path
    name = f"iter_{iteration:07d}" if iteration is not None else _tracked(path)
    if not (path / name).is_dir():
        what = "is no folder" if os.path.lexists(path / name) else "is not there"
        raise BadCheckpointError(what, "is this a Megatron checkpoint?", where=path / name)
    return path / name


def _tracked(root: Path) -> str:
    """Return the name of the folder that a tracker points to."""
    path = root / TRACKER
    if not os.path.lexists(path):
        raise BadCheckpointError(
            f"has neither rank folders nor {TRACKER}", "is this a Megatron checkpoint?", where=root
        )
    with ReadOnlyFile(path) as file:
        data = file.read(0, min(file.size, _MAX_TRACKER))
    text = data.decode("ascii", "replace").strip()
    if text == RELEASE:
        return text
    if file.size > _MAX_TRACKER or not text.isdecimal() or len(text) > _MOST_DIGITS:
        more = f" and {file.size - len(data)} bytes more" if file.size > len(data) else ""
        raise BadCheckpointError(
            Text("found ", Found(f"{text[:40]!r}"), more),
            "restore it from a copy",
            where=path,
            wanted=f"a number or '{RELEASE}'",
        )
    return f"iter_{int(text):07d}"


def root_folder(path: Path, folder: Path) -> Path:
    """Return the checkpoint's root: ``path``, unless that is an iteration's folder inside one."""
    inside = folder == path and (path.resolve().parent / TRACKER).is_file()
    return path.resolve().parent if inside else path


def others(root: Path, but: Path | None) -> Iterator[Path]:
    """Yield the iterations in ``root`` that look complete, the newest first, and ``but`` not."""
    with suppress(BadCheckpointError, StorageError):
        found = [(int(m[1]), name) for name in names_in(root) if (m := ITERATION.fullmatch(name))]
        for name in [*(name for _, name in sorted(found, reverse=True)), RELEASE]:
            folder = root / name
            if (but is None or not _same(folder, but)) and looks_complete(folder):
                yield folder


def _same(a: Path, b: Path) -> bool:
    return a.name == b.name or os.path.realpath(a) == os.path.realpath(b)


def looks_complete(folder: Path) -> bool:
    """Whether a folder holds what makes a distributed checkpoint one, or a file for every
    combination of the tensor and pipeline ranks in it; and nothing half-written.
    """
    if not folder.is_dir():
        return False
    names = names_in(folder)
    if any(name.endswith(_HALF) for name in names):
        return False
    if is_distributed(folder):
        return (folder / ".metadata").is_file()
    ranks = {
        (int(m[1]), int(m[2] or 0)): folder / name / FILE_NAME
        for name in names
        if (m := RANK.fullmatch(name)) and not m[3]
    }
    grid = product({tensor for tensor, _ in ranks}, {pipeline for _, pipeline in ranks})
    return bool(ranks) and set(grid) == ranks.keys() and all(f.is_file() for f in ranks.values())


def rank_path(
    layout: Layout, folder: str, tensor: int, pipeline: int, name: str = FILE_NAME
) -> str:
    """Return the path of a rank's file below the checkpoint root, as Megatron-LM names it."""
    rank = f"mp_rank_{tensor:02d}" + (f"_{pipeline:03d}" if layout.pp > 1 else "")
    return f"{folder}/{rank}/{name}"


def folder_name(iteration: int | None) -> str:
    """Return the name of an iteration's folder; ``release`` for None."""
    return "release" if iteration is None else f"iter_{iteration:07d}"


def tracker(iteration: int | None) -> tuple[str, bytes]:
    """Return the name and content of the file that points to the iteration."""
    return TRACKER, (b"release" if iteration is None else str(iteration).encode())
