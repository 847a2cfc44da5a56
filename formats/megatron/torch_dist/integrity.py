"""Reading and writing ``integrity.json``, the checksums of a torch_dist checkpoint.

``integrity.json``: a bit that rotted in a distributed checkpoint is found by whoever loads it.
megatron-core (0.19, where a run is given ``verify_integrity``) lists in it the SHA-256 of every
other file in the iteration's folder, and checks them before it loads. It joins the names it finds
to the folder's path as they are; here a name must be that of a file in the folder, and each file
that is read must be listed. Sums are taken only when a checkpoint is verified: they cost a read.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.dcp.metadata import is_inside
from flmgrow.formats.torch_file.bounds import describe
from flmgrow.storage.files import ReadOnlyFile
from flmgrow.text import Found, Text

INTEGRITY = "integrity.json"
ALGORITHM = "sha256"
MAX_BYTES = 64 << 20
"""Room for half a million files."""

_SUM = re.compile("[0-9a-f]{64}")
_STALE = "restore it from a copy; or remove it, if the checkpoint was saved anew without it"


def encode_integrity(sums: Mapping[str, str]) -> bytes:
    """Return the file's content, to the byte as megatron-core has it.

    ``sums`` are the SHA-256 of all other files, in hex, by path; their folder is the same.
    """
    listed = {path.rpartition("/")[2]: sums[path] for path in sorted(sums)}
    return json.dumps({"algorithm": ALGORITHM, "files": listed}, indent=2).encode()


def read_integrity(folder: Path, needed: Collection[str]) -> Mapping[str, str]:
    """Return the sums that ``integrity.json`` in ``folder`` lists, by file name; {} if it has none.

    No file is read but this one.

    Raises:
        BadCheckpointError: If the file is damaged, lists a file that is not in the folder, or
            leaves out one that is ``needed``.
    """
    path = folder / INTEGRITY
    if not os.path.lexists(path):
        return {}
    sums = _parsed(path)
    for name in sums:
        if not is_inside(name):
            raise _refused(path, f"{describe(name)}: found a file outside the checkpoint")
    # os.path, as Path.is_file raises for an impossible name.
    if missing := [name for name in sums if not os.path.isfile(folder / name)]:  # noqa: PTH113
        raise BadCheckpointError(
            Text("found ", Found(len(sums) - len(missing)), f" of {len(sums)} files"),
            "the checkpoint is not complete: copy these files to it",
            where=path,
            wanted=f"also {', '.join(missing)}",
        )
    if unlisted := sorted(set(needed) - sums.keys()):
        raise _refused(
            path,
            Text(f"{unlisted[0]}: ", Found("not listed")),
            wanted="every file of the checkpoint",
        )
    return sums


def _parsed(path: Path) -> dict[str, str]:
    with ReadOnlyFile(path) as file:
        if file.size > MAX_BYTES:
            raise _refused(
                path, Text("found ", Found(file.size), " bytes"), wanted=f"at most {MAX_BYTES}"
            )
        data = file.read(0, file.size)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"not readable: {error}") from None
    sums = content.get("files") if isinstance(content, dict) else None
    if not isinstance(sums, dict):
        raise _refused(path, "has no files", wanted="sums by file name")
    if (found := content.get("algorithm", ALGORITHM)) != ALGORITHM:
        raise _refused(path, Text("algorithm: found ", Found(describe(found))), wanted=ALGORITHM)
    for name, value in sums.items():
        if not isinstance(value, str) or not _SUM.fullmatch(value):
            raise _refused(
                path,
                Text(f"{describe(name)}: found ", Found(describe(value))),
                wanted="a SHA-256 sum",
            )
    return sums


def _refused(path: Path, what: str, wanted: str = "") -> BadCheckpointError:
    return BadCheckpointError(what, _STALE, where=path, wanted=wanted)


def check_sum(path: Path, wanted: str) -> None:
    """Read a listed file whole.

    Raises:
        BadCheckpointError: If it has another sum than ``wanted``.
    """
    found = hashlib.sha256()
    with ReadOnlyFile(path) as file:
        for piece in file.chunks(0, file.size):
            found.update(piece)
    if found.hexdigest() != wanted:
        raise BadCheckpointError(
            f"damaged: SHA-256 {found.hexdigest()}, {INTEGRITY} says {wanted}",
            "use another copy",
            where=path,
        )
