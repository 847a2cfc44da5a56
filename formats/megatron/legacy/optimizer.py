"""The optimizer state of a legacy Megatron checkpoint, of either kind, as readers of its states.

Adam's state lies with the weights, one record per parameter, or beside them in the flat buffers of
a distributed optimizer. Whatever it is, every rank must have the same, and have counted the same
steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER, Checkpoint
from flmgrow.formats.layout.lags import Lags, with_state
from flmgrow.formats.megatron.arguments.mup_rows import is_native
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.distributed import DistributedRank
from flmgrow.formats.megatron.folders import DISTRIBUTED, RankKey
from flmgrow.formats.megatron.gradient_buffers import BucketRule, module_order
from flmgrow.formats.megatron.legacy.adam import AdamRank
from flmgrow.formats.megatron.legacy.contents import RankFiles, digest_files, is_stateless
from flmgrow.formats.megatron.param_groups import Group
from flmgrow.formats.megatron.stand_ins import stand_ins
from flmgrow.formats.pieces import Piece
from flmgrow.formats.reading import LogicalReader
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.model.states import State
from flmgrow.text import Found, Text, Wanted

RankOptimizer = AdamRank | DistributedRank


def _rank_optimizer(
    checkpoint: Checkpoint, files: RankFiles, rank: RankKey, lags: Lags
) -> RankOptimizer:
    """Return the reader of a rank's optimizer state, of whichever kind it is."""
    file = files.files[rank]
    pieces = with_state(module_order(checkpoint, rank, checkpoint.reader.arrays), lags)
    content = files.content(rank).get("optimizer")
    beside = is_stateless(files.content(rank)) and file.file.path.with_name(DISTRIBUTED).exists()
    if isinstance(content, dict) and beside:
        split = checkpoint.config.tied and checkpoint.layout.pp > 1
        cut = BucketRule(arguments_in(files.content(rank), str(file.file.path)), split)
        return DistributedRank(
            file, content, files.open_beside(rank, DISTRIBUTED), pieces, checkpoint.dtype, cut
        )
    return AdamRank(file, pieces, lags)


def _value(optimizer: RankOptimizer, value: object) -> object:
    """Return a setting as something that can be compared: the bytes of one kept as a tensor."""
    if isinstance(value, TensorRecord) and value.storage.data is not None:
        return value.storage.data
    if isinstance(value, TensorRecord):
        return bytes(optimizer.file.read(value.storage, value.offset, value.nbytes))
    return value


def _step_value(optimizer: RankOptimizer) -> object:
    """Return the one step count of a rank.

    Raises:
        BadCheckpointError: If parameters differ in it.
    """
    values = {repr(_value(optimizer, step)) for step in optimizer.steps()}
    if len(values) > 1:
        raise BadCheckpointError(
            f"parameters have {len(values)} different step counts",
            "parameters frozen for a while cannot be carried; " + WITHOUT_OPTIMIZER,
            where=optimizer.where,
        )
    return next(iter(values), None)


def _settings(optimizer: RankOptimizer, group: Group) -> dict[object, object]:
    """Return what a param group says, but for its parameters."""
    return {key: _value(optimizer, value) for key, value in group.items() if key != "params"}


def _check_alike(
    optimizer: RankOptimizer, first: RankOptimizer, step_of: Callable[[RankOptimizer], object]
) -> None:
    """All ranks must have the same groups and have counted alike; one without layers has none.

    The groups may stand in another order, and one that no parameter of a rank is in may lack there:
    megatron-core up to 0.15 makes them as a rank's own parameters come.
    """
    left = [_settings(first, group) for group in first.groups]
    for group in optimizer.groups:
        own = _settings(optimizer, group)
        if own not in left:
            raise BadCheckpointError(
                Text("a param group ", _unlike(own, left, first.where)),
                "ranks of one checkpoint must agree; " + WITHOUT_OPTIMIZER,
                where=optimizer.where,
            )
        left.remove(own)
    if isinstance(optimizer, AdamRank) and optimizer.members != optimizer.members_by(first.groups):
        raise BadCheckpointError(
            Text("has ", Found(len(optimizer.groups)), " param groups"),
            "ranks of one checkpoint must agree; " + WITHOUT_OPTIMIZER,
            where=optimizer.where,
            wanted=f"those of {len(first.groups)} in {first.where} that its parameters belong to",
        )
    if (optimizer.mixed_precision, optimizer.gradients) != (first.mixed_precision, first.gradients):
        raise BadCheckpointError(
            f"keeps other states than {first.where}",
            "ranks of one checkpoint must agree; " + WITHOUT_OPTIMIZER,
            where=optimizer.where,
        )
    if optimizer.steps() and step_of(optimizer) != step_of(first):
        raise BadCheckpointError(
            f"another step count than {first.where}",
            "ranks of one checkpoint must agree; " + WITHOUT_OPTIMIZER,
            where=optimizer.where,
        )


def _unlike(
    group: Mapping[object, object], others: Sequence[Mapping[object, object]], where: str
) -> str:
    """Say what a group has that none of ``others``, which are of ``where``, has: the first setting
    in which all differ.
    """
    for key, value in group.items():
        found = [other.get(key) for other in others]
        if value not in found:
            shown = ", ".join(sorted({repr(one)[:40] for one in found})) or "no such group"
            has = Text(f"has {str(key)[:40]} ", Found(f"{value!r:.40}"))
            return Text(has, Wanted(f"{shown} as in {where}"))
    return f"is unlike all of {where}"


def _dtype(kind: State, pieces: Sequence[Piece]) -> str:
    """Return the one dtype of a state.

    Raises:
        BadCheckpointError: If parameters differ in it.
    """
    first = pieces[0]
    for piece in pieces:
        if piece.dtype != first.dtype:
            raise BadCheckpointError(
                f"{piece}: {kind} is {piece.dtype}, that of {first} is {first.dtype}",
                "one state in several dtypes is not supported; " + WITHOUT_OPTIMIZER,
            )
    return first.dtype


def with_rank_states(checkpoint: Checkpoint, files: RankFiles, lags: Lags) -> Checkpoint:
    """Return ``checkpoint`` with the optimizer state in its rank files found.

    ``lags`` say which parameters have less of it, or none.

    Raises:
        BadCheckpointError: If the state does not fit the weights, is of a kind that is not
            understood, or differs between ranks where it may not; the message names the file.
    """
    if (lost := files.lost_states()) is not None:
        raise lost
    ranks = {rank: _rank_optimizer(checkpoint, files, rank, lags) for rank in files.files}
    first = max(ranks.values(), key=lambda found: (len(found.groups), bool(found.steps())))
    step_of = cache(_step_value)  # each is read once
    for optimizer in ranks.values():
        _check_alike(optimizer, first, step_of)
    plain = {name: replace(t, shift=0.0) for name, t in checkpoint.reader.tensors.items()}
    readers: dict[State, LogicalReader] = {}
    dtypes: dict[State, str] = {}
    for kind in first.kinds:
        arrays: list[Piece] = [
            piece for optimizer in ranks.values() for piece in optimizer.pieces(kind)
        ]
        tensors = checkpoint.reader.tensors if kind is State.MASTER else plain
        missing = stand_ins(kind, arrays[0].dtype, checkpoint.reader.arrays, lags)
        readers[kind] = LogicalReader(tensors, checkpoint.stored_sizes, [*arrays, *missing])
        dtypes[kind] = _dtype(kind, arrays)
    arguments = arguments_in(files.content(next(iter(ranks))), str(checkpoint.folder))
    state = replace(
        first.state(),
        dtypes=dtypes,
        digest=digest_files(files.beside),
        lags=lags,
        native_mup=is_native(arguments),
    )
    return replace(checkpoint, optimizer=state, state_readers=readers)
