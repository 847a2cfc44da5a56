"""Making the plan of an expansion or resharding: every file and array of the result.

A plan says everything an expansion or resharding will do, before a byte of a weight is read. It is
data made from headers: the growth, the files to come with their arrays, how many elements are
copied, drawn or zero, what is left out, and what it will cost. Making it proves that every element
of the new model is written exactly once and that every element of the old one is used or listed as
dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint, Dropped, HuggingFaceOptions, TargetModel
from flmgrow.formats.history.manifest import masks_of, methods_text
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.opening import with_optimizer
from flmgrow.formats.targets import PlannedFile
from flmgrow.formats.writing import (
    described_files,
    left_out,
    notes,
    written_format,
    written_iteration,
)
from flmgrow.garbage import no_garbage_collection
from flmgrow.model.axes import Axis, full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.model.tensors import LogicalTensor, logical_tensors, parameter_count
from flmgrow.operators.baking import baked
from flmgrow.operators.growth import Counts, Growth, count
from flmgrow.operators.masks import baking_maps
from flmgrow.operators.target import Target, grow
from flmgrow.storage.strict_json import Json
from flmgrow.surgery.layout_request import AS_STORED, FileRequest, LayoutRequest
from flmgrow.surgery.optimizer_metadata import carried, unfollowed
from flmgrow.surgery.padding import stored_vocab
from flmgrow.surgery.plan_text import plan_data, plan_lines
from flmgrow.text import Pass, Setting, Text


@dataclass(frozen=True, eq=False)
class GrowthPlan:
    """What will be done. ``counts`` is by logical tensor, ``dropped`` names what is left out."""

    source: Checkpoint
    growth: Growth
    target: TargetModel
    tensors: Mapping[str, LogicalTensor]
    files: tuple[PlannedFile, ...]
    file_sizes: Mapping[str, int]
    counts: Mapping[str, Counts]
    dropped: tuple[Dropped, ...] = ()

    def __str__(self) -> str:
        return "\n".join(plan_lines(self))

    def to_json(self) -> Json:
        """Return the plan as plain data."""
        return plan_data(self)

    @property
    def total_bytes(self) -> int:
        """Bytes to be written, without the manifest."""
        return sum(self.file_sizes.values())

    @property
    def total(self) -> Counts:
        """Elements of the new model by how they come about, each counted once."""
        return sum(self.counts.values(), Counts())

    @property
    def parameters(self) -> tuple[int, int]:
        """Parameters of the old and of the new model, without vocabulary padding."""
        return parameter_count(self.source.config), parameter_count(self.target.config)

    @property
    def iteration(self) -> int | None:
        """The iteration of the result; None for a release, or where the format counts none."""
        return written_iteration(self.source, self.target)

    @property
    def stored_sizes(self) -> dict[Axis, int]:
        """The new model's sizes as stored: the vocabulary with its padding."""
        return {**self.target.config.sizes, Axis.VOCAB: self.target.padded_vocab}


def make_plan(
    source: Checkpoint,
    target: Target,
    request: LayoutRequest,
    files: FileRequest = AS_STORED,
    *,
    drop_optimizer: bool = False,
    bake: Mapping[Dimension, float] | None = None,
) -> GrowthPlan:
    """Return the plan that takes ``source`` to ``target`` in the wished layout and files.

    Masks of the source's own are carried along; ``bake`` puts all masks into the weights, at these
    values instead of their own where given.

    Raises:
        UsageError: For a target that cannot be reached and for content that would be lost unasked.
    """
    ranks = written_format(files.format or source.format).ranks
    if ranks and not drop_optimizer:
        source = with_optimizer(source)
    layers = source.config.layers if target.layers is None else target.layers
    layout = request.resolve(source.layout, layers) if ranks else request.single(layers)
    vocab = source.config.vocab if target.vocab is None else target.vocab
    padded = stored_vocab(source, vocab, layout.tp, request.padded_vocab) if ranks else vocab
    growth = growth_of(source, target, padded, masks_of(source))
    if bake is not None:
        growth = baked(growth, bake)
    return plan_growth(source, growth, layout, padded, files)


def growth_of(
    source: Checkpoint, target: Target, padded_vocab: int, pending: Mapping[Dimension, Mask]
) -> Growth:
    """Return the growth from ``source`` to ``target``, stored in ``padded_vocab`` rows.

    ``pending`` are the masks of the source that are not open yet.

    Raises:
        UsageError: For a target that cannot be reached.
        BadCheckpointError: For masks that do not fit the source.
    """
    _check_masks(source, pending)
    growth = grow(source.config, target, source.padded_vocab, padded_vocab)
    return _with_pending(growth, pending)


def _check_open(growth: Growth, file_format: str) -> None:
    """A format that is read by others alone holds no masks: they must be open or baked."""
    closed = [f"{name} at {mask.value:g}" for name, mask in growth.masks.items() if mask.value != 1]
    if closed and not written_format(file_format).ranks:
        grown = Text(
            "finish the ramp first; or grow with ",
            Setting("method"),
            " zero or copy, or with ",
            Setting("bake", True),
            " (not for width)",
        )
        raise UsageError(
            f"the format {file_format} cannot hold masks ({', '.join(closed)})",
            grown if growth.methods else _way_out(growth.masks, growth.new),
        )


def _way_out(masks: Mapping[Dimension, Mask], config: ModelConfig) -> str:
    """Return what to do about masks that are still opening; not all of them can be baked."""
    try:
        baking_maps(masks, config)
    except UsageError:
        return "finish the ramp: train on until these masks are 1; as they are, they have no baking"
    return "finish the ramp, or put the masks into the weights with flmgrow bake"


def _check_masks(source: Checkpoint, masks: Mapping[Dimension, Mask]) -> None:
    try:
        for mask in masks.values():
            mask.values(source.config.sizes)
    except BadCheckpointError as error:
        raise error.at(source.path, "its manifest") from None


def _with_pending(growth: Growth, pending: Mapping[Dimension, Mask]) -> Growth:
    """Carry the source's unfinished masks through a growth that adds no units."""
    if pending and growth.methods:
        unfinished = ", ".join(f"{name} at {mask.value:g}" for name, mask in pending.items())
        raise UsageError(
            f"the source is still opening its last growth ({unfinished})",
            _way_out(pending, growth.old),
        )
    return replace(growth, masks=pending) if pending else growth


@no_garbage_collection()
def plan_growth(
    source: Checkpoint,
    growth: Growth,
    layout: Layout,
    padded_vocab: int,
    request: FileRequest = AS_STORED,
) -> GrowthPlan:
    """Return the plan that carries out ``growth`` into ``layout`` and the wished files."""
    file_format = request.format or source.format
    _check_masters(source, request.dtype)
    _check_open(growth, file_format)
    layer_map = growth.maps.get(Axis.LAYER)
    donors = range(growth.new.layers) if layer_map is None else layer_map.donors.tolist()
    model = TargetModel(
        config=growth.new,
        layout=layout,
        padded_vocab=padded_vocab,
        dtype=None if request.dtype == source.dtype else request.dtype,
        donors=tuple(donors),
        optimizer=carried(source.optimizer, growth),
        format=file_format,
        torch_dist_version=request.torch_dist_version,
        huggingface=_with_growth(request.huggingface, growth),
    )
    told = (*growth.notes, *unfollowed(source.optimizer, growth), *notes(source, model))
    growth = replace(growth, notes=told)
    files = tuple(described_files(source, model))
    tensors = logical_tensors(growth.new)
    sizes = {**growth.new.sizes, Axis.VOCAB: padded_vocab}
    counts = {
        name: count(growth, tensor, full_box(tensor.shape(sizes)))
        for name, tensor in tensors.items()
    }
    plan = GrowthPlan(
        source=source,
        growth=growth,
        target=model,
        tensors=tensors,
        files=files,
        file_sizes={file.path: file.total_size for file in files},
        counts=counts,
        dropped=(*left_out(source, model), *_unused(source, growth)),
    )
    _prove_cover(plan)
    return plan


def _with_growth(options: HuggingFaceOptions, growth: Growth) -> HuggingFaceOptions:
    """Let the shards of a grown model name its own growth, in place of its source's."""
    if not growth.methods:
        return options
    methods = {str(dimension): method for dimension, method in growth.methods.items()}
    return replace(options, provenance=(("growth", methods_text(methods)),))


def _check_masters(source: Checkpoint, dtype: str | None) -> None:
    """Float32 masters lie beside 16-bit weights and no others: a cast must not part with them.

    A distributed optimizer's buffers are sorted by the weights' dtype as well, and bear no cast.
    """
    if source.optimizer is None or dtype in (None, source.dtype):
        return
    half = ("bfloat16", "float16")
    distributed = source.optimizer.gradient_dtype is not None
    if distributed or (source.dtype in half) != (dtype in half):
        raise UsageError(
            Text(
                Setting("dtype"),
                f" {dtype}: the optimizer state of {source.dtype} weights is of another kind",
            ),
            Text("leave the dtype, or ", Pass("no_optimizer", True)),
        )


def _unused(source: Checkpoint, growth: Growth) -> list[Dropped]:
    """Name old indices that no new index comes from: vocabulary padding without room."""
    unused = []
    for axis, axis_map in growth.maps.items():
        lost = axis_map.old_size - len(
            set(axis_map.source.tolist()) & set(range(axis_map.old_size))
        )
        if lost:
            unused.append(Dropped(f"{lost} of {axis_map.old_size} {axis} rows (padding)"))
    return unused


def _prove_cover(plan: GrowthPlan) -> None:
    """Every element of every tensor is stored exactly once but for replicas, in the source and the
    result.
    """
    reader = plan.source.reader
    for name, total in reader.stored_elements().items():
        assert total == prod(reader.shape(name)), f"{name}: the source holds {total}"
    stored: dict[str, int] = dict.fromkeys(plan.tensors, 0)
    arrays = chain.from_iterable(file.arrays for file in plan.files)
    placements = {id(array.placement): array.placement for array in arrays}  # of states, too: once
    seen = set()
    for segment in chain.from_iterable(own.segments for own in placements.values()):
        if (segment.tensor, segment.box) not in seen:
            seen.add((segment.tensor, segment.box))
            stored[segment.tensor] += segment.box.count
    for name, total in stored.items():
        assert total == plan.counts[name].total, f"{name}: {total} of {plan.counts[name]} stored"
