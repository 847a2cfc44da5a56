"""From a stage file to the end of its stage, in processes that have been started for it.

All ranks run this. A stage file may name another after which its model grows in memory; then that
one is trained first, by the same processes, and handed over. Where a run of several stages goes on
is read from what lies in their folders: at the last of them that has saved a checkpoint. So a kill
before, during or after a growth costs the steps since that checkpoint, and the growth is repeated
if it lies behind it.
"""

import gc
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from flmgrow.errors import FlmgrowError, GrowthDivergedError, SpikeError, UsageError, tell
from flmgrow.trainer.checkpoint.aside import set_aside
from flmgrow.trainer.checkpoint.begin import Begin, find_begin, find_ungrown
from flmgrow.trainer.data.course import Course, is_read
from flmgrow.trainer.data.stage_data import StageData, open_data
from flmgrow.trainer.live import Growing, LiveModel
from flmgrow.trainer.loop import AGAIN, TrainingRun
from flmgrow.trainer.megatron.model import start_chance, start_parallel, stop_parallel
from flmgrow.trainer.metrics.reporting import say
from flmgrow.trainer.ranks.agreement import check_alike, gathered, together
from flmgrow.trainer.ranks.folder_lock import own_folder
from flmgrow.trainer.ranks.stopping import Stop
from flmgrow.trainer.run_config import RunConfig, course_in, decisive, make_run_config
from flmgrow.trainer.stage.chain import GROWING, read_chain
from flmgrow.trainer.stage.file import StageFile, read_stage
from flmgrow.trainer.stage.keys import STAGE_FILE, told_of
from flmgrow.trainer.stage.model import ModelSection


def train(stage: StageFile, path: Path, growing: Growing | None = None) -> int:
    """Train ``stage``, of the file ``path``, to its end, or until a signal; return the exit code.

    ``growing`` is needed by a stage that grows after another one. Once the ranks have met, all of
    them meet the same errors, and the first one tells.

    Raises:
        FlmgrowError: For one that this rank meets before.
    """
    chain = read_chain(stage, path)
    if growing is None and len(chain) > 1:
        raise UsageError(
            "growth: what trains a stage alone knows no growth",
            f"start it by flmgrow train, torchrun or srun as -m {GROWING}",
            where=path,
        )
    stop = Stop()
    layout = stage.layout
    start_parallel(
        tp=layout.tp,
        pp=layout.pp,
        vpp=layout.vpp if layout.vpp > 1 else None,
        seed=stage.training.seed,
    )
    try:
        code = _Chain(chain, growing).train(stop)
    except FlmgrowError as error:
        if torch.distributed.get_rank() == 0:
            tell(error, STAGE_FILE)
        code = error.exit_code
    stop.restore()
    stop_parallel()
    return code


@dataclass(frozen=True, eq=False)
class _Chain:
    """Stages, each of which grows after the one before, with their files."""

    stages: Sequence[tuple[StageFile, Path]]
    growing: Growing | None

    def train(self, stop: Stop) -> int:
        """Train all that is left of the stages; return 0, or 128 and the number of a signal."""
        live: LiveModel | None = None
        number, begin, data = self._found()
        while True:
            with own_folder(self.stages[number][0].checkpoint.folder):
                if live is not None:
                    begin, live = self._grown(live, begin, number), None
                try:
                    code, live = self._trained(number, begin, data, stop)
                except GrowthDivergedError as error:
                    begin = self._taken_back(number, begin, error)
                    continue
                except SpikeError:
                    number, begin, data = self._found()
                    continue
            if code == AGAIN:
                number, begin, data = self._found()
                continue
            number += 1
            if code or number == len(self.stages):
                return code
            data, begin = self._opened(number)

    def _trained(
        self, number: int, begin: Begin, data: StageData, stop: Stop
    ) -> tuple[int, LiveModel | None]:
        """Train a stage; return its exit code (or AGAIN), and what the next one goes on with."""
        _let_go()
        with ExitStack() as opened:
            if begin.checkpoint is not None:
                opened.callback(begin.checkpoint.close)
            run, course = self._configured(number, begin, data)
            start_chance(run.stage.training.seed)
            trained = TrainingRun(run, data, course)
            code = trained.until_done(stop)
            ends = code or number + 1 == len(self.stages)
            return code, None if ends else trained.live()

    def _found(self) -> tuple[int, Begin, StageData]:
        """Return the number of the stage to go on with, where it does, and its data."""
        for number in reversed(range(len(self.stages))):
            data, begin = self._opened(number)
            if not begin.grows:
                break
        return number, begin, data

    def _opened(self, number: int) -> tuple[StageData, Begin]:
        """Return a stage's data, and where it goes on."""
        stage, _ = self.stages[number]
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        data = together(lambda: open_data(stage.data, sums=first_here))
        known = partial(is_read, data.mixture, stage.data.sequence_length)
        return data, together(lambda: find_begin(stage, known))

    def _configured(self, number: int, begin: Begin, data: StageData) -> tuple[RunConfig, Course]:
        """Return how a stage is trained and what it reads; the next one, if any, can go on."""
        stage, path = self.stages[number]
        if begin.ungrown:  # it says what its model would have grown into
            stage = stage.model_copy(update={"model": ModelSection()})
        after = self.stages[number + 1 :][:1]
        growth = after[0][0].growth if after else None
        at = None if growth is None else growth.at
        with told_of(path):
            ids = data.tokenizer.vocab_size
            run = together(lambda: make_run_config(stage, begin, ids, at))
            course = together(lambda: course_in(data, run))
            taken = together(lambda: run.switches.taken)
        here = {"the data": course.digest, "what is taken of training.switches": taken}
        check_alike({**decisive(run), **data.keys, **data.validated, **here})
        for later, file in after:
            assert self.growing is not None
            with told_of(file):
                together(partial(_check_place, run, at))
                together(partial(self.growing.check, run, later))
        return run, course

    def _grown(self, live: LiveModel, begin: Begin, number: int) -> Begin:
        """Return where a stage begins whose model has grown out of the one before."""
        assert self.growing is not None
        stage, path = self.stages[number]
        with told_of(path):
            grown = self.growing.grow(live, stage)
        return replace(grown, settings=begin.settings, left=begin.left)

    def _taken_back(self, number: int, begin: Begin, error: GrowthDivergedError) -> Begin:
        """Take back the growth of a stage that has diverged; return where that goes on without.

        Raises:
            FlmgrowError: ``error`` if it shall stop.
        """
        stage, growth = self.stages[number][0], self.stages[number][0].growth
        assert growth is not None
        before, folder = read_stage(growth.after), stage.checkpoint.folder
        first = torch.distributed.get_rank() == 0
        moved = gathered(together(lambda: set_aside(folder) if first else None))[0]
        aside = "" if moved is None else f"; what it had saved is in {moved}"
        back = (
            f"the growth at step {begin.stage_begin:,} is taken back, to the checkpoint in "
            f"{before.checkpoint.folder}"
        )
        if growth.if_diverged == "stop":
            raise error.with_hint(
                f"{back}{aside}; give it a longer ramp or another method in growth.to, or this "
                "stage a lower learning_rate.peak, and run the same command again; or say "
                "growth.if_diverged: ungrown, to go on with the model as it was"
            )
        say(f"{stage.name}  {error.what}: {back}, and the stage goes on with that model{aside}")
        return together(lambda: find_ungrown(stage))


def _let_go() -> None:
    """Give back the memory of a model that was trained before and is not needed any more."""
    gc.collect()  # modules and hooks hold one another
    torch.cuda.empty_cache()


def _check_place(run: RunConfig, at: int | None) -> None:
    """Raise UsageError unless a run that is left at iteration ``at`` can still be left there."""
    begin = run.begin
    if at is not None and begin.iteration > at:
        raise UsageError(
            f"growth.at: is {at}, the stage {run.stage.name} has been trained to {begin.iteration}",
            f"give at least {begin.iteration}, or another checkpoint.folder to that stage",
        )
    if at is not None and run.last < at:
        raise UsageError(
            f"growth.at: is {at}, the stage {run.stage.name} ends at {run.last}",
            "leave it out to grow at its end, or make that stage longer",
        )
