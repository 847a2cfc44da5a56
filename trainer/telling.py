"""What a run says of itself: how it begins, each of its steps, and the way out of a bad one.

These are values and texts; :mod:`flmgrow.trainer.metrics` brings them to people and files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from flmgrow.formats.history.manifest import methods_text
from flmgrow.formats.history.training_state import Carried
from flmgrow.model.masks import Dimension
from flmgrow.model.tensors import parameter_count
from flmgrow.model.wording import amount
from flmgrow.trainer.checkpoint.begin import GrownInMemory
from flmgrow.trainer.checkpoint.saved import saved_iterations
from flmgrow.trainer.data.course import Course, texts_of
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.megatron.updates import UpdateRatios
from flmgrow.trainer.metrics.records import MemoryGrowthRecord, StepRecord
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.freezing import frozen_text
from flmgrow.trainer.stage.model import differences
from flmgrow.trainer.stage.training import MaskSection
from flmgrow.trainer.stage.watching import GuardSection
from flmgrow.trainer.steps import Losses
from flmgrow.trainer.validating import notes_on

LONG = 1000
"""Steps that nobody wants to take again."""


def step_record(
    run: RunConfig,
    iteration: int,
    carried: Carried,
    losses: Losses,
    *,
    sources: Sequence[str] = (),
    batch: int,
    grad_norm: float,
    learning_rate: float,
    masks: Mapping[Dimension, float],
    updates: UpdateRatios,
    seconds: float,
) -> StepRecord:
    """Return the record of step ``iteration``, which took so many ``seconds``.

    ``batch`` is how many samples it read; ``carried`` counts what was trained on, this step
    included; ``masks`` are as they were in it, and ``updates`` how far it moved old and fresh
    parameters. ``sources`` are the names of what losses were summed apart for.
    """
    stage = run.stage
    tflops = flops_per_step(run, batch) / seconds / stage.layout.world / 1e12
    peak = stage.log.peak_tflops
    return StepRecord(
        step=iteration,
        stage=stage.name,
        samples=carried.consumed_samples,
        tokens=carried.tokens,
        flops=carried.flops,
        loss=losses.mean,
        language_loss=losses.language if losses.teacher is not None else None,
        teacher_loss=losses.teacher,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        seconds=seconds,
        tokens_per_second=batch * stage.data.sequence_length / seconds,
        model_tflops=tflops,
        utilisation=None if peak is None else tflops / peak,
        masks=masks,
        updates=updates.whole,
        updates_by_dimension=updates.by_dimension,
        by_corpus=losses.by(sources),
    )


def growth_record(run: RunConfig, grown: GrownInMemory, loss: float | None) -> MemoryGrowthRecord:
    """Return the record of the growth in memory that a run begins with.

    ``loss`` is that of the batch that was tried before, if there was one.
    """
    return MemoryGrowthRecord(
        step=run.begin.iteration + 1,
        stage=run.stage.name,
        stage_before=grown.stage,
        parameters_before=grown.parameters,
        parameters=parameter_count(run.config),
        methods=grown.methods,
        seconds=grown.seconds,
        loss_before=None if grown.tried is None else grown.tried.loss,
        loss_after=loss,
    )


def growth_text(record: MemoryGrowthRecord) -> str:
    """Return how a model has grown in memory, as a line for people."""
    tried = ""
    if record.loss_before is not None and record.loss_after is not None:
        tried = (
            f"; the last batch has loss {record.loss_after:.4f}, before {record.loss_before:.4f}"
        )
    return (
        f"grown in memory in {record.seconds:.1f} s: {amount(record.parameters_before)} to "
        f"{amount(record.parameters)} parameters, {methods_text(record.methods)}{tried}"
    )


def flops_per_step(run: RunConfig, batch: int) -> int:
    """Return the floating-point operations of a step on ``batch`` samples, forward and backward,
    over all ranks.
    """
    return run.flops_per_token * batch * run.stage.data.sequence_length


def reads(run: RunConfig, data: StageData, course: Course) -> Iterator[str]:
    """Yield lines on how often the stage reads its data."""
    stage = run.stage
    steps = run.last - run.begin.iteration
    yield from ("note: " + note for note in data.notes)
    yield from ("note: " + note for note in (*_read_again(run, course), *_too_late(run, course)))
    for again, line in course.epochs(
        course.consumed + run.begin.progress.samples_left(stage, steps)
    ):
        yield f"{'note:' if again else f'{stage.name} '} {line}"
    if stage.log.validates:
        yield from ("note: " + note for note in notes_on(run, data))


def _read_again(run: RunConfig, course: Course) -> Iterator[str]:
    """Yield what a stage that begins reads anew though the run has read of it."""
    for source in course.mixture.sources:
        texts = texts_of(source.samples)
        past = [c for stretch in course.before for c in stretch.corpora if c.texts in texts]
        read = sum(corpus.end - corpus.begin for corpus in past)
        if source.anew and read and not run.begin.resumed:
            yield (
                f"{source.key}.begin: anew has {source.name} read again from its first sample; the "
                f"run has read {read:,} samples of it"
            )


def _too_late(run: RunConfig, course: Course) -> Iterator[str]:
    """Yield what a stage asks for anew after it has begun with it elsewhere."""
    begin = run.begin
    shortest = min([course.sequence_length, *(each.sequence_length for each in course.before)])
    passed = sum(each.end - each.begin for each in course.passed_over)
    most = begin.progress.tokens // shortest + passed
    places = course.places(course.consumed)
    for source, place in zip(course.mixture.sources, places, strict=True):
        if begin.resumed and source.anew and place > most:
            yield (
                f"{source.key}.begin: anew holds where a stage begins; {source.name} goes on at "
                f"its sample {place:,}"
            )


def way_out(run: RunConfig, iteration: int, saved: int | None) -> str:
    """Return what to do about a step at which the run has diverged.

    ``saved`` is the iteration of the last checkpoint, if there is one.
    """
    folder, begin = run.stage.checkpoint.folder, run.begin.stage_begin
    good = f"the last good checkpoint in {folder} is that of step {saved}"
    if saved is None:
        saved, good = begin, "no checkpoint was saved before"
    # What lies right before this step decides on its loss, whatever the rate will be.
    rated = min(saved, iteration - 2)
    at = max((n for n in saved_iterations(folder) if begin <= n <= rated), default=begin)
    earlier = f" (or that of an earlier one, from {begin} on)" if at > begin else ""
    return (
        f"{good}; look at the data of this step, and at settings far from their defaults; to "
        f"go on with a lower learning_rate.peak, another batch or data.seed, change it and say "
        f"checkpoint.change_at: {at}{earlier} in the stage file, or for this stage in the "
        "schedule, and run the same command again"
    )


def summary(run: RunConfig) -> str:
    """Return in a line what is trained, on what, and from where on."""
    begin, layout = run.begin, run.stage.layout
    source = "fresh weights"
    if begin.checkpoint is not None:
        source = f"step {begin.iteration:,}" if begin.resumed else _near(begin.checkpoint.folder)
    if begin.grown is not None:
        source = f"what has grown out of {begin.grown.stage} at step {begin.iteration:,}"
    return "  ".join(
        (
            f"{amount(parameter_count(run.config))} parameters",
            f"{run.layout} x DP{layout.dp}",
            run.stage.training.precision,
            f"goes on from {source}" if begin.resumed else f"begins with {source}",
            *_ways(run),
        )
    )


def _ways(run: RunConfig) -> Iterator[str]:
    """Yield what a run does otherwise than plainly, for speed."""
    layout = run.stage.layout
    found = [name for name in ("overlap_grad_reduce", "overlap_param_gather")
             if getattr(layout, name)]  # fmt: skip
    found += run.switches.taken
    if found:
        yield f"with {', '.join(found)}"


def _near(path: Path) -> str:
    """Return a path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def taken(run: RunConfig) -> str:
    """Return what a stage has done that has come to its end."""
    progress, training = run.begin.progress, run.stage.training
    if training.steps is not None:
        return f"has taken {progress.steps:,} of {training.steps:,} steps"
    return f"has read {progress.tokens:,} of {training.tokens:,} tokens"


def notes(run: RunConfig) -> Iterator[str]:
    """Yield what somebody may not expect of a run that begins."""
    begin, stage = run.begin, run.stage
    checkpoint = begin.checkpoint
    if begin.left is not None:
        yield (
            f"checkpoint.change_at: goes back from iteration {begin.left:,} to {begin.iteration:,}"
        )
    if begin.ungrown:
        yield (
            "its growth has diverged and was taken back: the stage goes on with the model of "
            f"{amount(parameter_count(run.config))} parameters that was to grow"
            + ("; training.freeze is of the grown one: all trains" if stage.training.freeze else "")
        )
    if checkpoint is not None and not begin.resumed:
        yield from checkpoint.notes
    if checkpoint is not None and begin.anew:
        yield f"of {checkpoint.folder} only weights are taken: Adam, data and iterations begin anew"
    elif checkpoint is not None and checkpoint.optimizer is None:
        yield f"{checkpoint.folder} has no optimizer state: Adam begins anew"
    for name, reason in run.switches.left_out.items():
        yield f"training.switches: {name} is left out: {reason}"
    if checkpoint is not None:
        longer = replace(checkpoint.config, max_positions=run.config.max_positions)
        for difference in differences(longer, run.config):
            yield f"{difference}: another function from here on"
        # A context that is only declared decides on no value, unlike what positions are made of.
        yield from differences(checkpoint.config, longer)
    if run.frozen:
        told = frozen_text(run.frozen, run.still, run.config, run.unfreezes_at, run.last)
        yield f"training.freeze: {told}"
    if stage.warmup_steps >= stage.steps:
        key = "warmup_share takes" if stage.learning_rate.warmup_share else "warmup_samples take"
        yield (
            f"learning_rate.{key} {stage.warmup_steps:,} steps, the stage has "
            f"{stage.steps:,}: its peak is not reached"
        )
    elif stage.warmup_steps >= stage.decay_steps:
        yield (
            f"learning_rate.decay_tokens take {stage.decay_steps:,} steps, the warm-up "
            f"{stage.warmup_steps:,}: the rate falls to its floor right behind that"
        )
    if (batch := stage.last_batch) < stage.training.batch:
        yield f"the stage ends before its batch has grown to {stage.training.batch:,}: at {batch:,}"
    left = stage.masks.after(run.begin.masks, run.last - run.begin.iteration)
    if left:
        values = ", ".join(f"{name} at {mask.value:.3g}" for name, mask in left.items())
        yield f"the stage ends before its masks are open: {values}"
    yield from _without_effect(run)
    if stage.checkpoint.every is None and stage.steps > LONG:
        yield f"checkpoint.every is not given: {stage.steps:,} steps are saved at their end only"


def _without_effect(run: RunConfig) -> Iterator[str]:
    """Yield which settings of a stage do nothing in it, or less than they say."""
    begin, stage = run.begin, run.stage
    guard, kept = stage.guard, stage.checkpoint
    if stage.masks != MaskSection() and not begin.masks and not begin.resumed:
        yield "masks: what the stage begins with has none that are not open: nothing rises"
    if guard.action == "stop":
        if guard.rollbacks != GuardSection().rollbacks:
            yield "guard.rollbacks: the stage never goes back, as guard.action is stop"
        if guard.window != GuardSection().window and guard.spike is None and stage.growth is None:
            yield "guard.window: the stage compares no losses, as guard.spike is not given"
    elif kept.every is None:
        yield (
            "guard.action: it goes back to what the stage begins with, as checkpoint.every is not "
            "given"
        )
    elif kept.keep is not None and kept.keep < (keep := 1 + ceil((guard.window - 1) / kept.every)):
        yield (
            f"checkpoint.keep: all {kept.keep} may lie in the guard.window of {guard.window} steps "
            f"before a spike; to go back to before it keep {keep}"
        )
