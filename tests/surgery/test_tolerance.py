"""How far logits may be apart: by what was rounded, and by how large they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from growing import grow_checkpoint
from pico import CONFIGS, make_checkpoint, stored_weights

from flmgrow.formats.opening import open_checkpoint
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.evidence.check import Check
from flmgrow.surgery.evidence.tokens import draw_tokens
from flmgrow.surgery.verify import Verification, verify

WIDER = Target(hidden=20, methods=parse_methods("zero"))


def function_of(source: Path, result: Path, **how: Any) -> Check:
    with open_checkpoint(source) as one, open_checkpoint(result) as other:
        checks = verify(one, other, Verification(checksums=False, **how))
    return next(check for check in checks if check.name == "function")


def sized(path: Path, model: str, size: float, dtype: str = "float64") -> Path:
    weights = dict(stored_weights(CONFIGS[model], dtype=dtype))
    weights["final_norm.gain"] = weights["final_norm.gain"] * size
    return make_checkpoint(path, model, weights=weights, dtype=dtype)


def changed(path: Path, by: float) -> None:
    """Change one row of the head, which moves the logits of one id."""
    (file,) = path.rglob("*.pt")
    content = torch.load(file, weights_only=False)
    content["model"]["output_layer.weight"][5] *= 1 + by
    torch.save(content, file)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_models_of_any_size_are_equal_to_themselves_and_to_nothing_else(
    tmp_path: Path, size: float, dtype: str
) -> None:
    """One part in 100 million of some logits in float64, and a thousandth in float32, are found."""
    source = sized(tmp_path / "a", "tele", size, dtype)
    grow_checkpoint(source, tmp_path / "b", WIDER)
    found = function_of(source, tmp_path / "b", elements=False)
    assert found.passed
    largest, allowed = (float(str(found.numbers[key])) for key in ("largest_logit", "tolerance"))
    assert allowed <= (1e-10 if dtype == "float64" else 1e-4) * max(1.0, largest)
    changed(tmp_path / "b", 1e-8 if dtype == "float64" else 1e-3)
    found = function_of(source, tmp_path / "b", elements=False)
    assert found.passed is (size < 0.1)  # below 1 bounds are absolute, as they always were


def test_at_logits_of_one_and_less_nothing_is_allowed_that_was_not(tmp_path: Path) -> None:
    source = sized(tmp_path / "a", "tele", 0.01)
    grow_checkpoint(source, tmp_path / "b", WIDER)
    found = function_of(source, tmp_path / "b", elements=False)
    assert found.numbers["tolerance"] == 1e-10


def test_logits_that_do_not_fit_the_dtype_allow_nothing(tmp_path: Path) -> None:
    """In float16 the source's own rounding is infinite, and so would the bound be."""
    weights = dict(stored_weights(CONFIGS["tele"], dtype="float16"))
    weights["final_norm.gain"] = weights["final_norm.gain"] * 2.0**12
    weights["head"] = weights["head"] * 2.0**8
    source = make_checkpoint(tmp_path / "a", "tele", weights=weights, dtype="float16")
    other = make_checkpoint(tmp_path / "b", "tele", seed=1, dtype="float16")
    assert function_of(source, other).passed is False


def test_tokens_are_drawn_by_the_seed() -> None:
    one, same, other = (draw_tokens(50, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
