"""Reading ``flmgrow.json``: what a checkpoint says of itself, its masks and its ancestors.

It decides on masks and on what is verified, so it has a sum over its own content, and its receipt,
which is written later, has one over itself. Both are checked whenever it is read.

The manifest lies in the folder of everything that flmgrow's surgery wrote, and once more in that of
the iteration, which may be moved alone; what its trainer saved has its training state instead
(:mod:`flmgrow.formats.history.training_state`). Whoever wants to know masks
or ancestry asks here, and need not know which of the two there is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest_schema import check_form
from flmgrow.formats.history.training_state import Carried, read_training_state
from flmgrow.model.masks import Dimension, Mask, mask_from_json
from flmgrow.model.tensors import parameter_count
from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.content_sum import SUM, is_intact, sum_of, with_sum
from flmgrow.storage.files import read_if_there
from flmgrow.storage.validation import problems

MANIFEST = "flmgrow.json"
VERSION = 2
WITHOUT_SUM = 1
"""The version that had no sum over its content."""

MAX_BYTES = 64 << 20
_SHORT = 200

Json = dict[str, Any]


def read_manifest(folder: Path) -> Json | None:
    """Return the manifest in a checkpoint's folder, or None if it has none.

    Raises BadCheckpointError if there is one that cannot be read.
    """
    path = folder / MANIFEST
    content = read_if_there(path, MAX_BYTES)
    if content is None:
        return None
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{path}: not readable: {error}") from None
    if not isinstance(data, dict) or data.get("manifest_version") not in (VERSION, WITHOUT_SUM):
        raise BadCheckpointError(f"{path}: not a manifest of version {VERSION}")
    check_form(data, str(path))
    _check_sums(data, path)
    return data


def content_of(manifest: Json) -> Json:
    """Return what a manifest says apart from its receipt, which is written later."""
    return {key: value for key, value in manifest.items() if key not in (SUM, "receipt")}


def has_sum(manifest: Json) -> bool:
    """Whether a manifest has a sum of its content."""
    return SUM in manifest


def encode(manifest: Json) -> bytes:
    """Return a manifest, and its receipt, with their sums as the bytes of its file."""
    receipt = manifest["receipt"]
    receipt = None if receipt is None else with_sum(receipt)
    whole = {**with_sum(content_of(manifest)), "receipt": receipt}
    return json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n"


def _check_sums(manifest: Json, path: Path) -> None:
    """Raise BadCheckpointError if a manifest or its receipt is not what its sum was taken of."""
    receipt = manifest["receipt"]
    if has_sum(manifest) or manifest["manifest_version"] != WITHOUT_SUM:
        if manifest.get(SUM) != sum_of(content_of(manifest)):
            raise BadCheckpointError(
                f"{path}: its own sum does not match its content",
                "it was altered: restore it from a copy; those at the root and in the iteration's "
                "folder are alike but for the receipt",
            )
        if receipt and not is_intact(receipt):
            raise BadCheckpointError(
                f"{path}: receipt: its sum does not match it",
                "it was altered: restore it from a copy, or put null in its place and run "
                "flmgrow verify again",
            )


def records_of(manifest: Json) -> list[FileRecord]:
    """Return what a manifest says of each file."""
    return [FileRecord(f["path"], f["size"], f["xxh3_128"]) for f in manifest["files"]]


def manifests_of(checkpoint: Checkpoint) -> dict[Path, Json]:
    """Return the manifests of an opened checkpoint by their files: that of its root comes first.

    Those of another iteration (training went on in the folder) are left out.
    """
    folders = dict.fromkeys((checkpoint.path, checkpoint.folder))
    found = {folder / MANIFEST: read_manifest(folder) for folder in folders}
    return {
        path: manifest
        for path, manifest in found.items()
        if manifest is not None and manifest["iteration"] == checkpoint.iteration
    }


def manifest_of(checkpoint: Checkpoint) -> Json | None:
    """Return the manifest of an opened checkpoint, None if it has none of its iteration."""
    return next(iter(manifests_of(checkpoint).values()), None)


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
    said = ("date", "source", "equal", "proven", "missing")
    verdict: Json = {"proven": _was_proven(checks)} if checks else {}
    verdict |= {key: receipt[key] for key in said if key in receipt}
    return {**verdict, **{key: function[key] for key in kept if key in function}}


def _was_proven(checks: list[Json]) -> bool:
    """Whether the elements were derived: what receipts of earlier versions do not say at once."""
    return any(check.get("name") == "elements" and check.get("passed") is True for check in checks)


def verdict_text(receipt: Json) -> str:
    """Return what a receipt says, as the end of a sentence whose subject is its checkpoint."""
    if not receipt["equal"]:
        return f"DIFFERENT from {receipt['source']}"
    missing = ", ".join(receipt.get("missing", []))
    return f"equal to {receipt['source']}" + (f", NOT PROVEN: {missing}" if missing else "")


def methods_text(methods: Mapping[str, str]) -> str:
    """Return the method of each dimension on one line."""
    return ", ".join(f"{dimension}={method}" for dimension, method in methods.items())
