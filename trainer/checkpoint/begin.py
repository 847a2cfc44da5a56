"""Where a stage goes on, or what it begins with: any checkpoint, in any layout, or nothing.

A checkpoint need not have the format, the layout or the precision of the run. What decides on the
result must agree, and is compared before a byte of a weight is read: the model as far as the stage
file speaks of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.fresh import fresh_of
from flmgrow.formats.history.manifest import family, masks_of, training_of
from flmgrow.formats.history.parts import Member
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import Carried, TrainingState, read_training_state
from flmgrow.formats.megatron.folders import TRACKER
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Fresh, Mask
from flmgrow.trainer.checkpoint.opening import begins_anew, opened, weights_of
from flmgrow.trainer.checkpoint.saved import saved_iterations
from flmgrow.trainer.checkpoint.saving import point_to
from flmgrow.trainer.data.batches import MicroBatches
from flmgrow.trainer.stage.changes import BEGAN_MASKED, goes_back
from flmgrow.trainer.stage.clock import StageProgress, progress_of
from flmgrow.trainer.stage.file import StageFile, read_stage
from flmgrow.trainer.stage.model import ModelSection, contradictions


@dataclass(frozen=True, eq=False)
class TriedBatch:
    """A replica's part of a batch, and the loss of all of it, in nats per token."""

    micro_batches: MicroBatches
    loss: float


@dataclass(frozen=True, eq=False)
class GrownInMemory:
    """How a model has grown in memory: out of the stage of this name, which had so many
    ``parameters`` and computed in this ``precision``, by the method of each dimension, in
    ``seconds``.

    ``preserves`` says that losses should be what they were, as far as ``tried`` can tell.
    """

    stage: str
    precision: str
    parameters: int
    methods: Mapping[str, str]
    seconds: float
    preserves: bool = True
    tried: TriedBatch | None = None


@dataclass(frozen=True, eq=False)
class Begin:
    """Where a stage goes on, or begins.

    ``checkpoint`` is what it reads, None for fresh weights. ``resumed`` says that the stage itself
    saved it, ``progress`` how far it was. ``masks`` are those that are not open yet, as the
    checkpoint has them. ``settings`` are those that it was trained with, as far as it knows;
    ``left`` is the iteration that it had reached, if it goes back from there. ``anew`` says that it
    takes weights only. ``grows`` says that there is no checkpoint yet: what the stage before has
    trained is still to grow; ``grown`` is how it has, ``ungrown`` that this was taken back.
    ``fresh`` is what its last growth made.
    """

    checkpoint: Checkpoint | None
    resumed: bool
    iteration: int
    stage_begin: int
    carried: Carried
    masks: Mapping[Dimension, Mask]
    family: tuple[Member, ...] = ()
    progress: StageProgress = field(default_factory=StageProgress)
    settings: Mapping[str, Any] = field(default_factory=dict)
    left: int | None = None
    anew: bool = False
    grows: bool = False
    ungrown: bool = False
    grown: GrownInMemory | None = None
    fresh: Fresh = field(default_factory=dict)

    @property
    def began_masked(self) -> bool:
        """Whether a mask was below 1 where the stage began; or is here, if nothing says that."""
        here = any(mask.value < 1 for mask in self.masks.values())
        return bool(self.settings.get(BEGAN_MASKED, here)) if self.resumed else here


def find_begin(stage: StageFile, is_read: Callable[[Carried], bool]) -> Begin:
    """Return where ``stage`` goes on; the caller closes its checkpoint.

    ``is_read`` says whether a run has read nothing but the stage's data. On all ranks at once.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
        StorageError: The file system failed.
        UsageError: If the checkpoint in its folder is of another stage, or there is none at which
            its settings shall change.
    """
    newest, at = _newest(stage), stage.checkpoint.change_at
    if at is None:
        return _first(stage) if newest is None else newest
    if newest is not None:
        done = newest.settings and not goes_back(stage, newest.settings)
        if at == newest.iteration or (done and is_read(newest.carried)):
            return newest
        _close(newest)
    if newest is not None and at != newest.stage_begin:
        return replace(_earlier(stage, at), left=newest.iteration)
    first = _first(stage)
    if first.iteration != at:
        _close(first)
        raise UsageError(
            f"has no checkpoint of iteration {at}, from which on "
            "checkpoint.change_at wants the settings to hold",
            f"the stage begins at iteration {first.iteration}: say that, or leave it out",
            where=stage.checkpoint.folder,
        )
    if newest is None:
        return first
    return replace(first, settings=newest.settings, left=newest.iteration)


def _newest(stage: StageFile) -> Begin | None:
    """Return where the newest checkpoint of a stage's folder has it go on, if there is any."""
    folder = stage.checkpoint.folder
    if (folder / TRACKER).exists():
        return _resumed(stage, opened(stage, folder))
    # Killed between the first iteration and the tracker: it appeared whole.
    if saved := saved_iterations(folder):
        begin = _resumed(stage, opened(stage, folder, saved[-1]))
        if torch.distributed.get_rank() == 0:
            point_to(folder, begin.iteration)
        return begin
    return None


def _earlier(stage: StageFile, iteration: int) -> Begin:
    """Return where a stage goes on from further back. Later checkpoints stay until it is there."""
    folder = stage.checkpoint.folder
    if iteration not in (saved := saved_iterations(folder)):
        told = ", ".join(f"{each}" for each in saved)
        raise UsageError(
            f"has no checkpoint of iteration {iteration}, from which on "
            "checkpoint.change_at wants the settings to hold",
            f"saved are {told}; the iteration at which the stage begins will do, too",
            where=folder,
        )
    begin = _resumed(stage, opened(stage, folder, iteration))
    if torch.distributed.get_rank() == 0:
        point_to(folder, iteration)
    return begin


def _close(begin: Begin) -> None:
    if begin.checkpoint is not None:
        begin.checkpoint.close()


def _first(stage: StageFile) -> Begin:
    """Return what a stage begins with."""
    if stage.growth is not None:
        before = read_stage(stage.growth.after).checkpoint.folder
        iteration = stage.growth.at or max(saved_iterations(before), default=0)
        return Begin(None, False, iteration, iteration, Carried(), {}, grows=True)
    load = stage.checkpoint.load
    if load is None:
        return Begin(None, False, 0, 0, Carried(), {})
    anew = begins_anew(stage.checkpoint, load)
    return _with(stage, (weights_of if anew else opened)(stage, load), anew=anew)


def find_ungrown(stage: StageFile) -> Begin:
    """Return where a stage begins whose growth is taken back: with what grew, as it was saved.

    The caller closes its checkpoint.

    Raises:
        FlmgrowError: What opening it raises.
    """
    assert stage.growth is not None
    folder = read_stage(stage.growth.after).checkpoint.folder
    checkpoint = opened(stage, folder, stage.growth.at)
    return replace(_with(stage, checkpoint, anew=False), ungrown=True)


def _with(stage: StageFile, checkpoint: Checkpoint, *, anew: bool) -> Begin:
    """Return what a stage begins with, of a checkpoint that is another's."""
    masks = stage.masks.rising(masks_of(checkpoint))
    carried, ancestors = training_of(checkpoint) or Carried(), tuple(family(checkpoint))
    if anew:
        carried = Carried(base_output=carried.base_output)
    iteration = 0 if anew else checkpoint.iteration or 0
    return Begin(
        checkpoint, False, iteration, iteration, carried, masks, ancestors, anew=anew,
        fresh=fresh_of(checkpoint),
    )  # fmt: skip


def _resumed(stage: StageFile, checkpoint: Checkpoint) -> Begin:
    state = read_training_state(checkpoint.folder)
    if state is None or state.stage != stage.name:
        found = "no run of flmgrow's trainer" if state is None else f"the stage {state.stage!r}"
        raise UsageError(
            f"is of {found}, this is the stage {stage.name!r}",
            "give the stage a checkpoint folder of its own, and name this one as checkpoint.load",
            where=checkpoint.folder,
        )
    if state.iteration != checkpoint.iteration:
        raise BadCheckpointError(
            f"is of iteration {state.iteration}, the checkpoint of {checkpoint.iteration}",
            "it was altered: restore it from a copy",
            where=checkpoint.folder / TRAINING,
        )
    return Begin(
        checkpoint,
        True,
        state.iteration,
        state.stage_begin,
        state.carried,
        stage.masks.rising(state.masks),
        state.family,
        progress_of(stage, state),
        state.settings,
        ungrown=_is_ungrown(stage, state),
        fresh=state.fresh,
    )


def _is_ungrown(stage: StageFile, state: TrainingState) -> bool:
    """Whether a stage has gone on with the model that it was to grow: its own did not grow."""
    said = stage.growth is not None and stage.growth.if_diverged == "ungrown"
    return said and bool(state.family) and state.family[-1].methods is None


def check_model(section: ModelSection, config: ModelConfig, folder: Path) -> None:
    """Raise UsageError, naming each difference, if a stage file contradicts its checkpoint.

    That lies in ``folder`` and holds the model ``config``. Only what the file says is compared:
    what it leaves out is as the checkpoint has it.
    """
    differences = contradictions(section, config)
    if differences:
        raise UsageError(
            f"{'; '.join(differences)}",
            "give the checkpoint of this model, or grow it first",
            where=folder,
        )
