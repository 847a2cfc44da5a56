"""One piece of evidence, and what all of it together proves.

A check that failed is one thing, evidence that is not there another: without it nothing is known
to be different, and nothing is proved. So the verdict has three values, and what is missing is
named in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flmgrow.errors import DifferenceFoundError, NotProvenError

Missing = Literal["skipped", "unproven"]
"""Why evidence is not there: nobody wanted it, or it could not be had."""


@dataclass(frozen=True)
class Check:
    """One piece of evidence: passed, failed, or neither (``passed`` None).

    One that is neither is ``missing``, or else only reported.
    """

    name: str
    passed: bool | None
    detail: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    missing: Missing | None = None

    def __post_init__(self) -> None:
        assert self.missing is None or self.passed is None, "what is not there has not been judged"

    @property
    def word(self) -> str:
        """What it comes to, in a word."""
        return self.missing or {True: "ok", False: "DIFFERENT", None: "note"}[self.passed]


@dataclass(frozen=True)
class Verdict:
    """What all checks come to: no difference was found (``equal``), and what was ``missing``.

    ``exit_code`` is 0 only if all evidence is there that was asked for.
    """

    checks: Sequence[Check]

    @property
    def equal(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def missing(self) -> list[str]:
        """The names of the evidence that is not there."""
        return [check.name for check in self.checks if check.missing is not None]

    @property
    def proven(self) -> bool:
        """Whether all evidence there can be was found, and none of it failed."""
        return self.equal and not self.missing

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ran these checks; what was skipped was not asked for."""
        if not self.equal:
            return DifferenceFoundError.exit_code
        unproven = any(check.missing == "unproven" for check in self.checks)
        return NotProvenError.exit_code if unproven else 0

    @property
    def text(self) -> str:
        """The verdict on one line."""
        if not self.equal:
            return "NOT EQUAL"
        lost = ", ".join(self.missing)
        return f"function equal, NOT PROVEN: {lost}" if lost else "equal"
