"""A sample of what ``make faults`` does, on the real commands; and that it can find something."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from faulty import (
    CASES,
    FAULTS,
    FORGETS_ALL,
    FORGETS_FILES,
    KILL,
    Case,
    Commands,
    commands_in,
    flipped_bits,
    kill_chain,
    make_case,
    power_cuts,
    started_at_once,
    sweep,
)
from power import Disk, can_cut_power

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs gcc"),
]


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with commands_in() as commands:
        yield commands


@pytest.fixture
def case(commands: Commands) -> Case:
    return make_case("expand legacy", commands, commands.places)


@pytest.fixture
def disk(commands: Commands) -> Disk:
    if not can_cut_power(commands.places):
        pytest.skip("no root, or no loop devices")
    return Disk(commands.places)


@pytest.mark.parametrize("name", CASES)
def test_any_call_of_a_command_may_fail(name: str, commands: Commands) -> None:
    case = make_case(name, commands, commands.places)
    case.new()
    calls = len(case.run()[0].calls)
    for begin, what in enumerate(FAULTS, 1):
        count, broken = sweep(case, what, step=max(1, calls // 8), begin=begin * 3)
        assert broken == []
        assert count >= 7


def test_any_call_of_a_command_that_flushes_while_it_writes_may_fail(case: Case) -> None:
    usual, flushed = (
        sum("fdatasync" in each for each in calls_of(c)) for c in (case, case.flushed)
    )
    assert flushed > usual + 10
    for begin, what in enumerate(FAULTS, 1):
        count, broken = sweep(case.flushed, what, step=31, begin=begin * 3)
        assert broken == []
        assert count >= 7


def calls_of(case: Case) -> list[str]:
    """The calls of a run that nothing disturbs."""
    case.new()
    return case.run()[0].calls


@pytest.mark.parametrize("rank", [0, 1])
def test_any_call_of_two_ranks_may_fail(rank: int, case: Case) -> None:
    for begin, what in enumerate(FAULTS, 1):
        count, broken = sweep(case, what, 2, rank, step=71, begin=begin * 13)
        assert broken == []
        assert count >= 1


def test_chains_of_kills_end_well(case: Case) -> None:
    chance = Random(5)
    kills = 0
    for _ in range(15):
        count, broken = kill_chain(case, chance)
        assert broken == []
        kills += count
    assert kills > 15


def test_a_power_cut_at_any_call_loses_nothing(case: Case, disk: Disk) -> None:
    count, broken = power_cuts(case, disk, step=11)
    assert broken == []
    assert count > 10


@pytest.mark.parametrize(
    ("memory", "symptom"), [(FORGETS_ALL, "nothing is there"), (FORGETS_FILES, "not whole")]
)
def test_a_disk_that_forgets_is_found_out(
    memory: int, symptom: str, case: Case, disk: Disk
) -> None:
    _, broken = power_cuts(case, disk, memory, step=50)
    assert any(symptom in each for each in broken), broken


def test_every_flipped_bit_is_found_in_its_file(case: Case) -> None:
    count, missed = flipped_bits(case, Random(7), 60)
    assert missed == []
    assert count == 60


def test_of_eight_that_start_at_once_one_writes(case: Case) -> None:
    for _ in range(5):
        assert started_at_once(case) == []


def test_a_kill_is_a_kill(case: Case) -> None:
    """The harness counts what it says: the call is the last, and the same again is another run."""
    case.new()
    (whole,) = case.run()
    assert whole.code == 0
    case.new()
    (killed,) = case.run(nth=40, what=KILL)
    assert killed.code == -9
    kinds = [[call.split()[0] for call in reply.calls] for reply in (killed, whole)]
    assert kinds[0] == kinds[1][:40]
    assert Path(case.out).exists() is False
