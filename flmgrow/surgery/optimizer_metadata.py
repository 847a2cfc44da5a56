"""What an optimizer holds beside the states of its parameters: kept, or counting anew.

Moments that are right to the last bit are wrong beside another step count, and a weight decay that
was lost shows after thousands of steps. Neither is an element of a tensor that growth maps. Both
are therefore compared as numbers, wherever and however they are stored: Adam's count is a tensor, a
number, or a setting of the param groups.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from flmgrow.formats.checkpoint import OptimizerState
from flmgrow.formats.layout.lags import Lags
from flmgrow.formats.layout.placements import Slice
from flmgrow.formats.megatron.param_groups import Deciding, deciding_settings
from flmgrow.formats.same_values import text_of
from flmgrow.model.axes import Axis
from flmgrow.model.mup import KIND, Group, grown_group, grown_native_groups
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.choices import Moments
from flmgrow.operators.growth import Growth
from flmgrow.text import Found, Text, Wanted, unlike

_SHOWN = 3
_STEP = "step"
_LAG = "the lag of"


def carried(state: OptimizerState | None, growth: Growth) -> OptimizerState | None:
    """Return what a grown model's optimizer holds: the source's, with muP's settings for the new
    width, and not having counted if moments are reset. What has no state has none.
    """
    if state is None:
        return None
    ratio = growth.new.hidden / growth.old.hidden
    groups = _native_groups(state, growth) or tuple(
        grown_group(group, ratio) for group in state.groups
    )
    lags = grown_lags(state.lags, growth)
    if growth.moments is not Moments.RESET:
        return replace(state, groups=groups, lags=lags)
    lags = {each: None for each, lag in lags.items() if lag is None}
    groups = tuple({**group, _STEP: 0} if _STEP in group else group for group in groups)
    step = None if state.step is None else 0.0
    return replace(state, groups=groups, step=step, lags=lags)


def _native_groups(state: OptimizerState, growth: Growth) -> tuple[Group, ...] | None:
    """Return the groups that megatron-core's own muP makes of a grown model, if it made these and
    they can be told.
    """
    if not state.native_mup:
        return None
    widths = growth.old.width_multiplier, growth.new.width_multiplier
    return grown_native_groups(state.groups, *widths)


def grown_lags(lags: Lags, growth: Growth) -> dict[Slice, int | None]:
    """Return the lags in a grown model: each parameter has that of what it comes from, a new layer
    that of the one that it borrows from.
    """
    if not lags:
        return {}
    layers = growth.maps.get(Axis.LAYER)
    donors = range(growth.new.layers) if layers is None else layers.donors.tolist()
    found: dict[Slice, int | None] = {}
    for name, tensor in logical_tensors(growth.new).items():
        old = growth.source_name(tensor)
        places = dict(enumerate(donors)) if tensor.layered else {None: None}
        found |= {(name, new): lags[old, at] for new, at in places.items() if (old, at) in lags}
    return found


def unfollowed(state: OptimizerState | None, growth: Growth) -> tuple[str, ...]:
    """Return a note if settings should follow a wider muP model, and no param group says which."""
    wider = growth.new.hidden != growth.old.hidden
    declared = growth.old.multipliers.mup_base_width is not None
    if state is None or not (wider and declared):
        return ()
    if state.native_mup:
        if _native_groups(state, growth) is not None:
            return ()
        return (
            "muP: the param groups do not tell hidden matrices from the rest, so megatron-core "
            "finds none for the new width: let its run begin without the optimizer's state",
        )
    if any(KIND in group for group in state.groups):
        return ()
    return (
        "muP: the param groups do not tell hidden matrices from the rest, so learning rates, "
        "epsilon and weight decay stay those of the old width",
    )


class _Setting(NamedTuple):
    """What an optimizer holds beside the states: a key, of the optimizer or of a param group."""

    key: str
    group: int | None = None

    def __str__(self) -> str:
        return self.key if self.group is None else f"{self.key} of param group {self.group}"


def _settings(state: OptimizerState) -> dict[_Setting, str]:
    """Return everything an optimizer holds beside the states, as text."""
    known: dict[int, str] = {}
    settings = {} if state.step is None else {_Setting(_STEP): text_of(state.step, known)}
    for number, group in enumerate(state.groups):
        for key, value in group.items():
            settings[_Setting(str(key), number)] = text_of(value, known)
    settings |= {_Setting(f"{_LAG} {each}"): f"{lag}" for each, lag in state.lags.items()}
    return settings | {
        _Setting(str(key)): text_of(value, known) for key, value in state.other.items()
    }


def _counting_in_groups(state: OptimizerState) -> OptimizerState:
    """Return what an optimizer holds with Adam's count, a number, in each of its param groups."""
    groups = tuple(
        {**group, _STEP: replace(state, groups=(group,)).step_count} for group in state.groups
    )
    return replace(state, step=None, groups=groups)


def _in_order_of(groups: Sequence[Group], wanted: Sequence[Group]) -> tuple[Group, ...]:
    """Return as many param groups in the order of others, as far as order means nothing.

    Which parameters are in a group its settings say, so it may stand anywhere (a format that keeps
    settings for each parameter has no order at all). Of groups that these settings do not tell
    apart, as megatron-core's own muP makes them, the order does: they keep theirs.
    """
    waiting: dict[Deciding, deque[Group]] = defaultdict(deque)
    for group in groups:
        waiting[deciding_settings(group)].append(group)
    if Counter(map(deciding_settings, groups)) != Counter(map(deciding_settings, wanted)):
        return tuple(groups)
    return tuple(waiting[deciding_settings(each)].popleft() for each in wanted)


def compare_counted(
    source: OptimizerState | None, result: OptimizerState | None, growth: Growth
) -> tuple[bool, str]:
    """Return whether a result's optimizer holds what it must beside the states, and a sentence.

    ``growth`` says how the result's came about.
    """
    expected = carried(source, growth)
    if expected is None or result is None:
        return False, f"the {'source' if expected is None else 'result'} has no optimizer state"
    if len(expected.groups) != len(result.groups):
        count = Found(f"{len(result.groups)} param groups")
        return False, Text(count, Wanted(len(expected.groups)))
    moved = (
        source is not None
        and expected.groups != source.groups
        and growth.moments is not Moments.RESET
    )
    if (expected.step is None) != (result.step is None):
        expected, result = _counting_in_groups(expected), _counting_in_groups(result)
    result = replace(result, groups=_in_order_of(result.groups, expected.groups))
    wanted, found = _settings(expected), _settings(result)
    wrong = [
        unlike(str(name), found.get(name, "not there"), wanted.get(name, "not there"))
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if wrong[_SHOWN:] else ""
        return False, Text("; ").join(wrong[:_SHOWN]) + more
    steps = sorted({value for name, value in found.items() if name.key == _STEP})
    like = "with muP's settings for the new width" if moved else "as in the source"
    return True, f"step {', '.join(steps)}, {len(result.groups)} param groups {like}"
