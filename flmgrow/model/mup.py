"""The muP settings of a model and of its optimizer, and how a wider model changes them.

muP gives parameters settings by their kind, and a growth of the width moves these settings.

Yang and Hu et al. (Tensor Programs V, table 8) divide AdamW's learning rate of *hidden* matrices,
which go from width to width, by the width over a base width. A model that grew by r needs a
learning rate of 1/r of what it had, and to take exactly the steps the small one would have taken,
epsilon and weight decay must follow as well, for every kind of its own:

    ======  ===================================  =============  =======  ============
    kind    which                                learning rate  epsilon  weight decay
    ======  ===================================  =============  =======  ============
    hidden  matrices inside layers               1/r            1/r      r
    head    the head; of a tied model the final  1/r            1        r
            norm, which carries its scale
    vector  embeddings, norms, biases            1              1/r      1
    shared  norms over a head's entries          1              1        1
    ======  ===================================  =============  =======  ============

All heads share a norm over their entries, so it does not see the width. The head's row is that of a
model whose logits keep their effective multiplier. Derived and tested in
``tests/operators/test_mup_equivalence.py``. Param groups do not say which parameters are in them,
so a trainer that makes such groups puts the kind into each, under :data:`KIND`.

megatron-core (0.17 and newer) has a muP of its own, which names no kinds and moves less: with m,
the width over the base width, hidden matrices have 1/m of the learning rate and of epsilon, weight
decay stays, and so does everything else. Its groups are known by these quotients, and get those
that it would compute for the new width, as it finds groups again by their settings. At the base
width hidden matrices are in one group with the embeddings: there theirs begins, and there it ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isclose

from flmgrow.errors import UsageError
from flmgrow.model.axes import Role
from flmgrow.model.tensors import LogicalTensor
from flmgrow.text import Found, Pass, Text

KIND = "flmgrow_mup"
"""The key of a param group under which the kind of its parameters stands."""


class Kind(StrEnum):
    """What a parameter is to muP."""

    HIDDEN = "hidden"
    HEAD = "head"
    VECTOR = "vector"
    SHARED = "shared"


def kind_of(tensor: LogicalTensor) -> Kind:
    """Return a tensor's kind; it follows from the roles of its axes."""
    roles = frozenset[Role]().union(*tensor.roles)
    if Role.READS in roles:
        return Kind.HIDDEN if tensor.layered else Kind.HEAD
    if Role.CARRIES in roles:
        return Kind.HEAD
    return Kind.VECTOR if roles & _WIDE else Kind.SHARED


@dataclass(frozen=True)
class Exponents:
    """To which power of the ratio of widths a setting is multiplied."""

    rate: int
    epsilon: int
    decay: int


EXPONENTS: Mapping[Kind, Exponents] = {
    Kind.HIDDEN: Exponents(-1, -1, 1),
    Kind.HEAD: Exponents(-1, 0, 1),
    Kind.VECTOR: Exponents(0, -1, 0),
    Kind.SHARED: Exponents(0, 0, 0),
}

_WIDE = frozenset({Role.WRITES, Role.GAINS, Role.NORM_BIAS})

_SETTINGS = {
    "lr": "rate",
    "max_lr": "rate",
    "min_lr": "rate",
    "eps": "epsilon",
    "weight_decay": "decay",
    "wd_mult": "decay",
}


def grown_group(group: Mapping[object, object], ratio: float) -> Mapping[object, object]:
    """Return a param group with settings for ``ratio`` times the width.

    A group that does not say its kind, and settings it does not have, stay as they are.

    Raises:
        UsageError: For a setting that is no number.
    """
    kind = group.get(KIND)
    if kind not in list(Kind):
        return group
    if ratio == 1:
        return group
    exponents = EXPONENTS[Kind(str(kind))]
    moved = dict(group)
    for name, column in _SETTINGS.items():
        value = moved.get(name)
        if isinstance(value, int | float):
            moved[name] = value * ratio ** getattr(exponents, column)
        elif value is not None:
            raise UsageError(
                Text(
                    f"optimizer: {name} of the param group of {kind} parameters is ",
                    Found(f"{value!r:.60}"),
                ),
                Text(
                    "save it from a run that keeps its settings as numbers, or ",
                    Pass("no_optimizer", True),
                ),
                wanted="a number",
            )
    return moved


Group = Mapping[object, object]
_NATIVE = ("max_lr", "min_lr", "eps")
"""What megatron-core's muP divides, as the optimizer is made."""

_CLOSE = 1e-12


def plain_group(group: Group, groups: Sequence[Group], width: float) -> Group | None:
    """Return the group whose settings, over ``width``, megatron-core's muP gave to ``group``.

    None where it gave it none: for any but hidden matrices, at the base width, and in groups that
    name their kind.
    """
    if width == 1 or KIND in group or group.get("wd_mult") == 0:
        return None
    return next((one for one in groups if _is_divided(group, one, width)), None)


def _is_divided(group: Group, plain: Group, width: float) -> bool:
    pairs = [(group.get(name), plain.get(name)) for name in _NATIVE]
    told = [
        (float(divided), float(whole))
        for divided, whole in pairs
        if isinstance(divided, int | float) and isinstance(whole, int | float)
    ]
    return any(whole for _, whole in told) and all(
        isclose(divided, whole / width, rel_tol=_CLOSE) for divided, whole in told
    )


def grown_native_groups(
    groups: Sequence[Group], before: float, after: float
) -> tuple[Group, ...] | None:
    """Return the groups that megatron-core's muP makes of ``groups`` at another width.

    ``before`` and ``after`` are the widths over the base width. Groups that it did not make stay.
    None if it is not to be told which one hidden matrices are in.
    """
    if before == after:
        return tuple(groups)
    if before == 1:
        only = _with_decay(groups)
        wholes = [group if group is only else None for group in groups]
    else:
        wholes = [plain_group(group, groups, before) for group in groups]
    if all(whole is None for whole in wholes):
        return None
    found: list[Group] = []
    for group, whole in zip(groups, wholes, strict=True):
        if whole is None or before == 1:
            found.append(group)
        if whole is not None and after != 1:
            found.append({**group, **_divided(group, whole, before, after)})
    return tuple(found)


def _with_decay(groups: Sequence[Group]) -> Group | None:
    """Return the group of all matrices, if there is one and its settings are given as numbers."""
    decaying = [group for group in groups if group.get("wd_mult") != 0]
    known = [all(isinstance(g.get(n), int | float) for n in ("max_lr", "eps")) for g in decaying]
    return decaying[0] if known == [True] else None


def _divided(group: Group, plain: Group, before: float, after: float) -> dict[object, object]:
    factor = 1.0 / after  # as megatron-core has it, to the last bit
    moved: dict[object, object] = {"default_config": False} if "default_config" in group else {}
    for name in _NATIVE:
        whole = plain.get(name)
        if name in group and isinstance(whole, int | float):
            moved[name] = whole * factor
    rate = group.get("lr")
    if isinstance(rate, int | float):
        moved["lr"] = rate * (before / after)
    return moved
