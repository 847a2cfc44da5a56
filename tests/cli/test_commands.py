"""The front door: commands are imported when they are called, and all are told of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import flmgrow

from flmgrow.cli.commands import COMMANDS, command_of, summary_of


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_the_first_paragraph_of_each_commands_own_help(name: str) -> None:
    assert COMMANDS[name].summary == summary_of(command_of(name))


def test_summaries_are_whole() -> None:
    told = " ".join(flmgrow("--help").out.split())
    assert all(entry.summary in told for entry in COMMANDS.values())


def test_help_lists_arguments_and_every_panel_once() -> None:
    told = flmgrow("expand", "--help").out.splitlines()
    heads = [line for line in told if line.endswith(":") and not line.startswith(" ")]
    assert heads[0] == "Arguments:"
    assert len(heads) == len(set(heads)) > 5


def test_an_unknown_command_is_a_wrong_request() -> None:
    found = flmgrow("grow")
    assert found.code == 2
    assert found.err.startswith("error: No such command 'grow'")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["reshard", "--help"]])
def test_no_other_commands_are_imported(words: list[str]) -> None:
    program = (
        "import sys; from flmgrow.cli.app import run; run(sys.argv[1:]);"
        "print(*(m for m in sys.modules if m.startswith('flmgrow.cli.')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    commands = {f"flmgrow.cli.{entry.module}" for entry in COMMANDS.values()}
    wanted = {"flmgrow.cli.reshard"} if "reshard" in words else set()
    assert commands & set(done.stderr.split()) == wanted


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted on Linux")
@pytest.mark.parametrize(("said", "threads"), [(None, 1), ("2", min(2, os.cpu_count() or 1))])
def test_a_command_begins_with_no_more_threads_than_are_asked_for(
    said: str | None, threads: int
) -> None:
    """numpy would start one for each core; where a number is set it is the user's."""
    program = (
        "import os; from flmgrow.cli.commands import command_of; command_of('inspect');"
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    own = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if said is not None:
        own["OPENBLAS_NUM_THREADS"] = said
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=own
    )
    assert done.stdout.split() == [str(threads), str(said)]
