"""Opening a Hugging Face folder: the same rows as any checkpoint, under other names, on one rank.

So that a Megatron checkpoint can be written from it, its contents can also say what a rank of
Megatron's would hold: arguments for the model, and the keys of its modules.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.companions import IDS, Companions, known_ids
from flmgrow.formats.huggingface_config import (
    family_of,
    notes_on_fields,
    read_fields,
    vouched_fields,
)
from flmgrow.formats.huggingface_contents import CONFIG, HuggingFaceFolder
from flmgrow.formats.huggingface_families import Family
from flmgrow.formats.huggingface_quantized import refuse_quantized
from flmgrow.formats.layout import Layout, Placement, placements
from flmgrow.formats.new_arguments import IMPLEMENTATIONS, VOCAB_MULTIPLE, new_arguments
from flmgrow.formats.new_model import rank_content
from flmgrow.formats.reading import LogicalReader, widest
from flmgrow.formats.safetensors_file import SafetensorsFile, StoredTensor
from flmgrow.formats.tables.row import Home
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import LogicalTensor, logical_tensors


@dataclass(frozen=True, eq=False)
class TensorPiece:
    """A piece that is one tensor of a safetensors file."""

    placement: Placement
    file: SafetensorsFile
    tensor: StoredTensor

    def __str__(self) -> str:
        return f"{self.file.file.path}: {self.tensor.name}"

    @property
    def dtype(self) -> str:
        """Its dtype, by torch's name."""
        return self.tensor.dtype

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the tensor's bytes from byte ``offset`` on."""
        self.file.read_into(self.tensor, offset, target)

    def checksum(self) -> int | None:
        """The format keeps no sums."""
        return None


def family_placements(
    family: Family, config: ModelConfig, sizes: Sizes, shared: bool = False
) -> list[Placement]:
    """Return every array of a model of ``family``.

    ``shared``: a copy of a tied embedding lies in the head's place.
    """
    layout = Layout(1, 1, 1, (config.layers,))
    tensors = logical_tensors(config)
    result = placements(family.rows, tensors, sizes, layout)
    if shared:
        row = next(row for row in family.rows if row.home is Home.LAST_COPY)
        table = next(p for p in result if p.parts == (tensors["embedding"],))
        result.append(replace(table, row=row, key=row.key))
    return result


def _shares_table(family: Family, config: ModelConfig, names: Collection[str]) -> bool:
    keys = [row.key for row in family.rows if row.home is Home.LAST_COPY]
    return config.tied and any(key in names for key in keys)


def _found(
    contents: HuggingFaceFolder, family: Family, expected: list[Placement]
) -> Iterator[TensorPiece]:
    """Find every placement; refuse one of another shape, and every tensor that is none."""
    stored = dict(contents.tensors)
    bare = not any(name.startswith(family.prefix) for name in stored)
    for placement in expected:
        key = placement.key.removeprefix(family.prefix) if bare else placement.key
        if key not in stored:
            raise BadCheckpointError(
                f"{contents.folder}: {key}: not there", f"{CONFIG} and the weights do not agree"
            )
        file, tensor = stored.pop(key)
        piece = TensorPiece(replace(placement, key=key), file, tensor)
        if tensor.shape != placement.shape:
            raise BadCheckpointError(
                f"{piece}: shape {tensor.shape}, wanted {placement.shape}",
                f"{CONFIG} and the weights do not agree",
            )
        yield piece
    for name, (file, _) in stored.items():
        if not family.buffers.fullmatch(name):
            raise BadCheckpointError(
                f"{file.file.path}: {name}: no such parameter in the model that {CONFIG} describes",
                "flmgrow drops nothing in silence; this model has a part it does not know",
            )


def _carried(contents: HuggingFaceFolder, family: Family) -> dict[str, str]:
    """Name what the folder holds beside weights and configuration."""
    beside = contents.beside()
    texts = {
        "generation": "generation settings",
        "tokenizer": "tokenizer files",
        "code": "programs (*.py)",
        "other": "other files",
    }
    found = {
        kind: f"{text}: {', '.join(beside[kind])}" for kind, text in texts.items() if beside[kind]
    }
    if buffers := sum(bool(family.buffers.fullmatch(name)) for name in contents.tensors):
        found["buffers"] = f"{buffers} buffers that follow from {CONFIG}"
    return found


def _companions(contents: HuggingFaceFolder, family: Family, where: str) -> Companions:
    """Return how the model is spoken to; ids that no field says are the family's usual ones."""
    beside = contents.beside()
    names = [*beside["generation"], *beside["tokenizer"]]
    usual = dict(zip(IDS, family.usual_ids, strict=False))
    rows = contents.fields.get("vocab_size")
    small = isinstance(rows, int) and any(i is not None and i >= rows for i in usual.values())
    ids = {**({} if small else usual), **known_ids(contents.fields, where)}
    return Companions({name: contents.folder / name for name in names}, ids)


def _notes_on_dtypes(pieces: Sequence[TensorPiece], dtype: str) -> Iterator[str]:
    """Tell of weights of several dtypes: a checkpoint that is written has one."""
    by_dtype: dict[str, list[str]] = {}
    for piece in pieces:
        by_dtype.setdefault(piece.dtype, []).append(piece.tensor.name)
    if len(by_dtype) > 1:
        first, *others = sorted(by_dtype, key=lambda name: len(by_dtype[name]))
        what = by_dtype[first]
        told = f"{len(what)} tensors are {first} ({what[0]})"
        rest = " and ".join(f"{len(by_dtype[name])} {name}" for name in others)
        rounding = f" (rounded with --dtype {others[-1]})" if others[-1] != dtype else ""
        yield (
            f"{told}, {rest}: all are taken as {dtype}, which holds each exactly, and written so"
            f"{rounding}"
        )


def open_huggingface(folder: Path, options: ReadOptions = AS_STORED) -> Checkpoint:
    """Open the Hugging Face model in ``folder``; the caller closes it.

    Raises BadCheckpointError, naming file and tensor, for anything missing, extra, contradictory or
    not understood.
    """
    contents = HuggingFaceFolder(folder, options)
    try:
        return _assemble(contents, options)
    except BaseException:
        contents.close()
        raise


def _assemble(contents: HuggingFaceFolder, options: ReadOptions) -> Checkpoint:
    where = str(contents.folder / CONFIG)
    family = family_of(contents.fields, where)
    stored = (tensor for _, tensor in contents.tensors.values())
    refuse_quantized(where, contents.fields, stored, vouched_fields(options))
    config = read_fields(family, contents.fields, where, options)
    padded = config.vocab
    config = replace(config, vocab=options.real_rows(config.vocab, padded))
    sizes = {**config.sizes, Axis.VOCAB: padded}
    shared = _shares_table(family, config, contents.tensors)
    pieces = list(_found(contents, family, family_placements(family, config, sizes, shared)))
    tensors: Mapping[str, LogicalTensor] = logical_tensors(config)
    reader = LogicalReader(tensors, sizes, pieces, mixed=True)
    dtype = widest({piece.dtype for piece in pieces})
    arguments = new_arguments(config, padded, dtype, IMPLEMENTATIONS[options.fused])
    contents.root = rank_content(arguments, config, padded, options.fused)
    return Checkpoint(
        path=contents.folder,
        folder=contents.folder,
        iteration=None,
        config=config,
        layout=Layout(1, 1, 1, (config.layers,)),
        padded_vocab=padded,
        vocab_multiple=VOCAB_MULTIPLE,
        dtype=dtype,
        reader=reader,
        contents=contents,
        fused=options.fused,
        carried=_carried(contents, family),
        format="huggingface",
        notes=(
            *notes_on_fields(family, contents.fields, options),
            *contents.notes,
            *_notes_on_dtypes(pieces, dtype),
        ),
        companions=_companions(contents, family, where),
    )
