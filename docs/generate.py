"""A reference that is written by hand is wrong as soon as an option changes.

``docs/reference/cli.md`` is therefore made from what the commands say of themselves. ``make docs``
or ``python docs/generate.py`` writes it; with ``--check`` it is only compared, and the exit code is
1 if it is stale. The width is fixed, so that nobody's terminal matters.
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

from flmgrow.cli.app import run
from flmgrow.cli.commands import COMMANDS, command_of

REFERENCE = Path(__file__).parent / "reference" / "cli.md"
ENVIRONMENT = {"COLUMNS": "90", "TERM": "dumb", "NO_COLOR": "1"}
HEAD = """\
# Command line

This page is the output of `--help`, written by `python docs/generate.py`. Do not edit it by hand.
Exit codes are explained in [When things go wrong](../guides/when-things-go-wrong.md#exit-codes).
"""


def commands() -> list[str]:
    """Return the name of every command, ``GROUP NAME`` for one in a group."""
    found = []
    for name in COMMANDS:
        command = command_of(name)
        members = getattr(command, "commands", {})
        found += [f"{name} {member}" for member in members] or [name]
    return found


def help_of(*words: str) -> str:
    """Return what ``flmgrow WORDS --help`` prints."""
    text = io.StringIO()
    with mock.patch.dict(os.environ, ENVIRONMENT), contextlib.redirect_stdout(text):
        run([*words, "--help"])
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def reference() -> str:
    """Return the whole page."""
    sections = [("flmgrow", help_of())]
    sections += [(f"flmgrow {name}", help_of(*name.split())) for name in commands()]
    parts = [f"## {title}\n\n```text\n$ {title} --help\n{text}\n```\n" for title, text in sections]
    return "\n".join([HEAD, *parts])


def main() -> int:
    """Write the page, or compare it; return the exit code."""
    wanted = reference()
    if sys.argv[1:] == ["--check"]:
        found = REFERENCE.read_text(encoding="utf-8") if REFERENCE.exists() else ""
        if found != wanted:
            print(f"{REFERENCE.name}: stale; run python docs/generate.py", file=sys.stderr)
        return int(found != wanted)
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
