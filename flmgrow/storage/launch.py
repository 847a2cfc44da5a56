"""The ranks of one command, which meet in a folder that all of them see.

A command that only reads and writes files needs no network: its ranks tell each other what they
must know in small files (``sign.py``), in a folder that is this launch's own.

1. Each rank has a sign, ``rank.K``, with a word that it has just drawn. Rank 0 shows which words it
   has seen, the others which word rank 0 has: so what an earlier launch has left is never taken for
   a living rank, whatever it is called.
2. A sign changes while its rank lives. One that does not for as long as the ranks are patient, or
   whose process has left its lock on this machine, is lost; the same command then resumes.
3. What ranks exchange goes from all to rank 0 and back, in ``said.K``: each line stays until all
   have read it, as nobody goes on before.
4. A rank that fails shows its error. Rank 0 shows it to all, waits until they have stopped, and
   raises it; the others raise it, too, marked as told.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from flmgrow.errors import FlmgrowError, LostRankError, StorageError
from flmgrow.storage.ending import BEAT, first_speaks, lower_speaks, wait_for_all
from flmgrow.storage.failure import AGAIN, another_plan, described, raised
from flmgrow.storage.own_signs import KINDS, WAIT_LONGER, OwnSigns, sign_path
from flmgrow.storage.sign import Other, read_sign, this_machine, this_process
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import World
from flmgrow.text import Found, Text

T = TypeVar("T")


def launch_folder(folder: Path, world: World) -> Path:
    """Return where, in ``folder``, the ranks of a launch meet."""
    return folder / f"launch-{world.launch}"


class Launch:
    """This process among the ranks of its launch (:class:`flmgrow.storage.ranks.Ranks`).

    ``folder`` is made by rank 0, inside one that exists.

    Raises:
        StorageError: The file system failed.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.world = world
        self._folder = folder
        self._word = secrets.token_hex(8)
        self._pace = max(0.05, world.size / 200)
        self._mutex = threading.Lock()
        self._ending = threading.Event()
        self._shown = 0.0
        self._trouble: FlmgrowError | None = None
        self._progress: Callable[[int], None] | None = None
        self._told = 0
        self._looking = threading.Lock()
        self._count = 0
        self._stopped = False
        self._alone = False
        self._state: Json = {
            "word": self._word, "host": this_machine(), "process": this_process(),
            "plan": "", "launch": "", "bytes": 0,
            "beat": 0, "seen": {}, "failed": None, "heard": False, "stopped": False, "ended": False,
        }  # fmt: skip
        if world.first:
            self._state["launch"] = self._word
        self._own = OwnSigns(folder, world, self._pace)
        watched = range(1, world.size) if world.first else (0,)
        self._others = {rank: Other(sign_path(folder, "rank", rank)) for rank in watched}
        self._show()
        self._thread = threading.Thread(target=self._watch, name="flmgrow ranks", daemon=True)
        self._thread.start()

    @property
    def paths(self) -> set[Path]:
        """The files in which its ranks meet."""
        ranks = range(self.world.size)
        return {sign_path(self._folder, kind, rank) for kind in KINDS for rank in ranks}

    def meet(self, plan: str) -> None:
        """Wait until all ranks are there.

        Raises:
            LostRankError: Another rank is lost.
            UsageError: What was asked for cannot be.
        """
        self._update(plan=plan)
        while missing := self._missing():
            self.check()
            if self._own.is_late:
                raise LostRankError(
                    Text(
                        f"rank {', '.join(map(str, missing))}: not there within ",
                        Found(f"{self.world.patience:g}"),
                        " seconds",
                    ),
                    f"all of them need to see {self._folder.parent}; " + WAIT_LONGER,
                    wanted=f"{self.world.size} ranks",
                )
            self._reopen()
            time.sleep(self._pace)

    def exchange(self, value: Any, join: Callable[[list[Any]], T]) -> T:
        """Give ``value``; return what ``join`` makes of all on rank 0."""
        self._count += 1
        if self.world.first:
            others = [self._heard(rank) for rank in range(1, self.world.size)]
            self._look()
            self.check()
            joined = join([value, *others])
            self._say(joined)
            return joined
        self._update()
        self._say(value)
        answer: T = self._heard(0)
        return answer

    def report(self, nbytes: int) -> None:
        """Count bytes.

        Raises:
            FlmgrowError: What another rank has met.
        """
        with self._mutex:
            self._state["bytes"] += nbytes
        self.check()

    def watch(self, progress: Callable[[int], None]) -> None:
        """Tell ``progress`` of what others report."""
        self._progress = progress

    def check(self) -> None:
        """Raise the error that another rank has met, if any has."""
        if self._trouble is not None:
            raise self._trouble

    def stop(self, error: BaseException | None) -> bool:
        """Let the others know of ``error``, or that all is done, and end."""
        if self._stopped:
            return self._alone
        self._stopped = True
        own = error is not None and error is not self._trouble
        failed = self._state["failed"]
        if error is not None and own:
            failed = described(error, self.world.rank)
        self._update(failed=failed, stopped=True)
        if error is None or isinstance(error, Exception):
            with contextlib.suppress(StorageError):
                self._wait_for_others(error)
        self._update(ended=True)
        self._ending.set()
        self._thread.join()
        self._own.close()
        writing = [
            rank
            for rank, each in self._others.items()
            if each.fresh and not each.died and not each.content["stopped"]
        ]
        self._alone = not writing
        return self._alone

    def _wait_for_others(self, error: Exception | None) -> None:
        """On rank 0, until all have stopped; on others, until rank 0 has taken the error over."""
        if self.world.first:
            others = self._others.values()
            wait_for_all(others, self._pace, self.world.patience, failed=error is not None)
        elif error is not None:
            told = first_speaks(self._others[0], self._pace)
            if isinstance(error, FlmgrowError):
                paths = [
                    sign_path(self._folder, "rank", rank) for rank in range(1, self.world.rank)
                ]
                lower = list(map(Other, paths))
                error.told = told or lower_speaks(lower, self._state["launch"])

    def _reopen(self) -> None:
        """Take the place again in a folder that was cleared meanwhile."""
        if self._own.lost:
            with self._mutex:
                self._own.take_again()
            self._show()

    def _missing(self) -> list[int]:
        """Return the ranks that are still to be met."""
        if self.world.first:
            return [
                rank
                for rank, each in self._others.items()
                if not (each.fresh and each.content["launch"] == self._word)
            ]
        return [] if self._state["launch"] else [0]

    def _say(self, value: Any) -> None:
        self._own.say({"launch": self._state["launch"], "count": self._count, "value": value})

    def _heard(self, rank: int) -> Any:
        """Wait for what another rank says next, and return it."""
        key = (self._state["launch"], self._count)
        while True:
            found = read_sign(sign_path(self._folder, "said", rank))
            if found is not None and (found["launch"], found["count"]) == key:
                return found["value"]
            self.check()
            time.sleep(self._pace)

    def _update(self, **state: Any) -> None:
        with self._mutex:
            self._state.update(state)
        with contextlib.suppress(StorageError):  # shown again soon
            self._show()

    def _show(self) -> None:
        with self._mutex:
            self._state["beat"] += 1
            self._shown = time.monotonic()
            self._own.show(self._state)

    def _watch(self) -> None:
        """Until the end: show that this rank lives, and look whether the others do."""
        while not self._ending.wait(self._pace):
            changed = self._look()
            if changed or time.monotonic() - self._shown > BEAT:
                self._update()

    def _look(self) -> bool:
        """Look at the others; return whether there is something to show."""
        with self._looking:
            return self._look_at_all() if self.world.first else self._look_at_first()

    def _look_at_all(self) -> bool:
        """What rank 0 does: see who is there, and show what any of them has met."""
        seen = dict(self._state["seen"])
        for rank, other in self._others.items():
            content = other.look()
            if not other.fresh:
                continue
            if self._state["plan"]:  # what decides on who may write is settled
                seen[str(rank)] = content["word"]
            if content["failed"]:
                self._meet_trouble(raised(content["failed"]))
            elif content["plan"] and self._state["plan"] not in ("", content["plan"]):
                self._meet_trouble(another_plan(rank))
            elif content["launch"] == self._word and not content["stopped"]:
                self._meet_lost(rank, other)
        total = sum(other.content["bytes"] for other in self._others.values() if other.fresh)
        if self._progress is not None and total > self._told:
            self._progress(total - self._told)
            self._told = total
        changed: bool = seen != self._state["seen"]
        self._state["seen"] = seen
        return changed

    def _look_at_first(self) -> bool:
        """What the others do: wait to be seen, and see whether rank 0 has met an error."""
        first, own = self._others[0], self._state["launch"]
        content = first.look()
        if not first.fresh:
            return False
        if not own and content["seen"].get(str(self.world.rank)) == self._word:
            self._state["launch"] = content["word"]
            return True
        if own and content["word"] != own:
            self._meet_trouble(LostRankError("rank 0: was started anew", AGAIN))
        elif content["failed"]:
            self._meet_trouble(raised(content["failed"]))
            changed = not self._state["heard"]
            self._state["heard"] = True
            return changed
        elif own and not content["stopped"]:
            self._meet_lost(0, first)
        return False

    def _meet_lost(self, rank: int, other: Other) -> None:
        if other.died:
            other.look()  # it may have said more before it ended
            if not (other.content["stopped"] or other.content["failed"]):
                self._meet_trouble(LostRankError(f"rank {rank}: has ended", AGAIN))
        elif other.quiet > self.world.patience:
            quiet = f"{self.world.patience:g} seconds"
            self._meet_trouble(LostRankError(f"rank {rank}: no sign of life for {quiet}", AGAIN))

    def _meet_trouble(self, error: FlmgrowError) -> None:
        if self._trouble is None and not self._stopped:
            self._trouble = error
            if self.world.first:
                self._update(failed=described(error, self.world.rank))
