"""A rank's own files in the folder where the ranks of a launch meet."""

import time
from pathlib import Path

from flmgrow.errors import LostRankError
from flmgrow.storage import durable, folders
from flmgrow.storage.sign import Sign
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import World
from flmgrow.text import Setting, Text

KINDS = ("rank", "said")
WAIT_LONGER = Text(Setting("rank_timeout"), " waits longer")


def sign_path(folder: Path, kind: str, rank: int) -> Path:
    """Return where a rank shows that it lives (``rank``), or what it gives to others (``said``)."""
    return folder / f"{kind}.{rank}"


class OwnSigns:
    """The signs of this rank: one shows that it lives and how it stands, one what it says.

    Rank 0 makes the ``folder``, inside one that exists; the others wait for it, looking every
    ``pace`` seconds. What happens after so many seconds of patience, counted from here, is late.

    Raises:
        StorageError: The file system failed.
        LostRankError: There is no folder in time, or another process keeps this rank's place.
    """

    def __init__(self, folder: Path, world: World, pace: float) -> None:
        self._folder, self._world, self._pace = folder, world, pace
        self._begun = time.monotonic()
        if world.first:
            with durable.storage_errors(folder, "creating"):
                folder.mkdir(mode=0o700, exist_ok=True)
        self._take()

    @property
    def is_late(self) -> bool:
        """Whether the patience with ranks that are still to come is at its end."""
        return time.monotonic() - self._begun > self._world.patience

    @property
    def lost(self) -> bool:
        """Whether the folder was cleared meanwhile."""
        return self._sign.lost or self._said.lost

    def show(self, state: Json) -> None:
        """Let others see how this rank stands.

        Raises:
            StorageError: The file system failed.
        """
        self._sign.show(state)

    def say(self, content: Json) -> None:
        """Give something to the others.

        Raises:
            StorageError: The file system failed.
        """
        self._said.show(content)

    def take_again(self) -> None:
        """Take the place again in a folder that was cleared."""
        self.close()
        self._take()

    def close(self) -> None:
        """Give the place back."""
        self._sign.close()
        self._said.close()

    def _take(self) -> None:
        self._await_folder()
        self._sign, self._said = (self._taken(kind) for kind in KINDS)

    def _await_folder(self) -> None:
        """Wait until rank 0 has made the folder."""
        while not folders.is_there(self._folder):
            if self.is_late:
                raise LostRankError(
                    f"rank 0: has made no {self._folder} within {self._world.patience:g} seconds",
                    "all ranks need to see the same folders; " + WAIT_LONGER,
                )
            time.sleep(self._pace)
        folders.make_private_folder(self._folder.parent)  # which it is already, if it is no trap

    def _taken(self, kind: str) -> Sign:
        """Take a file of this rank's own; one of an earlier launch may not have ended yet."""
        while True:
            try:
                return Sign(sign_path(self._folder, kind, self._world.rank))
            except BlockingIOError:
                if self.is_late:
                    raise LostRankError(
                        f"rank {self._world.rank}: another process has its place",
                        "end what is left of an earlier launch",
                    ) from None
            time.sleep(self._pace)
