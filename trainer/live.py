"""A model in the memory of its ranks, as another stage may begin with it.

A stage mostly begins with what lies in files. A model whose layout stays need not go that way: what
the stage before has trained is still in memory when it ends. How it grows there is not the
trainer's to know. This is what it hands on, and what it takes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from flmgrow.formats.companions import Companions
from flmgrow.formats.history.parts import Member
from flmgrow.formats.history.training_state import Carried, TrainingState
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import parameter_count
from flmgrow.trainer.checkpoint.begin import Begin, TriedBatch
from flmgrow.trainer.megatron.parameters import Counted, OptimizerView, Parameter
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.file import StageFile


@dataclass(frozen=True, eq=False)
class LiveModel:
    """What ``run`` holds at an iteration, on this rank.

    ``counted`` is what its optimizer has. ``masks`` are those that are not open yet. ``family`` is
    its ancestry, itself last; ``companions`` say how it is spoken to. ``tried`` is a batch with its
    loss, if there is one.
    """

    run: RunConfig
    parameters: Sequence[Parameter]
    optimizer: OptimizerView
    counted: Counted
    iteration: int
    masks: Mapping[Dimension, Mask]
    carried: Carried
    family: tuple[Member, ...]
    companions: Companions
    tried: TriedBatch | None = None

    @classmethod
    def of(
        cls,
        run: RunConfig,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        counted: Counted,
        state: TrainingState,
        companions: Companions,
        tried: TriedBatch | None,
    ) -> Self:
        """Return what a run holds at ``state``, which is what a checkpoint would remember."""
        itself = Member(
            name=state.stage,
            parameters=parameter_count(run.config),
            iteration=state.iteration,
            tokens=state.carried.tokens,
        )
        return cls(
            run,
            parameters,
            optimizer,
            counted,
            state.iteration,
            state.masks,
            state.carried,
            (*state.family, itself),
            companions,
            tried,
        )


class Growing(Protocol):
    """Makes of a model in memory what the next stage begins with."""

    def check(self, run: RunConfig, stage: StageFile) -> None:
        """Raise UsageError if what ``run`` will have trained cannot become the model of ``stage``.

        Before the first step of ``run`` is taken.
        """

    def grow(self, live: LiveModel, stage: StageFile) -> Begin:
        """Return what ``stage`` begins with. On all ranks at once.

        Afterwards nothing of the old model is needed any more.

        Raises:
            FlmgrowError: On all ranks, for a growth that cannot be.
        """
