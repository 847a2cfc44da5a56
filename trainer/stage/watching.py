"""The parts of a stage file that say what is told of it, and when it stops."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flmgrow.trainer.stage.section import Count, FilePath, Name, Positive, Section

METRICS = "metrics.jsonl"
"""The file of what was measured, where nobody names another."""


class ServiceSection(Section):
    """A service that is told the numbers of a run: under which project, and by which name."""

    project: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)] | None = None


class LogSection(Section):
    """What is told, and where. ``metrics`` gets a line of JSON per step, whatever ``every`` is.
    ``tensorboard``, ``wandb`` and ``trackio`` get the same numbers.

    A validation reads ``validation_samples``; ``validation_batches``, the older way to say it,
    counts batches of the stage. ``validation_first`` adds one before the first step: of a model as
    it was grown. ``validation_set`` names the set whose loss is *the* validation loss, if it is not
    the first. ``peak_tflops`` is that of one device, for the utilisation.
    ``parts`` measures in every step how far it moves what a growth made, and the rest;
    ``by_corpus`` the loss of each corpus' samples.
    """

    every: Count = 10
    metrics: FilePath = Path(METRICS)
    tensorboard: FilePath | None = None
    wandb: ServiceSection | None = None
    trackio: ServiceSection | None = None
    validation_every: Count | None = None
    validation_first: bool = False
    validation_samples: Count | None = None
    validation_batches: Count | None = None
    validation_set: Name | None = None
    peak_tflops: Positive | None = None
    parts: bool = False
    by_corpus: bool = False

    @property
    def validates(self) -> bool:
        """Whether any validation is asked for."""
        return self.validation_every is not None or self.validation_first

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.validation_samples is not None and self.validation_batches is not None:
            raise ValueError("give either validation_samples or validation_batches")
        return self


class GuardSection(Section):
    """The guard of a run: it stops at a loss ``spike`` nats above the mean of ``window`` steps.

    None lets spikes pass. A loss or gradient that is not finite always stops the run. With
    ``action: rollback`` the run goes back to a checkpoint before that window and passes over the
    samples that led to the spike, and stops only after so many ``rollbacks``.
    """

    spike: Positive | None = None
    window: Count = 50
    action: Literal["stop", "rollback"] = "stop"
    rollbacks: Count = 3

    def watches_growth(self, steps: int, *, shut: bool) -> bool:
        """Whether what diverges so many ``steps`` after a growth is taken to do so because of it.

        It is for a window, and as long as any mask is not open (``shut``).
        """
        return shut or steps <= self.window
