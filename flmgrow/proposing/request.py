"""A budget file: what may be spent, on what model and data, and what is known of losses.

::

    stage: stage.yaml                # the smallest model, its data, batch, precision, learning rate
    budget: {dollars: 100000}        # or flops: 5.0e22, or gpu_days: 4000
    tokens: 300B                     # the data that there is
    final_size: 101B                 # or none: any size
    cluster: {accelerator: A800, gpus: 192, utilisation: 0.5, price: 1.0}
    law: [points.csv]                # runs, as predict takes them; or prior: hoffmann
    grown: [runs/a, runs/b]          # runs that grew: what growth carries over is fitted to them
    carried: [0.0, 1.0]              # where there are none: the interval that is supposed
    growth_law: carried              # or two-stage, or mixing: by which the proposal is made
    two_stage:                       # constants of the two-stage law, where no runs are fitted
      {source: our runs of May, A: 40.0, a1: 0.05, a2: 0.25, a3: 0.005, factors: [2, 4]}
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from flmgrow.errors import UsageError
from flmgrow.proposing.growth_laws import GrowthLawName
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.storage.validation import problems
from flmgrow.trainer.stage.section import Amount, Count, FilePath, Positive, Section

Share = Annotated[float, Field(ge=0, le=1)]
Exponent = Annotated[float, Field(ge=-10, le=10)]


class BudgetSection(Section):
    """What may be spent: exactly one of the three."""

    flops: Positive | None = None
    dollars: Positive | None = None
    gpu_days: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.flops, self.dollars, self.gpu_days]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give one of flops, dollars and gpu_days")
        return self


class ClusterSection(Section):
    """The devices: see ``flmgrow cost``. ``memory`` is in bytes."""

    accelerator: str = "A100"
    gpus: Count = 1
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.4
    price: Positive | None = None
    peak_tflops: Positive | None = None
    watts: Positive | None = None
    memory: Positive | None = None


class TwoStageSection(Section):
    """The two-stage law's constants, for tokens, and whose they are. ``E`` is what the law of sizes
    and tokens leaves if not given; ``factors`` are the growths that the constants were found for.
    """

    source: Annotated[str, Field(min_length=1)]
    A: Positive
    a1: Exponent
    a2: Exponent
    a3: Exponent
    E: Positive | None = None
    factors: Annotated[tuple[Positive, Positive], Field(strict=False)]


class BudgetFile(Section):
    """A budget file."""

    stage: FilePath
    budget: BudgetSection
    tokens: Amount
    final_size: Amount | None = None
    cluster: ClusterSection = ClusterSection()
    law: list[FilePath] | None = None
    prior: Literal["hoffmann"] | None = None
    grown: list[FilePath] = Field(default_factory=list)
    carried: Annotated[tuple[Share, Share], Field(strict=False)] = (0.0, 1.0)
    growth_law: GrowthLawName = "carried"
    two_stage: TwoStageSection | None = None

    @model_validator(mode="after")
    def _a_law(self) -> Self:
        if (self.law is None) == (self.prior is None):
            raise ValueError("give either law (your runs) or prior (published constants)")
        if self.law is not None and not self.law:
            raise ValueError("law names no runs")
        if self.grown and self.law is None:
            raise ValueError("grown needs law: published losses are of other data than your runs'")
        if self.carried[0] > self.carried[1]:
            raise ValueError("carried begins above where it ends")
        if self.two_stage is not None and self.two_stage.factors[0] > self.two_stage.factors[1]:
            raise ValueError("two_stage.factors begins above where it ends")
        if self.budget.dollars is not None and self.cluster.price is None:
            raise ValueError("a budget in dollars needs cluster.price")
        return self


def read_budget(path: Path) -> BudgetFile:
    """Return the budget in a file, its paths seen from there.

    Raises:
        UsageError: What was asked for cannot be.
    """
    data = read_yaml(path)
    try:
        file = BudgetFile.model_validate(data)
    except ValidationError as error:
        hint = "see docs/guides/propose.md"
        raise UsageError(problems(error.errors()), hint, where=path) from None
    folder = path.absolute().parent
    return file.model_copy(
        update={
            "stage": folder / file.stage,
            "law": None if file.law is None else [folder / each for each in file.law],
            "grown": [folder / each for each in file.grown],
        }
    )
