"""A stage of a run as it is planned, where it stands, and what it grows out of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flmgrow.formats.layout.placements import Layout, Slice
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import EVERYTHING, TrainedParts, training_flops
from flmgrow.model.frozen import Frozen
from flmgrow.model.masks import Dimension, Fresh, Mask
from flmgrow.operators.growth import Growth
from flmgrow.stages.past import steps_of
from flmgrow.stages.start import Start
from flmgrow.surgery.target_file import GrowthRequest
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.freezing import frozen_of, frozen_slices, trained_of


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """One stage of a run: its file, its model, and how it grows (None if it does not).

    A first stage may have a ``start``. Of one that grows ``accepts`` says that it may do so into
    another function.

    ``first`` is the iteration at which it begins, ``folder`` its folder in the run's, ``masks`` are
    those with which it begins. It takes ``steps`` of them, of which some may have had another
    batch. ``fresh`` is what the last growth before it made; None where that is not known.
    """

    stage: StageFile
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    first: int
    steps: int
    folder: str
    target: GrowthRequest | None = None
    growth: Growth | None = None
    start: Start | None = None
    accepts: bool = False
    masks: Mapping[Dimension, Mask] = field(default_factory=dict)
    fresh: Fresh | None = field(default_factory=dict)

    @cached_property
    def frozen(self) -> Frozen:
        """What does not train when it begins; nothing where what is old is not known.

        Raises:
            UsageError: For what the model does not have.
        """
        rules = self.stage.training.freeze or ()
        if self.fresh is None and any(rule.old for rule in rules):
            return Frozen()
        return frozen_of(rules, self.config, self.padded_vocab, self.fresh or {})

    @cached_property
    def still(self) -> frozenset[Slice]:
        """What lies in parameters of which none ever trains in it, so that they have no state."""
        at = self.stage.unfreeze_step
        return frozenset() if at is not None and at < self.stage.steps else self.still_at_first

    @cached_property
    def still_at_first(self) -> frozenset[Slice]:
        """What lies in parameters of which none trains when it begins."""
        return frozen_slices(self.frozen, self.config, self.padded_vocab)

    @property
    def trained(self) -> list[tuple[int, TrainedParts]]:
        """What it trains on how many of its tokens, before all of it does, and then."""
        stage = self.stage
        at = self.steps if stage.unfreeze_step is None else min(stage.unfreeze_step, self.steps)
        tokens, whole = stage.tokens_after(at), stage.tokens_after(self.steps)
        first = trained_of(self.still_at_first, self.layout, stage.training.recompute)
        return [(tokens, first), (whole - tokens, EVERYTHING)]

    @property
    def flops(self) -> int:
        """The floating-point operations of its steps, forward and backward."""
        length = self.stage.data.sequence_length
        return sum(
            tokens * training_flops(self.config, length, trained)
            for tokens, trained in self.trained
        )

    @property
    def in_place(self) -> bool:
        """Whether it grows in the memory of the stage before."""
        return self.stage.growth is not None

    @property
    def is_given(self) -> bool:
        """Whether it begins with a checkpoint of its own, which is made for it."""
        return (self.target is not None and not self.in_place) or self.start is not None

    @property
    def unfinished(self) -> dict[Dimension, Mask]:
        """The masks that are not open when it ends."""
        return self.stage.masks.after(self.masks, self.steps)

    @property
    def last(self) -> int:
        """The iteration at which it ends."""
        return self.first + self.steps


@dataclass(frozen=True)
class StagePlace:
    """Where a stage stands: the schedule's file, its number there, and the run's folder."""

    schedule: Path
    number: int
    run: Path | None

    def steps_of(self, stage: StageFile, first: int) -> int:
        """Return the steps that a stage takes, of which some may be done."""
        if self.run is None:
            return stage.steps
        return steps_of(self.run / self.folder_of(stage), stage, first)

    def folder_of(self, stage: StageFile) -> str:
        """Return the name of the stage's folder."""
        return f"{self.number:02d}-{stage.name}"


@dataclass(frozen=True)
class Smaller:
    """What a stage grows: the model of the stage before, or the one that the run starts with.

    ``masks`` are those that it has not opened, ``last`` is its iteration, ``fresh`` what its own
    last growth made.
    """

    config: ModelConfig
    padded_vocab: int
    masks: Mapping[Dimension, Mask]
    last: int
    fresh: Fresh
    stage: PlannedStage | None = None
    start: Start | None = None

    @classmethod
    def after(cls, stage: PlannedStage) -> "Smaller":
        """Return what a stage leaves behind."""
        last, fresh = stage.last, stage.fresh or {}
        return cls(stage.config, stage.padded_vocab, stage.unfinished, last, fresh, stage=stage)

    @classmethod
    def at(cls, start: Start) -> "Smaller":
        """Return what a run starts with."""
        config, padded = start.config, start.padded_vocab
        return cls(config, padded, start.masks, start.iteration, start.fresh, start=start)
