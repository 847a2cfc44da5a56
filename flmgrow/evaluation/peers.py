"""The processes that torchrun started for one evaluation: each answers its share of the questions.

Every process asks the same questions: the harness draws the examples in front of them one after the
other, so that prompts would differ if each process drew for its own share alone. What is shared is
the work of answering them. An error that one process meets alone must end all of them: the others
would wait for its answers for ever.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from flmgrow.errors import UsageError
from flmgrow.storage.world import find_world
from flmgrow.trainer.ranks import agreement

Result = TypeVar("Result")


@dataclass(frozen=True)
class Peers:
    """The processes that share the work: this one is ``rank`` of ``size``.

    All of them call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1

    def together(self, do: Callable[[], Result]) -> Result:
        """Return what ``do`` returns here; if it fails on one process, all raise its error."""
        return do() if self.size == 1 else agreement.together(do)

    def in_turn(self, do: Callable[[], Result]) -> Result:
        """Return what ``do`` returns here, run by one process after the other, by rank.

        What the first one writes, the others find. If it fails on one process, all raise its error.
        """
        own: list[Result] = []
        for turn in range(self.size):
            self.together((lambda: own.append(do())) if turn == self.rank else lambda: None)
        return own[0]

    def gathered(self, own: Result) -> list[Result]:
        """Return what all processes have, by rank, on each of them."""
        return [own] if self.size == 1 else agreement.gathered(own)


ALONE = Peers()


def meet() -> Peers:
    """Return the processes that share the work, as torchrun's variables say it, once all are there.

    Raises:
        UsageError: Where another launcher has started several, which does not say where to meet.
    """
    world = find_world(os.environ)
    if world.size == 1:
        return ALONE
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise UsageError(
            f"{world.size} processes, and nothing says where they meet", "start them by torchrun"
        )
    distributed: Any = torch.distributed
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=world.rank, world_size=world.size)
    agreement.open_channel()
    return Peers(world.rank, world.size)


def local_rank() -> int:
    """Return which process of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))
