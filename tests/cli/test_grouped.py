"""Options declared together: a command has them all, and gets the value they make."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from flmgrow.cli.grouped import grouped

Many = Annotated[list[str] | None, typer.Option("--many")]


@dataclass(frozen=True)
class Group:
    many: Many = None
    size: Annotated[int, typer.Option(min=1)] = 3
    kept: float = 0.5


def run(*words: str) -> tuple[int, str]:
    app = typer.Typer()

    @app.command()
    @grouped
    def command(place: str, flag: bool = False, *, group: Group) -> None:
        """Say what was given."""
        print(place, flag, group)

    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output.strip()


def test_defaults_are_those_of_the_fields() -> None:
    assert run("here") == (0, f"here False {Group()}")


def test_options_of_the_group_reach_the_command_as_one_value() -> None:
    words = ("here", "--flag", "--many", "a", "--many", "b", "--size", "7")
    assert run(*words) == (0, f"here True {Group(['a', 'b'], 7)}")


def test_their_limits_hold() -> None:
    assert run("here", "--size", "0")[0] == 2


def test_fields_that_are_no_options_cannot_be_given() -> None:
    assert run("here", "--kept", "1.0")[0] == 2


def test_an_option_in_a_group_needs_a_default() -> None:
    @dataclass(frozen=True)
    class Bare:
        size: Annotated[int, typer.Option()]

    def command(group: Bare) -> None:
        """Take ``Bare``, known here only."""

    command.__annotations__["group"] = Bare
    with pytest.raises(AssertionError, match="size"):
        grouped(command)
