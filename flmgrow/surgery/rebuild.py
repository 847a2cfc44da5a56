"""Deriving a growth again from the manifest it left behind."""

from dataclasses import replace

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.model.masks import Dimension
from flmgrow.operators.baking import baked
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target, grow
from flmgrow.surgery.plan_text import source_runs


def growth_from_manifest(source: Checkpoint, manifest: Manifest) -> Growth:
    """Return the growth that made a checkpoint from ``source``, by its ``manifest``.

    Raises:
        BadCheckpointError: If the manifest's axis maps are not those of the request it records:
            then it was altered, or written by a version that grew differently; or if values are
            drawn by a version that is not known.
    """
    try:
        request = dict(manifest.growth.request)
        bake = request.pop("bake", None)
        target = Target.from_json(request)
        growth = grow(source.config, target, source.padded_vocab, manifest.padded_vocab)
        growth = replace(growth, draw=manifest.growth.draw)
        if bake is not None:
            values = {Dimension(name): float(value) for name, value in bake.items()}
            growth = baked(replace(growth, masks=masks_of(source) | dict(growth.masks)), values)
    except UsageError as error:
        where = ("flmgrow.json", "its growth is impossible")
        raise BadCheckpointError.of(error).with_hint("").at(*where) from None
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpointError(f"flmgrow.json: its growth is malformed: {error!r}") from None
    derived = {str(axis): source_runs(axis_map) for axis, axis_map in growth.maps.items()}
    if manifest.growth.axes != derived:
        raise BadCheckpointError(
            "flmgrow.json: its axis maps do not follow from its request",
            "it was altered, or written by a version that grew differently",
        )
    return growth
