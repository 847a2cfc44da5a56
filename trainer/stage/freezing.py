"""What a stage does not train: rules in its file, and what they mean for a model.

A rule names old parts, layers, tensors and units of axes; an entry is frozen by a rule if all that
is named holds for it, and it is frozen if it is by any rule. What is named must be there.

Importing this module loads neither torch nor megatron-core: ``flmgrow run`` plans with it.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from flmgrow.errors import UsageError
from flmgrow.formats.layout.lags import parameters_in
from flmgrow.formats.layout.placements import Layout, Slice, make_layout, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.axes import Axis, Sizes, full_box
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import EVERYTHING, TrainedParts
from flmgrow.model.frozen import Booleans, Frozen, FrozenPart, old_axes
from flmgrow.model.masks import Fresh
from flmgrow.model.tensors import logical_tensors, parameter_count
from flmgrow.model.wording import amount
from flmgrow.text import Found, Text, Wanted
from flmgrow.trainer.stage.section import Section

OLD = "old"
_KEY = "training.freeze"
_SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_AXES = frozenset(axis for axis in Axis if axis is not Axis.LAYER)
_WITH_BIAS = re.compile(r"(.*\blinear_\w+)\.weight")


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _span(value: object) -> object:
    """Return ``0-11``, or 5, as text.

    Raises:
        ValueError: For what is none.
    """
    if type(value) is int:
        value = str(value)
    if isinstance(value, str):
        match = _SPAN.fullmatch(value)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{value[:40]!r} is no range of indices, such as 0-11, and none alone")
    return value


def _rule(value: object) -> object:
    """Return a rule as its parts.

    Raises:
        ValueError: For what is none.
    """
    if value == OLD:
        return {OLD: True}
    if not isinstance(value, Mapping | FreezeRule):
        wanted = Wanted("old, or a mapping of layers, tensors or axes")
        raise ValueError(Text("found ", Found(f"{value!r:.40}"), wanted))
    return value


Spans = Annotated[
    list[Annotated[str, BeforeValidator(_span)]], BeforeValidator(_listed), Field(min_length=1)
]


class FreezeRule(Section):
    """What is frozen: all that holds for an entry at once.

    ``old`` is what was there before the last growth; ``layers`` and ``axes`` name indices
    (``0-11``), ``tensors`` logical tensors as ``flmgrow inspect --tensors`` shows them.
    """

    old: bool = False
    layers: Spans | None = None
    tensors: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] | None = None
    axes: dict[str, Spans] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.old and not self.layers and not self.tensors and not self.axes:
            raise ValueError("names nothing: give old, layers, tensors or axes")
        return self

    @property
    def spans(self) -> dict[str, Sequence[str]]:
        """The indices that it names, by the name of their axis."""
        layers = {} if self.layers is None else {str(Axis.LAYER): self.layers}
        return {**layers, **(self.axes or {})}


Freeze = Annotated[
    list[Annotated[FreezeRule, BeforeValidator(_rule)]],
    BeforeValidator(_listed),
    Field(min_length=1),
]


def frozen_of(
    rules: Sequence[FreezeRule] | None, config: ModelConfig, padded_vocab: int, fresh: Fresh
) -> Frozen:
    """Return what ``rules`` freeze of a model whose last growth made what is ``fresh``.

    Rows that pad the vocabulary are frozen along with any others.

    Raises:
        UsageError: For what the model does not have, and if nothing would be left to train.
    """
    sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
    found = Frozen([_part(rule, config, sizes, fresh) for rule in rules or ()])
    tensors = logical_tensors(config)
    if all(found.covers(each, full_box(each.shape(sizes))) for each in tensors.values()):
        raise UsageError(f"{_KEY}: leaves nothing to train", "freeze less")
    return found


def frozen_slices(frozen: Frozen, config: ModelConfig, padded_vocab: int) -> frozenset[Slice]:
    """Return what lies in stored parameters of which every entry is frozen: the same in all
    layouts.

    The weight of a projection stays with its bias: megatron-core gives a bias no gradient beside a
    weight that has none.
    """
    if not frozen:
        return frozenset()
    sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
    placed = placements(ROWS, logical_tensors(config), sizes, make_layout(config.layers))
    still = {
        place.key: all(frozen.covers(part, part.box(place.ranges)) for part in place.parts)
        for place in placed
    }
    return frozenset(
        each
        for place in placed
        if still[place.key] and still.get(_WITH_BIAS.sub(r"\1.bias", place.key), True)
        for each in place.slices
    )


def trained_of(still: frozenset[Slice], layout: Layout, recompute: str) -> TrainedParts:
    """Return what steps train of a model in a layout, of which some is ``still``.

    What another pipeline rank sends has a gradient in any case, and so has what a layer begins with
    that is computed again as a whole.
    """
    if not still:
        return EVERYTHING
    *ends, _ = accumulate(layout.chunk_layers)
    return TrainedParts(still, frozenset(ends) | ({0} if recompute == "full" else set()))


def frozen_text(
    frozen: Frozen, still: Collection[Slice], config: ModelConfig, until: int | None, last: int
) -> str:
    """Return in words how much does not train, and ``until`` which step of a stage that ends at
    step ``last``; ``still`` is what lies in parameters that are frozen as a whole.
    """
    tensors = logical_tensors(config).values()
    entries = sum(frozen.count(each, full_box(each.shape(config.sizes))) for each in tensors)
    whole, when = amount(parameter_count(config)), ""
    if until is not None and until < last:
        when = f", until step {until:,}"
    elif until is not None:
        when = f", as the stage ends at step {last:,}, and unfreeze_at is step {until:,}"
    return (
        f"{amount(entries)} of {whole} parameters do not train{when}; "
        f"{amount(parameters_in(still, config))} of them have no optimizer state"
    )


def _part(rule: FreezeRule, config: ModelConfig, sizes: Sizes, fresh: Fresh) -> FrozenPart:
    tensors = logical_tensors(config)
    axes: dict[Axis, Booleans] = {}
    if rule.old:
        if not fresh:
            raise UsageError(
                f"{_KEY}: is old, but nothing says what is new: the model has not grown",
                f"say it for a stage whose model has grown, or name what is frozen ({_KEY}: "
                "{layers: 0-11})",
            )
        axes = old_axes(fresh, sizes)
    for name in rule.tensors or ():
        if name not in tensors:
            raise UsageError(
                f"{_KEY}: the model has no tensor {name!r:.60}",
                f"its tensors are {', '.join(tensors)}",
            )
    needed = frozenset(_axis(name) for name in rule.spans)
    for name, spans in rule.spans.items():
        axis = _axis(name)
        chosen = _indices(axis, spans, config.sizes[axis], sizes[axis])
        axes[axis] = axes[axis] & chosen if axis in axes else chosen
    meant = [tensors[name] for name in rule.tensors or tensors]
    for axis in needed:
        lacking = [tensor.name for tensor in meant if axis not in tensor.axes]
        if rule.tensors is not None and lacking:
            raise UsageError(
                f"{_KEY}: {lacking[0]} has no {axis} axis",
                "name it in a rule of its own, without the axis",
            )
        if len(lacking) == len(meant):
            raise UsageError(f"{_KEY}: no tensor of the model has a {axis} axis", "leave it out")
    return FrozenPart(axes, None if rule.tensors is None else frozenset(rule.tensors), needed)


def _axis(name: str) -> Axis:
    if name != Axis.LAYER and name not in _AXES:
        hint = "name layers beside axes, not in them" if name == "layers" else ""
        raise UsageError(
            f"{_KEY}: axes: there is no axis {name!r:.40}",
            hint or f"axes are {', '.join(sorted(_AXES))}",
        )
    return Axis(name)


def _indices(axis: Axis, spans: Sequence[str], size: int, stored: int) -> Booleans:
    """Return which of ``stored`` indices are named; those that pad an axis of ``size`` are."""
    found = np.zeros(stored, np.bool_)
    found[size:] = True
    for start, stop in _edges(spans):
        if stop > size:
            what = "layers" if axis is Axis.LAYER else f"axes.{axis}"
            raise UsageError(
                f"{_KEY}: {what}: {stop - 1} is named, the model has {size}, from 0 to {size - 1}",
                "name indices that are there",
            )
        found[start:stop] = True
    return found


def _edges(spans: Sequence[str]) -> Iterator[tuple[int, int]]:
    for span in spans:
        first, _, last = span.partition("-")
        yield int(first), int(last or first) + 1
