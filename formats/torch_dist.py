"""Opening megatron-core's distributed checkpoint (``torch_dist``) without Megatron or torch.

``ROOT/iter_0000100/`` holds ``.metadata`` and ``.distcp`` shards, in which every parameter of the
model is one global array cut into chunks, and a common part with everything else, ``args`` above
all. Keys are those of the Transformer Engine spec without layer numbers: layers are stacked on a
leading dimension, or numbered where they are not alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import AS_STORED, Checkpoint, ReadOptions
from flmgrow.formats.chunks import chunk_placement, whole_placement
from flmgrow.formats.dcp_metadata import DcpTensor
from flmgrow.formats.given_arguments import corrected, made_arguments
from flmgrow.formats.layout import Layout, Placement
from flmgrow.formats.megatron import arguments_in, chunk_key
from flmgrow.formats.module_order import module_keys
from flmgrow.formats.reading import LogicalReader, Piece
from flmgrow.formats.stored_model import iteration_number, stored_model, weights_dtype
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.formats.tables.row import Home
from flmgrow.formats.torch_dist_contents import COMMON_STATE, LAYERS, DistFolder, ItemPiece
from flmgrow.formats.torch_dist_shapes import listed_shapes
from flmgrow.model.axes import Axis, Sizes
from flmgrow.model.tensors import LogicalTensor

_OPTIMIZER = "optimizer."
_RANDOM = "rng_state"


def _expected(tensors: Mapping[str, LogicalTensor], sizes: Sizes) -> Iterator[Placement]:
    """Yield the placement of every whole array a checkpoint of this model has."""
    for row in ROWS:
        parts = [tensors[name] for name in row.parts if name in tensors]
        if parts and row.home is not Home.LAST_COPY:
            yield whole_placement(row, parts, sizes)


def _cut(
    contents: DistFolder, tensor: DcpTensor, whole: Placement, sizes: Sizes, layer: int | None
) -> Iterator[Piece]:
    """Yield a piece for each chunk; ``layer`` is None where layers are stacked in front."""
    stacked = layer is None and whole.row.home is Home.LAYER
    wanted = (sizes[Axis.LAYER], *whole.shape) if stacked else whole.shape
    where = f"{contents.folder}: {tensor.name}"
    if tensor.shape != wanted:
        raise BadCheckpointError(
            f"{where}: shape {tensor.shape}, wanted {wanted}",
            "the args and the weights do not agree",
        )
    for chunk in tensor.chunks:
        spans = [(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True)]
        own = layer
        if stacked:
            (own, stop), *spans = spans
            if stop != own + 1:
                raise BadCheckpointError(f"{where}: a chunk spans layers {own} to {stop}")
        try:
            placement = chunk_placement(whole, sizes, own, spans)
        except BadCheckpointError as error:
            raise BadCheckpointError(f"{where}: {error.message}") from None
        yield ItemPiece(placement, tensor.dtype, tensor.name, chunk, contents.items)


def find_pieces(
    contents: DistFolder, tensors: Mapping[str, LogicalTensor], sizes: Sizes, prefix: str = ""
) -> list[Piece]:
    """Return a piece for every chunk of every parameter, its key behind ``prefix``.

    Raises BadCheckpointError for one that is missing or has another shape than the model says.
    """
    stored = contents.metadata.tensors
    pieces: list[Piece] = []
    for whole in _expected(tensors, sizes):
        key = prefix + whole.key.replace("{layer}.", "")
        if key in stored:
            pieces += _cut(contents, stored[key], whole, sizes, None)
            continue
        numbered = [prefix + whole.key.format(layer=n) for n in range(sizes[Axis.LAYER])]
        if whole.row.home is not Home.LAYER or not all(name in stored for name in numbered):
            raise BadCheckpointError(
                f"{contents.folder}: {key}: not there", "the args and the weights do not agree"
            )
        for layer, name in enumerate(numbered):
            pieces += _cut(contents, stored[name], whole, sizes, layer)
    return pieces


def _refuse_unknown(contents: DistFolder, pieces: Sequence[Piece]) -> None:
    known = {piece.name for piece in pieces if isinstance(piece, ItemPiece)}
    others = [n for n in contents.metadata.objects if n != COMMON_STATE]
    objects = [n for n in others if "_extra_state/" not in n]
    odd = [n for n in contents.metadata.tensors if n not in known and not n.startswith(_OPTIMIZER)]
    odd += [n for n in objects if not n.startswith((_RANDOM, _OPTIMIZER))]
    if odd:
        raise BadCheckpointError(
            f"{contents.folder}: {odd[0]}: no such parameter in the model the args describe",
            "flmgrow drops nothing in silence; this model has a part it does not know",
        )


def _rank_keys(
    contents: DistFolder, expected: Sequence[Placement], layout: Layout
) -> dict[tuple[int, int], dict[str, dict[str, str]]]:
    """Return, per rank and chunk, its keys in module order, each with its key in the whole
    model.
    """
    extra: dict[str, list[str]] = {}
    for key in contents.extra_states:
        extra.setdefault(key.rpartition(".")[0], []).append(key)
    models: dict[tuple[int, int], dict[str, dict[str, str]]] = {}
    for rank in layout.ranks:
        for chunk in range(layout.vpp):
            own = [
                p for p in expected
                if (p.tensor_rank, p.pipeline_rank, p.chunk) == (*rank, chunk)
            ]  # fmt: skip
            first, _ = layout.chunk_range(rank[1], chunk)
            origin: dict[str, str] = {}
            for key in module_keys([placement.key for placement in own]):
                origin[key] = _global(key, first)
                for state in extra.get(_global(key, first).rpartition(".")[0], ()):
                    origin[f"{key.rpartition('.')[0]}.{state.rpartition('.')[2]}"] = state
            models.setdefault(rank, {})[chunk_key(chunk, layout)] = origin
    return models


def _global(key: str, first: int) -> str:
    """Return a chunk's key with its layer numbered through the whole model."""
    if not key.startswith(LAYERS):
        return key
    number, _, rest = key.removeprefix(LAYERS).partition(".")
    return f"{LAYERS}{int(number) + first}.{rest}"


def open_torch_dist(path: Path, folder: Path, options: ReadOptions = AS_STORED) -> Checkpoint:
    """Open the distributed checkpoint in ``folder``, whose root is ``path``; the caller closes it.

    Raises BadCheckpointError, naming file and tensor, for anything missing, extra or contradictory.
    """
    contents = DistFolder(folder)
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
        given = options.given_arguments
        contents.arguments = made_arguments(given, shapes, None, True, where, contents.folder)
    elif options.given_arguments:
        contents.arguments = corrected(own, options.given_arguments)
    arguments = arguments_in(contents.root, where)
    stored = stored_model(arguments, where, options, shapes)
    pieces = find_pieces(contents, stored.tensors, stored.sizes)
    _refuse_unknown(contents, pieces)
    reader = LogicalReader(stored.tensors, stored.sizes, pieces)
    fused = arguments.get("transformer_impl") != "local"
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
        carried=_carried(contents),
        notes=stored.notes,
        given=options.given_arguments,
        format="torch_dist",
    )


def _carried(contents: DistFolder) -> dict[str, str]:
    """Name what the checkpoint holds beside weights and arguments."""
    names = [*contents.metadata.tensors, *contents.metadata.objects]
    found = {
        "optimizer": (any(name.startswith(_OPTIMIZER) for name in names), "optimizer state"),
        "opt_param_scheduler": ("opt_param_scheduler" in contents.root, "learning-rate schedule"),
        _RANDOM: (any(name.startswith(_RANDOM) for name in names), "random number state"),
    }
    return {key: text for key, (there, text) in found.items() if there}
