"""Opening the checkpoints that a stage file names.

A stage file names checkpoints; what the user vouches for, and what is refused, has keys there.
"""

from dataclasses import replace
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.arguments_elsewhere import arguments_from
from flmgrow.formats.checkpoint import Checkpoint, ReadOptions
from flmgrow.formats.huggingface.contents import is_huggingface
from flmgrow.formats.megatron.arguments.given import parse_given
from flmgrow.formats.megatron.folders import TRACKER
from flmgrow.formats.opening import open_checkpoint, with_optimizer
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.states import State
from flmgrow.trainer.stage.beginning import CheckpointSection
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import in_words


def opened(stage: StageFile, path: Path, iteration: int | None = None) -> Checkpoint:
    """Open the checkpoint at ``path`` with its optimizer; the caller closes it.

    Raises:
        FlmgrowError: What reading it raises, in a stage file's keys.
    """
    with in_words():
        return with_optimizer(_open(stage, path, iteration))


def weights_of(stage: StageFile, path: Path) -> Checkpoint:
    """Open the checkpoint at ``path`` for its best weights only: masters, where there are any.

    The caller closes it.

    Raises:
        FlmgrowError: What reading it raises, in a stage file's keys.
    """
    with in_words():
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

    Raises:
        UsageError: For what it says in the place of missing arguments.
        BadCheckpointError: For what it says in the place of missing arguments.
    """
    section = stage.checkpoint
    given = parse_given(section.set_arguments)
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

    Raises:
        UsageError: If it wants more of a Hugging Face folder, which has no more.
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
