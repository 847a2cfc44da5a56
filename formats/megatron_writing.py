"""Describing the legacy Megatron files of a new checkpoint, before any weight is touched.

Each target rank's file is a copy of a source rank's content, with the arguments brought up to date,
the state dicts rebuilt for the new model and layout, and everything else carried unchanged. The
weights in it are records whose bytes are still to be produced; sizes and offsets follow from shapes
alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.arguments import written_arguments
from flmgrow.formats.checkpoint import Checkpoint, TargetModel
from flmgrow.formats.inert_values import (
    Global,
    OrderedMap,
    Storage,
    TensorRecord,
    make_namespace,
    walk_tensors,
)
from flmgrow.formats.layout import Layout, Placement, placements
from flmgrow.formats.megatron import FILE_NAME, TRACKER, arguments_of, chunk_key
from flmgrow.formats.pipeline_arguments import written_layout
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.torch_zip import TorchFile, new_tensor
from flmgrow.model.axes import Axis
from flmgrow.model.tensors import logical_tensors

_PER_RANK = ("rng_state", "rerun_state_machine")
"""State of one rank of one layout; it means nothing in another."""

_OPTIMIZER = ("optimizer", "opt_param_scheduler")
_LAYER = "decoder.layers."


@dataclass(frozen=True, eq=False)
class TargetArray:
    """An array to be produced: where it belongs, its dtype, and the storage that stands for it."""

    placement: Placement
    dtype: str
    storage: Storage


@dataclass(frozen=True, eq=False)
class TargetFile:
    """A file to be written: its path below the output folder, its content, its arrays in order."""

    path: str
    root: object
    arrays: tuple[TargetArray, ...]


def _source_chunks(source: Checkpoint) -> Iterator[tuple[int, int, Mapping[object, object]]]:
    """Yield (pipeline rank, chunk, state dict) of the source's first tensor rank."""
    for pipeline in range(source.layout.pp):
        root = source.files[0, pipeline].root
        assert isinstance(root, dict)
        for chunk in range(source.layout.vpp):
            yield pipeline, chunk, root[chunk_key(chunk, source.layout)]


def extra_states(source: Checkpoint) -> dict[str, object]:
    """Return the source's ``_extra_state`` entries by key, with layers numbered through the
    model.
    """
    result: dict[str, object] = {}
    for pipeline, chunk, state in _source_chunks(source):
        first, _ = source.layout.chunk_range(pipeline, chunk)
        for key, value in state.items():
            if not str(key).endswith("_extra_state"):
                continue
            name = str(key)
            if name.startswith(_LAYER):
                number, _, rest = name.removeprefix(_LAYER).partition(".")
                name = f"{_LAYER}{int(number) + first}.{rest}"
            result[name] = value
    return result


def _chunk_extra_states(
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


def _arguments(source: Checkpoint, template: TorchFile, target: TargetModel) -> object:
    old = arguments_of(template)
    new = written_arguments(old, target.config)
    new.update(written_layout(old, target.layout))
    new["padded_vocab_size"] = target.padded_vocab
    if target.dtype is not None:
        new["params_dtype"] = Global("torch", target.dtype)
        new["bf16"] = target.dtype == "bfloat16"
        new["fp16"] = target.dtype == "float16"
    return make_namespace(new)


def dropped(source: Checkpoint, target: TargetModel) -> list[str]:
    """Return the keys of carried content that has no meaning in the target and is left out."""
    moved = (source.layout.tp, source.layout.pp, source.layout.vpp) != (
        target.layout.tp,
        target.layout.pp,
        target.layout.vpp,
    )
    return [key for key in source.carried if key in _OPTIMIZER or (moved and key in _PER_RANK)]


def _root(
    source: Checkpoint,
    template: TorchFile,
    target: TargetModel,
    chunks: Mapping[str, object],
    left_out: Sequence[str],
) -> OrderedMap | dict[object, object]:
    """Rebuild a rank's content in the order of its template."""
    content = template.root
    assert isinstance(content, dict)
    model_keys = {chunk_key(chunk, source.layout) for chunk in range(source.layout.vpp)}
    result: dict[object, object] = {}
    for key, value in content.items():
        if key in model_keys:
            result.update(chunks)
        elif key == "args":
            result[key] = _arguments(source, template, target)
        elif key not in left_out:
            if key not in source.carried and next(walk_tensors(value), None) is not None:
                raise BadCheckpointError(
                    f"{template.file.path}: {key}: holds tensors that flmgrow does not know",
                    "flmgrow drops nothing in silence; remove the entry or report it",
                )
            result[key] = value
    return result


def rank_path(layout: Layout, folder: str, tensor: int, pipeline: int) -> str:
    """Return the path of a rank's file below the checkpoint root, as Megatron-LM names it."""
    rank = f"mp_rank_{tensor:02d}" + (f"_{pipeline:03d}" if layout.pp > 1 else "")
    return f"{folder}/{rank}/{FILE_NAME}"


def folder_name(iteration: int | None) -> str:
    """Return the name of an iteration's folder; ``release`` for None."""
    return "release" if iteration is None else f"iter_{iteration:07d}"


def tracker(iteration: int | None) -> tuple[str, bytes]:
    """Return the name and content of the file that points to the iteration."""
    return TRACKER, (b"release" if iteration is None else str(iteration).encode())


def target_files(source: Checkpoint, target: TargetModel) -> list[TargetFile]:
    """Return every file of the target checkpoint, described but not produced.

    Raises UsageError for a layout that the model cannot take.
    """
    tensors = logical_tensors(target.config)
    sizes = {**target.config.sizes, Axis.VOCAB: target.padded_vocab}
    wanted = placements(ROWS, tensors, sizes, target.layout, source.fused)
    states = extra_states(source)
    left_out = dropped(source, target)
    by_rank: dict[tuple[int, int], list[Placement]] = {rank: [] for rank in target.layout.ranks}
    for placement in wanted:
        by_rank[placement.tensor_rank, placement.pipeline_rank].append(placement)
    files = []
    for (tensor, pipeline), owned in by_rank.items():
        template = source.files.get((tensor, pipeline), source.files[0, 0])
        chunks: dict[str, OrderedMap] = {}
        arrays = []
        for chunk in range(target.layout.vpp):
            state = OrderedMap()
            chunks[chunk_key(chunk, target.layout)] = state
            for placement in (p for p in owned if p.chunk == chunk):
                dtype = target.dtype or source.dtype
                record: TensorRecord = new_tensor(dtype, placement.shape)
                state[placement.key] = record
                arrays.append(TargetArray(placement, dtype, record.storage))
            state.update(_chunk_extra_states(states, target, pipeline, chunk))
        root = _root(source, template, target, chunks, left_out)
        path = rank_path(target.layout, folder_name(source.iteration), tensor, pipeline)
        files.append(TargetFile(path, root, tuple(arrays)))
    return files
