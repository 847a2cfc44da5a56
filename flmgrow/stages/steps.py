"""The steps of a run, each a command that a person could type.

A stage is trained; its checkpoint is grown and laid out for the next stage in one pass; that the
function did not change is verified; the next stage is trained. What runs, what is printed for a
cluster, and what the documentation shows are the same commands.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil

from flmgrow.stages.past import CHECKPOINTS, GROWTH, STAGE
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.run_folder import RunFolder
from flmgrow.stages.start import Start
from flmgrow.text import COMMAND_LINE
from flmgrow.trainer.stage.chain import START, TRAINER, module_of

PORT = 29500
DIFFERS = 1
"""The exit code of a ``verify`` that found a difference."""

FIRST_NODE = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'


@dataclass(frozen=True, eq=False)
class Step:
    """One step: ``words`` are its command, without ``flmgrow``; ``done`` looks at the disk.

    ``stage`` is the one that is trained, or that the step makes the start of. ``may_differ``:
    that it finds another function (exit code 1) is no failure.
    """

    stage: PlannedStage
    words: tuple[str, ...]
    done: Callable[[], bool]
    may_differ: bool = False

    @property
    def command(self) -> str:
        """The command as a shell takes it."""
        return shlex.join(("flmgrow", *self.words))

    @property
    def trains(self) -> bool:
        """Whether it runs on all ranks."""
        return self.words[0] == "train"


def steps_of(folder: RunFolder, until: str | None = None) -> Iterator[Step]:
    """Yield the steps of a run in order, up to the training of the stage called ``until``."""
    for planned in folder.stages:
        if planned.is_given:
            yield from _start(folder, planned)
        ends = planned.stage.name == until
        if not ends and any(later.in_place for later in folder.after(planned)[:1]):
            continue  # who trains the later one trains this one first
        words = ("train", str(folder.of(planned, STAGE)))
        yield Step(planned, words, partial(folder.is_trained, planned))
        if ends:
            return


def _start(folder: RunFolder, planned: PlannedStage) -> Iterator[Step]:
    """Yield what makes the checkpoint that a stage begins with, and proves it."""
    start, said = str(folder.of(planned, START)), _said(planned)
    if planned.start is None:
        source = str(folder.of(folder.before(planned), CHECKPOINTS))
    else:
        source = planned.start.place
    how: tuple[str, ...]
    if planned.target is not None:
        without = planned.start is not None and _leaves_optimizer(planned.start)
        options = _options(to=folder.of(planned, GROWTH), no_optimizer=without or None)
        how = ("expand", source, start, *options)
    else:
        assert planned.start is not None  # else it is trained from fresh weights
        how = (*_laid_out(planned, planned.start), source, start)
    form = _options(format=planned.stage.checkpoint.format)
    yield Step(planned, (*how, *form, *said), partial(folder.is_grown, planned))
    words = ("verify", source, start, *said)
    yield Step(planned, words, partial(folder.is_verified, planned), planned.accepts)


def _laid_out(planned: PlannedStage, start: Start) -> tuple[str, ...]:
    """Return the command, and its options, that lays a model out for the first stage."""
    layout = planned.stage.layout
    counts = layout.pipeline_layers
    return (
        "import" if start.imported else "reshard",
        *_options(
            tp=layout.tp,
            pp=layout.pp,
            vpp=layout.vpp,
            pipeline_layers=None if counts is None else ",".join(map(str, counts)),
            no_optimizer=_leaves_optimizer(start) or None,
        ),
    )


def _leaves_optimizer(start: Start) -> bool:
    """Whether a start has optimizer state that the run is not to have."""
    return start.anew and not start.imported


def _said(planned: PlannedStage) -> tuple[str, ...]:
    """Return the options by which the user vouches for what a start has; the rest is flmgrow's."""
    if planned.start is None:
        return ()
    said = planned.stage.checkpoint
    return _options(
        ignore_arguments=said.ignore_arguments,
        ignore_fields=said.ignore_fields,
        args_from=said.args_from,
        set_arguments=said.set_arguments,
        untie=said.untie,
        true_vocab_size=said.true_vocab_size,
        max_position_embeddings=planned.start.max_positions,
    )


def _options(**settings: object) -> tuple[str, ...]:
    """Return the settings that have a value as options of a command."""
    given = {name: value for name, value in settings.items() if value is not None}
    return tuple(word for item in given.items() for word in COMMAND_LINE.arguments(*item))


def submitted(step: Step, launcher: str, devices: int) -> str:
    """Return the command to submit for ``step`` on nodes with ``devices`` devices each."""
    if not step.trains:
        return f"{step.command} || [ $? -eq {DIFFERS} ]" if step.may_differ else step.command
    world = step.stage.stage.layout.world
    module = module_of(step.stage.stage)
    return launched(shlex.quote(step.words[1]), world, launcher, devices, module)


def launched(stage: str, world: int, launcher: str, devices: int, module: str = TRAINER) -> str:
    """Return the command that trains a stage file, quoted, on nodes with ``devices`` each.

    ``module`` runs its ranks.
    """
    # A launcher starts equally many ranks on every node.
    nodes = next(n for n in range(ceil(world / devices), world + 1) if world % n == 0)
    per_node = world // nodes
    run = f"-m {module} {stage}"
    if launcher == "srun":
        tasks = f"--nodes={nodes} --ntasks={world} --ntasks-per-node={per_node}"
        where = f"MASTER_ADDR={FIRST_NODE} MASTER_PORT={PORT}"
        return f"{where} srun {tasks} python {run}"
    if nodes == 1:
        return f"torchrun --standalone --nproc-per-node {per_node} {run}"
    meeting = f"--rdzv-backend c10d --rdzv-endpoint $MASTER_ADDR:{PORT}"
    return f"torchrun --nnodes {nodes} --nproc-per-node {per_node} {meeting} {run}"
