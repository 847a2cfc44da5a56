"""Where the files of an output lie until it appears, and how it does.

In ``data/`` of the hidden folder, which one rename turns into the output; or, where the file system
cannot rename folders, where they will stay, marked until the output is whole (``marker.py``).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flmgrow.errors import OutputExistsError
from flmgrow.storage import durable, folders, marker
from flmgrow.storage.checksums import is_safe


class Staging:
    """The files of the output ``path``, whose hidden folder is ``temp``.

    They are ``in_place`` if they lie where they will stay; rank 0 finds that out, and tells.
    """

    def __init__(self, path: Path, temp: Path) -> None:
        self._path, self._temp = path, temp
        self.in_place = False

    def begin(self, plan: str) -> None:
        """Make the folder that files are written into, as an earlier run did.

        Raises:
            StorageError: The file system failed.
        """
        begun = (self._temp / "data").exists()
        marked = marker.is_marked(self._path)
        self.in_place = marked or not (begun or folders.can_rename(self._temp))
        if self.in_place:
            marker.put(self._path, plan)
        else:
            folders.make_folders(self._temp, self.folder)

    @property
    def folder(self) -> Path:
        """Where files are written."""
        return self._path if self.in_place else self._temp / "data"

    @property
    def has_appeared(self) -> bool:
        """Whether the output is there, of whatever run."""
        return folders.is_there(self._path) and not marker.is_marked(self._path)

    def target(self, relative: str) -> Path:
        """Return where a file of the output is written.

        Raises:
            ValueError: ``relative`` leads out of it.
        """
        if not is_safe(relative) or relative.endswith(durable.PART):
            raise ValueError(f"{relative!r} is not a relative path below the output folder")
        return self.folder / relative

    def prune(self, kept: Iterable[str]) -> None:
        """Remove all files but those ``kept``.

        Raises:
            StorageError: The file system failed.
        """
        known = {self.folder / path for path in kept}
        folders.prune(self.folder, keep=known | {self._path / marker.MARK})

    def appear(self, last: Mapping[Path, bytes]) -> None:
        """Write the small files ``last``, and let the output appear with all that is here.

        Raises:
            StorageError: The file system failed.
            OutputExistsError: If the output's name was taken meanwhile.
        """
        for target, data in last.items():
            folders.make_folders(self.folder, target.parent)
            durable.write_small(target, data)
        folders.sync_tree(self.folder)
        if self.in_place:
            marker.remove(self._path)
        elif not durable.rename_to_new(self.folder, self._path):
            found = f"appeared while this run was writing; the result is in {self.folder}"
            hint = f"move it away, then {durable.RESUME}"
            raise OutputExistsError(found, hint, where=self._path)

    def discard(self) -> None:
        """Remove what is marked; the rest goes with the hidden folder.

        Raises:
            StorageError: The file system failed.
        """
        if self.in_place:
            marker.discard(self._path)
