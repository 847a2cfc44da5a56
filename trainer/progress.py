"""How far a run is: what it has read and trained on, and what a checkpoint remembers of that."""

from collections.abc import Mapping
from dataclasses import replace

from flmgrow.formats.history.training_state import Carried, TrainingState
from flmgrow.model.masks import Dimension, Mask, ramped
from flmgrow.trainer.data.course import Course
from flmgrow.trainer.data.stage_data import StageData
from flmgrow.trainer.megatron.parameters import Counted
from flmgrow.trainer.metrics.guard import LossGuard
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.telling import flops_per_step


class RunProgress:
    """How far a run is, from where it goes on.

    ``iteration`` counts optimizer steps, those of the stages before included; ``saved`` is the last
    one whose checkpoint is there, None if there is none of this stage. ``carried`` goes on through
    stages, and ``masks`` are as the next step takes them; ``counted`` is what Adam has counted.
    """

    def __init__(self, run: RunConfig, data: StageData, course: Course) -> None:
        begin = run.begin
        self._run, self._data, self._course = run, data, course
        self.iteration = begin.iteration
        self.saved = begin.iteration if begin.resumed else None
        self.carried = begin.carried
        self.masks: Mapping[Dimension, Mask] = begin.masks
        self.counted = Counted(0, dict.fromkeys(sorted(run.still, key=str)))
        self._of_stage = begin.progress

    @property
    def batch(self) -> int:
        """How many samples the next step reads."""
        return self._of_stage.next_batch(self._run.stage)

    @property
    def closed_masks(self) -> dict[Dimension, Mask]:
        """Those that are not open yet."""
        return {name: mask for name, mask in self.masks.items() if mask.value < 1}

    def raise_masks(self) -> None:
        """Let masks rise by a step."""
        self.masks = ramped(self.masks, 1, in_turn=self._run.stage.masks.in_turn)

    def advance(self, consumed: int) -> None:
        """Count a step; so many samples were ``consumed`` by the end of it, since the first."""
        run, batch = self._run, self.batch
        self.iteration += 1
        self.counted = replace(self.counted, steps=self.counted.steps + 1)
        self.carried = Carried(
            consumed_samples=consumed,
            data=self._course.digest,
            data_keys=dict(self._data.keys),
            readings=self._course.readings(consumed),
            passed_over=list(self._course.passed_over),
            tokenizer=self._data.facts,
            tokens=self.carried.tokens + batch * run.stage.data.sequence_length,
            flops=self.carried.flops + flops_per_step(run, batch),
            base_output=run.base_output,
        )
        self._of_stage = self._of_stage.after_step(run.stage)

    def state(self, guard: LossGuard) -> TrainingState:
        """Return what a checkpoint remembers of the run as it is now, and of what ``guard`` saw."""
        stage, begin = self._run.stage, self._run.begin
        seen = {"losses": guard.losses, "loss_batches": guard.batches}
        return TrainingState(
            iteration=self.iteration,
            stage=stage.name,
            stage_begin=begin.stage_begin,
            carried=self.carried.model_copy(update=seen),
            masks=self.closed_masks,
            family=begin.family,
            fresh=begin.fresh,
            lags=self.counted.lags,
            stage_tokens=self._of_stage.tokens,
            stage_batch=self._of_stage.batch,
            settings=self._run.settings,
        )
