"""The public face: what a notebook or another trainer needs, in the words of the command line.

``import flmgrow`` gives all of it, and imports what each function needs when it is first used. The
commands call the same functions: this module has those that take one call, and names those that
take an opened source. Errors are :class:`flmgrow.FlmgrowError`; what is to be known of a checkpoint
or a plan is in its ``notes``. Nothing is printed, but a note on stderr where tidying up after a
complete result fails.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from flmgrow.checked import integrity
from flmgrow.given import (
    ImportGiven,
    LayoutPlanGiven,
    PlanGiven,
    ReadOptionsGiven,
    RunningGiven,
)
from flmgrow.inspection import inspect
from flmgrow.opened import Source, opened, opened_source, read_options
from flmgrow.planned import (
    Plan,
    Written,
    default_workers,
    plan,
    plan_bake,
    plan_export,
    plan_import,
    plan_of,
    requested,
)
from flmgrow.surgery.requests import SHARD_SIZE, Files

if TYPE_CHECKING:
    import torch

    from flmgrow.surgery.evidence.check import Verdict

__all__ = [
    "Plan", "Source", "Written", "bake", "expand", "export", "import_", "inspect", "integrity",
    "open", "plan", "reshard", "verify",
]  # fmt: skip

PathLike = str | os.PathLike[str]


def open(
    path: PathLike, iteration: int | None = None, **options: Unpack[ReadOptionsGiven]
) -> Source:
    """Open a checkpoint: a Megatron folder (torch or torch_dist), a Hugging Face folder, or
    ``hf://ORG/NAME[@REVISION]`` or ``s3://BUCKET/KEY``.

    ``iteration`` is the latest if not given.

    Raises:
        BadCheckpointError: For anything missing, extra or not understood; the message names file
            and tensor.
        HubError: The Hub refuses, or does not answer.
    """
    return Source(opened(Path(path), iteration, read_options(**options)))


def expand(
    source: PathLike,
    destination: PathLike,
    *,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
    **wanted: Unpack[PlanGiven],
) -> Written:
    """Grow the checkpoint at ``source`` into ``destination``, so that its function stays.

    Raises:
        FlmgrowError: As :func:`open`, :func:`plan` and :meth:`Plan.write` do.
    """
    request = requested(**wanted)
    told: ReadOptionsGiven = reading or {}
    if request.target.untie is not None:
        told = {"untie": request.target.untie, **told}
    with open(source, iteration, **told) as found:
        return plan_of(found, request).write(destination, **(running or {}))


def reshard(
    source: PathLike,
    destination: PathLike,
    *,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
    **wanted: Unpack[LayoutPlanGiven],
) -> Written:
    """Lay the checkpoint at ``source`` out anew, or write it in another format; weights stay bit
    for bit.

    Raises:
        FlmgrowError: As :func:`expand` does.
    """
    return expand(
        source, destination, iteration=iteration, reading=reading, running=running, **wanted
    )


def import_(
    source: PathLike,
    destination: PathLike,
    *,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
    **wanted: Unpack[ImportGiven],
) -> Written:
    """Write the Hugging Face model at ``source`` as a Megatron checkpoint, in any layout.

    Raises:
        FlmgrowError: As :func:`expand` does.
        UsageError: If ``source`` is no Hugging Face folder.
    """
    request = requested(**wanted)
    with open(source, **(reading or {})) as found:
        return plan_import(found, request).write(destination, **(running or {}))


def export(
    source: PathLike,
    destination: PathLike,
    *,
    dtype: str | None = None,
    family: str | None = None,
    shard_size: int = SHARD_SIZE,
    tokenizer: PathLike | None = None,
    keep_code: bool = False,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
) -> Written:
    """Write the model at ``source`` as a Hugging Face folder that transformers loads.

    ``tokenizer`` is a folder or a file to take the tokenizer from.

    Raises:
        FlmgrowError: As :func:`expand` does.
        UsageError: For a model that no family of transformers can say; the message has the reasons.
    """
    files = Files(dtype=dtype, shard_size=shard_size, family=family, keep_code=keep_code)
    with open(source, iteration, **(reading or {})) as found:
        return plan_export(found, files, tokenizer).write(destination, **(running or {}))


def bake(
    source: PathLike,
    destination: PathLike,
    value: float | None = None,
    *,
    no_optimizer: bool = False,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
) -> Written:
    """Put the masks of ``source`` into its weights, at ``value`` if given.

    Raises:
        FlmgrowError: As :func:`expand` does.
        UsageError: If there are none.
    """
    with open(source, iteration, **(reading or {})) as found:
        return plan_bake(found, value, no_optimizer).write(destination, **(running or {}))


def verify(
    source: PathLike,
    result: PathLike,
    *,
    tokens: "torch.Tensor | None" = None,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
    gradients: bool = False,
    checksums: bool = True,
    elements: bool = True,
    seed: int = 0,
    workers: int | None = None,
    max_memory: int = 1 << 30,
    reading: ReadOptionsGiven | None = None,
) -> "Verdict":
    """Prove that ``result`` computes what ``source`` does; ``verdict.equal`` and ``.proven`` say
    what came out, ``verdict.checks`` why. No receipt is written.

    ``tokens`` are (batch, length), drawn from ``seed`` if not given; ``dtype`` is float64 for
    models of up to 2e9 parameters. Models run on the ``device``.

    Raises:
        FlmgrowError: As :func:`open` does.
    """
    import torch

    from flmgrow.verified import compare

    options = read_options(**(reading or {}))
    with (
        opened(Path(result), None, replace(options, only_missing=True)) as new,
        opened_source(Path(source), new, options) as old,
    ):
        return compare(
            old,
            new,
            dtype,
            device=torch.device(device),
            tokens=tokens,
            seed=seed,
            checksums=checksums,
            elements=elements,
            gradients=gradients,
            workers=default_workers(workers),
            max_memory=max_memory,
        )
