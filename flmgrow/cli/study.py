"""``flmgrow study``: which way of training a model pays: arms, seeds, and a comparison."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.printing import in_columns, json_text
from flmgrow.cli.progress import steps_bar
from flmgrow.errors import UsageError

if TYPE_CHECKING:
    from flmgrow.studying.study import Study

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML).")]
Out = Annotated[
    Path | None,
    typer.Option(help="The study's folder; studies/NAME after the file's name if not given."),
]
Parallel = Annotated[
    int, typer.Option(min=1, help="Legs at a time, each with its share of cores or devices.")
]
Scale = Annotated[
    float,
    typer.Option(metavar="FACTOR", help="Multiply all lengths: 0.1 tries a study in a tenth."),
]
PrintCommands = Annotated[
    bool,
    typer.Option(
        "--print-commands",
        help="Write all files, and print the commands of each open leg, in an order to run them.",
    ),
]
Launcher = Annotated[
    str, typer.Option(metavar="torchrun|srun", help="What those commands start ranks with.")
]
Devices = Annotated[
    int, typer.Option("--gpus-per-node", min=1, help="Ranks per node in those commands.")
]
Accelerator = Annotated[
    str | None, typer.Option(metavar="NAME", help="With --dry-run: hours on such devices.")
]
Utilisation = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Of that device's peak; its usual if not.")
]


def study(
    study: StudyPath,
    out: Out = None,
    parallel: Parallel = 1,
    scale: Scale = 1.0,
    print_commands: PrintCommands = False,
    launcher: Launcher = "torchrun",
    gpus_per_node: Devices = 8,
    accelerator: Accelerator = None,
    utilisation: Utilisation = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model in several ways, with several seeds, and tell which pays, and how surely.

    What arms have in common is trained once; learning rates are searched for each size first. The
    same command goes on after an interruption. Report, figures and pictures lie in the study's
    folder. --dry-run needs no data, and shows what every arm costs.

    \b
    Example: flmgrow study configs/study-growth.yaml --out studies/growth --parallel 2
    """
    from flmgrow import foresight
    from flmgrow.studying.wording import told

    if launcher not in ("torchrun", "srun"):
        raise UsageError(f"--launcher {launcher}: wanted torchrun or srun")
    if not 0 < scale <= 1000:
        raise UsageError(f"--scale {scale:g}: wanted a factor above 0")
    where = out or Path("studies") / study.stem
    if dry_run:
        _show(foresight.study_plan(study, scale=scale), accelerator, utilisation, as_json)
    elif print_commands:
        for line in foresight.study_commands(
            study, where, scale=scale, launcher=launcher, gpus_per_node=gpus_per_node
        ):
            print(line)
    else:
        with steps_bar(study.stem) as (watched, tell):
            found = foresight.study(
                study, where, parallel=parallel, scale=scale, told=tell, watched=watched
            )
        print(json_text(found.to_json()) if as_json else told(found))


def _show(
    study: "Study", accelerator: str | None, utilisation: float | None, as_json: bool
) -> None:
    from flmgrow.model.wording import amount
    from flmgrow.studying.study import hours_of, plan_data

    data = plan_data(study)
    if accelerator is not None:
        hours = hours_of(study, accelerator, utilisation)
        data = {**data, "accelerator": accelerator, "gpu_hours": sum(hours.legs),
                "arms": [{**arm, "gpu_hours": hours.arms[arm["name"]]}
                         for arm in data["arms"]]}  # fmt: skip
    if as_json:
        print(json_text(data))
        return
    for arm in data["arms"]:
        sizes = " -> ".join(amount(size) for size in arm["sizes"])
        hours_text = f", {arm['gpu_hours']:,.3g} GPU hours" if "gpu_hours" in arm else ""
        rows = [
            ("arm", f"{arm['name']}{', on the frontier' if arm['scratch'] else ''}"),
            ("is", arm["words"]),
            ("sizes", f"{sizes} parameters"),
            ("tokens", f"{amount(arm['tokens'])} in {arm['steps']:,} steps"),
            ("cost", f"{arm['flops']:.3e} FLOPs{hours_text}"),
        ]
        print("\n".join(in_columns(rows)), end="\n\n")
    seeds, saved = len(data["seeds"]), 1 - data["flops"] / data["flops_alone"]
    total = f"{data['flops']:.3e} FLOPs, {saved:.0%} less than if each arm were trained alone"
    rows = [
        ("study", f"{len(data['arms'])} arms with {seeds} seeds each"),
        ("trains", f"{data['legs']:,} legs, {data['steps']:,} steps"),
        ("cost", total + (f", {data['gpu_hours']:,.4g} GPU hours" if accelerator else "")),
    ]
    if study.file.rates.grid:
        rows.append(("rates", f"{data['searched']:,} trials before, {data['search_flops']:.3e} "
                     "FLOPs"))  # fmt: skip
    print("\n".join(in_columns(rows)))
