"""Going back after a spike, and passing over the samples that led to it, so that a kill loses none.

A run that goes back must not meet the same batches again, however often it is killed on the way.
So what was decided lies in a small file beside the checkpoints before training goes on: from which
checkpoint, and over which samples. Until that file is there, the same command meets the spike again
and decides the same. A run that goes on from that checkpoint finds there where its data goes on;
later checkpoints have counted those samples themselves.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flmgrow.errors import BadCheckpointError
from flmgrow.storage.content_sum import is_intact, with_sum
from flmgrow.storage.durable import write_small
from flmgrow.storage.files import read_if_there
from flmgrow.storage.folders import make_folders
from flmgrow.storage.validation import problems

ROLLBACKS = "rollbacks.json"
MAX_BYTES = 16 << 20

_Number = Annotated[int, Field(ge=0, le=1 << 62)]


class Rollback(BaseModel):
    """After ``step``, the run went back to iteration ``to``, at which it had consumed ``begin``
    samples, and went on there with sample ``end``. ``why`` is what was wrong.
    """

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)

    step: _Number
    to: _Number
    begin: _Number
    end: _Number
    why: str


class _Form(BaseModel):
    rollbacks: list[Rollback]


def read_rollbacks(folder: Path) -> list[Rollback]:
    """Return how often a run went back that saves in ``folder``, oldest first.

    Raises:
        BadCheckpointError: If its file cannot be read.
    """
    path = folder / ROLLBACKS
    content = read_if_there(path, MAX_BYTES)
    if content is None:
        return []
    hint = "it was altered: restore it from a copy, or remove it to read those samples after all"
    try:
        data = json.loads(content)
        found = _Form.model_validate(data, strict=True).rollbacks
    except ValidationError as error:
        raise BadCheckpointError(problems(error.errors()), hint, where=path) from None
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"not readable: {error}", hint, where=path) from None
    if not is_intact(data):
        raise BadCheckpointError("its own sum does not match its content", hint, where=path)
    return found


def write_rollbacks(folder: Path, rollbacks: Sequence[Rollback]) -> None:
    """Put all rollbacks of a run beside its checkpoints, on the disk.

    Raises:
        StorageError: The file system failed.
    """
    content = with_sum({"rollbacks": [each.model_dump() for each in rollbacks]})
    make_folders(Path(folder.anchor), folder)
    write_small(folder / ROLLBACKS, json.dumps(content, indent=1).encode() + b"\n")


def standing(rollbacks: Iterable[Rollback]) -> list[Rollback]:
    """Return those that the run has not gone back behind since, in rising order of ``to``."""
    kept: list[Rollback] = []
    for each in rollbacks:
        kept = [earlier for earlier in kept if earlier.to < each.to]
        kept.append(each)
    return kept


def place_at(
    rollbacks: Iterable[Rollback],
    iteration: int,
    consumed: int,
    trained: Callable[[int], int],
    later: int,
) -> int:
    """Return the sample with which a run goes on at iteration ``later``.

    At ``iteration`` it had ``consumed`` so many; ``trained`` says how many of its stage it has
    trained on at any iteration.
    """
    for each in standing(rollbacks):
        if iteration <= each.to <= later:
            before = consumed + trained(each.to) - trained(iteration)
            if before == each.begin:
                iteration, consumed = each.to, each.end
    return consumed + trained(later) - trained(iteration)


def way_back(saved: Iterable[int], step: int, window: int) -> int | None:
    """Return the iteration to go back to from a spike at ``step``, of those that are ``saved``: the
    newest one before the ``window`` of steps that led to it, else the oldest.

    None without any.
    """
    earlier = [each for each in saved if each < step]
    before = [each for each in earlier if each <= step - window]
    return max(before) if before else min(earlier, default=None)
