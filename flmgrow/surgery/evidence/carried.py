"""What is carried: everything beside weights and optimizer that a result must have from its source.

Scales of Transformer Engine belong to a layer, a new layer has those of its donor; a schedule, a
random number state or a number of iterations is as it was. All of it decides on how training goes
on, and none of it shows in what the model computes.
"""

from collections.abc import Callable, Iterator, Mapping

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.megatron.carried import extra_states, keeps_tensor_ranks
from flmgrow.formats.megatron.content import EXTRA_STATE, chunk_key
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.megatron.torch_dist.objects import LAYERS
from flmgrow.formats.same_values import text_of
from flmgrow.formats.writing import has_ranks
from flmgrow.model.axes import Axis
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.check import Check

_SEEN_TO = ("args", "optimizer")
"""Content that other evidence is of."""

_SHOWN = 3


def check_carried(
    source: Checkpoint, result: Checkpoint, growth: Growth, dropped: Callable[[str], bool]
) -> Check:
    """Compare what ``result`` carries with what ``source`` has, but for what was ``dropped``."""
    if not has_ranks(result.format):
        return Check("carried", None, "not compared: the format carries nothing")
    wanted, found = _all_states(source, result, growth)
    if dropped(EXTRA_STATE):
        wanted = {}
    wanted |= _content(source, result, dropped)
    found |= _content(result, result, dropped)
    wrong = _differences(wanted, found)
    if wrong:
        return Check("carried", False, wrong)
    return Check("carried", True, f"{len(wanted)} entries beside weights are the source's")


def check_states(source: Checkpoint, result: Checkpoint, growth: Growth) -> list[Check]:
    """Compare every ``_extra_state`` alone: [] if there is none.

    What else a checkpoint carries may be another where nothing declares that ``result`` came from
    ``source``; these decide on what a model computes in FP8, so that without them it is not proved.
    """
    if not (has_ranks(source.format) and has_ranks(result.format)):
        return []
    wanted, found = _all_states(source, result, growth)
    if not wanted and not found:
        return []
    if wrong := _differences(wanted, found):
        return [Check("carried", None, wrong, missing="unproven")]
    return [Check("carried", True, f"{len(wanted)} states beside weights are the source's")]


def _all_states(
    source: Checkpoint, result: Checkpoint, growth: Growth
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the states that ``result`` must have, and those that it has."""
    kept = keeps_tensor_ranks(source, result.layout, result.format)
    wanted: dict[str, str] = {}
    found: dict[str, str] = {}
    for rank in range(result.layout.tp if kept else 1):
        wanted |= _states(source, rank, growth)
        found |= _states(result, rank)
    return wanted, found


def _differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return what is not as wanted, the first of it by name; empty if nothing is."""
    wrong = [
        f"{name} is {'not there' if name not in found else 'another'}"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    wrong += [f"{name} is not the source's" for name in found if name not in wanted]
    more = f"; and {len(wrong) - _SHOWN} more" if wrong[_SHOWN:] else ""
    return "; ".join(wrong[:_SHOWN]) + more


def _states(checkpoint: Checkpoint, rank: int, growth: Growth | None = None) -> dict[str, str]:
    """Return every ``_extra_state`` of a tensor rank that is something, as text; after a growth if
    one is given.
    """
    known: dict[int, str] = {}
    states = {k: v for k, v in extra_states(checkpoint, rank).items() if v is not None}
    layer_map = None if growth is None else growth.maps.get(Axis.LAYER)
    donors = None if layer_map is None else layer_map.donors.tolist()
    named = {name: states[key] for name, key in _names(states, donors)}
    return {f"{name} of tensor rank {rank}": text_of(v, known) for name, v in named.items()}


def _names(states: Mapping[str, object], donors: list[int] | None) -> Iterator[tuple[str, str]]:
    """Yield the keys that states have in a model whose layers have ``donors``, with their own."""
    for key in states:
        if donors is None or not key.startswith(LAYERS):
            yield key, key
            continue
        number, _, rest = key.removeprefix(LAYERS).partition(".")
        for layer, donor in enumerate(donors):
            if donor == int(number):
                yield f"{LAYERS}{layer}.{rest}", key


def _content(
    source: Checkpoint, result: Checkpoint, dropped: Callable[[str], bool]
) -> dict[str, str]:
    """Return what each rank of ``result`` has of ``source``, beside models and what was dropped."""
    left = {*_SEEN_TO, *(chunk_key(chunk, source.layout) for chunk in range(source.layout.vpp))}
    found: dict[str, str] = {}
    for rank in result.layout.ranks:
        known: dict[int, str] = {}
        content = rank_content(source, rank if rank in source.layout.ranks else (0, 0))
        for key, value in content.items():
            if key not in left and not dropped(str(key)):
                found[f"{key} of rank {rank}"] = text_of(value, known)
    return found
