"""The application: errors turned into lines and exit codes in one place."""

from collections.abc import Sequence

import typer

from flmgrow import __version__
from flmgrow.cli.commands import CommandGroup
from flmgrow.cli.ended import EndedError
from flmgrow.errors import FlmgrowError, UsageError, as_storage_error, tell
from flmgrow.text import COMMAND_LINE

INTERRUPTED = 130

app = typer.Typer(
    name="flmgrow",
    cls=CommandGroup,
    help="Grow and reshard model checkpoints, and prove that the function did not change.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        print(f"flmgrow {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Grow and reshard model checkpoints, and prove that the function did not change."""


def _speaks() -> bool:
    """Whether this process is to tell what is wrong with a command line that all ranks got."""
    from flmgrow.cli.in_ranks import this_world

    try:
        return this_world().first
    except UsageError:
        return True


def run(arguments: Sequence[str]) -> int:
    """Run the command line on ``arguments`` and return its exit code."""
    try:
        code = app(list(arguments) or ["--help"], standalone_mode=False, prog_name="flmgrow")
    except FlmgrowError as error:
        if not error.told:
            tell(error, COMMAND_LINE)
        return error.exit_code
    except EndedError as ended:
        return ended.code
    except typer.TyperException as error:
        if _speaks():
            hint = "flmgrow COMMAND --help lists what is accepted"
            tell(UsageError(error.format_message(), hint), COMMAND_LINE)
        return UsageError.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        raise
    except SystemExit as stopped:  # click's answer to a pipe that was closed
        if isinstance(stopped.__context__, BrokenPipeError):
            raise stopped.__context__ from None
        raise
    except OSError as error:
        told = as_storage_error(error, "standard output")
        tell(told, COMMAND_LINE)
        return told.exit_code
    if code == INTERRUPTED:  # typer turns the exception into a code, and nobody would be told
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
