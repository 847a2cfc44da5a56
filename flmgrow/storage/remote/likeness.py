"""A likeness, on the disk, of what object stores were found to hold: folders, and empty files.

A root may have hundreds of iterations. So what lies right in a folder is listed when it is opened,
and each folder in it, with all below, when somebody first looks inside.
"""

import atexit
import errno
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath

from flmgrow.errors import BadCheckpointError, StorageError
from flmgrow.storage.remote import store
from flmgrow.storage.remote.addresses import Address, address_of
from flmgrow.storage.remote.store import FoundObject


def address_text(path: PurePath) -> str:
    """Return the text of a path that begins with a scheme, of which pathlib makes one slash."""
    return f"{path.parts[0]}//{'/'.join(path.parts[1:])}"


class Likeness:
    """What stores were found to hold: objects by address, laid out as empty files in a folder that
    goes with this process.
    """

    def __init__(self) -> None:
        self.objects: dict[str, FoundObject] = {}
        self._unlisted: set[str] = set()
        self._lock = threading.RLock()
        self._root: Path | None = None

    @property
    def root(self) -> Path:
        """The folder on the disk; it is made when it is first asked for."""
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="flmgrow-"))
            atexit.register(shutil.rmtree, self._root, ignore_errors=True)
        return self._root

    def place(self, path: PurePath) -> Path:
        """Return where a path lies in the likeness, nowhere for one that leads out of its store."""
        inside = posixpath.normpath("/".join(path.parts))
        return self.root / (inside if inside.startswith(path.parts[0]) else "nowhere")

    def forget(self, address: Address) -> None:
        """Know nothing of what is below ``address``."""
        at = self.place(PurePosixPath(str(address)))
        if at.is_dir():
            shutil.rmtree(at)
        below = f"{address}/"
        for known in [each for each in self.objects if each.startswith(below)]:
            del self.objects[known]
        self._unlisted -= {each for each in self._unlisted if each.startswith(below)}

    def list_what_leads_to(self, path: PurePath) -> None:
        """List a folder that was not listed so far, if it is ``path`` or the path lies in it."""
        if self._unlisted:
            texts = {address_text(each) for each in (path, *path.parents) if each.parts}
            self._list(texts & self._unlisted)

    def list_all_in(self, path: PurePath) -> None:
        """List all folders in ``path`` that were not listed so far."""
        self.list_what_leads_to(path)
        self._list({each for each in self._unlisted if each.startswith(f"{address_text(path)}/")})

    def _list(self, folders: Iterable[str]) -> None:
        for folder in folders:
            address = address_of(PurePosixPath(folder))
            with self._lock:
                if folder in self._unlisted:
                    self.add(address, store.list_below(address))
                    self._unlisted.discard(folder)

    def add(
        self, address: Address, found: dict[str, FoundObject], folders: Iterable[str] = ()
    ) -> None:
        """Let what was ``found``, by keys in the bucket of ``address``, be there as well; what is
        in ``folders`` is not listed so far.
        """
        whole = Address(address.service, address.bucket)
        above = {*folders, *(parent for key in found for parent in _above(key))}
        try:
            for folder in folders:
                place = PurePosixPath(str(whole.below(folder)))
                if not self.place(place).is_dir():
                    self.place(place).mkdir(parents=True)
                    self._unlisted.add(address_text(place))
            for key, each in found.items():
                path = PurePosixPath(str(whole.below(key)))
                if key in above and not each.size:  # what some programs put for a folder
                    continue
                if key in above:
                    raise FileExistsError(errno.EEXIST, "", str(self.place(path)))
                at = self.place(path)
                at.parent.mkdir(parents=True, exist_ok=True)
                at.touch()
                self.objects[address_text(path)] = each
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            name = PurePath(error.filename).relative_to(self.root)
            raise BadCheckpointError(
                "is an object, and others lie below it as in a folder",
                "rename the object",
                where=address_text(name),
            ) from None
        except OSError as error:
            raise StorageError(
                f"listing failed: its names cannot be laid out in {self.root}: {error.strerror}",
                "free some space there, or set TMPDIR to another folder",
                where=address,
            ) from None


def _above(key: str) -> list[str]:
    """Return the folders that an object lies in."""
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
