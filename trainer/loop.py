"""Training one stage: steps, masks that rise, what is told of them, and checkpoints.

Every rank runs this. What they must agree on (the loss, whether a signal asks to stop, whether one
of them has met an error) is summed over all of them once per step, so all stop, save or fail
together. A run that was stopped, or killed, and started again takes the very same steps: batches
are a function of their number, masks of their value, and everything else lies in the checkpoint.
"""

import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flmgrow.errors import DivergenceError, FlmgrowError, tell
from flmgrow.formats.history.training_state import Carried, TrainingState
from flmgrow.model.flops import training_flops
from flmgrow.model.masks import Dimension, Mask, ramped
from flmgrow.trainer.checkpoint.companions import companions_of_run
from flmgrow.trainer.checkpoint.loading import find_begin, load, restore_random_states
from flmgrow.trainer.checkpoint.saved import saved_iterations
from flmgrow.trainer.checkpoint.saving import Saving
from flmgrow.trainer.components import arguments_of, build
from flmgrow.trainer.data.batches import (
    Batches,
    MicroBatches,
    blank,
    checked,
    digest_of,
    digests_of,
)
from flmgrow.trainer.data.stage_data import StageData, open_data
from flmgrow.trainer.data.validation import read_again, sample_count, validation_batches
from flmgrow.trainer.megatron.closed import ClosedUnits
from flmgrow.trainer.megatron.live_masks import LiveMasks
from flmgrow.trainer.megatron.model import start_parallel, stop_parallel
from flmgrow.trainer.metrics.guard import LossGuard
from flmgrow.trainer.metrics.pace import SAVING, VALIDATION
from flmgrow.trainer.metrics.records import StepRecord, ValidationRecord
from flmgrow.trainer.metrics.reporting import Reporter, say
from flmgrow.trainer.ranks.agreement import Postponed, check_alike, together
from flmgrow.trainer.ranks.folder_lock import own_folder
from flmgrow.trainer.ranks.stopping import Stop
from flmgrow.trainer.run_config import (
    RunConfig,
    changes_of,
    check_space,
    decisive,
    make_run_config,
    notes,
    other_data,
    position_in,
    record_changes,
    summary,
    taken,
)
from flmgrow.trainer.stage.changes import settings_of
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import STAGE_FILE, told_of
from flmgrow.trainer.steps import Losses, losses_of, run_batch


def train(stage: StageFile, path: Path) -> int:
    """Train ``stage``, of the file ``path``, to its end, or until a signal; return the exit code.

    Once the ranks have met, all of them meet the same errors, and the first one tells. Raises a
    FlmgrowError for one that this rank meets before.
    """
    stop = Stop()
    layout = stage.layout
    start_parallel(
        tp=layout.tp,
        pp=layout.pp,
        vpp=layout.vpp if layout.vpp > 1 else None,
        seed=stage.training.seed,
    )
    try:
        code = _train(stage, path, stop)
    except FlmgrowError as error:
        if torch.distributed.get_rank() == 0:
            tell(error, STAGE_FILE)
        code = error.exit_code
    stop.restore()
    stop_parallel()
    return code


def _train(stage: StageFile, path: Path, stop: Stop) -> int:
    with own_folder(stage.checkpoint.folder):
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        data = together(lambda: open_data(stage.data, sums=first_here))
        begin = together(lambda: find_begin(stage, digests_of(data.training)))
        try:
            ids = data.tokenizer.vocab_size
            with told_of(path):
                run = together(lambda: make_run_config(stage, begin, ids))
            check_alike({**decisive(run), **data.keys, "the data": digest_of(data.training)})
            return Run(run, data).until_done(stop)
        finally:
            if begin.checkpoint is not None:
                begin.checkpoint.close()


class Run:
    """One rank's part of a run of a stage."""

    def __init__(self, run: RunConfig, data: StageData) -> None:
        stage, begin, config = run.stage, run.begin, run.config
        self._run, self._data = run, data
        self._masks: Mapping[Dimension, Mask] = begin.masks
        dtype = getattr(torch, stage.training.precision)
        self._live = LiveMasks(begin.masks, config, dtype)
        self._components = build(run, self._live)
        self._carried, self._progress = begin.carried, begin.progress
        self._iteration = begin.iteration
        self._saved = begin.iteration if begin.resumed else None
        self._failure = Postponed()
        self._batches = together(
            lambda: Batches(
                data.training,
                run.batching,
                position_in(data.training, run),
                data.keys,
                other_data(run),
            )
        )
        self._micro_batches: MicroBatches = blank(run.batching, stage.data.sequence_length)
        self._guard = LossGuard(
            stage.guard.spike,
            stage.guard.window,
            stage.training.batch,
            begin.carried.losses,
            begin.carried.loss_batches,
        )
        self._chance = together(self._load)
        self._clock = run.clock
        self._components.schedule.num_steps = self._clock.position
        self._components.schedule.step(0)
        components = self._components
        self._closed = ClosedUnits(components.parameters, components.view, config)
        self._closed.move_to(self._masks)
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
            load(begin.checkpoint, self._components.parameters, self._components.view)
            if begin.resumed:
                lost = restore_random_states(begin.checkpoint.folder)
            begin.checkpoint.close()  # what is removed later must not be held open
        return lost

    def until_done(self, stop: Stop) -> int:
        """Take all steps that are left; return 0, or 128 and the number of the signal."""
        run, stage = self._run, self._run.stage
        if self._iteration >= run.last:
            say(f"{stage.name}  {taken(run)}: there is nothing to do")
            return 0
        together(lambda: check_space(run))
        begin, resumed = run.begin.iteration, run.begin.resumed
        changes = changes_of(run, self._data)
        together(partial(record_changes, stage, changes))
        make = partial(Reporter, stage, run.last, begin, resumed=resumed)
        with together(make) as reporter:
            reporter.note(f"{stage.name}  {summary(run)}")
            told = [*notes(run), *(change.text for change in changes), *reporter.notes]
            if self._chance is not None:
                told.append(f"{self._chance}: sources of chance begin anew")
            for note in told:
                reporter.note("note: " + note)
            for line in self._reads():
                reporter.note(line)
            batches = iter(self._batches)
            while True:
                moment = time.perf_counter()
                self._take(batches)
                record, asked = self._step(moment, stop)
                self._failure.attempt(partial(reporter.step, record), None)
                self._check(record)
                ends = self._iteration == run.last
                if self._due(stage.log.validation_every, ends):
                    with reporter.pace.timed(VALIDATION):
                        found = self._validate()
                    self._failure.attempt(partial(reporter.validation, found), None)
                if asked or self._due(stage.checkpoint.every, ends) or ends:
                    self._failure.attempt(reporter.sync, None)
                    with reporter.pace.timed(SAVING):
                        self._save()
                if ends:
                    return 0
                if asked:
                    reporter.note(f"stopped at step {self._iteration}; the same command resumes")
                    return 128 + asked

    def _due(self, every: int | None, ends: bool) -> bool:
        return every is not None and (ends or self._iteration % every == 0)

    def _take(self, batches: Iterator[MicroBatches]) -> None:
        """Take the next batch; if there is none to be had, keep the last one and the error."""
        vocab = self._run.config.vocab
        self._micro_batches = self._failure.attempt(
            lambda: checked(next(batches), vocab), self._micro_batches
        )

    def _step(self, begin: float, stop: Stop) -> tuple[StepRecord, int]:
        """Take one optimizer step; return what is told of it, and the signal to stop, if any.

        ``begin`` is when its batch was asked for. Raises what a rank has met since the last step.
        """
        components, rate = self._components, self._components.learning_rate
        masks = {name: mask.value for name, mask in self._masks.items() if mask.value < 1}
        components.zero_gradients()
        length = self._run.stage.data.sequence_length
        sums = run_batch(components.models, self._micro_batches, sequence_length=length)
        with self._closed.kept():
            _, norm, _ = components.optimizer.step()
        components.schedule.step(increment=self._clock.step)
        self._iteration += 1
        self._raise_masks()
        failed = self._failure.error is not None
        *totals, failures, signals = _summed([*sums.tolist(), float(failed), float(stop.number)])
        if failures:
            self._failure.raise_together()
        self._advance()
        seconds = time.perf_counter() - begin
        record = self._record(losses_of(totals), float(norm), rate, masks, seconds)
        return record, stop.signal_of(signals)

    def _record(
        self,
        losses: Losses,
        norm: float,
        rate: float,
        masks: Mapping[Dimension, float],
        seconds: float,
    ) -> StepRecord:
        """Return what is told of the step that was taken, with ``masks`` as they were in it."""
        stage = self._run.stage
        tflops = self._flops_per_step / seconds / stage.layout.world / 1e12
        peak = stage.log.peak_tflops
        return StepRecord(
            step=self._iteration,
            stage=stage.name,
            samples=self._carried.consumed_samples,
            tokens=self._carried.tokens,
            flops=self._carried.flops,
            loss=losses.mean,
            language_loss=losses.language if losses.teacher is not None else None,
            teacher_loss=losses.teacher,
            grad_norm=norm,
            learning_rate=rate,
            seconds=seconds,
            tokens_per_second=stage.tokens_per_step / seconds,
            model_tflops=tflops,
            utilisation=None if peak is None else tflops / peak,
            masks=masks,
        )

    @property
    def _flops_per_step(self) -> int:
        stage = self._run.stage
        per_token = training_flops(self._run.config, stage.data.sequence_length)
        return per_token * stage.tokens_per_step

    def _raise_masks(self) -> None:
        self._masks = ramped(self._masks, 1, in_turn=self._run.stage.masks.in_turn)
        self._live.move_to(self._masks)
        self._closed.move_to(self._masks)

    def _advance(self) -> None:
        position = self._batches.position
        self._carried = Carried(
            consumed_samples=position.consumed,
            data=position.data,
            data_keys=dict(position.keys),
            tokenizer=self._data.facts,
            tokens=self._carried.tokens + self._run.stage.tokens_per_step,
            flops=self._carried.flops + self._flops_per_step,
            base_output=self._run.base_output,
        )
        self._progress = self._progress.after_step(self._run.stage)

    def _check(self, record: StepRecord) -> None:
        try:
            self._guard.check(record.step, record.loss, record.grad_norm)
        except DivergenceError as error:
            raise error.with_hint(self._way_out()) from None

    def _way_out(self) -> str:
        """Return what to do about a step at which the run has diverged."""
        back, begin = self._saved, self._run.begin.stage_begin
        good = f"the last good checkpoint in {self._saving.folder} is that of step {back}"
        if back is None:
            back, good = begin, "no checkpoint was saved before"
        # What lies right before this step decides on its loss, whatever the rate will be.
        rated = min(back, self._iteration - 2)
        saved = (n for n in saved_iterations(self._saving.folder) if begin <= n <= rated)
        at = max(saved, default=begin)
        earlier = f" (or that of an earlier one, from {begin} on)" if at > begin else ""
        return (
            f"{good}; look at the data of this step, and at settings far from their defaults; to "
            f"go on with a lower learning_rate.peak, another batch or data.seed, change it and say "
            f"checkpoint.change_at: {at}{earlier} in the stage file, or for this stage in the "
            "schedule, and run the same command again"
        )

    @torch.no_grad()
    def _validate(self) -> ValidationRecord:
        """Return the mean loss of batches that are never trained on."""
        stage = self._run.stage
        sums = torch.zeros(4, dtype=torch.float64)
        models, length = self._components.models, stage.data.sequence_length
        for micro_batches in self._held_out():
            found = run_batch(models, micro_batches, sequence_length=length, forward_only=True)
            sums += found.cpu()
        loss = losses_of(_summed(sums.tolist())).mean
        carried = self._carried
        return ValidationRecord(self._iteration, carried.tokens, carried.flops, loss, stage.name)

    def _held_out(self) -> Iterator[MicroBatches]:
        """Yield what is validated on, on all ranks at once."""
        run, held_out = self._run, self._data.held_out
        assert held_out is not None
        chunks = run.layout.pp if run.layout.vpp > 1 else 1
        batches = validation_batches(held_out, self._validated, run.batching, chunks)
        good = (checked(each, run.config.vocab) for each in batches)
        while micro_batches := together(lambda: next(good, None)):
            yield micro_batches

    @property
    def _validated(self) -> int:
        """How many samples a validation reads."""
        stage, there = self._run.stage, self._data.held_out_samples
        return sample_count(stage.log, stage.training.batch, there)

    def _reads(self) -> Iterator[str]:
        """Yield lines on how often the stage reads its data."""
        begin, stage = self._run.begin, self._run.stage
        first = begin.carried.consumed_samples
        steps = self._run.last - begin.iteration
        yield from ("note: " + note for note in self._data.notes)
        for again, line in self._data.epochs(first, first + steps * stage.training.batch):
            yield f"{'note:' if again else f'{stage.name} '} {line}"
        if stage.log.validation_every is not None:
            for note in read_again(self._validated, self._data.held_out_samples):
                yield "note: " + note

    def _save(self) -> None:
        self._failure.raise_together()
        begin = self._run.begin
        state = TrainingState(
            iteration=self._iteration,
            stage=self._run.stage.name,
            stage_begin=begin.stage_begin,
            carried=self._carried.model_copy(
                update={"losses": self._guard.losses, "loss_batches": self._guard.batches}
            ),
            masks={name: mask for name, mask in self._masks.items() if mask.value < 1},
            family=begin.family,
            stage_tokens=self._progress.tokens,
            stage_batch=self._progress.batch,
            settings=settings_of(self._run.stage),
        )
        components = self._components
        schedule = components.schedule.state_dict()
        self._saving.save(state, components.parameters, components.view, schedule)
        self._saved = self._iteration


def _summed(numbers: list[float]) -> list[float]:
    """Return the sums over all ranks."""
    device: Any = torch.cuda.current_device()
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    result: list[float] = values.tolist()
    return result
