"""``flmgrow eval``: what checkpoints can do, stage beside stage."""

from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import devices, options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks, this_world
from flmgrow.cli.printing import json_text, note
from flmgrow.cli.reading import SourceOptions
from flmgrow.scores import evaluate

_ASKED = "What is asked"

Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CKPT...",
        help="Checkpoints in any format, hf://ORG/NAME, or the folder of a run: each stage's last.",
    ),
]
Tasks = Annotated[
    list[str],
    typer.Option(
        metavar="NAME,...",
        help="Tasks of lm-evaluation-harness; open-llm, open-llm-stages, c-eval; iq, symbolic, "
        "teacher; bits-per-byte:FILE. May be given several times.",
        rich_help_panel=_ASKED,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Where results go, a folder for each checkpoint. Those of the same request are read.",
        rich_help_panel=_ASKED,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Data of tasks in the place of the Hub's: a folder, or the file of symbolic "
        "or teacher.",
        rich_help_panel=_ASKED,
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Examples before each question, in the place of each task's own number.",
        rich_help_panel=_ASKED,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, help="Of examples, samples and generated questions.", rich_help_panel=_ASKED
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Questions of each task, at most: for a try.", rich_help_panel=_ASKED),
]
Beside = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="paper|FILE|FOLDER",
        help="Put the paper's scores beside, or those of a results_*.json, or of a folder of them. "
        "May be given several times.",
        rich_help_panel=_ASKED,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="native|hf|vllm",
        help="What computes: flmgrow, or transformers or vLLM on an export in a cache.",
        rich_help_panel=devices.COMPUTING,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Texts at a time; as many as seems good if not given.",
        rich_help_panel=devices.COMPUTING,
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Drop what an interrupted evaluation left.",
        rich_help_panel=devices.COMPUTING,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@grouped
@in_ranks
def eval_(
    checkpoints: Checkpoints,
    tasks: Tasks,
    out: Out,
    data: Data = None,
    shots: Shots = None,
    seed: Seed = 0,
    limit: Limit = None,
    beside: Beside = None,
    backend: Backend = "native",
    dtype: devices.Dtype = None,
    device: devices.Device = None,
    batch_size: Batch = None,
    tokenizer: devices.Tokenizer = None,
    restart: Restart = False,
    iteration: options.Iteration = None,
    as_json: AsJson = False,
    *,
    reading: SourceOptions,
) -> None:
    """Evaluate checkpoints on lm-evaluation-harness's tasks, and put their scores side by side.

    The same command goes on where an evaluation stopped. Result files are the harness's own.

    \b
    Example: flmgrow eval runs/flm --tasks open-llm-stages,bits-per-byte:wiki.txt --out scores
    """
    found = evaluate(
        checkpoints,
        tasks,
        out,
        beside=beside or (),
        open=lambda path: reading.open(path, iteration, look_only=True).checkpoint,
        noted=note,
        data=data,
        shots=shots,
        seed=seed,
        limit=limit,
        backend=backend,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        tokenizer=tokenizer,
        restart=restart,
    )
    if this_world().first:
        print(json_text(found.to_json()) if as_json else found)
