"""Recognising a checkpoint's format and opening it."""

from collections.abc import Collection
from pathlib import Path

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.huggingface import open_huggingface
from flmgrow.formats.huggingface_contents import is_huggingface
from flmgrow.formats.megatron import TRACKER, iteration_folder, open_megatron, root_folder
from flmgrow.formats.torch_dist import open_torch_dist

_DISTRIBUTED = ("metadata.json", ".metadata")


def open_checkpoint(
    path: Path,
    iteration: int | None = None,
    ignored_arguments: Collection[str] = (),
    true_vocab: int | None = None,
    fused: bool = True,
) -> Checkpoint:
    """Open the checkpoint at ``path``, of whatever format it is; the caller closes it.

    ``path`` is a checkpoint root with a tracker file, an iteration's folder, or a Hugging Face
    folder. ``iteration`` overrides the tracker, ``true_vocab`` says how many rows of the embedding
    are real. ``fused`` chooses the names that a Megatron checkpoint written from a Hugging Face
    folder has. Raises BadCheckpointError.
    """
    if is_huggingface(path) and not (path / TRACKER).exists():
        if iteration is not None:
            raise UsageError(f"--iteration {iteration}: a Hugging Face folder has no iterations")
        return open_huggingface(path, ignored_arguments, true_vocab, fused)
    folder = iteration_folder(path, iteration)
    if any((folder / name).exists() for name in _DISTRIBUTED):
        return open_torch_dist(root_folder(path, folder), folder, ignored_arguments, true_vocab)
    return open_megatron(path, iteration, ignored_arguments, true_vocab)
