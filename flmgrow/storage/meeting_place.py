"""Where the ranks of a command meet: in a folder that all of them see.

What they write, or check, is one as a rule, and they meet beside it. An object store keeps no files
that could be replaced a few times a second. Ranks of one machine then meet in its folder for what
is temporary; those of several need one that is named to them.
"""

import os
import tempfile
from pathlib import Path

import xxhash

from flmgrow.errors import UsageError
from flmgrow.storage.hidden import hidden_folder
from flmgrow.storage.remote.addresses import address_of, is_remote
from flmgrow.storage.world import World
from flmgrow.text import Setting, Text


def meeting_place(path: Path, world: World) -> Path:
    """Return the folder in which ranks meet for ``path``: hidden beside it, or in the scratch
    folder that they were given.

    Raises:
        UsageError: Where there is none that they could share.
    """
    if world.scratch is not None:
        return hidden_folder(Path(os.path.realpath(world.scratch)) / path.name)
    if not is_remote(path):
        return hidden_folder(Path(os.path.realpath(path.parent)) / path.name)
    if world.local_size == world.size:
        name = xxhash.xxh3_64_hexdigest(str(address_of(path)).encode())
        return hidden_folder(Path(tempfile.gettempdir()) / f"flmgrow-{os.geteuid()}-{name}")
    raise UsageError(
        "is in an object store, where ranks of several machines cannot meet",
        Text(Setting("scratch"), " names a folder that all of them share"),
        where=address_of(path),
    )
