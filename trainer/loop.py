"""Training one stage: steps, masks that rise, what is told of them, and checkpoints.

Every rank runs this. What they must agree on (the loss, whether a signal asks to stop, whether one
of them has met an error) is summed over all of them once per step, so all stop, save or fail
together. A run that was stopped, or killed, and started again takes the very same steps: batches
are a function of their number, masks of their value, and everything else lies in the checkpoint.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from flmgrow.formats.history.training_state import TrainingState
from flmgrow.trainer.checkpoint.begin import GrownInMemory, TriedBatch
from flmgrow.trainer.checkpoint.companions import companions_of_run
from flmgrow.trainer.checkpoint.loading import load
from flmgrow.trainer.checkpoint.random_states import restore_random_states
from flmgrow.trainer.checkpoint.saving import Saving
from flmgrow.trainer.components import arguments_of, build
from flmgrow.trainer.data.batches import Batches, MicroBatches, blank, checked
from flmgrow.trainer.data.course import Course
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.guarding import RunGuard
from flmgrow.trainer.live import LiveModel
from flmgrow.trainer.megatron.held import HeldEntries
from flmgrow.trainer.megatron.live_masks import LiveMasks
from flmgrow.trainer.megatron.updates import Updates
from flmgrow.trainer.metrics.pace import SAVING, VALIDATION
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.metrics.reporting import Reporter, say
from flmgrow.trainer.progress import RunProgress
from flmgrow.trainer.ranks.agreement import Postponed, summed, together
from flmgrow.trainer.ranks.stopping import Stop
from flmgrow.trainer.run_config import (
    RunConfig,
    changes_of,
    check_space,
    record_changes,
)
from flmgrow.trainer.stage.changes import Change
from flmgrow.trainer.steps import loss_of, losses_of, run_batch
from flmgrow.trainer.telling import (
    growth_record,
    growth_text,
    notes,
    reads,
    step_record,
    summary,
    taken,
)
from flmgrow.trainer.validating import Validation

AGAIN = -1
"""What a run returns in the place of an exit code if its stage goes on with another."""


class TrainingRun:
    """One rank's part of a run of a stage."""

    def __init__(self, run: RunConfig, data: StageData, course: Course) -> None:
        stage, begin, config = run.stage, run.begin, run.config
        self._run, self._data, self._course = run, data, course
        self._progress = RunProgress(run, data, course)
        dtype = getattr(torch, stage.training.precision)
        self._live = LiveMasks(begin.masks, config, dtype)
        self._components = build(run, self._live)
        self._sources = data.mixture.names if stage.log.by_corpus else ()
        self._validation = Validation(run, data)
        self._failure = Postponed()
        self._batches = Batches(course.samples, run.batching, course.consumed, run.batch_after)
        self._micro_batches: MicroBatches = blank(run.batching, stage.data.sequence_length)
        self._guard = RunGuard(run, self._progress)
        self._chance = together(self._load)
        self._clock = run.clock
        self._components.schedule.num_steps = self._clock.position
        self._components.schedule.step(0)
        components = self._components
        self._held = HeldEntries(components.parameters, components.view, config, run.frozen)
        self._held.move_to(begin.masks)
        self._updates = Updates(
            components.parameters if stage.log.parts else (),
            components.view,
            config,
            run.padded_vocab,
            begin.fresh,
        )
        self._saving = Saving(
            folder=stage.checkpoint.folder,
            format=stage.checkpoint.format,
            keep=stage.checkpoint.keep,
            config=config,
            layout=run.layout,
            padded_vocab=run.padded_vocab,
            dtype=stage.training.precision,
            arguments=arguments_of(run),
            companions=together(
                lambda: companions_of_run(begin.checkpoint, stage.data.tokenizer, data.facts)
            ),
        )

    def _load(self) -> str | None:
        """Fill model and optimizer; return why sources of chance begin anew where they do."""
        begin, lost = self._run.begin, None
        if begin.checkpoint is not None:
            components = self._components
            self._progress.counted = load(
                begin.checkpoint, components.parameters, components.view, self._run.still
            )
            if begin.resumed:
                lost = restore_random_states(begin.checkpoint.folder)
            begin.checkpoint.close()  # what is removed later must not be held open
        return lost

    def until_done(self, stop: Stop) -> int:
        """Take all steps that are left; return 0, or 128 and the number of the signal, or AGAIN if
        the stage goes on, with more that trains, from the checkpoint that it has saved.
        """
        run, stage = self._run, self._run.stage
        if self._progress.iteration >= run.last:
            say(f"{stage.name}  {taken(run)}: there is nothing to do")
            return 0
        together(lambda: check_space(run))
        begin, resumed = run.begin.iteration, run.begin.resumed
        changes = changes_of(run, self._data, self._course)
        together(partial(record_changes, stage, changes))
        make = partial(Reporter, stage, run.last, begin, run.begin.progress, resumed=resumed)
        with together(make) as reporter:
            self._announce(reporter, changes)
            if stage.log.validation_first and not resumed:
                self._tell_validation(reporter)
            batches = iter(self._batches)
            while True:
                moment = time.perf_counter()
                self._take(batches)
                batch = self._progress.batch
                record, asked = self._step(moment, stop)
                self._failure.attempt(partial(reporter.step, record), None)
                self._guard.check_step(record, batch)
                ends = self._progress.iteration == run.last
                if self._due(stage.log.validation_every, ends):
                    self._tell_validation(reporter)
                unfreezes = self._progress.iteration == run.unfreezes_at and not ends
                if asked or unfreezes or self._due(stage.checkpoint.every, ends) or ends:
                    self._failure.attempt(reporter.sync, None)
                    with reporter.pace.timed(SAVING):
                        self._save()
                if ends:
                    return 0
                if asked:
                    reporter.note(
                        f"stopped at step {self._progress.iteration}; the same command resumes"
                    )
                    return 128 + asked
                if unfreezes:
                    return AGAIN

    def _announce(self, reporter: Reporter, changes: Sequence[Change]) -> None:
        """Tell what begins here, and what somebody may not expect of it."""
        run = self._run
        reporter.note(f"{run.stage.name}  {summary(run)}")
        told = [*notes(run), *(change.text for change in changes), *reporter.notes]
        if self._chance is not None:
            told.append(f"{self._chance}: sources of chance begin anew")
        for note in told:
            reporter.note("note: " + note)
        if run.begin.grown is not None:
            self._tell_growth(reporter, run.begin.grown)
        for line in reads(run, self._data, self._course):
            reporter.note(line)

    def _tell_validation(self, reporter: Reporter) -> None:
        with reporter.pace.timed(VALIDATION):
            now = self._progress
            found = self._validation.losses(self._components.models, now.iteration, now.carried)
        self._failure.attempt(partial(reporter.validation, found), None)

    def _tell_growth(self, reporter: Reporter, grown: GrownInMemory) -> None:
        """Tell how the model has grown.

        Raises:
            GrowthDivergedError: It computes something else, and should not.
        """
        tried = grown.tried
        loss = None if tried is None else loss_of(self._components.models, tried.micro_batches)
        record = growth_record(self._run, grown, loss)
        self._failure.attempt(partial(reporter.growth, record), None)
        reporter.note(f"note: {growth_text(record)}")
        if tried is not None and loss is not None and self._run.is_function_kept:
            dtypes = (self._run.computes_in, grown.precision)
            self._guard.check_growth(tried.loss, loss, *dtypes)

    def _due(self, every: int | None, ends: bool) -> bool:
        return every is not None and (ends or self._progress.iteration % every == 0)

    def _take(self, batches: Iterator[MicroBatches]) -> None:
        """Take the next batch; if there is none to be had, keep the error, and something to compute
        on as the other ranks do.
        """
        vocab, length = self._run.config.vocab, self._run.stage.data.sequence_length
        instead = self._micro_batches
        if len(instead) != len(list((batching := self._batches.next_batching()).micro_batches(0))):
            instead = blank(batching, length)
        self._micro_batches = self._failure.attempt(lambda: checked(next(batches), vocab), instead)

    def _step(self, begin: float, stop: Stop) -> tuple[StepRecord, int]:
        """Take one optimizer step; return what is told of it, and the signal to stop, if any.

        ``begin`` is when its batch was asked for.

        Raises:
            FlmgrowError: What a rank has met since the last step.
        """
        components, rate = self._components, self._components.learning_rate
        masks = {name: mask.value for name, mask in self._progress.closed_masks.items()}
        components.zero_gradients()
        sums = run_batch(
            components.models,
            self._micro_batches,
            sequence_length=self._run.stage.data.sequence_length,
            sources=len(self._sources),
        )
        with self._updates.watched(), self._held.kept():
            _, norm, _ = components.optimizer.step()
        batch = self._progress.batch
        components.schedule.step(increment=self._clock.step or batch)
        self._raise_masks()
        failed = self._failure.error is not None
        failures, signals, *numbers = summed(
            [float(failed), float(stop.number), *self._updates.sums, *sums.tolist()]
        )
        updates, totals = numbers[: self._updates.count], numbers[self._updates.count :]
        if failures:
            self._failure.raise_together()
        self._progress.advance(self._batches.consumed)
        seconds = time.perf_counter() - begin
        record = step_record(
            self._run,
            self._progress.iteration,
            self._progress.carried,
            losses_of(totals),
            sources=self._sources,
            batch=batch,
            grad_norm=float(norm),
            learning_rate=rate,
            masks=masks,
            updates=self._updates.ratios(updates),
            seconds=seconds,
        )
        return record, stop.signal_of(signals)

    def _raise_masks(self) -> None:
        self._progress.raise_masks()
        self._live.move_to(self._progress.masks)
        self._held.move_to(self._progress.masks)

    def live(self) -> LiveModel:
        """Return what the run holds now, for another stage to go on with. On all ranks at once."""
        components, tried = self._components, None
        if self._progress.iteration > self._run.begin.iteration:
            loss = loss_of(components.models, self._micro_batches)
            tried = TriedBatch(self._micro_batches, loss)
        components.gather()
        parameters, view = components.parameters, components.view
        companions = self._saving.companions
        counted = self._progress.counted
        return LiveModel.of(self._run, parameters, view, counted, self._state(), companions, tried)

    def _state(self) -> TrainingState:
        return self._progress.state(self._guard.losses)

    def _save(self) -> None:
        self._failure.raise_together()
        state = self._state()
        components = self._components
        components.gather()
        schedule = components.schedule.state_dict()
        self._saving.save(
            state, components.parameters, components.view, self._progress.counted, schedule
        )
        self._progress.saved = self._progress.iteration
