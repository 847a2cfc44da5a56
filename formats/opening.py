"""Recognising a checkpoint's format and opening it."""

from dataclasses import replace
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.companions import companions_in
from flmgrow.formats.elsewhere import not_a_checkpoint
from flmgrow.formats.huggingface import open_huggingface
from flmgrow.formats.huggingface_contents import is_huggingface
from flmgrow.formats.megatron import (
    TRACKER,
    is_megatron,
    iteration_folder,
    open_megatron,
    root_folder,
)
from flmgrow.formats.torch_dist import open_torch_dist
from flmgrow.formats.torch_dist_contents import DISTRIBUTED


def open_checkpoint(
    path: Path, iteration: int | None = None, options: ReadOptions = AS_STORED
) -> Checkpoint:
    """Open the checkpoint at ``path``, of whatever format it is; the caller closes it.

    ``path`` is a checkpoint root with a tracker file, an iteration's folder, or a Hugging Face
    folder. ``iteration`` overrides the tracker. Raises BadCheckpointError.
    """
    if is_huggingface(path) and not (path / TRACKER).exists():
        if iteration is not None:
            raise UsageError(f"--iteration {iteration}: a Hugging Face folder has no iterations")
        if options.given_arguments:
            name = next(iter(options.given_arguments))
            raise UsageError(
                f"--set-arg {name}: {path} has no args, its config.json says the model",
                "correct the config.json in a copy of the folder",
            )
        return open_huggingface(path, options)
    if (told := not_a_checkpoint(path, is_megatron)) is not None:
        raise told
    folder = iteration_folder(path, iteration)
    companions = companions_in(folder)
    if any((folder / name).exists() for name in DISTRIBUTED):
        opened = open_torch_dist(root_folder(path, folder), folder, options)
    else:
        opened = open_megatron(path, iteration, options)
    return replace(opened, companions=companions)
