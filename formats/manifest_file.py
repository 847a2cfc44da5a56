"""Reading ``flmgrow.json``: what a checkpoint says of itself, its masks and its ancestors.

The manifest lies in the folder of everything that flmgrow's surgery wrote, and once more in that of
the iteration, which may be moved alone; what its trainer saved has its training state instead
(:mod:`flmgrow.formats.training_state`). Whoever wants to know masks
or ancestry asks here, and need not know which of the two there is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.integrity import FileRecord
from flmgrow.formats.manifest_form import check_form
from flmgrow.formats.problems import problems
from flmgrow.formats.training_state import Carried, read_training_state
from flmgrow.model.masks import Dimension, Mask, mask_from_json
from flmgrow.model.tensors import parameter_count

MANIFEST = "flmgrow.json"
VERSION = 1
MAX_BYTES = 64 << 20
_SHORT = 200

Json = dict[str, Any]


def read_manifest(folder: Path) -> Json | None:
    """Return the manifest in a checkpoint's folder, or None if it has none.

    Raises BadCheckpointError if there is one that cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{path}: not readable: {error}") from None
    if not isinstance(data, dict) or data.get("manifest_version") != VERSION:
        raise BadCheckpointError(f"{path}: not a manifest of version {VERSION}")
    check_form(data, str(path))
    return data


def records_of(manifest: Json) -> list[FileRecord]:
    """Return what a manifest says of each file."""
    return [FileRecord(f["path"], f["size"], f["xxh3_128"]) for f in manifest["files"]]


def manifest_of(checkpoint: Checkpoint) -> Json | None:
    """Return the manifest of an opened checkpoint.

    None if it has none, or if that describes another iteration (training went on in the folder).
    """
    for folder in dict.fromkeys((checkpoint.path, checkpoint.folder)):
        manifest = read_manifest(folder)
        if manifest is not None and manifest["iteration"] == checkpoint.iteration:
            return manifest
    return None


def masks_of(checkpoint: Checkpoint) -> dict[Dimension, Mask]:
    """Return the masks of a checkpoint that are not open yet; none if nothing speaks of any."""
    if (training := read_training_state(checkpoint.folder)) is not None:
        return dict(training.masks)
    manifest = manifest_of(checkpoint) or {}
    try:
        masks = manifest.get("masks", {}).items()
        return {Dimension(name): mask_from_json(name, data) for name, data in masks}
    except (BadCheckpointError, ValueError) as error:
        raise BadCheckpointError(f"{checkpoint.path / MANIFEST}: {error}") from None


def training_of(checkpoint: Checkpoint) -> Carried | None:
    """Return how far training has come that flmgrow's trainer did; None if it did none.

    Raises BadCheckpointError if what is written of it is malformed.
    """
    if (training := read_training_state(checkpoint.folder)) is not None:
        return training.carried
    found = (manifest_of(checkpoint) or {}).get("training")
    if found is None:
        return None
    try:
        return Carried.model_validate(found)
    except ValidationError as error:
        where = f"{checkpoint.path / MANIFEST}: training"
        raise BadCheckpointError(f"{where}: {problems(error.errors())}") from None


def base_output(checkpoint: Checkpoint) -> float | None:
    """Return the output multiplier of the model that all growth began with; None if nothing says
    it.
    """
    carried = training_of(checkpoint)
    if carried is not None and carried.base_output is not None:
        return carried.base_output
    manifest = manifest_of(checkpoint)
    return None if manifest is None else manifest["source"].get("base_output")


def provenance_of(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """Return, from a checkpoint's manifest, what it grew from and how, as short named texts."""
    manifest = manifest_of(checkpoint)
    if manifest is None or not manifest["growth"]["methods"]:
        return ()
    return (
        ("source", manifest["source"]["digest"][:_SHORT]),
        ("growth", methods_text(manifest["growth"]["methods"])[:_SHORT]),
    )


def family(checkpoint: Checkpoint) -> list[Json]:
    """Return a checkpoint's ancestry, oldest first and itself last, as far as anything tells."""
    if (training := read_training_state(checkpoint.folder)) is not None:
        return [
            *training.family,
            {
                "name": training.stage,
                "parameters": parameter_count(checkpoint.config),
                "iteration": training.iteration,
                "tokens": training.carried.tokens,
            },
        ]
    manifest = manifest_of(checkpoint)
    return [] if manifest is None else lineage(manifest, checkpoint.name)


def lineage(manifest: Json, name: str) -> list[Json]:
    """Return the ancestry of what a manifest describes, itself last under ``name``.

    Each member that grew has its methods, and what verification found if it ran.
    """
    source = manifest["source"]
    ancestors: list[Json] = list(source["family"]) or [
        {
            "name": source["name"],
            "parameters": source["parameters"],
            "iteration": source["iteration"],
        }
    ]
    known = {key: source[key] for key in ("hub", "tokens", "date") if source.get(key)}
    ancestors[-1] = {**ancestors[-1], **known}
    return [
        *ancestors,
        {
            "name": name,
            "parameters": manifest["parameters"],
            "iteration": manifest["iteration"],
            "methods": manifest["growth"]["methods"],
            "receipt": _short(manifest["receipt"]),
        },
    ]


def _short(receipt: Json | None) -> Json | None:
    """Return the verdict of a receipt, with the numbers of the function."""
    if receipt is None:
        return None
    checks = receipt.get("checks", [])
    function: Json = next((check for check in checks if check.get("name") == "function"), {})
    kept = ("max_logit", "largest_logit", "tolerance", "dtype", "stored_dtypes", "tokens")
    said = ("date", "source", "equal")
    verdict: Json = {key: receipt[key] for key in said if key in receipt}
    return {**verdict, **{key: function[key] for key in kept if key in function}}


def methods_text(methods: Mapping[str, str]) -> str:
    """Return the method of each dimension on one line."""
    return ", ".join(f"{dimension}={method}" for dimension, method in methods.items())
