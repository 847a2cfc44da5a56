"""``flmgrow verify``: prove that two checkpoints compute the same function, and that both are
intact.
"""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flmgrow.cli import devices, options, report
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import RankTimeout, Scratch, in_ranks, meeting_beside, this_world
from flmgrow.cli.integrity import show_integrity
from flmgrow.cli.parsing import parse_size, read_small_file
from flmgrow.cli.printing import json_text
from flmgrow.cli.progress import progress_bar
from flmgrow.cli.reading import SourceOptions
from flmgrow.errors import UsageError
from flmgrow.model.devices import device_named, dtype_named
from flmgrow.planned import default_workers
from flmgrow.storage.world import PATIENCE
from flmgrow.text import Found, Text

if TYPE_CHECKING:
    import torch

    from flmgrow.surgery.evidence.check import Verdict

Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="float64|float32|bfloat16",
        help="Compute in this dtype; float64 for models of up to 2e9 parameters, else float32.",
    ),
]
Tokens = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Token ids to run on (JSON, or a .npy array); random ones if not given.",
    ),
]
Gradients = Annotated[
    bool,
    typer.Option(
        "--gradients",
        help="Also compare gradients; needs both models in --max-memory, in float64.",
    ),
]

_MOST_TOKEN_BYTES = 64 << 20


@grouped
@in_ranks
def verify(
    src: options.Source,
    dst: Annotated[
        Path | None,
        typer.Argument(metavar="DST", help="The checkpoint to compare with it; on the Hub, too."),
    ] = None,
    integrity: Annotated[
        bool,
        typer.Option(
            "--integrity", help="Check SRC alone: all sums that its files carry, and its copies."
        ),
    ] = False,
    dtype: Dtype = None,
    device: devices.Device = None,
    tokens: Tokens = None,
    gradients: Gradients = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random tokens.")] = 0,
    skip_checksums: Annotated[
        bool, typer.Option("--skip-checksums", help="Trust that no bit has rotted.")
    ] = False,
    skip_elements: Annotated[
        bool,
        typer.Option("--skip-elements", help="Do not derive every value again from the source."),
    ] = False,
    no_receipt: Annotated[
        bool, typer.Option("--no-receipt", help="Do not write the result into DST's flmgrow.json.")
    ] = False,
    replicated: options.Replicated = "check",
    max_memory: options.MaxMemory = "1G",
    workers: options.Workers = None,
    as_json: options.AsJson = False,
    rank_timeout: RankTimeout = PATIENCE,
    scratch: Scratch = None,
    *,
    reading: SourceOptions,
) -> None:
    """Prove that DST computes what SRC computes.

    Exit code 0: proved; 1: different; 9: no difference found, but evidence is missing.

    Checks all checksums, derives every value of DST again from SRC, and runs both models layer by
    layer through one reference forward; masks are applied. The receipt goes into DST's
    flmgrow.json.

    \b
    Example: flmgrow verify ckpt-16b ckpt-51b
    Example: flmgrow verify --integrity ckpt-51b
    """
    if integrity:
        if dst is not None:
            raise UsageError(
                Text("--integrity: checks one checkpoint, found ", Found(dst), ", too")
            )
        raise typer.Exit(show_integrity(src, reading, as_json, this_world(rank_timeout, scratch)))
    if dst is None:
        raise UsageError(
            "DST: is not given",
            "name what to compare with; --integrity checks one alone",
        )
    from flmgrow.surgery.receipt import receipt, write_receipt
    from flmgrow.surgery.replicas import replicated_as
    from flmgrow.verified import compare

    world = this_world(rank_timeout, scratch)
    with (
        reading.open(dst, only_missing=True) as result,
        reading.open_source_of(src, result) as source,
        meeting_beside(result.path if result.hub else dst, world) as ranks,
    ):
        old, new = source.checkpoint, result.checkpoint
        verdict = compare(
            old,
            new,
            dtype_named(dtype),
            device=device_named(device),
            tokens=None if tokens is None else _read_tokens(tokens),
            seed=seed,
            checksums=not skip_checksums,
            elements=not skip_elements,
            gradients=gradients,
            workers=default_workers(workers, world),
            replicated=replicated_as(replicated),
            max_memory=parse_size(max_memory),
            bar=progress_bar,
            ranks=ranks,
        )
        found = receipt(old, verdict)
        told = found.to_json()
        if not no_receipt and result.hub is None and world.first:
            told["written"] = write_receipt(new, found)
    print(json_text(told) if as_json else "\n".join(_lines(verdict)))
    if verdict.exit_code:
        raise typer.Exit(verdict.exit_code)


def _lines(verdict: "Verdict") -> list[str]:
    return [*report.check_lines(verdict.checks), verdict.text]


def _read_tokens(path: Path) -> "torch.Tensor":
    import numpy as np
    import torch

    wanted = "a JSON list of token ids, or a .npy array"
    content = read_small_file("--tokens", path, _MOST_TOKEN_BYTES)
    try:
        if path.suffix == ".npy":
            data = np.load(io.BytesIO(content))
        else:
            data = np.array(json.loads(content))
    except (ValueError, TypeError, EOFError, RecursionError) as error:
        raise UsageError(f"--tokens {path}: {error}", wanted) from None
    if data.dtype.kind not in "iu":
        raise UsageError(
            Text(f"--tokens {path}: holds ", Found(data.dtype)), wanted, wanted="whole numbers"
        )
    return torch.from_numpy(data.astype(np.int64))
