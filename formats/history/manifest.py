"""Reading ``flmgrow.json``: what a checkpoint says of itself, its masks and its ancestors.

It decides on masks and on what is verified, so it has a sum over its own content, and its receipt,
which is written later, has one over itself. Both are checked whenever it is read, and from then on
it is a :class:`Manifest`.

The manifest lies in the folder of everything that flmgrow's surgery wrote, and once more in that of
the iteration, which may be moved alone; what its trainer saved has its training state instead
(:mod:`flmgrow.formats.history.training_state`). Whoever wants to know masks
or ancestry asks here, and need not know which of the two there is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest_value import VERSION, Manifest
from flmgrow.formats.history.parts import Member
from flmgrow.formats.history.training_file import training_state_in
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import parameter_count
from flmgrow.storage.content_sum import SUM, is_intact, sum_of, with_sum
from flmgrow.storage.files import read_if_there
from flmgrow.storage.strict_json import Json

if TYPE_CHECKING:
    from flmgrow.formats.history.training_state import Carried

MANIFEST = "flmgrow.json"
WITHOUT_SUM = 1
"""The version that had no sum over its content."""

MAX_BYTES = 64 << 20
_SHORT = 200


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in a checkpoint's folder, or None if it has none.

    Raises:
        BadCheckpointError: If there is one that cannot be read.
    """
    path = folder / MANIFEST
    content = read_if_there(path, MAX_BYTES)
    if content is None:
        return None
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"not readable: {error}", where=path) from None
    if not isinstance(data, dict) or data.get("manifest_version") not in (VERSION, WITHOUT_SUM):
        raise BadCheckpointError(f"not a manifest of version {VERSION}", where=path)
    from flmgrow.formats.history.manifest_schema import check_form  # most have none to read

    check_form(data, str(path))
    _check_sums(data, path)
    try:
        return Manifest.parse(data)
    except BadCheckpointError as error:
        raise error.at(path) from None
    except ValueError as error:
        raise BadCheckpointError(str(error), where=path) from None


def encode(manifest: Manifest) -> bytes:
    """Return a manifest, and its receipt, with their sums as the bytes of its file."""
    return sealed(manifest.to_json())


def sealed(manifest: Json) -> bytes:
    """Return the plain data of a manifest with its sums as the bytes of its file."""
    receipt = manifest["receipt"]
    receipt = None if receipt is None else with_sum(receipt)
    whole = {**with_sum(content_of(manifest)), "receipt": receipt}
    return json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n"


def content_of(manifest: Json) -> Json:
    """Return what the plain data of a manifest says apart from its receipt, which is written
    later.
    """
    return {key: value for key, value in manifest.items() if key not in (SUM, "receipt")}


def _check_sums(manifest: Json, path: Path) -> None:
    """Raise BadCheckpointError if a manifest or its receipt is not what its sum was taken of."""
    receipt = manifest["receipt"]
    if SUM in manifest or manifest["manifest_version"] != WITHOUT_SUM:
        if manifest.get(SUM) != sum_of(content_of(manifest)):
            raise BadCheckpointError(
                "its own sum does not match its content",
                "it was altered: restore it from a copy; those at the root and in the iteration's "
                "folder are alike but for the receipt",
                where=path,
            )
        if receipt and not is_intact(receipt):
            raise BadCheckpointError(
                "receipt: its sum does not match it",
                "it was altered: restore it from a copy, or put null in its place and run "
                "flmgrow verify again",
                where=path,
            )


def manifests_of(checkpoint: Checkpoint) -> dict[Path, Manifest]:
    """Return the manifests of an opened checkpoint by their files: that of its root comes first.

    Those of another iteration (training went on in the folder) are left out.
    """
    folders = dict.fromkeys((checkpoint.path, checkpoint.folder))
    found = {folder / MANIFEST: read_manifest(folder) for folder in folders}
    return {
        path: manifest
        for path, manifest in found.items()
        if manifest is not None and manifest.iteration == checkpoint.iteration
    }


def manifest_of(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest of an opened checkpoint, None if it has none of its iteration."""
    return next(iter(manifests_of(checkpoint).values()), None)


def masks_of(checkpoint: Checkpoint) -> dict[Dimension, Mask]:
    """Return the masks of a checkpoint that are not open yet; none if nothing speaks of any."""
    if (training := training_state_in(checkpoint.folder)) is not None:
        return dict(training.masks)
    manifest = manifest_of(checkpoint)
    return {} if manifest is None else dict(manifest.masks)


def training_of(checkpoint: Checkpoint) -> "Carried | None":
    """Return how far training has come that flmgrow's trainer did; None if it did none.

    Raises:
        BadCheckpointError: If what is written of it is malformed.
    """
    if (training := training_state_in(checkpoint.folder)) is not None:
        return training.carried
    manifest = manifest_of(checkpoint)
    return None if manifest is None else manifest.training


def base_output(checkpoint: Checkpoint) -> float | None:
    """Return the output multiplier of the model that all growth began with; None if nothing says
    it.
    """
    carried = training_of(checkpoint)
    if carried is not None and carried.base_output is not None:
        return carried.base_output
    manifest = manifest_of(checkpoint)
    return None if manifest is None else manifest.source.base_output


def provenance_of(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """Return, from a checkpoint's manifest, what it grew from and how, as short named texts."""
    manifest = manifest_of(checkpoint)
    if manifest is None or not manifest.growth.methods:
        return ()
    return (
        ("source", manifest.source.digest[:_SHORT]),
        ("growth", methods_text(manifest.growth.methods)[:_SHORT]),
    )


def family(checkpoint: Checkpoint) -> list[Member]:
    """Return a checkpoint's ancestry, oldest first and itself last, as far as anything tells."""
    if (training := training_state_in(checkpoint.folder)) is not None:
        itself = Member(
            name=training.stage,
            parameters=parameter_count(checkpoint.config),
            iteration=training.iteration,
            tokens=training.carried.tokens,
        )
        return [*training.family, itself]
    manifest = manifest_of(checkpoint)
    return [] if manifest is None else lineage(manifest, checkpoint.name)


def lineage(manifest: Manifest, name: str) -> list[Member]:
    """Return the ancestry of what a manifest describes, itself last under ``name``.

    Each member that grew has its methods, and what verification found if it ran.
    """
    source = manifest.source
    known = {"hub": source.hub, "tokens": source.tokens, "date": source.date}
    *ancestors, parent = source.family or (
        Member(name=source.name, parameters=source.parameters, iteration=source.iteration),
    )
    itself = Member(
        name=name,
        parameters=manifest.parameters,
        iteration=manifest.iteration,
        methods=manifest.growth.methods,
        receipt=None if manifest.receipt is None else manifest.receipt.summary,
    )
    parent = parent.changed(**{key: value for key, value in known.items() if value})
    return [*ancestors, parent, itself]


def methods_text(methods: Mapping[str, str]) -> str:
    """Return the method of each dimension on one line."""
    return ", ".join(f"{dimension}={method}" for dimension, method in methods.items())
