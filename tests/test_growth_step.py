"""Growth leaves the loss where it is, and training goes on without a spike."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from growth_step import METHODS, measure

SPIKE = 0.05
"""In nats per token, above the loss of the model that did not grow."""


@pytest.mark.slow
@pytest.mark.long
def test_no_method_moves_the_loss(tmp_path: Path) -> None:
    _, effects = measure(tmp_path)
    assert effects.keys() == METHODS.keys()
    for method, effect in effects.items():
        assert effect.step <= 1e-5, method
    for method in ("mask, open after 100", "zero", "copy"):
        assert effects[method].soon <= SPIKE, method
    assert effects["mask, open after 40"].soon > effects["mask, open after 100"].soon
