"""Counting what was passed over, by kinds.

What is passed over in millions of documents is told by its kinds: how many, and where first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from flmgrow.storage.strict_json import Json


@dataclass
class Tallied:
    """How often something was found, and the name of the place where first.

    ``message`` and ``hint`` are what there is to say of that place.
    """

    count: int
    first: str
    message: str = ""
    hint: str = ""


class Tally:
    """Counts by kind, in the order in which kinds were found."""

    def __init__(self, entries: Mapping[str, Tallied] | None = None) -> None:
        self._entries = dict(entries or {})

    def add(self, kind: str, first: str, count: int = 1, message: str = "", hint: str = "") -> None:
        """Count ``count`` more, at least one, found after all that is counted already."""
        if kind in self._entries:
            self._entries[kind].count += count
        else:
            self._entries[kind] = Tallied(count, first, message, hint)

    def merge(self, later: "Tally") -> None:
        """Add what was found behind all that is counted here."""
        for kind, entry in later:
            self.add(kind, entry.first, entry.count, entry.message, entry.hint)

    def __iter__(self) -> Iterator[tuple[str, Tallied]]:
        """Yield kinds and their entries, in the order in which they were found."""
        yield from self._entries.items()

    def __len__(self) -> int:
        """How many were found in all."""
        return sum(entry.count for entry in self._entries.values())

    def __getitem__(self, kind: str) -> Tallied:
        """What was found of a kind; a count of 0 if nothing was."""
        return self._entries.get(kind, Tallied(0, ""))

    def __str__(self) -> str:
        """Return all in a line."""
        return ", ".join(f"{e.count:,} {kind} (first {e.first})" for kind, e in self)

    def to_json(self) -> Json:
        """Return counts and first places by kind."""
        return {kind: {"count": entry.count, "first": entry.first} for kind, entry in self}

    def state(self) -> list[list[Any]]:
        """Return all of it as JSON, for :meth:`restored`."""
        return [[kind, *astuple(entry)] for kind, entry in self]

    @classmethod
    def restored(cls, state: list[list[Any]]) -> "Tally":
        """Return the tally whose :meth:`state` that is."""
        return cls({kind: Tallied(*values) for kind, *values in state})
