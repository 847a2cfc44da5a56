"""Which samples a step of a stage reads, found without training it.

A run knows its place in the data at each checkpoint. From the last one before a step, or what the
stage begins with, the samples of that step follow: batches are a function of their number.
"""

from collections.abc import Iterator
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.history.manifest import training_of
from flmgrow.formats.history.training_state import Carried, read_training_state
from flmgrow.formats.megatron.folders import folder_name
from flmgrow.formats.opening import open_checkpoint
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.checkpoint.opening import begins_anew, said_of
from flmgrow.trainer.checkpoint.rollbacks import place_at, read_rollbacks
from flmgrow.trainer.checkpoint.saved import saved_iterations
from flmgrow.trainer.data.course import course_of
from flmgrow.trainer.data.looking_samples import shown_step
from flmgrow.trainer.data.stage_data import open_data
from flmgrow.trainer.stage.clock import StageProgress, progress_of, trained_by
from flmgrow.trainer.stage.file import StageFile, read_stage


def samples_of_step(path: Path, step: int) -> Iterator[Json]:
    """Yield the samples that step ``step`` of the stage in the file ``path`` reads.

    Steps are counted as in its metrics, on from what it begins with.

    Raises:
        UsageError: For a step before the stage's first, or data that is not to be had.
        BadCheckpointError: If what the stage begins with cannot be read.
    """
    stage = read_stage(path)
    iteration, carried, progress = _before(stage, step)
    if step <= iteration:
        raise UsageError(
            Text("step ", Found(f"{step:,}")),
            where=path,
            wanted=f"more than {iteration:,}, with which the stage begins",
        )
    data = open_data(stage.data)
    course = course_of(
        data.mixture,
        data.keys,
        stage.data.sequence_length,
        carried,
        begins=not progress.steps,
        changes_here=stage.checkpoint.change_at == iteration,
        differs=stage.data.differs and not progress.steps,
    )
    rollbacks = read_rollbacks(stage.checkpoint.folder)
    trained = trained_by(stage, progress, iteration)
    place = place_at(rollbacks, iteration, course.consumed, trained, step - 1)
    batch = stage.training.sizes.at(trained(step - 1))
    yield from shown_step(course, place, batch, data.tokenizer)


def _before(stage: StageFile, step: int) -> tuple[int, Carried, StageProgress]:
    """Return the last iteration before a step of which the place in the data is known, that place,
    and how far the stage is there.
    """
    folder = stage.checkpoint.folder
    for iteration in reversed(saved_iterations(folder)):
        state = read_training_state(folder / folder_name(iteration))
        if iteration < step and state is not None:
            return iteration, state.carried, progress_of(stage, state)
    load = stage.checkpoint.load
    if load is None or begins_anew(stage.checkpoint, load):
        return 0, Carried(), StageProgress()
    with open_checkpoint(load, None, said_of(stage)) as checkpoint:
        return checkpoint.iteration or 0, training_of(checkpoint) or Carried(), StageProgress()
