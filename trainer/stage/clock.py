"""Where a stage ends, and where its learning rate stands, whatever its text is cut into.

A batch may change in the middle of a stage. So a stage of so many tokens counts tokens, and its
learning rate follows the samples that it has read. Only where everything is said in steps (a stage
of so many steps whose rate falls until its end) steps are the clock, and are worth the samples that
they had when the stage began. As long as the batch stays, both clocks show the same.
"""

from dataclasses import dataclass
from fractions import Fraction

from flmgrow.formats.history.training_state import TrainingState
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.section import nearest


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is: ``steps`` taken, and the ``tokens`` that they read.

    ``batch`` is how many samples a step had when the stage began; None before the first one.
    """

    steps: int = 0
    tokens: int = 0
    batch: int | None = None

    def after_step(self, stage: StageFile) -> "StageProgress":
        """Return it one step of ``stage`` later."""
        batch = self.batch or stage.training.batch
        return StageProgress(self.steps + 1, self.tokens + stage.tokens_per_step, batch)


@dataclass(frozen=True)
class Clock:
    """What the learning rate follows, in samples.

    ``position`` is where it stands, and ``step`` by how much a step moves it; the warm-up ends at
    ``warmup``, and the floor is reached at ``decay``, after a ``cooldown`` of so many if there is
    one.
    """

    position: int
    step: int
    warmup: int
    decay: int
    cooldown: int = 0


def progress_of(stage: StageFile, state: TrainingState) -> StageProgress:
    """Return how far ``stage`` was when ``state`` was saved; an older flmgrow told no more than
    steps.
    """
    steps = state.iteration - state.stage_begin
    tokens = state.stage_tokens
    return StageProgress(
        steps, steps * stage.tokens_per_step if tokens is None else tokens, state.stage_batch
    )


def steps_in_all(stage: StageFile, progress: StageProgress) -> int:
    """Return the steps after which a stage ends that is so far; they may be fewer than it took."""
    if not progress.steps:
        return stage.steps  # no stage has none at all
    if stage.training.steps is not None:
        return stage.training.steps
    assert stage.training.tokens is not None
    left = Fraction(stage.training.tokens - progress.tokens, stage.tokens_per_step)
    return progress.steps + nearest(left)


def steps_left(stage: StageFile, progress: StageProgress) -> int:
    """Return the steps that a stage still has to take."""
    return max(0, steps_in_all(stage, progress) - progress.steps)


def clock_of(stage: StageFile, progress: StageProgress) -> Clock:
    """Return the clock of a stage that is so far."""
    length, rate = stage.data.sequence_length, stage.learning_rate
    batch = progress.batch or stage.training.batch
    steps, tokens = stage.training.steps, rate.decay_tokens or stage.training.tokens
    if tokens is None:
        assert steps is not None
        position, step, decay = progress.steps * batch, batch, steps * batch
    else:
        position, step = progress.tokens // length, stage.training.batch
        decay = max(1, nearest(Fraction(tokens, length)))
    cooldown = nearest(Fraction(rate.cooldown_tokens or 0, length))
    return Clock(position, step, rate.warmup_samples, decay, cooldown)
