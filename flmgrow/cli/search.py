"""``flmgrow search``: try settings on a small model, and say which are best, and how surely."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.parsing import parse_numbers
from flmgrow.cli.printing import json_text
from flmgrow.cli.progress import steps_bar
from flmgrow.errors import UsageError

if TYPE_CHECKING:
    from flmgrow.searching.trials import SearchFolder

SearchPath = Annotated[Path, typer.Argument(metavar="SEARCH", help="A search file (YAML).")]
Out = Annotated[
    Path | None,
    typer.Option(help="The search's folder; searches/NAME after the file's name if not given."),
]
Parallel = Annotated[
    int, typer.Option(min=1, help="Trials at a time, each with its share of cores or devices.")
]
Halving = Annotated[
    bool,
    typer.Option("--halving", help="Stop the worse half after a quarter of the steps, and again."),
]
Transfer = Annotated[
    str | None,
    typer.Option(metavar="WIDTH,WIDTH,...", help="The same grid at each of these widths."),
]
WriteBest = Annotated[
    Path | None,
    typer.Option(metavar="FILE.yaml", help="Write the best point as sections of a stage file."),
]
PrintCommands = Annotated[
    bool,
    typer.Option(
        "--print-commands", help="Write the stage files, and print a command for each open trial."
    ),
]
Launcher = Annotated[
    str, typer.Option(metavar="torchrun|srun", help="What those commands start ranks with.")
]
Devices = Annotated[
    int, typer.Option("--gpus-per-node", min=1, help="Ranks per node in those commands.")
]


def search(
    search: SearchPath,
    out: Out = None,
    parallel: Parallel = 1,
    halving: Halving = False,
    transfer: Transfer = None,
    write_best: WriteBest = None,
    print_commands: PrintCommands = False,
    launcher: Launcher = "torchrun",
    gpus_per_node: Devices = 8,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Try a grid of settings on a small model, and tell the best and how flat it is around it.

    Each point is trained as train would, in a folder of its own; the same command goes on after an
    interruption. Report, figures and a picture lie in the search's folder.

    \b
    Example: flmgrow search search.yaml --out searches/rates --parallel 2 --write-best best.yaml
    """
    from flmgrow import foresight
    from flmgrow.searching.report import sections_of
    from flmgrow.searching.wording import told
    from flmgrow.storage.durable import write_small
    from flmgrow.storage.hidden import held
    from flmgrow.storage.strict_yaml import dump_yaml

    if launcher not in ("torchrun", "srun"):
        raise UsageError(f"--launcher {launcher}: wanted torchrun or srun")
    if write_best is not None and not write_best.absolute().parent.is_dir():
        raise UsageError(
            f"--write-best {write_best}: {write_best.parent} is no folder", "make the folder first"
        )
    widths = parse_numbers("--transfer", transfer)
    where = out or Path("searches") / search.stem
    folder = foresight.search_folder(search, where, widths)
    if dry_run:
        _show(folder)
    elif print_commands:
        with held(folder.path):
            folder.prepare(search)
        _print_commands(folder, launcher, gpus_per_node)
    else:
        with steps_bar(search.stem) as (watched, tell):
            report = foresight.search(
                search, where, parallel=parallel, halving=halving, transfer=widths, told=tell,
                watched=watched,
            )  # fmt: skip
        if write_best is not None:
            best = report.best[-1].result.point
            write_small(write_best, dump_yaml(sections_of(best.settings)).encode())
        print(json_text(report.to_json()) if as_json else told(report))


def _show(folder: "SearchFolder") -> None:
    trials = folder.search.trials
    steps = sum(trial.stage.steps for trial in trials)
    print(f"{len(folder.search.points)} points, {len(trials)} trials, {steps:,} steps in all")
    for trial in trials:
        print(f"{trial.name}  {trial.point.text}")


def _print_commands(folder: "SearchFolder", launcher: str, devices: int) -> None:
    from flmgrow.stages.steps import launched
    from flmgrow.stages.trial_folder import TrialState

    for outcome in folder.outcomes():
        if outcome.state is TrialState.OPEN:
            trial = outcome.trial
            file = shlex.quote(str(folder.of(trial) / "stage.yaml"))
            print(launched(file, trial.stage.layout.world, launcher, devices))
