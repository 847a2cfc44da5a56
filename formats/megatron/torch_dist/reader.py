"""Opening Megatron's distributed checkpoints (``torch_dist``) without Megatron or torch.

``ROOT/iter_0000100/`` holds ``.metadata`` and ``.distcp`` shards, in which every parameter of the
model is one global array cut into chunks, and a common part with everything else, ``args`` above
all. Keys are those of the Transformer Engine spec without layer numbers: layers are stacked on a
leading dimension, or numbered where they are not alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.layout.placements import Layout, Placement
from flmgrow.formats.megatron.arguments.classes import vouched_arguments
from flmgrow.formats.megatron.arguments.given import corrected, made_arguments
from flmgrow.formats.megatron.arguments.run_rows import IMPLEMENTATION
from flmgrow.formats.megatron.content import EXTRA_STATE, KINDS, arguments_in, chunk_key
from flmgrow.formats.megatron.module_order import module_keys
from flmgrow.formats.megatron.stand_ins import CastPiece
from flmgrow.formats.megatron.stored_model import (
    iteration_number,
    main_weights_dtype,
    main_weights_note,
    stored_model,
    weights_dtype,
)
from flmgrow.formats.megatron.torch_dist.common import COMMON_STATE
from flmgrow.formats.megatron.torch_dist.contents import DistFolder
from flmgrow.formats.megatron.torch_dist.flat_pieces import FlatPiece
from flmgrow.formats.megatron.torch_dist.item_pieces import ItemPiece
from flmgrow.formats.megatron.torch_dist.objects import (
    LAYERS,
    PER_RANK,
    extra_state_key,
    is_of_optimizer,
    left_out,
    parse_name,
)
from flmgrow.formats.megatron.torch_dist.pieces import find_pieces
from flmgrow.formats.megatron.torch_dist.shapes import listed_shapes
from flmgrow.formats.megatron.unsupported import refuse_parts
from flmgrow.formats.pieces import Piece
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.vouched import Vouched
from flmgrow.text import Setting, Text


def _refuse_unknown(contents: DistFolder, pieces: Sequence[Piece], vouched: Vouched) -> None:
    """Refuse every array and object that is neither of the model nor known to be left out."""
    known = {piece.name for piece in pieces if isinstance(piece, ItemPiece | FlatPiece)}
    where = contents.folder
    for name, tensor in contents.metadata.tensors.items():
        if tensor.name not in known and not is_of_optimizer(name):
            raise BadCheckpointError(
                "no such parameter in the model the args describe",
                "flmgrow drops nothing in silence; this model has a part it does not know",
                where=(where, tensor.name),
            )
    for name in contents.metadata.objects:
        if name == COMMON_STATE or is_of_optimizer(name) or extra_state_key(name):
            continue
        key = parse_name(name).key
        if key not in PER_RANK and not vouched.covers(key):
            refuse_parts([key], str(where))
            raise BadCheckpointError(
                "an object that flmgrow does not know",
                Text(
                    "flmgrow drops nothing in silence; if the model computes nothing with it, ",
                    Setting("ignore_arguments", [key]),
                    " leaves it out",
                ),
                where=(where, name),
            )


def _rank_keys(
    contents: DistFolder, expected: Sequence[Placement], layout: Layout
) -> dict[tuple[int, int], dict[str, dict[str, str]]]:
    """Return, per rank and chunk, its keys in module order, each with its key in the whole
    model. Every ``_extra_state`` is in the chunk that has its layer.

    Raises:
        BadCheckpointError: For one of a layer that there is not.
    """
    homes: dict[tuple[int, int], dict[str, str]] = {}
    for key in contents.extra_states:
        pipeline, chunk, own = _home(key, layout, contents.folder)
        homes.setdefault((pipeline, chunk), {})[own] = key
    models: dict[tuple[int, int], dict[str, dict[str, str]]] = {}
    for rank, chunk in product(layout.ranks, range(layout.vpp)):
        own_keys = [p.key for p in expected if (p.rank, p.chunk) == (rank, chunk)]
        first, _ = layout.chunk_range(rank[1], chunk)
        origin = {key: _global(key, first) for key in module_keys(own_keys)}
        origin |= homes.get((rank[1], chunk), {})
        models.setdefault(rank, {})[chunk_key(chunk, layout)] = origin
    return models


def _home(key: str, layout: Layout, where: Path) -> tuple[int, int, str]:
    """Return the pipeline rank and chunk that hold a module, and its key with the chunk's number of
    the layer.
    """
    if not key.startswith(LAYERS):
        begins = key.startswith("embedding.")
        return (0, 0, key) if begins else (layout.pp - 1, layout.vpp - 1, key)
    number, _, rest = key.removeprefix(LAYERS).partition(".")
    for pipeline, chunk in product(range(layout.pp), range(layout.vpp)):
        first, stop = layout.chunk_range(pipeline, chunk)
        if first <= int(number) < stop:
            return pipeline, chunk, f"{LAYERS}{int(number) - first}.{rest}"
    raise BadCheckpointError(
        f"of layer {number}, the args say {layout.layers} layers",
        "the args and the weights do not agree",
        where=(where, key),
    )


def _global(key: str, first: int) -> str:
    """Return a chunk's key with its layer numbered through the whole model."""
    if not key.startswith(LAYERS):
        return key
    number, _, rest = key.removeprefix(LAYERS).partition(".")
    return f"{LAYERS}{int(number) + first}.{rest}"


def open_distributed(
    path: Path, contents: DistFolder, options: ReadOptions = AS_STORED
) -> Checkpoint:
    """Open the distributed checkpoint that consists of ``contents``, whose root is ``path``; the
    caller closes it. They are closed here if it cannot be opened.

    Raises:
        BadCheckpointError: For anything missing, extra or contradictory; the message names file and
            tensor.
    """
    try:
        return _assemble(path, contents, options)
    except BaseException:
        contents.close()
        raise


def _assemble(path: Path, contents: DistFolder, options: ReadOptions) -> Checkpoint:
    where = contents.where
    shapes = listed_shapes(contents.metadata)
    own = arguments_in(contents.root, where) if "args" in contents.root else None
    if own is None:
        refuse_parts(contents.metadata.tensors, str(contents.folder))
        given = options.given_arguments
        contents.arguments = made_arguments(given, shapes, None, True, where, contents.folder)
    elif options.corrections:
        contents.arguments = corrected(own, options.corrections)
    arguments = arguments_in(contents.root, where)
    objects = [parse_name(name).key for name in contents.metadata.objects]
    vouched = vouched_arguments(options.ignored_arguments)
    for_args = vouched.idle(objects)
    stored = stored_model(arguments, where, replace(options, ignored_arguments=for_args), shapes)
    refuse_parts(contents.metadata.tensors, str(contents.folder))
    pieces = find_pieces(contents, stored.tensors, stored.sizes)
    _refuse_unknown(contents, pieces, vouched)
    cast = main_weights_dtype(arguments, pieces) if contents.main_weights else None
    weights = [CastPiece(piece, cast) for piece in pieces] if cast else pieces
    reader = LogicalReader(stored.tensors, stored.sizes, weights)
    fused = contents.fused
    if fused is None:
        fused = IMPLEMENTATION.get(arguments) != "local"
    contents.models = _rank_keys(contents, stored.placements(fused), stored.layout)
    return Checkpoint(
        path=path,
        folder=contents.folder,
        iteration=iteration_number(contents.root, where, contents.folder.name),
        config=stored.config,
        layout=stored.layout,
        padded_vocab=stored.padded_vocab,
        vocab_multiple=stored.vocab_multiple,
        dtype=weights_dtype(arguments, reader),
        reader=reader,
        contents=contents,
        fused=fused,
        carried=_carried(contents, vouched),
        notes=(*stored.notes, *([main_weights_note(cast)] if cast else [])),
        given=options.corrections if own else options.given_arguments,
        format=contents.format,
    )


def _carried(contents: DistFolder, vouched: Vouched) -> dict[str, str]:
    """Name what the checkpoint holds beside weights and arguments."""
    names = [*contents.metadata.tensors, *contents.metadata.objects]
    states = [state for state in contents.extra_states.values() if state is not None]
    found = {
        "optimizer": any(map(is_of_optimizer, names)),
        "opt_param_scheduler": "opt_param_scheduler" in contents.root,
        "rerun_state_machine": "rerun_state_machine" in contents.root,
        EXTRA_STATE: bool(states),
    }
    there = {key: KINDS[key] for key, is_there in found.items() if is_there}
    there |= left_out(contents.metadata.objects, vouched)
    return {key: there[key] for key in (*KINDS, *there) if key in there}
