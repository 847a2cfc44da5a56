"""Describing a Hugging Face folder before any weight is touched.

Tensors go into shards in the order of the table, as many as fit. The true vocabulary is written,
without Megatron's padding. What lies beside the weights of a Hugging Face source comes along if it
is known to be data; programs stay behind unless asked for.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np

from flmgrow import __version__
from flmgrow.formats.checkpoint import (
    AS_STORED,
    Checkpoint,
    Dropped,
    HuggingFaceOptions,
    TargetModel,
)
from flmgrow.formats.companions import as_new_file
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.formats.huggingface.config_writing import written_fields
from flmgrow.formats.huggingface.contents import CONFIG, INDEX, SINGLE, HuggingFaceFolder
from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields.names import DTYPE_ROWS
from flmgrow.formats.huggingface.fields.switch_rows import AUTO_MAP
from flmgrow.formats.huggingface.fields.window_rows import LAYER_TYPES, slides
from flmgrow.formats.huggingface.matching import family_placements
from flmgrow.formats.huggingface.safetensors_file import NewTensor, SafetensorsPlan
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.targets import FillBuffer, PlannedFile, Sums, TargetArray, TargetBytes
from flmgrow.formats.tokenizer.spoken import spoken
from flmgrow.storage.crc import Bytes
from flmgrow.text import Setting, Text

_CODE = "flmgrow.formats.huggingface.shipped"
_METADATA = (("format", "pt"), ("flmgrow", __version__))
_NO_DRIFT = 1e-6
"""As much as float32 rounds a number."""


@dataclass(frozen=True, eq=False)
class SafetensorsShard:
    """A safetensors file to be written: path, arrays in order, and where they come from."""

    path: str
    arrays: tuple[TargetArray, ...]
    provenance: tuple[tuple[str, str], ...] = ()
    sums_of: ClassVar[Sequence[str]] = ()
    names_damage: ClassVar[bool] = False

    @cached_property
    def plan(self) -> SafetensorsPlan:
        """Where each array will lie."""
        tensors = (NewTensor(a.placement.key, a.dtype, a.placement.shape) for a in self.arrays)
        return SafetensorsPlan(tuple(tensors), (*_METADATA, *self.provenance))

    @property
    def total_size(self) -> int:
        """The size of the file in bytes."""
        return self.plan.total_size

    def produce(self, write: Callable[[Bytes], object], fill: FillBuffer, sums: Sums) -> None:
        """Write it from front to back."""
        write(self.plan.header)
        for array in self.arrays:
            for chunk in fill(array.buffer, [array]):
                write(chunk)


def _groups(arrays: Sequence[TargetArray], limit: int) -> Iterator[tuple[TargetArray, ...]]:
    """Yield arrays that together have at most ``limit`` bytes (but at least one array)."""
    group: list[TargetArray] = []
    size = 0
    for array in arrays:
        if group and size + array.buffer.nbytes > limit:
            yield tuple(group)
            group, size = [], 0
        group.append(array)
        size += array.buffer.nbytes
    yield tuple(group)


def _shards(arrays: Sequence[TargetArray], options: HuggingFaceOptions) -> list[SafetensorsShard]:
    groups = list(_groups(arrays, options.shard_size))
    told = options.provenance
    if len(groups) == 1:
        return [SafetensorsShard(SINGLE, groups[0], told)]
    return [
        SafetensorsShard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group, told)
        for number, group in enumerate(groups, 1)
    ]


def _index(shards: Sequence[SafetensorsShard]) -> TargetBytes:
    placed = {a.placement.key: shard.path for shard in shards for a in shard.arrays}
    total = sum(a.buffer.nbytes for shard in shards for a in shard.arrays)
    data = {"metadata": {"total_size": total}, "weight_map": placed}
    return TargetBytes(INDEX, json.dumps(data, indent=2).encode() + b"\n")


def _with_dtype(fields: dict[str, object], dtype: str) -> dict[str, object]:
    """Let the configuration name the dtype of the weights, as transformers 5 reads it and as 4."""
    return {**fields, **{row.name: dtype for row in DTYPE_ROWS}}


def _kinds(target: TargetModel) -> tuple[str, ...]:
    """Return which kinds of files that lie beside the weights of a folder come along."""
    tokenizer = () if target.huggingface.tokenizer else ("tokenizer",)
    code = ("code",) if target.huggingface.keep_code else ()
    return ("generation", *tokenizer, *code)


def _kept_code(source: Checkpoint, target: TargetModel) -> list[PlannedFile]:
    contents = source.contents
    if not isinstance(contents, HuggingFaceFolder) or not target.huggingface.keep_code:
        return []
    return [as_new_file(name, contents.folder / name) for name in contents.beside()["code"]]


def is_shipped(file: Path) -> bool:
    """Whether a file is code of flmgrow's own, byte for byte."""
    own = resources.files(_CODE).joinpath(file.name)
    return file.name != "__init__.py" and own.is_file() and own.read_bytes() == file.read_bytes()


def _shipped(family: Family, carried: Sequence[PlannedFile]) -> Iterator[TargetBytes]:
    """Yield flmgrow's own code for a family that has no class in transformers.

    Code of the source's own, where it is kept, stands in its place.
    """
    folder = resources.files(_CODE)
    kept = {file.path for file in carried}
    for name in (name for name in family.code_files if name not in kept):
        yield TargetBytes(name, folder.joinpath(name).read_bytes())


def huggingface_dropped(source: Checkpoint, target: TargetModel) -> list[Dropped]:
    """Name the carried content that has no place in the target and is left out."""
    if source.format != "huggingface":
        return [Dropped(name) for name in source.carried]
    kept = _kinds(target)
    return [Dropped(text) for kind, text in source.carried.items() if kind not in kept]


def huggingface_notes(source: Checkpoint, target: TargetModel) -> list[str]:
    """Return what one must know to use the target folder."""
    config, notes = target.config, spoken(source, target).notes
    if config.head_dim * config.heads != config.hidden:
        notes.append(
            f"{config.heads} heads of {config.head_dim} are not as wide as the model "
            f"({config.hidden}): transformers before 4.48 may not read head_dim"
        )
    if config.layers != source.config.layers and len({*slides(config)}) > 1:
        notes.append(
            f"which layers have a window, {LAYER_TYPES.name} says: versions of transformers from "
            "before there was such a field go by a rule of their own"
        )
    return [*notes, *_notes_on_the_root(source, target)]


def _notes_on_the_root(source: Checkpoint, target: TargetModel) -> Iterator[Text]:
    """Yield a note if transformers' multiplier of embeddings grows by more than the width's root.

    It is the root as the weights' dtype rounds it; the table takes what the root itself grows by.
    """
    dtype, width = target.dtype or source.dtype, target.config.hidden
    before, after = (_rounded_root(size, dtype) for size in (source.config.hidden, width))
    drift = after / before - 1
    if target.config.multipliers.embedding_by_width and abs(drift) > _NO_DRIFT:
        yield Text(
            f"embeddings are {abs(drift):.2%} {'larger' if drift > 0 else 'smaller'} in "
            f"transformers, which rounds the root of the width, {width}, to {dtype}: write and "
            "load it in float32 (",
            Setting("dtype", "float32"),
            ") for what they were",
        )


def _rounded_root(width: int, dtype: str) -> float:
    """Return the root of a width, rounded to a dtype, over the root."""
    root = np.sqrt(width)
    return float(root.astype(DTYPES[dtype]) / root)


def huggingface_files(source: Checkpoint, target: TargetModel) -> list[PlannedFile]:
    """Return every file of the target folder, described but not produced.

    Raises:
        UsageError: For a model that no family of transformers can say; the message has the reasons.
    """
    told, own_model, read = spoken(source, target), None, AS_STORED
    if isinstance(source.contents, HuggingFaceFolder):
        own, read, where = source.contents.fields, source.contents.options, str(source.folder)
        own_model = (own, read_fields(family_of(own, where), own, where, read))
    wanted_family = target.huggingface.family
    family, fields = written_fields(target.config, wanted_family, told.ids, own_model, read)
    if not target.huggingface.keep_code:
        fields.pop(AUTO_MAP.name, None)
        fields.update(family.fixed)
    dtype = target.dtype or source.dtype
    wanted = family_placements(family, target.config, target.config.sizes)
    shards = _shards([TargetArray.alone(p, dtype) for p in wanted], target.huggingface)
    config = json.dumps(_with_dtype(fields, dtype), indent=2, sort_keys=True).encode() + b"\n"
    code = _kept_code(source, target)
    return [
        *shards,
        *([_index(shards)] if len(shards) > 1 else []),
        *(as_new_file(name, content) for name, content in told.files.items()),
        *code,
        *_shipped(family, code),
        TargetBytes(CONFIG, config),
    ]
