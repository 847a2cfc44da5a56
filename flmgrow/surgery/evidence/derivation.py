"""How a result may have come from a source, and whether it did.

A manifest that names the source by its digest says so itself: then every value must be what that
growth makes of it. Without one, other ways are tried: the growth in a manifest that names another
source (which may be the same one, saved anew), and none at all (two layouts of one model; a format
that pads no table may have lain between them). If all values bear one of them out, that is as good
a proof; if not, nobody claimed they would, and the elements stay unproven.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target, grow
from flmgrow.surgery.evidence.arguments import check_model
from flmgrow.surgery.evidence.carried import check_states
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.elements import (
    ELEMENT_BLOCK,
    UNSHARED,
    Sharing,
    check_elements,
    stored_bytes,
)
from flmgrow.surgery.evidence.progress import Bar, no_bar
from flmgrow.surgery.optimizer_metadata import compare_counted
from flmgrow.surgery.rebuild import growth_from_manifest


@dataclass(frozen=True, eq=False)
class Way:
    """A growth, with the masks that its result has and the spread that was drawn with.

    ``makes`` says what it makes of a source.
    """

    growth: Growth
    masks: Mapping[Dimension, Mask]
    init_std: float | None = None
    makes: str = "what its manifest's growth makes of this source"


@dataclass(frozen=True)
class Effort:
    """How to derive elements: whether at all, by how many workers, and how many at once by each.

    Ranks share them; what else rank 0 has to do it does ``meanwhile``, once the growth is known.
    """

    elements: bool = True
    workers: int = 1
    limit: int = ELEMENT_BLOCK
    bar: Bar = no_bar
    sharing: Sharing = UNSHARED
    meanwhile: Callable[[Growth], None] = lambda _: None


def recorded_way(source: Checkpoint, manifest: Manifest) -> Way:
    """Return the way that a manifest records.

    Raises:
        BadCheckpointError: If there is none.
    """
    growth = growth_from_manifest(source, manifest)
    own = bool(growth.methods) or "bake" in manifest.growth.request
    masks = growth.masks if own else masks_of(source)
    return Way(growth, masks, manifest.options.init_std)


def _possible_ways(
    source: Checkpoint, result: Checkpoint, manifest: Manifest | None
) -> Iterator[Way]:
    if manifest is not None:
        recorded = None
        with suppress(BadCheckpointError, UsageError):  # of another source it may be impossible
            recorded = recorded_way(source, manifest)
        if recorded is not None:
            yield recorded
    if source.config != result.config:
        return
    for rows in dict.fromkeys((source.padded_vocab, source.config.vocab)):  # with padding, without
        same = grow(source.config, Target(), rows, result.padded_vocab)
        yield Way(same, masks_of(source), makes="a copy of this source")


def evidence_of(
    source: Checkpoint, result: Checkpoint, way: Way, how: Effort, *, declared: bool = True
) -> list[Check]:
    """Return what speaks for and against ``result`` being what ``way`` makes of ``source``.

    States beside the weights are compared if they are at hand. ``declared``: the result's manifest
    says so.
    """
    checks = [check_model(source, result, way.growth, way.masks, declared=declared)]
    if source.optimizer is not None or result.optimizer is not None:
        same, detail = compare_counted(source.optimizer, result.optimizer, way.growth)
        checks.append(Check("optimizer", same, detail))
    if how.elements:
        total = sum(stored_bytes(reader) for reader in result.readers.values())
        with how.bar(total, "deriving values") as progress:
            joined = check_elements(
                source,
                result,
                way.growth,
                way.init_std,
                how.workers,
                how.limit,
                progress,
                how.sharing,
            )
        how.meanwhile(way.growth)
        found = joined()
    else:
        found = Check("elements", None, "not derived again: skipped", missing="skipped")
    return [*checks, found]


def undeclared(
    source: Checkpoint, result: Checkpoint, manifest: Manifest | None, how: Effort
) -> tuple[Growth | None, list[Check]]:
    """Return the growth that is borne out although nothing claims it, and the evidence.

    The growth is None if there is none; the elements are missing then.
    """
    why = "its manifest names another source" if manifest else "it has no manifest"
    if not how.elements:
        return None, [Check("elements", None, f"skipped, and {why}", missing="skipped")]
    found: dict[str, str] = {}
    for way in _possible_ways(source, result, manifest):
        checks = evidence_of(source, result, way, how, declared=False)
        failed = next((check for check in checks if not check.passed), None)
        if failed is None:
            return way.growth, [*checks, *check_states(source, result, way.growth)]
        found.setdefault(way.makes, failed.detail)
    against = "".join(f"; not {makes}: {detail}" for makes, detail in found.items())
    return None, [Check("elements", None, f"not derived again: {why}{against}", missing="unproven")]
