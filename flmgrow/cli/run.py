"""``flmgrow run``: train, grow, verify, and train on, from one file."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.ended import EndedError
from flmgrow.cli.printing import in_columns, json_text, note
from flmgrow.costing.estimate import RunCost, StageCost, cost_of
from flmgrow.costing.rates import Rates
from flmgrow.costing.wording import bill_text, device_text, fullest_text, stage_time_text
from flmgrow.errors import UsageError
from flmgrow.stages import overview
from flmgrow.stages.past import CHECKPOINTS, STAGE
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.preparing import checked, prepare
from flmgrow.stages.run_folder import RunFolder
from flmgrow.stages.runner import launch, run_steps
from flmgrow.stages.schedule import read_schedule
from flmgrow.stages.steps import Step, steps_of, submitted

SchedulePath = Annotated[Path, typer.Argument(metavar="SCHEDULE", help="A schedule file (YAML).")]
Out = Annotated[
    Path | None,
    typer.Option(help="The run's folder; runs/NAME after the schedule's name if not given."),
]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
PrintCommands = Annotated[
    bool,
    typer.Option(
        "--print-commands",
        help="Write the files, and print each step as a command to submit instead of running it.",
    ),
]
Launcher = Annotated[
    str, typer.Option(metavar="torchrun|srun", help="What those commands start ranks with.")
]
Devices = Annotated[
    int, typer.Option("--gpus-per-node", min=1, help="Ranks per node in those commands.")
]
Law = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="RUN|FILE.csv",
        help="Runs of small models, as predict takes them: each stage's end is held against them. "
        "May be given several times.",
    ),
]


def run(
    schedule: SchedulePath,
    out: Out = None,
    until: Until = None,
    print_commands: PrintCommands = False,
    launcher: Launcher = "torchrun",
    gpus_per_node: Devices = 8,
    law: Law = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a schedule: each stage is trained, then grown, laid out and verified for the next.

    Growth that changes the function stops the run. Everything lies in one folder, and the same
    command goes on there after an interruption at any point. --dry-run needs neither data nor
    checkpoints.

    \b
    Example: flmgrow run configs/tiny.yaml --out runs/tiny
    """
    where = out or Path("runs") / schedule.stem
    stages = read_schedule(schedule, where)
    names = [planned.stage.name for planned in stages]
    if until is not None and until not in names:
        raise UsageError(f"--until {until}: no such stage", f"one of {', '.join(names)}")
    if launcher not in ("torchrun", "srun"):
        raise UsageError(f"--launcher {launcher}: wanted torchrun or srun")
    if as_json and not dry_run:
        raise UsageError("--json: shows a plan as data", "add --dry-run", wanted="with --dry-run")
    folder = RunFolder(where, stages)
    if dry_run:
        checked(folder, schedule)
        _show(stages[: _count(names, until)], list(steps_of(folder, until)), as_json)
        return
    prepare(folder, schedule)
    steps = steps_of(folder, until)
    if print_commands:
        for step in steps:
            done = "# done: " if step.done() else ""
            print(f"{done}{submitted(step, launcher, gpus_per_node)}")
        return
    if law:
        steps = _held_against(law, folder, steps)
    code = run_steps(steps, launch, lambda line: print(line, file=sys.stderr, flush=True))
    if code:
        raise EndedError(code)
    last = stages[_count(names, until) - 1]
    print(folder.of(last, CHECKPOINTS))


def _held_against(law: list[Path], folder: RunFolder, steps: Iterator[Step]) -> Iterator[Step]:
    """Yield the steps, and tell after each training how its end compares with what is foretold.

    Raises:
        FlmgrowError: As ``points_of`` and ``forecaster`` do, before the first step.
    """
    from flmgrow.prediction.ending import stage_ended
    from flmgrow.prediction.forecast import forecaster
    from flmgrow.prediction.law import form_for
    from flmgrow.prediction.points import points_of
    from flmgrow.prediction.wording import ended_row

    points = points_of(law, None)
    found = forecaster(points, form_for(points))

    def told() -> Iterator[Step]:
        for step in steps:
            begun = not step.done()
            yield step
            if begun and step.trains:
                where = folder.of(step.stage, STAGE).parent
                note(": ".join(ended_row(stage_ended(where, found))))

    return told()


def _count(names: list[str], until: str | None) -> int:
    """Return how many stages a run takes."""
    return len(names) if until is None else names.index(until) + 1


def _show(stages: list[PlannedStage], steps: list[Step], as_json: bool) -> None:
    cost = cost_of(stages, Rates())
    if as_json:
        commands = [["flmgrow", *step.words] for step in steps]
        data = [{**overview.stage_data(each.planned), **_cost_data(each)} for each in cost.stages]
        device = cost.rates.accelerator.name
        print(json_text({"stages": data, "commands": commands, "accelerator": device}))
        return
    for number, (planned, its) in enumerate(zip(stages, cost.stages, strict=True)):
        before = stages[number - 1] if number else None
        told = [("time", stage_time_text(its)), ("memory", fullest_text(its.memory))]
        print("\n".join(in_columns([*overview.stage_rows(planned, before), *told])))
        for step in steps:
            if step.stage is planned:
                print(f"$ {step.command}" + ("  # done" if step.done() else ""))
        print()
    print("\n".join(in_columns([overview.total_row(stages), *_supposed_rows(cost)])))


def _supposed_rows(cost: RunCost) -> list[tuple[str, str]]:
    """Return the time of all stages, and what it supposes: no schedule says what it runs on."""
    share = f"{100 * cost.rates.utilisation(0):g} % of the peak"
    return [
        ("time", bill_text(cost.bill)),
        ("supposed", f"{share} of {device_text(cost.rates.accelerator)}"),
        ("hint", "flmgrow cost SCHEDULE takes other devices, what they reach, and prices"),
    ]


def _cost_data(cost: StageCost) -> dict[str, object]:
    return {
        "gpu_hours": cost.bill.hours,
        "days": cost.bill.days,
        "utilisation": cost.utilisation,
        "memory": [held.to_json() for held in cost.memory],
    }
