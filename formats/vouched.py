"""Settings in a checkpoint that flmgrow does not know, and that the user vouches for.

A new name in ``config.json`` or in Megatron-LM's arguments stops the reading, since it may change
what the model computes. Whoever knows that it does not says so, by its name or, for many that begin
alike, by a pattern as a shell has it (``unsloth_*``).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flmgrow.text import Pass, Text


@dataclass(frozen=True)
class Vouched:
    """Names and patterns that the user gave in ``setting``."""

    setting: str
    patterns: Collection[str] = ()

    def covers(self, name: str) -> bool:
        """Whether the user vouches for ``name``."""
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in self.patterns)

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return the patterns that match none of ``names``: slips of the finger, mostly."""
        found = list(names)
        return [p for p in self.patterns if not any(n == p or fnmatchcase(n, p) for n in found)]

    def hint(self, names: Iterable[str]) -> Text:
        """Return the hint to vouch for ``names``, as it can be copied."""
        given = list(names)
        subject = "it does" if len(given) == 1 else "they do"
        computes = f"if {subject} not change what the model computes, "
        return Text(computes, Pass(self.setting, given))
