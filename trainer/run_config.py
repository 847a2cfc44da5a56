"""The configuration of a stage on this run's ranks, checked before the model is built.

All that decides on a stage is known before its model is built, and is checked then. The stage file
says some of it, the checkpoint the rest, and the corpora must fit both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from flmgrow.errors import UsageError
from flmgrow.formats.history.manifest import base_output
from flmgrow.formats.layout.placements import Layout, Slice, padded_size
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import training_flops
from flmgrow.model.frozen import Frozen
from flmgrow.storage.folders import check_free_space, make_folders
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted
from flmgrow.trainer.checkpoint.begin import Begin, check_model
from flmgrow.trainer.checkpoint.rollbacks import place_at, read_rollbacks
from flmgrow.trainer.data.batches import Batching
from flmgrow.trainer.data.course import Course, course_of
from flmgrow.trainer.data.samples import digests_of
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.megatron.core import parallel_state
from flmgrow.trainer.megatron.switches import EIGHT_BITS, Computed, Switches, switches_of
from flmgrow.trainer.stage.changes import (
    BEGAN_MASKED,
    CHANGES,
    NEXT_SAMPLE,
    TAKEN,
    Change,
    changed_settings,
    record,
    settings_of,
)
from flmgrow.trainer.stage.clock import Clock, clock_of, steps_left, trained_by
from flmgrow.trainer.stage.file import StageFile, checkpoint_bytes, layout_of, positioned
from flmgrow.trainer.stage.freezing import frozen_of, frozen_slices, trained_of
from flmgrow.trainer.stage.keys import in_keys


@dataclass(frozen=True, eq=False)
class RunConfig:
    """All that does not change while a stage runs. ``until`` is an iteration at which it is left,
    if it has not come to its end. ``frozen`` is what does not train from where it goes on;
    ``still`` what lies in parameters that are frozen as a whole.
    """

    stage: StageFile
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    begin: Begin
    base_output: float
    until: int | None = None
    frozen: Frozen = field(default_factory=Frozen)
    still: frozenset[Slice] = frozenset()

    @property
    def vocab_multiple(self) -> int:
        """What Megatron-LM pads a multiple of, times TP, to."""
        stored = self.begin.checkpoint and self.begin.checkpoint.vocab_multiple
        return stored or self.stage.model.make_vocab_size_divisible_by

    @property
    def last(self) -> int:
        """The iteration at which the stage ends, or is left."""
        end = self.begin.iteration + steps_left(self.stage, self.begin.progress)
        return end if self.until is None else min(end, self.until)

    @property
    def unfreezes_at(self) -> int | None:
        """The iteration at which what is frozen begins to train; None if none is, or never does."""
        step = self.stage.unfreeze_step
        return None if step is None or not self.frozen else self.begin.stage_begin + step

    @cached_property
    def flops_per_token(self) -> int:
        """The floating-point operations of a step, forward and backward, from where it goes on."""
        trained = trained_of(self.still, self.layout, self.stage.training.recompute)
        return training_flops(self.config, self.stage.data.sequence_length, trained)

    @property
    def is_function_kept(self) -> bool:
        """Whether it begins with what has grown in memory, and computes what was there before."""
        begin = self.begin
        if begin.grown is None or begin.checkpoint is None:
            return False
        return begin.grown.preserves and self.config == begin.checkpoint.config

    @cached_property
    def switches(self) -> Switches:
        """megatron-core's own faster ways of computing that it takes: a stage that began with masks
        keeps to its end what these left out, however often it is stopped on the way.
        """
        stage, tp = self.stage, self.layout.tp
        cut = tp if stage.layout.sequence_parallel else 1
        positions = stage.data.sequence_length // cut * stage.training.micro_batch
        computed = Computed(self.config, self.begin.began_masked, tp, positions)
        return switches_of(stage.training.switches, computed)

    @property
    def settings(self) -> Json:
        """What decides on the stage's steps, as a checkpoint remembers it: what it says, and what
        became of that here.
        """
        here = {TAKEN: sorted(self.switches.taken), BEGAN_MASKED: self.begin.began_masked}
        return settings_of(self.stage) | here

    @property
    def computes_in(self) -> str:
        """The least precise numbers that it computes with."""
        return EIGHT_BITS if EIGHT_BITS in self.switches.taken else self.stage.training.precision

    @property
    def clock(self) -> Clock:
        """What the learning rate follows, where the run goes on."""
        return clock_of(self.stage, self.begin.progress)

    def batch_after(self, samples: int) -> int:
        """Return how many samples a step reads, ``samples`` behind where the run goes on."""
        stage = self.stage
        return stage.training.sizes.at(self.begin.progress.samples(stage) + samples)

    @property
    def batching(self) -> Batching:
        """How this rank takes samples."""
        training = self.stage.training
        return Batching(
            training.batch,
            training.micro_batch,
            parallel_state.get_data_parallel_world_size(),
            parallel_state.get_data_parallel_rank(),
        )


def make_run_config(
    stage: StageFile, begin: Begin, ids: int, until: int | None = None
) -> RunConfig:
    """Return the configuration of ``stage``, whose tokenizer has so many ``ids``.

    Raises:
        FlmgrowError: Where its parts do not fit.
    """
    if begin.checkpoint is None:
        with in_keys("model"):
            config = stage.model.config(ids, stage.data.sequence_length)
        multiple = stage.model.make_vocab_size_divisible_by
        padded = padded_size(config.vocab, multiple, stage.layout.tp)
    else:
        config, padded = begin.checkpoint.config, begin.checkpoint.padded_vocab
        config = positioned(stage, config)
        check_model(stage.model, config, begin.checkpoint.folder)
    if ids > config.vocab:
        raise UsageError(
            f"the tokenizer has {ids} ids, the model {config.vocab}",
            "make vocab_size larger, or name another tokenizer",
        )
    with in_keys("layout"):
        layout = layout_of(stage, config, padded)
    known = base_output_of(stage, begin, config)
    frozen = frozen_at(stage, begin, config, padded)
    still = frozen_slices(frozen, config, padded)
    return RunConfig(stage, config, layout, padded, begin, known, until, frozen, still)


def frozen_at(stage: StageFile, begin: Begin, config: ModelConfig, padded_vocab: int) -> Frozen:
    """Return what a stage freezes where it goes on.

    Nothing where its growth was taken back: what is old, or named, is so of the larger model.

    Raises:
        UsageError: For what the model does not have.
    """
    if begin.ungrown:
        return Frozen()
    frozen = frozen_of(stage.training.freeze, config, padded_vocab, begin.fresh)
    step = stage.unfreeze_step
    return Frozen() if step is not None and begin.iteration >= begin.stage_begin + step else frozen


def decisive(run: RunConfig) -> dict[str, object]:
    """Return, by name, what all ranks must have the same before they train together."""
    begin = run.begin
    return {
        **dotted(run.stage.model_dump(mode="json")),
        "the iteration": begin.iteration,
        **dotted(begin.carried.model_dump()),
    }


def check_space(run: RunConfig) -> None:
    """Raise StorageError, on the first rank, if not even one checkpoint would find room."""
    if torch.distributed.get_rank() == 0:
        stage = run.stage
        still = run.still if run.unfreezes_at is None else frozenset()
        check_free_space(stage.checkpoint.folder, checkpoint_bytes(stage, run.config, still))


def course_in(data: StageData, run: RunConfig) -> Course:
    """Return how the run reads its data, past the samples from which it has gone back.

    Raises:
        UsageError: As :func:`course_of` does.
        BadCheckpointError: If what says which these are cannot be read.
    """
    stage, begin = run.stage, run.begin
    course = course_of(
        data.mixture,
        data.keys,
        stage.data.sequence_length,
        begin.carried,
        begins=not begin.resumed,
        changes_here=stage.checkpoint.change_at == begin.iteration,
        differs=stage.data.differs and not begin.resumed,
        hint=_other_data(begin),
    )
    course = replace(course, passed_over=begin.carried.passed_over)
    rollbacks = read_rollbacks(stage.checkpoint.folder)
    now = begin.iteration
    place = place_at(rollbacks, now, course.consumed, trained_by(stage, begin.progress, now), now)
    return course.going_on_at(place)


def _other_data(begin: Begin) -> str:
    """Return how a run may go on with other data, for a hint."""
    if begin.resumed:
        return f"; or let it be other data from here on (checkpoint.change_at: {begin.iteration})"
    return (
        "; or say data.differs: true, and each corpus goes on from where it was left; or begin "
        "with weights only (checkpoint.begin: anew)"
    )


def changes_of(run: RunConfig, data: StageData, course: Course) -> list[Change]:
    """Return what holds from here on, and did not before."""
    stage, begin = run.stage, run.begin
    changed = changed_settings(run.settings, begin.settings)
    if begin.carried.data not in ("", *digests_of(course.samples)):
        before, after = begin.carried.data_keys or {}, data.keys
        changed |= (
            {
                key: (before.get(key), after.get(key))
                for key in {**before, **after}
                if before.get(key) != after.get(key)
            }
            if before
            else {"data": (begin.carried.data, course.digest)}
        )
    if course.consumed != begin.carried.consumed_samples:
        changed |= {NEXT_SAMPLE: (begin.carried.consumed_samples, course.consumed)}
    return [
        Change(stage.name, begin.iteration, key, *values, begin.progress)
        for key, values in changed.items()
    ]


def record_changes(stage: StageFile, changes: Sequence[Change]) -> None:
    """Write changes beside the stage's metrics, on the first rank."""
    if torch.distributed.get_rank() == 0:
        make_folders(Path(stage.log.metrics.anchor), stage.log.metrics.parent)
        record(stage.log.metrics.with_name(CHANGES), changes)


def base_output_of(stage: StageFile, begin: Begin, config: ModelConfig) -> float:
    """Return the output multiplier of the model that all growth began with.

    The checkpoint knows, if flmgrow trained it or grew it.

    Raises:
        UsageError: If the stage file says otherwise.
    """
    told = stage.model.multipliers.base_output
    known = begin.carried.base_output
    if known is None and begin.checkpoint is not None and begin.grown is None:
        known = base_output(begin.checkpoint)
    if told is not None and known is not None and told != known:
        raise UsageError(
            f"multipliers.base_output is {known} in the checkpoint, the stage file says {told}",
            "leave it out: the checkpoint knows",
        )
    found = told if known is None else known
    return config.multipliers.output if found is None else found
