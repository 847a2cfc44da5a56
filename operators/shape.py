"""Choosing a shape for a wanted number of parameters, near the proportions the source has.

Hardware likes multiples of 128, tensor parallelism must divide heads and FFN, a pipeline must
divide layers. Among the shapes that fit, the one is taken that is closest to the wanted size and to
the source's ratio of width to depth.
"""

from dataclasses import dataclass
from math import lcm, log

from flmgrow.errors import UsageError
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.text import Setting, Text

MULTIPLE = 128
MOST_PARAMETERS = 1e14
_SIZE_WEIGHT = 8.0
"""How much more a miss in size costs than the same relative miss in proportions."""


@dataclass(frozen=True)
class Shape:
    """Sizes in Megatron-LM's terms, and the parameters they come to."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_groups: int
    parameters: int


def _round_up(value: float, step: int) -> int:
    return max(step, -(-int(value) // step) * step)


def _shape(config: ModelConfig, hidden: int, layers: int, tp: int) -> Shape:
    ratio = hidden / config.hidden
    step = lcm(MULTIPLE, tp)
    ffn = max(_round_up(config.ffn * ratio, step), _round_up(config.ffn, step))
    groups = max(_round_up(config.kv_groups * ratio, tp), _round_up(config.kv_groups, tp))
    sizes = {
        **config.sizes,
        Axis.LAYER: layers,
        Axis.HIDDEN: hidden,
        Axis.FFN: ffn,
        Axis.KV_GROUP: groups,
    }
    grown = config.with_sizes(sizes)
    return Shape(layers, hidden, ffn, grown.heads, groups, parameter_count(grown))


def shape_for(
    config: ModelConfig, parameters: float, tp: int = 1, pipeline_chunks: int = 1
) -> Shape:
    """Return the shape of about ``parameters`` parameters that ``config`` can grow to.

    ``pipeline_chunks`` must divide the layers. Query heads per group, head_dim and the vocabulary
    stay.

    Raises:
        UsageError: If the source is larger already.
    """
    asked = Text(Setting("to_params"), f" {parameters:.4g}: ")
    if not parameters <= MOST_PARAMETERS:
        raise UsageError(Text(asked, f"wanted at most {MOST_PARAMETERS:.0e}"))
    if parameters < parameter_count(config):
        raise UsageError(
            Text(asked, f"the source has {parameter_count(config):,} parameters"),
            "growth never takes away; ask for more",
        )
    best: tuple[float, Shape] | None = None
    hidden = _round_up(config.hidden, MULTIPLE)
    fewest = _round_up(config.layers, pipeline_chunks)
    while True:
        for layers in sorted(_near(config, hidden, fewest, parameters, tp, pipeline_chunks)):
            shape = _shape(config, hidden, layers, tp)
            proportion = (hidden / layers) / (config.hidden / config.layers)
            cost = _SIZE_WEIGHT * abs(log(shape.parameters / parameters)) + abs(log(proportion))
            if best is None or cost < best[0]:
                best = cost, shape
        if best is not None and _shape(config, hidden, fewest, tp).parameters > parameters:
            return best[1]
        hidden += MULTIPLE


def _near(
    config: ModelConfig, hidden: int, fewest: int, parameters: float, tp: int, step: int
) -> set[int]:
    """Return the two depths next to the wanted size at a width; parameters are affine in depth."""
    least = _shape(config, hidden, fewest, tp).parameters
    per_step = _shape(config, hidden, fewest + step, tp).parameters - least
    steps = max(0, int((parameters - least) // per_step))
    return {fewest + steps * step, fewest + (steps + 1) * step}
