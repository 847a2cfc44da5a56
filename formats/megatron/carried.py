"""What a checkpoint that is written takes over from its source beside weights and optimizer."""

from collections.abc import Iterator, Mapping, Sequence

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint, Dropped, TargetModel
from flmgrow.formats.companions import COMPANION_KINDS
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.model import written_arguments
from flmgrow.formats.megatron.arguments.pipeline import written_layout
from flmgrow.formats.megatron.arguments.run_rows import (
    DISTRIBUTED_OPTIMIZER,
    FORMAT,
    FSDP_DTENSOR,
    FULLY_SHARDED,
    dtype_arguments,
)
from flmgrow.formats.megatron.arguments.vocabulary_rows import PADDED_VOCAB
from flmgrow.formats.megatron.content import EXTRA_STATE, arguments_in, chunk_key
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.same_values import text_of
from flmgrow.formats.torch_file.foreign_objects import (
    is_left_out,
    left_out_objects,
    without_foreign,
)
from flmgrow.formats.torch_file.objects import make_namespace, walk_tensors

_PER_RANK = ("rng_state", "rerun_state_machine")
"""State of one rank of one layout; it means nothing in another."""

_OPTIMIZER = ("optimizer", "opt_param_scheduler")

_MEANT = (*_PER_RANK, *_OPTIMIZER, EXTRA_STATE)
"""Everything else that a source names is left out, as its user says it may be."""

_LAYER = "decoder.layers."


def source_chunk_states(
    source: Checkpoint, tensor: int = 0
) -> Iterator[tuple[int, int, Mapping[object, object]]]:
    """Yield (pipeline rank, chunk, state dict) of a tensor rank of the source's."""
    for pipeline in range(source.layout.pp):
        content = rank_content(source, (tensor, pipeline))
        for chunk in range(source.layout.vpp):
            state = content[chunk_key(chunk, source.layout)]
            assert isinstance(state, Mapping)
            yield pipeline, chunk, state


def extra_states(source: Checkpoint, tensor: int = 0) -> dict[str, object]:
    """Return the ``_extra_state`` entries of a tensor rank of the source's, by key, with layers
    numbered through the model.
    """
    result: dict[str, object] = {}
    for pipeline, chunk, state in source_chunk_states(source, tensor):
        first, _ = source.layout.chunk_range(pipeline, chunk)
        for key, value in state.items():
            if not str(key).endswith(EXTRA_STATE):
                continue
            name = str(key)
            if name.startswith(_LAYER):
                number, _, rest = name.removeprefix(_LAYER).partition(".")
                name = f"{_LAYER}{int(number) + first}.{rest}"
            result[name] = value
    return result


def keeps_tensor_ranks(source: Checkpoint, layout: Layout, file_format: str) -> bool:
    """Whether each tensor rank of what is written is one of the source's, with its own files."""
    return source.format == file_format == "megatron" and source.layout.tp == layout.tp


def _unlike_first(source: Checkpoint) -> bool:
    """Whether a tensor rank's ``_extra_state`` entries are others than those of the first."""
    texts = {text_of(extra_states(source, rank), {}) for rank in range(source.layout.tp)}
    return len(texts) > 1


def chunk_extra_states(
    states: Mapping[str, object], target: TargetModel, pipeline: int, chunk: int
) -> Iterator[tuple[str, object]]:
    """Yield the entries one target chunk gets; a layer takes those of its donor in the source."""
    first, stop = target.layout.chunk_range(pipeline, chunk)
    by_layer: dict[int, list[tuple[str, object]]] = {}
    begins = pipeline == 0 and chunk == 0
    ends = pipeline == target.layout.pp - 1 and chunk == target.layout.vpp - 1
    for key, value in states.items():
        if key.startswith(_LAYER):
            number, _, rest = key.removeprefix(_LAYER).partition(".")
            by_layer.setdefault(int(number), []).append((rest, value))
        elif begins if key.startswith("embedding.") else ends:
            yield key, value
    for layer in range(first, stop):
        for rest, value in by_layer.get(target.donors[layer], ()):
            yield f"{_LAYER}{layer - first}.{rest}", value


def target_arguments(template: Mapping[object, object], target: TargetModel) -> object:
    """Return the ``args`` of a target's rank: those of its template, brought up to date."""
    old = arguments_in(template, "the source")
    new = written_arguments(old, target.config)
    new.update(written_layout(old, target.layout))
    new[PADDED_VOCAB.name] = target.padded_vocab
    if FORMAT.name in new:
        new[FORMAT.name] = "torch" if target.format == "megatron" else target.format
    if target.format == FSDP_DTENSOR:
        new.update(dict.fromkeys((FULLY_SHARDED.name, DISTRIBUTED_OPTIMIZER.name), True))
    elif new.get(FULLY_SHARDED.name):
        new[FULLY_SHARDED.name] = False
    if target.dtype is not None:
        new.update(dtype_arguments(target.dtype))
    return make_namespace(without_foreign(new))


def dropped(source: Checkpoint, target: TargetModel) -> list[str]:
    """Return the keys of carried content that has no meaning in the target and is left out."""
    if source.format == "huggingface":
        return [text for kind, text in source.carried.items() if kind not in COMPANION_KINDS]
    moved = (source.layout.tp, source.layout.pp, source.layout.vpp) != (
        target.layout.tp,
        target.layout.pp,
        target.layout.vpp,
    )
    without = () if target.optimizer is not None else _OPTIMIZER
    moved = moved or target.format != "megatron" or source.format != "megatron"
    left = [
        key for key in source.carried
        if key in without or key not in _MEANT or (moved and key in _PER_RANK)
    ]  # fmt: skip
    kept = keeps_tensor_ranks(source, target.layout, target.format)
    if EXTRA_STATE in source.carried and not kept and _unlike_first(source):
        left.append(f"{EXTRA_STATE} of tensor ranks that differ from the first's")
    unknown = left_out_objects(rank_content(source, (0, 0)))
    return [*left, *(key for key in unknown if key not in left)]


def dropped_content(source: Checkpoint, target: TargetModel) -> list[Dropped]:
    """Return what :func:`dropped` does, with the reason for each key that has one of its own."""
    reasons = left_out_objects(rank_content(source, (0, 0)))
    return [Dropped(key, reasons.get(key, "")) for key in dropped(source, target)]


def carried_content(
    source: Checkpoint, target: TargetModel, rebuilt: Mapping[str, object]
) -> dict[object, object]:
    """Return what every rank of a checkpoint shares: the new args, iteration, and so on.

    ``rebuilt`` takes the place of what the source has under the same keys.
    """
    template = rank_content(source, (0, 0))
    anew = {"args": target_arguments(template, target), **rebuilt}
    return rebuilt_content(source, template, anew, {}, dropped(source, target))


def rebuilt_content(
    source: Checkpoint,
    template: Mapping[object, object],
    rebuilt: Mapping[str, object],
    chunks: Mapping[str, object],
    left_out: Sequence[str],
) -> dict[object, object]:
    """Rebuild a rank's content in the order of its template."""
    model_keys = {chunk_key(chunk, source.layout) for chunk in range(source.layout.vpp)}
    result: dict[object, object] = {}
    for key, value in template.items():
        if key in model_keys:
            result.update(chunks)
        elif key in rebuilt:
            result[key] = rebuilt[str(key)]
        elif key not in left_out and not is_left_out(value):
            if key not in source.carried and next(walk_tensors(value), None) is not None:
                raise BadCheckpointError(
                    "holds tensors that flmgrow does not know",
                    "flmgrow drops nothing in silence; remove the entry or report it",
                    where=(source.folder, key),
                )
            result[key] = value
    return result
