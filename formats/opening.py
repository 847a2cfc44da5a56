"""Recognising a checkpoint's format and opening it.

What reads a format is imported when a checkpoint has it, so that a command begins sooner. Where one
iteration cannot be opened, and another beside it can, the hint says which.
"""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flmgrow.errors import BadCheckpointError, FlmgrowError, UsageError
from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.companions import companions_in
from flmgrow.formats.elsewhere import not_a_checkpoint
from flmgrow.formats.history.lags import lags_of
from flmgrow.formats.huggingface.contents import is_huggingface
from flmgrow.formats.megatron.folders import (
    ITERATION,
    RELEASE,
    TRACKER,
    is_distributed,
    is_megatron,
    iteration_folder,
    others,
    root_folder,
)
from flmgrow.garbage import no_garbage_collection
from flmgrow.storage.marker import refuse_marked
from flmgrow.text import Setting, Text

if TYPE_CHECKING:
    from flmgrow.formats.megatron.torch_dist.contents import DistFolder

_TRIED = 3
"""Other iterations that are tried until one can be opened."""


def open_checkpoint(
    path: Path, iteration: int | None = None, options: ReadOptions = AS_STORED
) -> Checkpoint:
    """Open the checkpoint at ``path``, of whatever format it is; the caller closes it.

    ``path`` is a checkpoint root with a tracker file, an iteration's folder, or a Hugging Face
    folder. ``iteration`` overrides the tracker.

    Raises:
        BadCheckpointError: If it cannot be opened; the hint names the newest iteration that can be,
            if that is not the one wanted.
    """
    refuse_marked(path, path.parent)
    if is_huggingface(path) and not os.path.lexists(path / TRACKER):
        if iteration is not None:
            raise UsageError(
                Text(Setting("iteration"), f" {iteration}: a Hugging Face folder has no iterations")
            )
        if options.corrections:
            name = next(iter(options.corrections))
            raise UsageError(
                f"{name} was given: {path} has no args, its config.json says the model",
                Text(
                    "leave out ",
                    Setting("set_arguments"),
                    " and ",
                    Setting("args_from"),
                    "; what is wrong in config.json, correct in a copy of the folder",
                ),
            )
        from flmgrow.formats.huggingface.reader import open_huggingface

        return open_huggingface(path, options)
    folder = path if ITERATION.fullmatch(path.name) else None
    try:
        if (told := not_a_checkpoint(path, is_megatron)) is not None:
            raise told
        folder = iteration_folder(path, iteration)
        return _open(root_folder(path, folder), folder, options)
    except BadCheckpointError as error:
        other = _newest(path, folder, options)
        if other is None:
            raise
        if folder is None:
            raise error.with_hint(_way_to(other)) from None
        raise error.with_more_hint(_way_to(other)) from None


@no_garbage_collection()
def _open(root: Path, folder: Path, options: ReadOptions) -> Checkpoint:
    companions = companions_in(folder)
    if is_distributed(folder):
        from flmgrow.formats.megatron.torch_dist.reader import open_distributed

        opened = open_distributed(root, distributed_folder(folder), options)
    else:
        from flmgrow.formats.megatron.legacy.reader import open_ranks

        opened = open_ranks(root, folder, options)
    return replace(opened, companions=companions)


def distributed_folder(folder: Path) -> "DistFolder":
    """Return the files of the distributed checkpoint in ``folder``; the caller closes them.

    Raises:
        BadCheckpointError: If it is no finished checkpoint of a format that is read.
    """
    from flmgrow.formats.megatron.fsdp_dtensor.contents import fsdp_folder
    from flmgrow.formats.megatron.fsdp_dtensor.names import is_fsdp
    from flmgrow.formats.megatron.torch_dist.common import listed
    from flmgrow.formats.megatron.torch_dist.contents import dist_folder

    metadata = listed(folder)
    return (fsdp_folder if is_fsdp(metadata) else dist_folder)(folder, metadata)


def _newest(path: Path, folder: Path | None, options: ReadOptions) -> Path | None:
    """Return the newest iteration that can be opened, of the same checkpoint; None if none can.

    ``folder`` is that of the iteration that cannot.
    """
    root = path.absolute().parent if folder == path else path
    for other in islice(others(root, folder), _TRIED):
        try:
            _open(root, other, options).close()
        except FlmgrowError:
            continue
        return other
    return None


def _way_to(folder: Path) -> str:
    """Say how to open an iteration, whatever command is asked to."""
    if folder.name == RELEASE:
        return f"the release is complete: give {folder}, or write {RELEASE} into {TRACKER}"
    number = int(folder.name.removeprefix("iter_"))
    return Text(
        f"the newest complete iteration is {number}: give {folder}, or ",
        Setting("iteration", number),
        f" to a command that has it, or write {number} into {TRACKER}",
    )


@no_garbage_collection()
def with_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    """Return ``checkpoint`` with its optimizer state found, or as it is if it has none.

    Raises:
        BadCheckpointError: If the state does not fit the weights, is of a kind that is not
            understood, or differs between ranks where it may not; the message names the file.
    """
    if "optimizer" not in checkpoint.carried:
        return checkpoint
    files, lags = checkpoint.contents, lags_of(checkpoint)
    if checkpoint.format in ("torch_dist", "fsdp_dtensor"):
        from flmgrow.formats.megatron.fsdp_dtensor.optimizer import with_fsdp_states
        from flmgrow.formats.megatron.torch_dist.contents import DistFolder
        from flmgrow.formats.megatron.torch_dist.optimizer import with_distributed_states

        assert isinstance(files, DistFolder)
        plain = checkpoint.format == "torch_dist"
        return (with_distributed_states if plain else with_fsdp_states)(checkpoint, files, lags)
    from flmgrow.formats.megatron.legacy.contents import RankFiles
    from flmgrow.formats.megatron.legacy.optimizer import with_rank_states

    assert isinstance(files, RankFiles)
    return with_rank_states(checkpoint, files, lags)
