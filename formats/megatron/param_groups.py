"""Which param group of Adam's a parameter is in, by the groups' settings alone.

No checkpoint of Megatron's ranks says it. Megatron-LM puts biases and one-dimensional parameters
into groups without weight decay and, if asked to, embedding and head into groups with a learning
rate of their own; groups made for muP name the kind of parameter they are for
(``flmgrow/model/mup.py``).
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import WITHOUT_OPTIMIZER
from flmgrow.formats.layout.placements import Placed, Placement
from flmgrow.model.mup import KIND, Kind, kind_of

Group = Mapping[object, object]

Item = TypeVar("Item", bound=Placed)

Deciding = tuple[bool, bool, object]
"""Whether a group is without weight decay, has a rate of its own, and the kind that it names."""


def deciding_settings(group: Group) -> Deciding:
    """Return what of a group's settings decides on the parameters that are in it."""
    without_decay = group.get("wd_mult", 1.0) == 0.0
    return without_decay, bool(group.get("is_decoupled_lr")), group.get(KIND)


def _has_own_rate(placement: Placement) -> bool:
    return placement.key.startswith(("embedding.", "output_layer."))


def _without_decay(placement: Placement) -> bool:
    return placement.key.endswith(".bias") or len(placement.shape) == 1


def _group_of(groups: Sequence[Group], placement: Placement) -> int:
    """Return the number of the group a parameter belongs to: by Megatron-LM's own rule, and by the
    kind that a group made for muP names.
    """
    if len(groups) == 1:
        return 0
    kind = kind_of(placement.parts[0])
    deciding = [deciding_settings(group) for group in groups]
    own_rate = any(rate for _, rate, _ in deciding) and _has_own_rate(placement)
    fitting = [
        number
        for number, (without_decay, rate, named) in enumerate(deciding)
        if (without_decay, rate) == (_without_decay(placement), own_rate) and named in (None, kind)
    ]
    if len(fitting) == 2 and _is_native_mup(*(groups[number] for number in fitting)):
        return fitting[int(kind is Kind.HIDDEN)]
    if len(fitting) != 1:
        raise BadCheckpointError(
            f"{placement.key}: fits {len(fitting)} of the optimizer's {len(groups)} param groups",
            "only Megatron-LM's own groups are understood; " + WITHOUT_OPTIMIZER,
        )
    return fitting[0]


def _is_native_mup(first: Group, second: Group) -> bool:
    """Whether megatron-core's muP (0.17 and newer) made the ``second`` group, for hidden matrices.

    It puts groups with settings of their own behind the one that has none, and gives these another
    epsilon; in all else both are alike.
    """
    names = {*first, *second} - {"params"}
    unlike = {name for name in names if first.get(name) != second.get(name)}
    moved = {"lr", "max_lr", "min_lr", "eps", "default_config"}
    return bool(first.get("default_config", True)) and "eps" in unlike and unlike <= moved


def by_group(groups: Sequence[Group], items: Sequence[Item]) -> list[list[Item]]:
    """Return the parameters of each group, in the order in which the optimizer numbers them.

    Raises:
        BadCheckpointError: If a parameter fits no group or several.
    """
    result: list[list[Item]] = [[] for _ in groups]
    for item in items:
        result[_group_of(groups, item.placement)].append(item)
    return result
