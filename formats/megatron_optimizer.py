"""The optimizer state of a legacy Megatron checkpoint: which record belongs to which parameter.

A non-distributed Adam state knows parameters by number only. Numbers run through the param groups,
and inside a group through the rank's parameters in the order of its modules, which is the order of
its state dict. Which group a parameter is in is not written down either: Megatron-LM puts biases
and one-dimensional parameters into groups without weight decay and, if asked to, embedding and head
into groups with a learning rate of their own. With 16-bit weights, float32 masters lie beside.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.inert_values import TensorRecord
from flmgrow.formats.layout import Placement
from flmgrow.formats.megatron import chunk_key
from flmgrow.formats.reading import LogicalReader, StoredArray
from flmgrow.formats.torch_zip import TorchFile
from flmgrow.model.states import State

Group = Mapping[object, object]
MOMENTS = (State.EXP_AVG, State.EXP_AVG_SQ)
MASTERS = "fp32_from_fp16_params"
_BELONG = "the optimizer and the weights do not belong together"


class Placed(Protocol):
    """Anything that has a placement."""

    @property
    def placement(self) -> Placement:
        """Where it belongs."""


Item = TypeVar("Item", bound=Placed)


def _has_own_rate(placement: Placement) -> bool:
    return placement.key.startswith(("embedding.", "output_layer."))


def _without_decay(placement: Placement) -> bool:
    return placement.key.endswith(".bias") or len(placement.shape) == 1


def _group_of(groups: Sequence[Group], placement: Placement) -> int:
    """Return the number of the group a parameter belongs to, by Megatron-LM's own rule."""
    if len(groups) == 1:
        return 0
    decoupled = any(group.get("is_decoupled_lr") for group in groups)
    fitting = [
        number
        for number, group in enumerate(groups)
        if (group.get("wd_mult", 1.0) == 0.0) == _without_decay(placement)
        and bool(group.get("is_decoupled_lr")) == (decoupled and _has_own_rate(placement))
    ]
    if len(fitting) != 1:
        raise BadCheckpointError(
            f"{placement.key}: fits {len(fitting)} of the optimizer's {len(groups)} param groups",
            "only Megatron-LM's own groups are understood; --no-optimizer goes on without",
        )
    return fitting[0]


def by_group(groups: Sequence[Group], items: Sequence[Item]) -> list[list[Item]]:
    """Return the parameters of each group, in the order in which the optimizer numbers them.

    Raises BadCheckpointError if a parameter fits no group or several.
    """
    result: list[list[Item]] = [[] for _ in groups]
    for item in items:
        result[_group_of(groups, item.placement)].append(item)
    return result


class _RankOptimizer:
    """Reads one rank's non-distributed optimizer state."""

    def __init__(self, file: TorchFile, arrays: Sequence[StoredArray]) -> None:
        self.file = file
        self.where = f"{file.file.path}: optimizer"
        assert isinstance(file.root, dict)
        self.content = self._dict(file.root.get("optimizer"), "the whole")
        self.half = MASTERS in self.content
        inner = self.content.get("optimizer") if self.half else self.content
        self.inner = self._dict(inner, "optimizer")
        if "state" not in self.inner:
            raise BadCheckpointError(
                f"{self.where}: has no state: this is a distributed optimizer",
                "this version carries a non-distributed one; --no-optimizer goes on without",
            )
        self.groups = self._groups()
        self.grouped = by_group(self.groups, arrays)

    def _dict(self, value: object, name: str) -> Mapping[object, object]:
        if not isinstance(value, dict):
            raise BadCheckpointError(f"{self.where}: {name}: is no dict, but {value!r:.60}")
        return value

    def _groups(self) -> list[Group]:
        groups = self.inner.get("param_groups")
        if not isinstance(groups, list) or not groups:
            raise BadCheckpointError(f"{self.where}: has no param_groups")
        return [self._dict(group, "param group") for group in groups]

    def _record(self, value: object, array: StoredArray, name: str) -> StoredArray:
        where = f"{self.where}: {name} of {array.placement.key}"
        if not isinstance(value, TensorRecord) or value.shape != array.placement.shape:
            found = value.shape if isinstance(value, TensorRecord) else f"{value!r:.40}"
            raise BadCheckpointError(f"{where}: {found}, wanted {array.placement.shape}", _BELONG)
        if not value.is_contiguous:
            raise BadCheckpointError(f"{where}: is not contiguous")
        return StoredArray(array.placement, self.file, value)

    def entries(self) -> Iterator[tuple[StoredArray, Mapping[object, object]]]:
        """Yield every parameter with its entry in the state."""
        state = self._dict(self.inner["state"], "state")
        for group, members in zip(self.groups, self.grouped, strict=True):
            numbers = group.get("params")
            if not isinstance(numbers, list) or len(numbers) != len(members):
                found = len(numbers) if isinstance(numbers, list) else "no"
                raise BadCheckpointError(
                    f"{self.where}: a param group has {found} parameters, wanted {len(members)}",
                    _BELONG,
                )
            for number, array in zip(numbers, members, strict=True):
                yield array, self._dict(state.get(number), f"state of {array.placement.key}")

    def moments(self, kind: State) -> list[StoredArray]:
        """Return one moment of every parameter."""
        return [self._record(entry.get(str(kind)), a, str(kind)) for a, entry in self.entries()]

    def masters(self) -> list[StoredArray]:
        """Return the float32 master of every parameter."""
        stored = self.content[MASTERS]
        if not isinstance(stored, list) or [len(group) for group in stored] != [
            len(members) for members in self.grouped
        ]:
            raise BadCheckpointError(f"{self.where}: {MASTERS}: not one per parameter", _BELONG)
        return [
            self._record(record, array, "master")
            for records, members in zip(stored, self.grouped, strict=True)
            for record, array in zip(records, members, strict=True)
        ]

    def steps(self) -> list[object]:
        """Return what Adam counted for every parameter."""
        return [entry.get("step") for _, entry in self.entries()]

    def state(self) -> OptimizerState:
        """Return what is not per parameter."""
        return OptimizerState(
            groups=tuple({k: v for k, v in g.items() if k != "params"} for g in self.groups),
            step=next(iter(self.steps()), None),
            half=self.half,
            other={k: v for k, v in self.content.items() if k not in ("optimizer", MASTERS)}
            if self.half
            else {},
        )


def module_order(checkpoint: Checkpoint, rank: tuple[int, int]) -> list[StoredArray]:
    """Return a rank's weights in the order of its modules: the order of its state dicts."""
    root = checkpoint.files[rank].root
    assert isinstance(root, dict)
    own = {
        (array.placement.chunk, array.placement.key): array
        for array in checkpoint.reader.arrays
        if (array.placement.tensor_rank, array.placement.pipeline_rank) == rank
    }
    return [
        own[chunk, str(key)]
        for chunk in range(checkpoint.layout.vpp)
        for key in root[chunk_key(chunk, checkpoint.layout)]
        if (chunk, key) in own
    ]


def _step_value(optimizer: _RankOptimizer) -> object:
    """Return the one step count of a rank. Raises BadCheckpointError if parameters differ in it."""
    values = set()
    for step in optimizer.steps():
        if isinstance(step, TensorRecord):
            values.add(bytes(optimizer.file.read(step.storage, step.offset, step.nbytes)))
        else:
            values.add(repr(step).encode())
    if len(values) > 1:
        raise BadCheckpointError(
            f"{optimizer.where}: parameters have {len(values)} different step counts",
            "parameters frozen for a while cannot be carried; --no-optimizer goes on without",
        )
    return next(iter(values), None)


def with_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    """Return ``checkpoint`` with its optimizer state found, or as it is if it has none.

    Raises BadCheckpointError, naming the file, if the state does not fit the weights, is of a kind
    that is not understood, or differs between ranks where it may not.
    """
    if "optimizer" not in checkpoint.carried:
        return checkpoint
    ranks = {
        rank: _RankOptimizer(file, module_order(checkpoint, rank))
        for rank, file in checkpoint.files.items()
    }
    first = next(iter(ranks.values()))
    for optimizer in ranks.values():
        same_groups = len(optimizer.groups) == len(first.groups)
        if not same_groups or optimizer.half != first.half:
            raise BadCheckpointError(f"{optimizer.where}: unlike that of {first.where}")
        if _step_value(optimizer) != _step_value(first):
            raise BadCheckpointError(f"{optimizer.where}: another step count than {first.where}")
    kinds = (State.MASTER, *MOMENTS) if first.half else MOMENTS
    plain = {name: replace(t, shift=0.0) for name, t in checkpoint.reader.tensors.items()}
    readers = {}
    for kind in kinds:
        master = kind is State.MASTER
        arrays = [a for o in ranks.values() for a in (o.masters() if master else o.moments(kind))]
        tensors = checkpoint.reader.tensors if master else plain
        readers[kind] = LogicalReader(tensors, checkpoint.stored_sizes, arrays)
    dtypes = {kind: reader.arrays[0].record.dtype for kind, reader in readers.items()}
    state = replace(first.state(), dtypes=dtypes)
    return replace(checkpoint, optimizer=state, state_readers=readers)
