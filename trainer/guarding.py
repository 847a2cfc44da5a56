"""What a run does when it has diverged: it stops and says how to go on, or goes back by itself."""

from collections.abc import Callable

from flmgrow.errors import DivergenceError, GrowthDivergedError
from flmgrow.trainer.going_back import go_back
from flmgrow.trainer.metrics.guard import LossGuard, check_growth
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.progress import RunProgress
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.telling import way_out


class RunGuard:
    """The guard of a run, which is as far as ``progress`` says. All ranks ask it at once.

    ``losses`` watches them, and begins with those that the checkpoint remembers.
    """

    def __init__(self, run: RunConfig, progress: RunProgress) -> None:
        stage, carried = run.stage, run.begin.carried
        self._run, self._progress = run, progress
        self.losses = LossGuard(
            stage.guard.spike,
            stage.guard.window,
            stage.training.batch,
            carried.losses,
            carried.loss_batches,
        )

    def check_step(self, record: StepRecord, batch: int) -> None:
        """Take the loss of a step, the mean over ``batch`` samples.

        Raises:
            GrowthDivergedError: The run has diverged, soon after its model grew.
            SpikeError: It has, and has gone back: the stage is to be taken up again.
            DivergenceError: It has, and stops.
        """
        self._guarded(lambda: self.losses.check(record.step, record.loss, record.grad_norm, batch))

    def check_growth(self, before: float, after: float, *dtypes: str) -> None:
        """Take the losses of one batch before a growth in memory and after it.

        Raises:
            GrowthDivergedError: They are not equal in these ``dtypes``.
        """
        self._guarded(lambda: check_growth(self._progress.iteration, before, after, *dtypes))

    def _guarded(self, check: Callable[[], None]) -> None:
        """Let a check that finds the run to have diverged say what to do."""
        run, progress = self._run, self._progress
        try:
            check()
        except DivergenceError as error:
            if self._has_just_grown:
                raise GrowthDivergedError(error.what, wanted=error.wanted) from None
            stopped = error.with_hint(way_out(run, progress.iteration, progress.saved))
            if run.stage.guard.action == "rollback":
                consumed = progress.carried.consumed_samples
                raise go_back(run, progress.iteration, consumed, stopped) from None
            raise stopped from None

    @property
    def _has_just_grown(self) -> bool:
        """Whether its model has grown in memory, and the guard watches that."""
        begin, stage = self._run.begin, self._run.stage
        if stage.growth is None or begin.ungrown:
            return False
        steps = self._progress.iteration - begin.stage_begin
        return stage.guard.watches_growth(steps, shut=bool(self._progress.closed_masks))
