"""Parsing ``hf://ORG/NAME@REVISION`` and telling it from the name of a folder.

``hf://ORG/NAME@REVISION`` stands wherever a source does, and must not be taken for a folder. Paths
are read by ``pathlib``, which makes one slash of two; so it is the first part, ``hf:``, that tells.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.text import Setting, Text

_PREFIX = "hf:"
_MAIN = "main"
_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?"
_REPOSITORY = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,199}", re.ASCII)
_FORM = "hf://ORG/NAME, or hf://ORG/NAME@REVISION for a branch, tag or commit"


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub and a revision of it."""

    repository: str
    revision: str = _MAIN

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository):
            raise UsageError(f"{self}: {self.repository!r} is no name of a repository", _FORM)
        if not _REVISION.fullmatch(self.revision):
            raise UsageError(f"{self}: {self.revision!r} is no name of a revision", _FORM)

    def __str__(self) -> str:
        revision = "" if self.revision == _MAIN else f"@{self.revision}"
        return f"hf://{self.repository}{revision}"


def is_on_hub(path: Path) -> bool:
    """Whether a path, as given on the command line, means a repository on the Hub."""
    return path.parts[:1] == (_PREFIX,)


def hub_name(path: Path) -> HubName:
    """Return what ``hf://ORG/NAME@REVISION`` means.

    Raises:
        UsageError: What was asked for cannot be.
    """
    user, at, _ = path.parts[1].partition("@") if path.parts[1:] else ("", "", "")
    if ":" in user or (at and path.parts[2:] and user.startswith(("hf_", "api_org_"))):
        raise UsageError(
            "hf://***@: holds a user's name or a token",
            "set HF_TOKEN, or log in once with hf auth login: what is typed is kept by the shell",
            wanted=_FORM,
        )
    repository, at, revision = "/".join(path.parts[1:]).partition("@")
    return HubName(repository, revision if at else _MAIN)


def push_name(repository: str, revision: str | None) -> HubName:
    """Return the repository and branch that are to be written to.

    Raises:
        UsageError: What was asked for cannot be.
    """
    name = HubName(repository.removeprefix("hf://"), _MAIN if revision is None else revision)
    if "/" not in name.repository:
        raise UsageError(
            Text(Setting("push_to"), f" {repository}: wanted ORG/NAME"),
            "name the user or organization that the repository belongs to",
        )
    return name
