"""Opening a Hugging Face folder: the rows of any checkpoint, under other names, on one rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.companions import IDS, Companions, known_ids
from flmgrow.formats.huggingface.config import (
    family_of,
    notes_on_fields,
    read_fields,
    vouched_fields,
)
from flmgrow.formats.huggingface.contents import CONFIG, HuggingFaceFolder
from flmgrow.formats.huggingface.family import Family
from flmgrow.formats.huggingface.fields.model_rows import TIED, VOCAB
from flmgrow.formats.huggingface.matching import (
    WAYS_OUT,
    TensorPiece,
    check_tied_head,
    find_pieces,
    head_of,
)
from flmgrow.formats.huggingface.quantized import refuse_quantized
from flmgrow.formats.layout.placements import VOCAB_MULTIPLE, Layout
from flmgrow.formats.pieces import widest
from flmgrow.formats.reading import LogicalReader
from flmgrow.model.axes import Axis
from flmgrow.model.tensors import LogicalTensor, logical_tensors
from flmgrow.text import Setting, Text


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
    rows = VOCAB.get(contents.fields)
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
        rounding = Text(" (rounded with ", Setting("dtype", others[-1]), ")")
        yield Text(
            f"{told}, {rest}: all are taken as {dtype}, which holds each exactly, and written so",
            rounding if others[-1] != dtype else "",
        )


def _notes_on_head(head: str, untie: bool | None) -> Iterator[str]:
    """Tell what became of a head that is stored though the model shares its table."""
    if untie is not None:
        did = "is kept as the model's own" if untie else "is passed over"
        said = f"; {CONFIG} says that it is the embedding ({TIED.name})"
        yield Text(f"{head} {did} (", Setting("untie", untie), ")" + said)


def open_huggingface(folder: Path, options: ReadOptions = AS_STORED) -> Checkpoint:
    """Open the Hugging Face model in ``folder``; the caller closes it.

    Raises:
        BadCheckpointError: For anything missing, extra, contradictory or not understood; the
            message names file and tensor.
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
    head = head_of(family, contents) if config.tied else None
    untied = head is not None and bool(options.untie)
    config = replace(config, tied=config.tied and not untied)
    shared = head is not None and options.untie is None
    pieces = find_pieces(contents, family, config, sizes, shared=shared)
    check_tied_head(pieces)
    tensors: Mapping[str, LogicalTensor] = logical_tensors(config)
    reader = LogicalReader(tensors, sizes, pieces, mixed=True, ways_out=WAYS_OUT)
    dtype = widest({piece.dtype for piece in pieces})
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
            *([] if head is None else _notes_on_head(head, options.untie)),
        ),
        untied=untied,
        companions=_companions(contents, family, where),
    )
