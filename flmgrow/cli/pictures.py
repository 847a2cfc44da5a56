"""Files of pictures that a command line names."""

from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.stages.drawing import KINDS
from flmgrow.text import Found, Text


def picture_kind(option: str, file: Path) -> str:
    """Return the kind of picture that ``file``, given to ``option``, is to be.

    Raises:
        UsageError: If no picture can be written there.
    """
    if file.is_dir():
        raise UsageError(
            "is a folder",
            f"name a picture in it, such as {option} {file / 'loss.png'}",
            where=file,
            wanted="the file of a picture",
        )
    if not file.parent.is_dir():
        raise UsageError(
            Text(f"{option} {file}: ", Found(file.parent), " is no folder"),
            "make the folder first, or name a place in another one",
            wanted="one to write the picture in",
        )
    kind = file.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        wanted = ", ".join(f".{each}" for each in KINDS)
        what = Text(f"{option} {file}: ", Found("unknown kind of picture"))
        raise UsageError(what, wanted=f"one of {wanted}")
    return kind
