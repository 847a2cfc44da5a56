"""The non-distributed Adam state of a legacy rank: which record belongs to which parameter.

It knows parameters by number only. Numbers run through the param groups,
and inside a group through the rank's parameters in the order of its modules, which is the order of
its state dict. Which group a parameter is in is not written down either
(:mod:`flmgrow.formats.megatron.param_groups`). With 16-bit weights, float32 masters lie beside.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER, OptimizerState
from flmgrow.formats.layout.lags import Lags, lag_of
from flmgrow.formats.layout.placements import Placed
from flmgrow.formats.megatron.folders import DISTRIBUTED
from flmgrow.formats.megatron.param_groups import Group, by_group
from flmgrow.formats.pieces import Piece, StoredArray
from flmgrow.formats.torch_file.file import TorchFile, scalar
from flmgrow.formats.torch_file.file_writer import new_scalar
from flmgrow.formats.torch_file.values import TensorRecord
from flmgrow.model.states import MOMENTS, State
from flmgrow.text import Found, Text

MASTERS = "fp32_from_fp16_params"
_OF_A_PARAMETER = {"step", *map(str, MOMENTS)}
_BELONG = "the optimizer and the weights do not belong together"


def _keys(groups: Sequence[Sequence[Placed]]) -> set[tuple[str, ...]]:
    return {tuple(sorted(item.placement.key for item in group)) for group in groups if group}


def _without(lag: int, step: object) -> object:
    """Return a count of steps without a lag: as it is stored, where it has none."""
    if not lag:
        return step
    number = scalar(step) if isinstance(step, TensorRecord) else step
    if not isinstance(number, int | float):
        return step
    counted = number + lag
    return new_scalar(counted) if isinstance(step, TensorRecord) else counted


class AdamRank:
    """Reads one rank's non-distributed optimizer state."""

    def __init__(self, file: TorchFile, arrays: Sequence[Piece], lags: Lags) -> None:
        """``arrays`` are the rank's parameters with a state; of some less is counted (``lags``)."""
        self.file = file
        self._lags = lags
        self.where = f"{file.file.path}: optimizer"
        self.gradients: str | None = None
        assert isinstance(file.root, dict)
        content = file.root.get("optimizer")
        if content is None and (file.file.path.parent / DISTRIBUTED).exists():
            raise self._distributed()
        self.content = self._dict(content, "the whole")
        self.mixed_precision = "optimizer" in self.content
        self.inner = (
            self._dict(self.content["optimizer"], "inner") if self.mixed_precision else self.content
        )
        if "state" not in self.inner:
            raise self._distributed()
        if self.mixed_precision and MASTERS not in self.content:
            raise BadCheckpointError("not there", _BELONG, where=(self.where, MASTERS))
        self._check_known(self.inner, {"state", "param_groups"}, "")
        self.groups = self._groups()
        try:
            self.grouped = by_group(self.groups, arrays)
        except BadCheckpointError as error:
            raise error.at(self.where) from None

    @property
    def members(self) -> set[tuple[str, ...]]:
        """The keys of the parameters in each group that has any."""
        return _keys(self.grouped)

    def members_by(self, groups: Sequence[Group]) -> set[tuple[str, ...]]:
        """Return what ``members`` would be were the rank's groups these, of another rank."""
        return _keys(by_group(groups, [piece for group in self.grouped for piece in group]))

    def _distributed(self) -> BadCheckpointError:
        return BadCheckpointError(
            "has no state: a distributed optimizer needs its param groups and "
            f"{DISTRIBUTED} beside them",
            "copy the rank folders again; " + WITHOUT_OPTIMIZER,
            where=self.where,
        )

    def _check_known(self, found: Mapping[object, object], known: set[str], of: str) -> None:
        """Nothing is dropped in silence: a key that would not be written again is refused."""
        if unknown := [str(key) for key in found if key not in known]:
            raise BadCheckpointError(
                f"{unknown[0]}{of}: flmgrow does not know what it is",
                "only Adam's state is understood; " + WITHOUT_OPTIMIZER,
                where=self.where,
            )

    def _dict(self, value: object, name: str) -> Mapping[object, object]:
        if not isinstance(value, dict):
            raise BadCheckpointError(f"is no dict, but {value!r:.60}", where=(self.where, name))
        return value

    def _groups(self) -> list[Group]:
        groups = self.inner.get("param_groups")
        if not isinstance(groups, list) or not groups:
            raise BadCheckpointError("has no param_groups", where=self.where)
        return [self._dict(group, "param group") for group in groups]

    def _record(self, value: object, array: Piece, name: str) -> StoredArray:
        where = f"{self.where}: {name} of {array.placement.key}"
        if not isinstance(value, TensorRecord) or value.shape != array.placement.shape:
            found = value.shape if isinstance(value, TensorRecord) else f"{value!r:.40}"
            raise BadCheckpointError(
                Text(Found(found)), _BELONG, where=where, wanted=array.placement.shape
            )
        return StoredArray(array.placement, self.file, value)

    def _numbers(self, group: Group, members: int) -> list[int]:
        """Return the numbers of a group's parameters, one for each of its ``members``."""
        numbers = group.get("params")
        found = len(numbers) if isinstance(numbers, list) else "no"
        if not isinstance(numbers, list) or found != members:
            what = Text("a param group has ", Found(found), " parameters")
            raise BadCheckpointError(what, _BELONG, where=self.where, wanted=members)
        if not all(type(number) is int for number in numbers):
            raise BadCheckpointError(
                f"a param group numbers them {numbers!r:.60}", where=self.where
            )
        return numbers

    @cached_property
    def entries(self) -> list[tuple[Piece, Mapping[object, object]]]:
        """Every parameter with its entry in the state."""
        state = self._dict(self.inner["state"], "state")
        arrays = [array for members in self.grouped for array in members]
        numbers = [
            number
            for group, members in zip(self.groups, self.grouped, strict=True)
            for number in self._numbers(group, len(members))
        ]
        if len(state) != len(arrays) or len(set(numbers)) != len(arrays):
            found = f"state of {len(state)} parameters for {len(set(numbers))} numbers"
            raise BadCheckpointError(
                Text(Found(found)), _BELONG, where=self.where, wanted=len(arrays)
            )
        entries = []
        for number, array in zip(numbers, arrays, strict=True):
            entry = self._dict(state.get(number), f"state of {array.placement.key}")
            self._check_known(entry, _OF_A_PARAMETER, f" of {array.placement.key}")
            entries.append((array, entry))
        return entries

    @property
    def kinds(self) -> tuple[State, ...]:
        """The states that are kept for every parameter."""
        return (State.MASTER, *MOMENTS) if self.mixed_precision else MOMENTS

    def pieces(self, kind: State) -> list[StoredArray]:
        """Return one state of every parameter."""
        if kind is State.MASTER:
            return self._masters()
        return [self._record(entry.get(str(kind)), a, str(kind)) for a, entry in self.entries]

    def _masters(self) -> list[StoredArray]:
        stored = self.content[MASTERS]
        wanted = [len(members) for members in self.grouped]
        groups = stored if isinstance(stored, list) else []
        found = [len(group) if isinstance(group, list) else None for group in groups]
        if not isinstance(stored, list) or found != wanted:
            raise BadCheckpointError("not one per parameter", _BELONG, where=(self.where, MASTERS))
        return [
            self._record(record, array, "master")
            for records, members in zip(stored, self.grouped, strict=True)
            for record, array in zip(records, members, strict=True)
        ]

    def steps(self) -> list[object]:
        """Return what Adam counted for every parameter, and would have without its lag."""
        return [
            _without(lag_of(array.placement, self._lags) or 0, entry.get("step"))
            for array, entry in self.entries
        ]

    def state(self) -> OptimizerState:
        """Return what is not per parameter."""
        return OptimizerState(
            groups=tuple({k: v for k, v in g.items() if k != "params"} for g in self.groups),
            step=next(iter(self.steps()), None),
            mixed_precision=self.mixed_precision,
            other={k: v for k, v in self.content.items() if k not in ("optimizer", MASTERS)}
            if self.mixed_precision
            else {},
        )
