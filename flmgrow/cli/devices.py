"""The options that say where a command computes, and in which dtype."""

from pathlib import Path
from typing import Annotated

import typer

COMPUTING = "Computing"

Device = Annotated[
    str | None,
    typer.Option(
        metavar="cpu|cuda",
        help="Where to compute; on a GPU if there is one.",
        rich_help_panel=COMPUTING,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16|float64",
        help="Compute in this dtype; that of the weights if not given.",
        rich_help_panel=COMPUTING,
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|FILE|bytes",
        help="The tokenizer, in place of the checkpoint's own.",
        rich_help_panel=COMPUTING,
    ),
]
