"""Opening a legacy Megatron checkpoint: one folder per rank, one torch file in each.

``ROOT/iter_0000100/mp_rank_TT[_PPP]/model_optim_rng.pt``, and
``ROOT/latest_checkpointed_iteration.txt``, which holds a number or ``release``. Nothing in these
files is trusted: every rank must be there, all ranks must agree, every array must have the key and
shape that the arguments imply, and an array that no row of the table explains stops the run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.history.manifest import MANIFEST
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.layout.placements import Layout, Placement
from flmgrow.formats.megatron.arguments.given import made_arguments
from flmgrow.formats.megatron.arguments.layout_rows import PP, TP
from flmgrow.formats.megatron.content import EXTRA_STATE, KINDS, arguments_in, chunk_key
from flmgrow.formats.megatron.folders import (
    DISTRIBUTED,
    FILE_NAME,
    RANK,
    RankKey,
    iteration_folder,
    names_in,
    root_folder,
)
from flmgrow.formats.megatron.legacy.agreement import (
    arguments_of,
    check_agreement,
    check_ranks,
)
from flmgrow.formats.megatron.legacy.contents import RankFiles, content_of
from flmgrow.formats.megatron.legacy.shapes import rank_shapes
from flmgrow.formats.megatron.stored_model import iteration_number, stored_model, weights_dtype
from flmgrow.formats.megatron.tied_head import check_head
from flmgrow.formats.megatron.unsupported import old_optimizer, refuse_parts
from flmgrow.formats.pieces import StoredArray
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.torch_file.file import TorchFile
from flmgrow.formats.torch_file.foreign_objects import check_content
from flmgrow.formats.torch_file.hidden_pickles import refuse_hidden_programs
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.text import Found, Text

_EXTRA_STATE = re.compile(
    r"(?:decoder\.layers\.([0-9]{1,6})\.|(?!decoder\.layers\.)).*_extra_state", re.DOTALL
)
_OPTIMIZER_FILES = (DISTRIBUTED, "optim.pt")


def _rank_files(folder: Path) -> dict[RankKey, Path]:
    """Return the file of every (tensor rank, pipeline rank)."""
    files: dict[RankKey, Path] = {}
    found = [folder / name for name in names_in(folder) if RANK.fullmatch(name)]
    if old := old_optimizer(found):
        raise old.refusal(str(folder))
    for child in found:
        match = RANK.fullmatch(child.name)
        assert match is not None
        if match[3]:
            raise BadCheckpointError(
                f"{child}: names an expert rank: a mixture of experts, which flmgrow does not read",
                "there is no way around it: flmgrow knows dense decoders alone",
            )
        rank = (int(match[1]), int(match[2] or 0))
        if rank in files:
            raise BadCheckpointError(f"{child}: the same rank as {files[rank].parent.name}")
        files[rank] = child / FILE_NAME
    if not files:
        raise BadCheckpointError("no mp_rank folders", "is this a legacy checkpoint?", where=folder)
    return files


def _chunk(file: TorchFile, key: str) -> Mapping[object, object]:
    chunk = content_of(file).get(key)
    if not isinstance(chunk, dict):
        raise BadCheckpointError("not there", where=(file.file.path, key), wanted="a state dict")
    return chunk


def _stored(placement: Placement, file: TorchFile, chunk: Mapping[object, object]) -> StoredArray:
    record = chunk.get(placement.key)
    where = f"{file.file.path}: {placement.key}"
    if record is None:
        raise BadCheckpointError("not there", "the args and the weights do not agree", where=where)
    if not isinstance(record, TensorRecord):
        raise BadCheckpointError(f"is not a plain dense tensor ({record!r:.60})", where=where)
    if record.shape != placement.shape:
        raise BadCheckpointError(
            Text("shape ", Found(record.shape)),
            "the args and the weights do not agree",
            where=where,
            wanted=placement.shape,
        )
    return StoredArray(placement, file, record)


def _match(
    files: Mapping[RankKey, TorchFile], layout: Layout, expected: list[Placement]
) -> Iterator[StoredArray]:
    """Find every placement, and refuse every key that is none and no ``_extra_state``."""
    seen: dict[tuple[int, int, int], set[str]] = {}
    for placement in expected:
        rank = placement.rank
        chunk = _chunk(files[rank], chunk_key(placement.chunk, layout))
        seen.setdefault((*rank, placement.chunk), set()).add(placement.key)
        yield _stored(placement, files[rank], chunk)
    for rank in layout.ranks:
        for number in range(layout.vpp):
            chunk = _chunk(files[rank], chunk_key(number, layout))
            known = seen.get((*rank, number), set())
            first, stop = layout.chunk_range(rank[1], number)
            for key in chunk:
                if key not in known and not _is_extra_state(key, stop - first):
                    raise BadCheckpointError(
                        "no such parameter in the model that the args describe",
                        "flmgrow drops nothing in silence; this model has a part it does not know",
                        where=(files[rank].file.path, key),
                    )
                if key not in known:
                    refuse_hidden_programs(chunk[key], f"{files[rank].file.path}: {key}")


def _is_extra_state(key: object, layers: int) -> bool:
    """Whether a key is that of an ``_extra_state`` in a chunk of so many layers."""
    match = _EXTRA_STATE.fullmatch(str(key))
    return match is not None and (match[1] is None or int(match[1]) < layers)


def _carried(file: TorchFile) -> dict[str, str]:
    """Name what a rank's file holds beside weights and arguments."""
    content = content_of(file)
    found = {key: text for key, text in KINDS.items() if content.get(key) is not None}
    if any((file.file.path.parent / name).exists() for name in _OPTIMIZER_FILES):
        found.setdefault("optimizer", KINDS["optimizer"])
    chunks = (value for key, value in content.items() if str(key).startswith("model"))
    states = (chunk.items() for chunk in chunks if isinstance(chunk, dict))
    if any(v is not None and str(k).endswith(EXTRA_STATE) for own in states for k, v in own):
        found[EXTRA_STATE] = KINDS[EXTRA_STATE]
    return found


def _open_files(paths: Mapping[RankKey, Path]) -> dict[RankKey, TorchFile]:
    files: dict[RankKey, TorchFile] = {}
    try:
        for rank, path in paths.items():
            files[rank] = TorchFile(path)
            check_content(files[rank].root, str(path))
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return files


def open_megatron(
    path: Path, iteration: int | None = None, options: ReadOptions = AS_STORED
) -> Checkpoint:
    """Open the legacy Megatron checkpoint at ``path``, which may be an iteration's folder."""
    folder = iteration_folder(path, iteration)
    return open_ranks(root_folder(path, folder), folder, options)


def open_ranks(path: Path, folder: Path, options: ReadOptions = AS_STORED) -> Checkpoint:
    """Open the legacy Megatron checkpoint in ``folder``, whose root is ``path``; the caller closes
    it.

    Raises:
        BadCheckpointError: For anything missing, extra or contradictory; the message names file and
            tensor.
    """
    files = _open_files(_rank_files(folder))
    try:
        return _assemble(path, folder, files, options)
    except BaseException as error:
        for file in files.values():
            file.close()
        if isinstance(error, RecursionError):
            raise BadCheckpointError("args: hold data nested too deeply", where=folder) from None
        raise


def _is_fused(files: Mapping[RankKey, TorchFile]) -> bool:
    """Whether a norm has its name in Transformer Engine's layer spec."""
    return any(
        "linear_qkv.layer_norm_weight" in str(key)
        for file in files.values()
        for name, chunk in content_of(file).items()
        if str(name).startswith("model") and isinstance(chunk, dict)
        for key in chunk
    )


def _ranks_of(arguments: Mapping[str, object]) -> tuple[object, object]:
    """Return the tensor and pipeline ranks that arguments speak of."""
    return TP.get(arguments) or 1, PP.get(arguments) or 1


def first_arguments(folder: Path) -> tuple[dict[str, object], str]:
    """Return the arguments in an iteration's folder of rank files, and the file they are in."""
    with TorchFile(next(iter(_rank_files(folder).values()))) as file:
        return arguments_of(file), str(file.file.path)


def _assemble(
    path: Path,
    folder: Path,
    files: Mapping[RankKey, TorchFile],
    options: ReadOptions,
) -> Checkpoint:
    first = next(iter(files.values()))
    where = str(first.file.path)
    contents = RankFiles(files)
    check_agreement(files, options.corrections)
    shapes, layout = rank_shapes(files)
    contents.given = said = options.corrections
    if "args" not in content_of(first):
        for key, chunk in content_of(first).items():
            if str(key).startswith("model") and isinstance(chunk, dict):
                refuse_parts(chunk, where)
        said = options.given_arguments
        contents.given = made_arguments(said, shapes, layout, _is_fused(files), where, folder)
    arguments = arguments_in(contents.content(next(iter(files))), where)
    whole = layout is not None and _ranks_of(arguments) == (layout.tp, layout.pp)
    stored = stored_model(arguments, where, options, shapes if whole else None)
    check_ranks(folder, files.keys(), stored.layout)
    for file in files.values():
        for number in range(stored.layout.vpp):
            refuse_parts(_chunk(file, chunk_key(number, stored.layout)), str(file.file.path))
    fused = _is_fused(files)
    arrays = list(_match(files, stored.layout, stored.placements(fused)))
    trusted = any((at / name).is_file() for at in (path, folder) for name in (MANIFEST, TRAINING))
    check_head(arrays, stored.config, said, trusted)
    reader = LogicalReader(stored.tensors, stored.sizes, arrays)
    lost = contents.lost_states() if options.look_only else None
    return Checkpoint(
        path=path,
        folder=folder,
        iteration=iteration_number(content_of(first), where, folder.name),
        config=stored.config,
        layout=stored.layout,
        padded_vocab=stored.padded_vocab,
        vocab_multiple=stored.vocab_multiple,
        dtype=weights_dtype(arguments, reader),
        reader=reader,
        contents=contents,
        fused=fused,
        notes=(
            *stored.notes,
            *([] if lost is None else [Text(lost.message, " (", lost.hint, ")")]),
        ),
        given=said,
        carried={key: text for file in files.values() for key, text in _carried(file).items()},
    )
