"""Describing the files of a new checkpoint, in whatever format it shall have."""

from collections.abc import Sequence

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint, TargetModel
from flmgrow.formats.megatron_writing import target_files
from flmgrow.formats.targets import NewFile
from flmgrow.formats.torch_dist_writing import VERSIONS, torch_dist_files

FORMATS = ("megatron", "torch_dist")


def described_files(source: Checkpoint, target: TargetModel) -> Sequence[NewFile]:
    """Return every file of the target checkpoint, described but not produced.

    Raises UsageError for a layout that the model cannot take, or content the format cannot hold.
    """
    if target.format not in FORMATS:
        raise UsageError(f"--format {target.format}: wanted {' or '.join(FORMATS)}")
    if (version := target.torch_dist_version) not in (None, *VERSIONS):
        raise UsageError(f"--torch-dist-version {version}: wanted {' or '.join(VERSIONS)}")
    if version is not None and target.format != "torch_dist":
        raise UsageError(
            f"--torch-dist-version {version}: the result has format {target.format}",
            "add --format torch_dist, or leave the version out",
        )
    write = target_files if target.format == "megatron" else torch_dist_files
    return write(source, target)
