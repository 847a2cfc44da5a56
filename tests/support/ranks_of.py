"""Several ranks of one command: as threads of this process, or as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flmgrow.storage.world import World

PATIENCE = 60.0


def world(rank: int, size: int, launch: str = "one", patience: float = PATIENCE) -> World:
    return World(rank, size, size, launch, patience)


def in_threads(
    size: int, work: Callable[[World], Any], launch: str = "one", patience: float = PATIENCE
) -> list[Any]:
    """Do ``work`` as each of ``size`` ranks at once; return what each returned or raised."""

    def done(rank: int) -> Any:
        try:
            return work(world(rank, size, launch, patience))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(done, range(size)))


def start(
    rank: int, size: int, command: Sequence[object], launch: str = "one", program: str = ""
) -> subprocess.Popen[str]:
    """Start a rank of a command; ``program`` is Python that runs in its process before."""
    environment: Mapping[str, str] = {
        **os.environ,
        "FLMGROW_RANK": str(rank),
        "FLMGROW_WORLD_SIZE": str(size),
        "FLMGROW_LOCAL_WORLD_SIZE": str(size),
        "FLMGROW_LAUNCH": launch,
        "PYTHONPATH": str(Path(__file__).parent),
    }
    words = [str(word) for word in command]
    text = f"import sys\n{program}\nfrom flmgrow.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", text, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all; return exit code, output and errors of each."""
    told = [process.communicate(timeout=900) for process in processes]
    codes = [process.returncode for process in processes]
    return [(code, out, err) for code, (out, err) in zip(codes, told, strict=True)]
