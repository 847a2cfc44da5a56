"""Which of a command's processes this one is: its rank, of how many, in which launch.

torchrun, srun and mpirun start a command once for every process, and say in its environment which
one it is. A row of ``LAUNCHERS`` says in which variables. Variables that describe something else (a
batch job, a machine of a job) are not taken for it: a command that waited for ranks nobody started
would wait for ever.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from flmgrow.errors import UsageError
from flmgrow.text import Found, Setting, Text

PATIENCE = 600.0
"""Seconds without a sign of life after which a rank counts as lost, if nobody says otherwise."""


@dataclass(frozen=True)
class World:
    """The processes that share the work of one command; this one is ``rank`` of ``size``.

    ``local_size`` of them are on this machine. ``launch`` is a word that they have in common, and
    other launches at the same time have not. ``patience`` is in seconds. ``scratch`` is a folder
    in which they meet, if it is not beside what they write. ``note`` is what to tell of how all
    this was found.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    launch: str = ""
    patience: float = PATIENCE
    note: str = ""
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size or not 1 <= self.local_size <= self.size:
            raise UsageError(
                f"rank {self.rank} of {self.size}, {self.local_size} on this machine: no such rank",
                "ranks are counted from 0",
            )
        if self.patience <= 0:
            raise UsageError(
                Text(Setting("rank_timeout"), f" {self.patience:g}: wanted more than 0 seconds")
            )

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides and speaks."""
        return self.rank == 0


ALONE = World()


@dataclass(frozen=True)
class _Launcher:
    """What starts ranks, and the variables in which it tells each of them which one it is.

    Without all of ``needs``, its variables describe no process: ``otherwise`` says what then. They
    are told of if ``outside`` (or ``size``) is more than 1. ``launch`` tells launches apart.
    """

    name: str
    rank: str
    size: str
    local_size: str
    launch: tuple[str, ...]
    needs: tuple[str, ...] = ()
    outside: str = ""
    otherwise: str = ""


LAUNCHERS = (
    _Launcher(
        "FLMGROW_RANK",
        rank="FLMGROW_RANK",
        size="FLMGROW_WORLD_SIZE",
        local_size="FLMGROW_LOCAL_WORLD_SIZE",
        launch=("FLMGROW_LAUNCH",),
    ),
    _Launcher(
        "torchrun",
        rank="RANK",
        size="WORLD_SIZE",
        local_size="LOCAL_WORLD_SIZE",
        launch=(
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
            "MASTER_ADDR",
            "MASTER_PORT",
        ),
        needs=("RANK", "LOCAL_RANK"),
        otherwise="there is no LOCAL_RANK: it counts machines, not processes",
    ),
    _Launcher(
        "srun",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_size="SLURM_STEP_TASKS_PER_NODE",
        launch=("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
        needs=("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        outside="SLURM_NTASKS",
        otherwise="srun did not start this command",
    ),
    _Launcher(
        "mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        launch=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
        needs=("OMPI_COMM_WORLD_RANK",),
        otherwise="there is no OMPI_COMM_WORLD_RANK",
    ),
    _Launcher(  # of MPICH and its relatives, which give launches no name
        "mpirun",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_size="MPI_LOCALNRANKS",
        launch=(),
        needs=("PMI_RANK", "MPI_LOCALNRANKS"),
        otherwise="there are no PMI_RANK and MPI_LOCALNRANKS",
    ),
)
"""The first whose variables describe a process counts: torchrun may have been started by srun."""


def find_world(environ: Mapping[str, str], patience: float = PATIENCE) -> World:
    """Return what ``environ`` says of this process.

    Raises:
        UsageError: For what cannot be.
    """
    for launcher in LAUNCHERS:
        size = _number(environ, launcher.size)
        if size is not None and all(environ.get(name) for name in launcher.needs):
            return _world(launcher, environ, size, patience)
    for launcher in LAUNCHERS:
        for name in (launcher.size, launcher.outside):
            if environ.get(name, "").isdigit() and int(environ[name]) > 1:
                note = f"{name} is {environ[name]}, but {launcher.otherwise}: one process does all"
                return World(patience=patience, note=note)
    return World(patience=patience)


def _world(launcher: _Launcher, environ: Mapping[str, str], size: int, patience: float) -> World:
    if size == 1:
        return World(patience=patience)
    rank = _number(environ, launcher.rank)
    if rank is None:
        raise UsageError(
            f"{launcher.size} is {size}, and there is no {launcher.rank}",
            f"set it, or set {launcher.size} to 1",
        )
    local = min(size, _number(environ, launcher.local_size) or 1)
    return World(
        rank=rank,
        size=size,
        local_size=local,
        launch=_launch(launcher, environ, local == size),
        patience=patience,
        note=f"{size} ranks, started by {launcher.name}, share the work",
    )


def _launch(launcher: _Launcher, environ: Mapping[str, str], alone: bool) -> str:
    """Return a word for the launch; one on a machine ``alone`` may call that localhost."""
    parts = [launcher.name, *(environ.get(name, "") for name in launcher.launch)]
    words = "\0".join([*parts, os.uname().nodename if alone else ""])
    return xxhash.xxh3_64_hexdigest(words.encode())


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """Return a number in a variable; of ``4(x2),3``, tasks on each of several nodes, the first."""
    text = environ.get(name, "").partition("(")[0].partition(",")[0]
    if not text:
        return None
    if not text.isdigit():
        raise UsageError(Text(f"{name} is ", Found(f"{environ[name]!r}")), wanted="a number")
    return int(text)
