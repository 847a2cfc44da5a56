"""What a schedule may say where: names of stages, and keys that are not a stage's to say.

A run's folder decides where files lie, the first stage alone says how a run begins, and each stage
has a name that a folder can have. What is said in the wrong place is refused with the right one.
"""

from collections.abc import Sequence
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.stages.growth_section import HINT
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text

LONGEST_NAME = 100
"""Bytes of a stage's name: folders are called after it, and file systems take 255."""

_OF_THE_FOLDER = ("checkpoint.folder", "checkpoint.load", "log.metrics")
"""What a stage file says and a schedule does not: the run's folder decides."""

_OF_ONE_STAGE = ("checkpoint.begin", "checkpoint.change_at", "checkpoint.args_from")
"""What can hold for one stage only."""

_OF_A_START = ("begin", "args_from")
"""What of a stage's checkpoint can hold for the first stage only."""

TENSORBOARD = "tensorboard"
"""The folder beside a stage's checkpoints, if it has one."""


def names_of(path: Path, stages: Sequence[object]) -> list[str]:
    """Return the name of each stage.

    Raises:
        UsageError: For one that is missing, is no name of a folder, or is there twice.
    """
    names: list[str] = []
    for number, own in enumerate(stages, 1):
        where = f"{path}: stage {number}"
        if not isinstance(own, dict):
            raise UsageError(
                Text("is ", Found(f"{own!r:.60}")),
                HINT,
                where=where,
                wanted="a mapping with a name",
            )
        name = own.get("name")
        if name is None:
            raise UsageError("has no name", HINT, where=where)
        if not isinstance(name, str):
            raise UsageError(
                Text("name is ", Found(f"{name!r:.60}")),
                "put it in quotes",
                where=where,
                wanted="a text",
            )
        if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
            allowed = "letters, digits, '.', '_' and '-'"
            raise UsageError(
                Text("name is ", Found(f"{name!r:.60}")),
                where=where,
                wanted=f"{allowed}, no '.' in front",
            )
        if (size := len(name.encode())) > LONGEST_NAME:
            raise UsageError(
                Text("name has ", Found(size), " bytes"),
                "give a shorter one: its folder is called so",
                where=where,
                wanted=f"at most {LONGEST_NAME}",
            )
        if name in names:
            raise UsageError(f"two stages are called {name}", "give each its own name", where=path)
        names.append(name)
    return names


def check_places(data: Json) -> None:
    """Raise UsageError for a key whose value the run's folder decides."""
    for key in _OF_THE_FOLDER:
        section, name = key.split(".")
        inside = data.get(section)
        if isinstance(inside, dict) and inside.get(name) is not None:
            raise UsageError(
                f"{key}: is {inside[name]!r:.60}, but the run's folder decides it",
                "leave it out: all of a run lies in its folder, and each stage begins with what "
                "was grown for it; a model that the first one begins with is its start: FOLDER",
            )
    log = data.get("log")
    board = log.get("tensorboard") if isinstance(log, dict) else None
    if board is not None and board != TENSORBOARD:
        raise UsageError(
            Text("log.tensorboard: is ", Found(f"{board!r:.60}")),
            "tensorboard --logdir and the run's folder shows all of them",
            wanted=f"{TENSORBOARD}: each stage has its own",
        )


def check_of_one_stage(data: Json) -> None:
    """Raise UsageError if the common part says what can hold for one stage only."""
    if data.get("start") is not None:
        raise UsageError("start: holds for one stage only", "say it in the first stage")
    for key in _OF_ONE_STAGE:
        section, name = key.split(".")
        inside = data.get(section)
        if isinstance(inside, dict) and inside.get(name) is not None:
            raise UsageError(f"{key}: holds for one stage only", "say it in that stage")


def check_later(own: Json) -> None:
    """Raise UsageError if a later stage says how the run begins."""
    checkpoint = own.get("checkpoint")
    section = checkpoint if isinstance(checkpoint, dict) else {}
    said = {f"checkpoint.{name}": section.get(name) for name in _OF_A_START}
    for key in (
        key for key, value in {**said, "start": own.get("start")}.items() if value is not None
    ):
        raise UsageError(
            f"{key}: a later stage begins with what grew out of the one before",
            "only the first stage of a schedule may say it",
        )
