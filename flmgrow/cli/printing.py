"""What commands print: in the words of the command line, wherever a text calls settings by name."""

import json
import sys
from collections.abc import Iterable
from typing import Any
from unicodedata import category

from flmgrow.errors import shown
from flmgrow.model.wording import aligned
from flmgrow.text import COMMAND_LINE, rendered


def note(text: str) -> None:
    """Print what is to be known, on stderr."""
    print(f"note: {shown(text, COMMAND_LINE)}", file=sys.stderr)


def json_text(data: Any) -> str:
    """Return data as commands print it."""
    return json.dumps(rendered(data, COMMAND_LINE), indent=1)


def in_columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return ``name  value`` lines with the values in one column."""
    return aligned(rows, COMMAND_LINE)


def harmless(text: str) -> str:
    """Return a text as a terminal may have it: a model or a corpus may say what would steer it.

    Files and pipes get the text as it is.
    """
    if not sys.stdout.isatty():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if category(c) == "Cc" and c not in "\n\t" else c
        for c in text
    )
