"""Where a stage ends, and where its learning rate stands, whatever its text is cut into.

A batch may change in the middle of a stage, or grow at its beginning. So a stage of so many tokens
counts tokens, and its learning rate follows the samples that it has read. Only where everything is
said in steps (a stage of so many steps, whose rate falls until its end and whose batch does not
grow by itself) steps are the clock, and are worth the samples that they had when the stage began.
As long as the batch stays, both clocks show the same.
"""

from collections.abc import Callable
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

    def samples(self, stage: StageFile) -> int:
        """Return the samples of ``stage`` that these tokens are."""
        return self.tokens // stage.data.sequence_length

    def next_batch(self, stage: StageFile) -> int:
        """Return how many samples its next step reads."""
        return stage.training.sizes.at(self.samples(stage))

    def after_step(self, stage: StageFile) -> "StageProgress":
        """Return it one step of ``stage`` later."""
        batch = self.next_batch(stage)
        tokens = self.tokens + batch * stage.data.sequence_length
        return StageProgress(self.steps + 1, tokens, self.batch or batch)

    def samples_left(self, stage: StageFile, steps: int) -> int:
        """Return how many samples its next ``steps`` read."""
        now = self.samples(stage)
        return stage.training.sizes.after(steps, now) - now


BEGIN = StageProgress()
"""Before the first step."""


@dataclass(frozen=True)
class Clock:
    """What the learning rate follows, in samples.

    ``position`` is where it stands, and ``step`` by how much a step moves it, None by what it
    reads. The warm-up ends at ``warmup``, and the floor is reached at ``decay``, after a
    ``cooldown`` of so many if there is one.
    """

    position: int
    step: int | None
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
        steps, stage.tokens_after(steps) if tokens is None else tokens, state.stage_batch
    )


def steps_in_all(stage: StageFile, progress: StageProgress) -> int:
    """Return the steps after which a stage ends that is so far; they may be fewer than it took."""
    if not progress.steps:
        return stage.steps  # no stage has none at all
    if stage.training.steps is not None:
        return stage.training.steps
    assert stage.training.tokens is not None
    whole = Fraction(stage.training.tokens, stage.data.sequence_length)
    begin = Fraction(progress.tokens, stage.data.sequence_length)
    now = progress.samples(stage)
    return progress.steps + stage.training.sizes.steps_until(whole - begin + now, now)


def steps_left(stage: StageFile, progress: StageProgress) -> int:
    """Return the steps that a stage still has to take."""
    return max(0, steps_in_all(stage, progress) - progress.steps)


def clock_of(stage: StageFile, progress: StageProgress) -> Clock:
    """Return the clock of a stage that is so far."""
    length, rate, sizes = stage.data.sequence_length, stage.learning_rate, stage.training.sizes
    tokens = rate.decay_tokens or stage.training.tokens
    ramps = stage.training.batch_ramp is not None
    position, step = progress.samples(stage), None if ramps else stage.training.batch
    if tokens is not None:
        decay = max(1, nearest(Fraction(tokens, length)))
    elif ramps:
        decay = sizes.after(steps_left(stage, progress), position)
    else:
        step = progress.batch or stage.training.batch
        position, decay = progress.steps * step, stage.steps * step
    cooldown = nearest(Fraction(rate.cooldown_tokens or 0, length))
    return Clock(position, step, rate.warmup(decay), decay, cooldown)


def trained_by(stage: StageFile, progress: StageProgress, iteration: int) -> Callable[[int], int]:
    """Return what tells how many samples ``stage`` has trained on at an iteration from
    ``iteration`` on, at which it is so far.
    """
    sizes, now = stage.training.sizes, progress.samples(stage)
    return lambda later: sizes.after(later - iteration, now)
