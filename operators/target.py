"""From what a user wants (sizes and methods) to one growth over all axes.

Each dimension is grown on its own; since axis maps of different axes are independent, any
combination is one pass, and the order in which dimensions are named has no meaning.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.model.axes import Axis, AxisMap
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension
from flmgrow.operators.choices import (
    FreshRows,
    FreshSecondMoment,
    Method,
    Moments,
    NewLayers,
    chosen,
    chosen_method,
    chosen_methods,
    hold,
)
from flmgrow.operators.depth import LayerPlacement, grow_depth
from flmgrow.operators.dimension import DimensionGrowth
from flmgrow.operators.growth import MASKED, Growth
from flmgrow.operators.units import grow_ffn, grow_heads, head_target
from flmgrow.operators.vocab import vocab_map
from flmgrow.operators.width import NOISE, grow_width
from flmgrow.text import Found, Setting, SizeOf, Text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_SIZE = 1 << 26
MAX_SIZES = {Axis.LAYER: 10_000}
"""Larger ones are slips of the finger, or of a hostile file: they would only fill the memory."""


def parse_methods(text: str) -> dict[Dimension, Method]:
    """Return the method of every dimension from ``mask`` or ``width=copy,ffn=zero`` (the rest:
    mask).

    Raises:
        UsageError: The message names what would be accepted.
    """
    methods = dict.fromkeys(Dimension, Method.MASK)
    for item in filter(None, text.replace(" ", "").split(",")):
        name, equals, method = item.partition("=")
        asked = Text(Setting("method"), f" {item}: ")
        try:
            words = {Dimension(name): method} if equals else dict.fromkeys(Dimension, name)
        except ValueError:
            raise UsageError(
                asked + f"{name!r} is no dimension", f"one of {', '.join(Dimension)}"
            ) from None
        for dimension, wanted in words.items():
            methods[dimension] = chosen_method(dimension, wanted, asked)
    return methods


@dataclass(frozen=True)
class Target:
    """What a user asks for. A size of None stays what it is; ``heads`` counts query heads."""

    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_groups: int | None = None
    vocab: int | None = None
    methods: Mapping[Dimension, Method] = field(default_factory=lambda: parse_methods("mask"))
    depth_placement: str = LayerPlacement.END
    new_layers: NewLayers = NewLayers.COPY
    untie: bool = False
    ramp_steps: int | None = None
    copy_noise: float = NOISE
    moments: Moments = Moments.KEEP
    fresh_second_moment: FreshSecondMoment = FreshSecondMoment.ZERO
    fresh_rows: FreshRows = FreshRows.MEAN
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "ffn", "heads", "kv_groups", "vocab"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        hold(
            self,
            methods=chosen_methods(self.methods),
            new_layers=chosen("new layers", self.new_layers, NewLayers),
            moments=chosen("moments", self.moments, Moments),
            fresh_second_moment=chosen(
                "fresh second moment", self.fresh_second_moment, FreshSecondMoment
            ),
            fresh_rows=chosen("fresh rows", self.fresh_rows, FreshRows),
        )
        if self.ramp_steps is not None:
            check_whole("the steps of a mask's ramp", self.ramp_steps)
        check_finite("copy noise", self.copy_noise, least=0)
        check_whole("seed", self.seed, least=0)

    def to_json(self) -> dict[str, object]:
        """Return the request as plain data."""
        return {**asdict(self), "methods": {str(d): method for d, method in self.methods.items()}}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> "Target":
        """Return the request that ``to_json`` described.

        Raises:
            BadCheckpointError: If it is malformed.
        """
        from pydantic import ValidationError

        methods = data.get("methods")
        try:
            if isinstance(methods, Mapping) and methods.keys() <= set(Dimension):
                chosen_methods({Dimension(name): word for name, word in methods.items()})
            return _schema().validate_python({"fresh_rows": FreshRows.DRAWN, **data})
        except ValidationError as error:
            raise BadCheckpointError(
                f"flmgrow.json: its growth request is malformed: {error.errors()[0]['msg']}"
            ) from None
        except UsageError as error:
            where = ("flmgrow.json", "its growth request")
            raise BadCheckpointError.of(error).with_hint("").at(*where) from None


@cache  # a schema takes longer to make than most commands to run
def _schema() -> "TypeAdapter[Target]":
    from pydantic import TypeAdapter

    return TypeAdapter(Target)


def _check_not_smaller(config: ModelConfig, wanted: Mapping[Axis, int]) -> None:
    for axis, size in wanted.items():
        if size < config.sizes[axis]:
            raise UsageError(
                Text(
                    SizeOf(axis),
                    ": wanted ",
                    Found(size),
                    f", the source has {config.sizes[axis]}",
                ),
                "growth never takes away; choose a size at least as large",
            )
        if size > MAX_SIZES.get(axis, MAX_SIZE):
            most = MAX_SIZES.get(axis, MAX_SIZE)
            raise UsageError(
                Text(SizeOf(axis), ": wanted ", Found(size), f", at most {most} is possible")
            )


def _wanted_sizes(config: ModelConfig, target: Target) -> dict[Axis, int]:
    groups, queries = head_target(config, target.heads, target.kv_groups)
    asked = {
        Axis.LAYER: target.layers,
        Axis.HIDDEN: target.hidden,
        Axis.FFN: target.ffn,
        Axis.VOCAB: target.vocab,
        Axis.KV_GROUP: groups,
        Axis.QUERY_PER_GROUP: queries,
    }
    sizes = {axis: config.sizes[axis] if size is None else size for axis, size in asked.items()}
    if sizes[Axis.QUERY_PER_GROUP] < config.queries_per_group:
        raise UsageError(
            f"{target.heads} heads over {groups} groups leaves {queries} per group, "
            f"the source has {config.queries_per_group}",
            Text(
                "groups x heads per group must not shrink: try ",
                Setting("num_attention_heads", groups * config.queries_per_group),
            ),
        )
    _check_not_smaller(config, sizes)
    return {**config.sizes, **sizes}


def _grown_dimensions(
    config: ModelConfig, sizes: Mapping[Axis, int], target: Target
) -> dict[Dimension, DimensionGrowth]:
    """Grow each dimension whose size changes, by its method."""
    methods, seed = target.methods, target.seed
    grown = {}
    if sizes[Axis.HIDDEN] != config.hidden:
        grown[Dimension.WIDTH] = grow_width(
            config, sizes[Axis.HIDDEN], methods[Dimension.WIDTH], target.copy_noise
        )
    groups, queries = sizes[Axis.KV_GROUP], sizes[Axis.QUERY_PER_GROUP]
    if (groups, queries) != (config.kv_groups, config.queries_per_group):
        grown[Dimension.HEADS] = grow_heads(config, groups, queries, methods[Dimension.HEADS], seed)
    if sizes[Axis.FFN] != config.ffn:
        grown[Dimension.FFN] = grow_ffn(config, sizes[Axis.FFN], methods[Dimension.FFN], seed)
    if sizes[Axis.LAYER] != config.layers:
        grown[Dimension.DEPTH] = grow_depth(
            config,
            sizes[Axis.LAYER],
            methods[Dimension.DEPTH],
            target.depth_placement,
            target.new_layers,
        )
    return grown


def _notes(grown: Mapping[Dimension, DimensionGrowth]) -> list[str]:
    notes: list[str] = []
    if any(part.mask for part in grown.values()):
        notes.append(MASKED)
    if changed := [name for name, part in grown.items() if not part.preserves]:
        notes.append(f"{', '.join(changed)}: not function-preserving")
    return notes


def grow(
    config: ModelConfig, target: Target, old_padded_vocab: int, new_padded_vocab: int
) -> Growth:
    """Return the growth from ``config`` to ``target``; with nothing asked for, the identity.

    The stored vocabulary sizes (with padding) come from the formats.

    Raises:
        UsageError: For a target that is smaller, does not divide, or has no exact construction with
            the chosen method.
    """
    sizes = _wanted_sizes(config, target)
    if target.untie and not config.tied:
        raise UsageError(Text(Setting("untie", True), ": the source already has a separate head"))
    base = replace(config, tied=config.tied and not target.untie)
    grown = _grown_dimensions(base, sizes, target)
    eps_factor = 1.0
    vocab = config.vocab, old_padded_vocab, sizes[Axis.VOCAB], new_padded_vocab
    maps: dict[Axis, AxisMap] = {Axis.VOCAB: vocab_map(*vocab, target.fresh_rows)}
    masks = {}
    for dimension, part in grown.items():
        maps.update(part.maps)
        eps_factor *= part.eps_factor
        if part.mask is not None:
            steps = part.mask.ramp_steps if target.ramp_steps is None else target.ramp_steps
            masks[dimension] = replace(part.mask, ramp_steps=steps)
    layers = maps.get(Axis.LAYER)
    donors = None if layers is None or layers.donor is None else [int(d) for d in layers.donor]
    new = replace(base.with_sizes(sizes, donors), norm_eps=config.norm_eps * eps_factor)
    return Growth(
        old=config,
        new=new,
        maps={axis: axis_map for axis, axis_map in maps.items() if not axis_map.is_identity},
        masks=masks,
        methods={dimension: target.methods[dimension] for dimension in grown},
        renamed={"head": "embedding"} if target.untie else {},
        notes=tuple(_notes(grown)),
        preserves=all(part.preserves for part in grown.values()),
        seed=target.seed,
        request=target.to_json(),
        moments=target.moments,
        fresh_second_moment=target.fresh_second_moment,
    )
