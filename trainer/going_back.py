"""Going back from a spike to a good checkpoint, past the batches that led to it.

The remedy that large runs have used by hand: a spike seldom comes again where a run goes back to
before it and passes over the batches on the way there (PaLM, section 5.1). Here the guard does it,
so many times, on all ranks, in the order that a kill cannot spoil: what must not be gone on from is
moved away, and then the decision is put on the disk (:mod:`flmgrow.trainer.checkpoint.rollbacks`).
"""

import torch

from flmgrow.errors import DivergenceError, SpikeError
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.formats.megatron.folders import folder_name
from flmgrow.trainer.checkpoint.aside import set_aside
from flmgrow.trainer.checkpoint.rollbacks import Rollback, read_rollbacks, way_back, write_rollbacks
from flmgrow.trainer.checkpoint.saved import saved_iterations
from flmgrow.trainer.metrics.reporting import say
from flmgrow.trainer.ranks.agreement import gathered, together
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.changes import goes_back


def go_back(run: RunConfig, step: int, consumed: int, error: DivergenceError) -> SpikeError:
    """Let the stage go on before the spike that ``error`` tells of, the next time it is looked for.

    It came at ``step``, when the run had ``consumed`` so many samples. On all ranks at once.

    Returns:
        What says that the stage is to be taken up again.

    Raises:
        FlmgrowError: ``error`` if it has gone back often enough.
    """
    stage, first = run.stage, torch.distributed.get_rank() == 0
    folder, most = stage.checkpoint.folder, stage.guard.rollbacks
    done = gathered(together(lambda: read_rollbacks(folder) if first else None))[0]
    if len(done) >= most:
        times = f"it has gone back {len(done)} of {most} times (guard.rollbacks)"
        raise error.with_hint(f"{times}; {error.hint}")
    told = together(lambda: _decide(run, step, consumed, error, done) if first else "")
    say(f"{stage.name}  {told}")
    return SpikeError(error.what, wanted=error.wanted)


def _decide(
    run: RunConfig, step: int, consumed: int, error: DivergenceError, done: list[Rollback]
) -> str:
    """Move later checkpoints away, write down what is passed over, and return it in a line."""
    stage, begin = run.stage, run.begin
    folder = stage.checkpoint.folder
    saved = [each for each in saved_iterations(folder) if _is_own(run, each)]
    back = way_back(saved, step, stage.guard.window)
    to, start = begin.iteration, begin.carried.consumed_samples
    where = "what the stage begins with"
    if back is not None:
        state = read_training_state(folder / folder_name(back))
        assert state is not None
        to, start = back, state.carried.consumed_samples
        where = f"the checkpoint of step {back:,}"
    aside = set_aside(folder, back)
    rollback = Rollback(step=step, to=to, begin=start, end=consumed, why=error.message)
    write_rollbacks(folder, [*done, rollback])
    return (
        f"{error.what}: goes back to {where}, and passes over samples {start:,} to {consumed - 1:,}"
        f" ({len(done) + 1} of {stage.guard.rollbacks} times)"
        + ("" if aside is None else f"; later checkpoints are in {aside}")
    )


def _is_own(run: RunConfig, iteration: int) -> bool:
    """Whether the checkpoint of an iteration is on the run's own way.

    Where ``checkpoint.change_at`` has it go on from further back, later ones of the attempt before
    stay until it comes to them; they were trained with other settings.
    """
    stage, at = run.stage, run.stage.checkpoint.change_at
    if at is None:
        return iteration >= run.begin.stage_begin
    if iteration <= at:
        return iteration == at
    state = read_training_state(stage.checkpoint.folder / folder_name(iteration))
    return state is not None and not goes_back(stage, state.settings)
