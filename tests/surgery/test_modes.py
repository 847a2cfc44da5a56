"""What is asked of a command is checked where a value holds it, and notes are known by identity."""

import pytest
from pico import CONFIGS

from flmgrow.errors import UsageError
from flmgrow.model.masks import Dimension
from flmgrow.operators.baking import baked
from flmgrow.operators.growth import MASKED
from flmgrow.operators.target import Target, grow, parse_methods
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.replicas import Replicated
from flmgrow.surgery.verify import Verification


@pytest.mark.parametrize("value", [Execution, Verification])
def test_replicated_is_a_mode(value: type[Execution] | type[Verification]) -> None:
    for mode in Replicated:
        assert value(replicated=mode).replicated is mode
        assert value(replicated=str(mode)).replicated is mode  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="replicated rank1: wanted check or rank0"):
        value(replicated="rank1")  # type: ignore[arg-type]


def test_baking_drops_the_note_on_masks_alone() -> None:
    config = CONFIGS["llama"]
    methods = parse_methods("ffn=mask,depth=stack")
    target = Target(methods=methods, ffn=2 * config.ffn, layers=2 * config.layers)
    growth = grow(config, target, config.vocab, config.vocab)
    assert growth.notes == (MASKED, "depth: not function-preserving")
    assert baked(growth, {}).notes == ("depth: not function-preserving",)


def test_baking_elsewhere_than_the_masks_are_is_another_function() -> None:
    config = CONFIGS["llama"]
    growth = grow(config, Target(ffn=2 * config.ffn), config.vocab, config.vocab)
    same, open_ = (baked(growth, {Dimension.FFN: value}) for value in (0.0, 1.0))
    assert (same.notes, same.preserves) == ((), True)
    told = ("baked ffn at 1 instead of 0: another function",)
    assert (open_.notes, open_.preserves) == (told, False)
