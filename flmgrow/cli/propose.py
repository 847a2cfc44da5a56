"""``flmgrow propose``: schedules for a budget, and whether to grow at all."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.printing import in_columns, json_text

BudgetPath = Annotated[Path, typer.Argument(metavar="BUDGET", help="A budget file (YAML).")]
Write = Annotated[
    Path | None,
    typer.Option(metavar="SCHEDULE.yaml", help="Write the proposed schedule, as run takes it."),
]


def propose(budget: BudgetPath, write: Write = None, as_json: options.AsJson = False) -> None:
    """Propose a schedule for a budget: sizes, when to grow, the loss to expect, and whether to.

    Beside it stand the final size from scratch, a smaller model for longer, one late growth, and
    the paper's shares, each at its best within the budget.

    \b
    Example: flmgrow propose budget.yaml --write schedule.yaml
    """
    from flmgrow import foresight
    from flmgrow.proposing.wording import rows
    from flmgrow.storage.durable import write_small
    from flmgrow.storage.strict_yaml import dump_yaml

    found = foresight.propose(budget)
    if write is not None:
        write_small(write, dump_yaml(found.schedule).encode())
    print(json_text(found.to_json()) if as_json else "\n".join(in_columns(rows(found))))
