"""What commands print: in the words of the command line, wherever a text calls settings by name."""

import json
import sys
from collections.abc import Iterable
from typing import Any

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
