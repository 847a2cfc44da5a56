"""Describing the legacy Megatron files of a new checkpoint, before any weight is touched.

Each target rank's file is a copy of a source rank's content, with the arguments brought up to date,
the state dicts rebuilt for the new model and layout, and everything else carried unchanged. The
weights in it are records whose bytes are still to be produced; sizes and offsets follow from shapes
alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.arguments import written_arguments
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState, TargetModel
from flmgrow.formats.companions import COMPANION_KINDS
from flmgrow.formats.foreign_objects import is_left_out, left_out_objects, without_foreign
from flmgrow.formats.gradient_buffers import Cut
from flmgrow.formats.inert_text import text_of
from flmgrow.formats.inert_values import (
    Global,
    OrderedMap,
    TensorRecord,
    make_namespace,
    walk_tensors,
)
from flmgrow.formats.iterations import FILE_NAME, TRACKER
from flmgrow.formats.layout import Layout, Placement, placements
from flmgrow.formats.megatron import DISTRIBUTED, arguments_in, chunk_key
from flmgrow.formats.megatron_adam import MASTERS, MOMENTS, by_group
from flmgrow.formats.megatron_contents import EXTRA_STATE
from flmgrow.formats.megatron_distributed import distributed_entry, flat_content
from flmgrow.formats.pipeline_arguments import written_layout
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.formats.targets import TargetArray, TargetFile
from flmgrow.formats.torch_zip import new_tensor
from flmgrow.model.axes import Axis
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors

_PER_RANK = ("rng_state", "rerun_state_machine")
"""State of one rank of one layout; it means nothing in another."""

_OPTIMIZER = ("optimizer", "opt_param_scheduler")
_MEANT = (*_PER_RANK, *_OPTIMIZER, EXTRA_STATE)
"""Everything else that a source names is left out, as its user says it may be."""

_LAYER = "decoder.layers."
_LAYER_NUMBER = re.compile(r"\.\d+\.")


def _source_chunks(
    source: Checkpoint, tensor: int = 0
) -> Iterator[tuple[int, int, Mapping[object, object]]]:
    """Yield (pipeline rank, chunk, state dict) of a tensor rank of the source's."""
    for pipeline in range(source.layout.pp):
        content = source.contents.content((tensor, pipeline))
        for chunk in range(source.layout.vpp):
            state = content[chunk_key(chunk, source.layout)]
            assert isinstance(state, Mapping)
            yield pipeline, chunk, state


def extra_states(source: Checkpoint, tensor: int = 0) -> dict[str, object]:
    """Return the ``_extra_state`` entries of a tensor rank of the source's, by key, with layers
    numbered through the model.
    """
    result: dict[str, object] = {}
    for pipeline, chunk, state in _source_chunks(source, tensor):
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


def _arguments(template: Mapping[object, object], target: TargetModel) -> object:
    old = arguments_in(template, "the source")
    new = written_arguments(old, target.config)
    new.update(written_layout(old, target.layout))
    new["padded_vocab_size"] = target.padded_vocab
    if "ckpt_format" in new:
        new["ckpt_format"] = "torch" if target.format == "megatron" else target.format
    if target.dtype is not None:
        new["params_dtype"] = Global("torch", target.dtype)
        new["bf16"] = target.dtype == "bfloat16"
        new["fp16"] = target.dtype == "float16"
    return make_namespace(without_foreign(new))


class _OptimizerBuilder:
    """Builds the optimizer state of one target rank, and lists the arrays in it."""

    def __init__(self, state: OptimizerState, weights: Sequence[TargetArray]) -> None:
        self.state = state
        self.grouped = by_group(state.groups, weights)
        self.arrays: list[TargetArray] = []

    def _record(self, weight: TargetArray, state: State) -> TensorRecord:
        dtype = self.state.dtypes[state]
        record = new_tensor(dtype, weight.placement.shape)
        self.arrays.append(TargetArray(weight.placement, dtype, record.storage, state))
        return record

    def _step(self) -> object:
        """Return a step count of its own: shared, it would be counted up once per parameter."""
        step = self.state.step
        if isinstance(step, TensorRecord):
            return replace(step, storage=replace(step.storage))
        return step

    def content(self) -> dict[object, object]:
        """Return the rank's ``optimizer`` entry."""
        entries: dict[object, object] = {}
        groups: list[object] = []
        for group, members in zip(self.state.groups, self.grouped, strict=True):
            numbers = range(len(entries), len(entries) + len(members))
            groups.append({**group, "params": list(numbers)})
            for number, weight in zip(numbers, members, strict=True):
                moments = {str(kind): self._record(weight, kind) for kind in MOMENTS}
                step = {} if self.state.step is None else {"step": self._step()}
                entries[number] = {**step, **moments}
        inner: dict[object, object] = {"state": entries, "param_groups": groups}
        if not self.state.half:
            return inner
        masters = [[self._record(w, State.MASTER) for w in members] for members in self.grouped]
        return {"optimizer": inner, **self.state.other, MASTERS: masters}


def _module_positions(source: Checkpoint) -> dict[str, int]:
    """Return the place of every key among the source's modules, with layer numbers left out."""
    positions: dict[str, int] = {}
    for _, _, state in _source_chunks(source):
        for key in state:
            positions.setdefault(_LAYER_NUMBER.sub(".", str(key)), len(positions))
    return positions


def _in_module_order(
    placements: Sequence[Placement], positions: Mapping[str, int]
) -> list[Placement]:
    """Sort one chunk's placements as its modules hold them: optimizers count parameters so."""
    sections = {Home.FIRST: 0, Home.LAYER: 1}

    def place(placement: Placement) -> tuple[int, int, int]:
        layer = placement.ranges[Axis.LAYER][0] if placement.row.home is Home.LAYER else 0
        key = _LAYER_NUMBER.sub(".", placement.key)
        return sections.get(placement.row.home, 2), layer, positions.get(key, len(positions))

    return sorted(placements, key=place)


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
    unknown = left_out_objects(source.contents.content((0, 0)))
    return [*left, *(key for key in unknown if key not in left)]


def dropped_notes(source: Checkpoint, target: TargetModel) -> list[str]:
    """Return :func:`dropped` with the reason behind each key that has one of its own."""
    reasons = left_out_objects(source.contents.content((0, 0)))
    return [f"{key}: {reasons[key]}" if key in reasons else key for key in dropped(source, target)]


def carried_content(
    source: Checkpoint, target: TargetModel, rebuilt: Mapping[str, object]
) -> dict[object, object]:
    """Return what every rank of a checkpoint shares: the new args, iteration, and so on.

    ``rebuilt`` takes the place of what the source has under the same keys.
    """
    template = source.contents.content((0, 0))
    anew = {"args": _arguments(template, target), **rebuilt}
    return _root(source, template, anew, {}, dropped(source, target))


def _root(
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
                    f"{source.folder}: {key}: holds tensors that flmgrow does not know",
                    "flmgrow drops nothing in silence; remove the entry or report it",
                )
            result[key] = value
    return result


def rank_path(
    layout: Layout, folder: str, tensor: int, pipeline: int, name: str = FILE_NAME
) -> str:
    """Return the path of a rank's file below the checkpoint root, as Megatron-LM names it."""
    rank = f"mp_rank_{tensor:02d}" + (f"_{pipeline:03d}" if layout.pp > 1 else "")
    return f"{folder}/{rank}/{name}"


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
    kept = keeps_tensor_ranks(source, target.layout, target.format)
    states = [extra_states(source, rank if kept else 0) for rank in range(target.layout.tp)]
    positions = _module_positions(source)
    left_out = dropped(source, target)
    by_rank: dict[tuple[int, int], list[Placement]] = {rank: [] for rank in target.layout.ranks}
    for placement in wanted:
        by_rank[placement.tensor_rank, placement.pipeline_rank].append(placement)
    files = []
    for (tensor, pipeline), owned in by_rank.items():
        same = tensor < source.layout.tp and pipeline < source.layout.pp
        template = source.contents.content((tensor, pipeline) if same else (0, 0))
        chunks: dict[str, OrderedMap] = {}
        arrays = []
        for chunk in range(target.layout.vpp):
            state = OrderedMap()
            chunks[chunk_key(chunk, target.layout)] = state
            inside = [placement for placement in owned if placement.chunk == chunk]
            for placement in _in_module_order(inside, positions):
                dtype = target.dtype or source.dtype
                record: TensorRecord = new_tensor(dtype, placement.shape)
                state[placement.key] = record
                arrays.append(TargetArray(placement, dtype, record.storage))
            state.update(_chunk_extra_states(states[tensor], target, pipeline, chunk))
        rebuilt = {"args": _arguments(template, target)}
        folder = folder_name(source.iteration)
        optimizer = target.optimizer
        if optimizer is not None and optimizer.gradient_dtype is not None:
            rebuilt["optimizer"] = distributed_entry(optimizer)
            split = target.config.tied and target.layout.pp > 1
            cut = Cut(arguments_in(template, "the source"), split)
            flat, inside_it = flat_content(optimizer, arrays, cut)
            path = rank_path(target.layout, folder, tensor, pipeline, DISTRIBUTED)
            files.append(TargetFile(path, flat, tuple(inside_it)))
        elif optimizer is not None:
            builder = _OptimizerBuilder(optimizer, arrays)
            rebuilt["optimizer"] = builder.content()
            arrays += builder.arrays
        root = _root(source, template, rebuilt, chunks, left_out)
        path = rank_path(target.layout, folder, tensor, pipeline)
        files.append(TargetFile(path, root, tuple(arrays)))
    return files
