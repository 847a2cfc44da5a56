"""Which rank a process is, by what launchers say; and what does not make it one."""

import pytest

from flmgrow.errors import UsageError
from flmgrow.storage.shares import shared_out
from flmgrow.storage.world import World, find_world

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "6", "SLURM_PROCID": "3", "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "3(x2)",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "x",
}  # fmt: skip
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}


@pytest.mark.parametrize(
    ("environ", "rank", "size", "local"),
    [
        (TORCHRUN, 5, 8, 4),
        (SRUN, 3, 6, 3),
        (MPIRUN, 1, 2, 2),
        (MPICH, 2, 4, 2),
        (SRUN | TORCHRUN, 5, 8, 4),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "6"}, 3, 6, 3),
    ],
    ids=["torchrun", "srun", "Open MPI", "MPICH", "torchrun under srun", "srun --mpi=pmi2"],
)
def test_a_launcher_says_which_rank_it_is(
    environ: dict[str, str], rank: int, size: int, local: int
) -> None:
    found = find_world(environ)
    assert (found.rank, found.size, found.local_size) == (rank, size, local)
    assert f"{size} ranks" in found.note


@pytest.mark.parametrize(
    ("environ", "note"),
    [
        ({}, ""),
        # a batch script, an interactive shell, a machine of a job
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "SLURM_NTASKS is 8"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ""),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "pod-0"}, "WORLD_SIZE is 4"),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, ""),
        (TORCHRUN | {"FLMGROW_WORLD_SIZE": "1"}, ""),
    ],
)
def test_what_counts_no_processes_is_told_and_passed_over(
    environ: dict[str, str], note: str
) -> None:
    found = find_world(environ)
    assert found.size == 1
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note)


def test_launches_are_told_apart() -> None:
    def launch(**change: str) -> str:
        return find_world(TORCHRUN | change).launch

    assert launch(RANK="0") == launch()
    assert launch(MASTER_PORT="29501") != launch()
    assert launch(TORCHELASTIC_RESTART_COUNT="1") != launch()
    assert find_world(SRUN).launch != find_world(SRUN | {"SLURM_STEP_ID": "3"}).launch


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCHRUN | {"RANK": "8"}, "rank 8 of 8"),
        (TORCHRUN | {"RANK": "one"}, "RANK is 'one'"),
        ({"FLMGROW_WORLD_SIZE": "2"}, "no FLMGROW_RANK"),
    ],
)
def test_what_contradicts_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_world(environ)


def test_no_patience_is_refused() -> None:
    with pytest.raises(UsageError, match="--rank-timeout 0"):
        World(patience=0)


class TestShares:
    def test_each_item_is_in_one_share_and_loads_are_alike(self) -> None:
        sizes = [7, 1, 5, 9, 3, 3, 2, 8]
        shares = shared_out(range(8), sizes.__getitem__, 3)
        assert sorted(item for share in shares for item in share) == list(range(8))
        assert [sum(sizes[item] for item in share) for share in shares] == [13, 13, 12]
        assert all(share == sorted(share) for share in shares)

    def test_there_may_be_more_ranks_than_items(self) -> None:
        assert shared_out("ab", lambda _: 1, 3) == [["a"], ["b"], []]

    def test_who_is_busy_gets_less(self) -> None:
        assert shared_out([1, 1, 1], lambda size: size, 2, begun=[5]) == [[], [1, 1, 1]]
