"""The front door: commands are imported when they are called, and all are told of."""

import subprocess
import sys

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
