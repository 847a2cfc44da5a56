"""Where the ranks of one machine meet: at a port that nobody else can take.

A port that was free when somebody looked may be another run's a moment later. So the launcher
listens at one itself, and hands that on to rank 0.
"""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(minutes=30)
"""How long a rank may take to begin: that of torch's process groups."""

LISTENING = "FLMGROW_LISTENING"
"""The descriptor that rank 0 listens at; of other ranks it says that they are launched here."""


class MeetingPlace:
    """A port of this machine that is listened at until rank 0 has taken it over."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._socket.getsockname()[1]),
            LISTENING: "",
        }
        """What the environment of every rank says of it."""

    def of_rank_0(self) -> tuple[Mapping[str, str], tuple[int, ...]]:
        """Return what the environment of rank 0 says beside that, and what it inherits."""
        descriptor = self._socket.fileno()
        return {LISTENING: str(descriptor)}, (descriptor,)

    def leave(self) -> None:
        """Give it up here, once rank 0 has it."""
        self._socket.close()


def meeting() -> dict[str, Any]:
    """Return how torch's process group is to meet, for a rank that was launched here.

    Nothing for one that torchrun or a scheduler has started: those see to it themselves.
    """
    if LISTENING not in os.environ:
        return {}
    import torch

    distributed: Any = torch.distributed  # its types leave stores out
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world,
        is_master=rank == 0,
        timeout=PATIENCE,
        master_listen_fd=int(os.environ[LISTENING]) if rank == 0 else None,
    )
    return {
        "store": distributed.PrefixStore("default_pg", store),
        "rank": rank,
        "world_size": world,
    }
