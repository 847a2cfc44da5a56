"""What a checkpoint is, where it comes from, and whether it is healthy, as values and as data."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Unpack

from flmgrow.errors import FlmgrowError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.fresh import fresh_of
from flmgrow.formats.history.lags import lags_of
from flmgrow.formats.history.manifest import family, masks_of
from flmgrow.formats.history.parts import Member, Receipt
from flmgrow.formats.layout.lags import Lags, lags_to_json
from flmgrow.formats.stored_listing import ListedArray, stored_arrays
from flmgrow.given import ReadOptionsGiven
from flmgrow.model.masks import Dimension, Fresh, Mask, fresh_to_json
from flmgrow.model.tensors import parameter_count
from flmgrow.opened import Source, local_folder, opened, read_options
from flmgrow.storage.strict_json import Json
from flmgrow.surgery.evidence.progress import Bar, no_bar
from flmgrow.surgery.health import Health, examine


@dataclass(frozen=True)
class Inspection:
    """What is to be told of an opened checkpoint."""

    checkpoint: Checkpoint
    health: Health
    masks: Mapping[Dimension, Mask]
    fresh: Fresh
    lags: Lags
    family: Sequence[Member]
    receipt: Receipt | None
    has_manifest: bool

    def to_json(self, tensors: bool = False) -> Json:
        """Return it as plain data, with the axes and sizes of its logical ``tensors`` if wanted."""
        checkpoint = self.checkpoint
        shapes = {
            name: dict(zip(tensor.axes, tensor.shape(checkpoint.stored_sizes), strict=True))
            for name, tensor in checkpoint.reader.tensors.items()
        }
        return {
            "path": str(checkpoint.folder),
            "iteration": checkpoint.iteration,
            "model": asdict(checkpoint.config),
            "layout": asdict(checkpoint.layout),
            "parameters": parameter_count(checkpoint.config),
            "padded_vocab": checkpoint.padded_vocab,
            "dtype": checkpoint.dtype,
            "bytes": checkpoint.nbytes,
            "also_holds": list(checkpoint.carried),
            "masks": {d: mask.to_json() for d, mask in self.masks.items()},
            "fresh": fresh_to_json(self.fresh),
            "lags": lags_to_json(self.lags),
            "family": [member.to_json() for member in self.family],
            "receipt": None if self.receipt is None else self.receipt.to_json(),
            "health": asdict(self.health),
            **({"tensors": shapes} if tensors else {}),
        }


def inspect(
    path: str | os.PathLike[str],
    iteration: int | None = None,
    *,
    health: bool = False,
    **options: Unpack[ReadOptionsGiven],
) -> Inspection:
    """Return what the checkpoint at ``path`` is; with ``health``, all weights are read, and values
    that are not finite are looked for.

    Raises:
        FlmgrowError: As :func:`flmgrow.open` does.
    """
    with Source(opened(Path(path), iteration, read_options(**options))) as source:
        return inspect_source(source, health)


def inspect_source(source: Source, health: bool = False, bar: Bar = no_bar) -> Inspection:
    """Return what an opened checkpoint is; ``bar`` shows how many of its weights are read."""
    checkpoint = source.checkpoint
    with bar(checkpoint.nbytes, "reading") as progress:
        found = examine(checkpoint, health, progress)
    manifest = source.manifest
    return Inspection(
        checkpoint,
        found,
        masks_of(checkpoint),
        fresh_of(checkpoint),
        lags_of(checkpoint),
        family(checkpoint),
        None if manifest is None else manifest.receipt,
        manifest is not None,
    )


def stored_in(path: Path, iteration: int | None = None) -> dict[str, list[ListedArray]]:
    """Return the arrays that a checkpoint stores which cannot be opened, by file; {} if none can be
    read.
    """
    try:
        files = stored_arrays(local_folder(path)[0], iteration)
    except FlmgrowError:
        return {}
    return dict(files) if any(files.values()) else {}


def stored_data(files: Mapping[str, Sequence[ListedArray]]) -> Json:
    """Return stored arrays as plain data: dtype and shape, by file and name."""
    return {
        name: {each.name: {"dtype": each.dtype, "shape": list(each.shape)} for each in arrays}
        for name, arrays in files.items()
    }
