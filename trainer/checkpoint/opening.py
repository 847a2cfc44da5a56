"""Opening the checkpoints that a stage file names.

A stage file names checkpoints; what the user vouches for, and what is refused, has keys there. What
reads a checkpoint is what every command uses, and its hints speak of options.
"""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flmgrow.errors import FlmgrowError, UsageError
from flmgrow.formats.arguments_elsewhere import arguments_from
from flmgrow.formats.checkpoint import Checkpoint, ReadOptions
from flmgrow.formats.huggingface.contents import is_huggingface
from flmgrow.formats.megatron.arguments.given import parse_given
from flmgrow.formats.megatron.folders import TRACKER
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.states import State
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.sections import CheckpointSection

_VOUCHED = re.compile(r"(?:pass )?(--ignore-(?:arg|field)|--set-arg) \S+(?: \1 \S+)*")
_LISTS = {
    "--ignore-arg": "checkpoint.ignore_arguments",
    "--ignore-field": "checkpoint.ignore_fields",
    "--set-arg": "checkpoint.set_arguments",
}
_OTHERS = {
    "--true-vocab-size": "checkpoint.true_vocab_size",
    "--max-position-embeddings": "model.max_position_embeddings",
    "--no-optimizer": "checkpoint.begin: anew",
    "--args-from": "checkpoint.args_from",
    "--untie": "checkpoint.untie: true",
    "--tie": "checkpoint.untie: false",
}
"""A stage file's keys where a command has options."""


def opened(stage: StageFile, path: Path, iteration: int | None = None) -> Checkpoint:
    """Open the checkpoint at ``path`` with its optimizer; the caller closes it.

    Raises what reading it raises, in a stage file's keys.
    """
    with in_keys_of_a_stage():
        return with_optimizer(_open(stage, path, iteration))


def weights_of(stage: StageFile, path: Path) -> Checkpoint:
    """Open the checkpoint at ``path`` for its best weights only: masters, where there are any.

    The caller closes it. Raises what reading it raises, in a stage file's keys.
    """
    with in_keys_of_a_stage():
        checkpoint = _open(stage, path)
        if checkpoint.dtype == "float32":
            return checkpoint
        whole = with_optimizer(checkpoint)
        masters: dict[State, LogicalReader] = {}
        if State.MASTER in whole.state_readers:
            masters[State.MASTER] = whole.state_readers[State.MASTER]
        return replace(whole, optimizer=None, state_readers=masters)


def _open(stage: StageFile, path: Path, iteration: int | None = None) -> Checkpoint:
    checkpoint = open_checkpoint(path, iteration, said_of(stage))
    return replace(checkpoint, notes=(*_elsewhere(stage.checkpoint)[1], *checkpoint.notes))


def _elsewhere(section: CheckpointSection) -> tuple[dict[str, object], list[str]]:
    """Return the arguments that a stage takes from elsewhere, and what is to be told of them."""
    return ({}, []) if section.args_from is None else arguments_from(section.args_from)


def said_of(stage: StageFile) -> ReadOptions:
    """Return what a stage file says of checkpoints that their files leave open.

    Raises UsageError or BadCheckpointError for what it says in the place of missing arguments.
    """
    section = stage.checkpoint
    given = parse_given("checkpoint.set_arguments:", section.set_arguments)
    return ReadOptions(
        ignored_arguments=tuple(section.ignore_arguments),
        ignored_fields=tuple(section.ignore_fields),
        max_positions=stage.model.max_position_embeddings,
        untie=section.untie,
        true_vocab=section.true_vocab_size,
        given_arguments={**_elsewhere(section)[0], **given},
    )


def begins_anew(section: CheckpointSection, path: Path) -> bool:
    """Whether a stage takes only the weights of the checkpoint at ``path``.

    Raises UsageError if it wants more of a Hugging Face folder, which has no more.
    """
    if not is_huggingface(path) or (path / TRACKER).exists():
        return section.begin == "anew"
    if section.begin == "continue":
        raise UsageError(
            "checkpoint.begin is continue, but a Hugging Face folder has weights only",
            "leave it out, or name the Megatron checkpoint that was exported",
            where=path,
        )
    return True


@contextmanager
def in_keys_of_a_stage() -> Iterator[None]:
    """Let what is refused inside speak of a stage file's keys instead of a command's options."""
    try:
        yield
    except FlmgrowError as error:
        raise type(error)(_keyed(error.message), _keyed(error.hint)) from None


def _keyed(text: str) -> str:
    """Return ``text`` with keys of a stage file for the options that it speaks of."""
    text = _VOUCHED.sub(_listed, text)
    for option, key in _OTHERS.items():
        text = text.replace(f"pass {option}", f"say {key}").replace(option, key)
    return text


def _listed(found: re.Match[str]) -> str:
    names = [word for word in shlex.split(found[0]) if word != "pass" and word not in _LISTS]
    return f"say {_LISTS[found[1]]}: {json.dumps(names)}"
