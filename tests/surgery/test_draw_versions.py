"""Manifests say by which version values were drawn, and those that say nothing mean the first."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import accepted, flmgrow
from damage import edit_manifest
from growing import carry_out, grow_checkpoint, stored_arrays
from pico import CONFIGS, make_checkpoint, stored_weights

from flmgrow.errors import UsageError
from flmgrow.model.axes import Fill, full_box
from flmgrow.model.tensors import Init, logical_tensors
from flmgrow.operators.growth import Growth, moves
from flmgrow.operators.target import Target, grow, parse_methods

SIZES: dict[str, Any] = {"hidden": 30, "ffn": 28, "layers": 6, "kv_groups": 6}

FIRST = {
    "mask": "db01913319ba79378ca484e1d700f43a0f124dbce6788974e55e9e9956b6f69b",
    "copy": "4f726118d4fea787b63b30f92b9eadb898b3eb0c9c0f851ca9d21792f24b6cb7",
}
"""Sums over the weights that flmgrow wrote before there was a second version."""


def growth_by(draw: int, methods: str, **sizes: Any) -> Growth:
    target = Target(methods=parse_methods(methods), **(sizes or SIZES))
    return replace(grow(CONFIGS["tele"], target, 56, 56), draw=draw)


def elements(source: Path, result: Path) -> str:
    out = flmgrow("verify", source, result, "--no-receipt").out
    return next(line for line in out.splitlines() if "elements" in line)


@pytest.mark.parametrize("method", FIRST)
def test_the_first_version_draws_what_it_drew(method: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "tele")
    arrays = stored_arrays(carry_out(source, tmp_path / "b", growth_by(1, method)))
    found = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    assert found.hexdigest() == FIRST[method]


@pytest.mark.parametrize("method", FIRST)
def test_an_output_of_before_is_verified_and_one_of_today_not_as_such(
    method: str, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "a", "tele")

    def forget(manifest: dict[str, Any]) -> None:
        assert manifest["growth"].pop("draw") in (1, 2)

    carry_out(source, tmp_path / "b", growth_by(1, method))
    assert elements(source, tmp_path / "b").startswith("ok")
    edit_manifest(tmp_path / "b", forget)
    assert elements(source, tmp_path / "b").startswith("ok")
    carry_out(source, tmp_path / "c", growth_by(2, method))
    assert elements(source, tmp_path / "c").startswith("ok")
    edit_manifest(tmp_path / "c", forget)
    assert elements(source, tmp_path / "c").startswith("DIFFERENT")


def test_a_version_that_is_not_known_is_told(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "tele")
    accepted("expand", source, tmp_path / "b", "--ffn-hidden-size", 28)
    edit_manifest(tmp_path / "b", lambda manifest: manifest["growth"].update(draw=3))
    outcome = flmgrow("verify", source, tmp_path / "b")
    assert outcome.code == 3
    assert "values are drawn by version 3, wanted one of 1, 2" in outcome.err
    with pytest.raises(UsageError, match="version 3"):
        replace(growth_by(2, "mask"), draw=3)


@pytest.mark.parametrize("draw", [1, 2])
def test_what_is_only_copied_keeps_its_bits(draw: int, tmp_path: Path) -> None:
    """The second version copies where factors are 1; the first computed, and lost a zero's sign."""
    weights = stored_weights(CONFIGS["tele"], dtype="float32")
    weights["down"][:, ::3, ::2] = -0.0
    source = make_checkpoint(tmp_path / "a", "tele", dtype="float32", weights=weights)
    carry_out(source, tmp_path / "b", growth_by(draw, "zero", layers=6))
    old, new = (np.signbit(stored_arrays(tmp_path / name)["down"]) for name in "ab")
    wanted = old if draw == 2 else old & (weights["down"] != 0).numpy()
    assert np.array_equal(new[:4], wanted)
    assert elements(source, tmp_path / "b").startswith("ok")


def test_no_other_value_depends_on_the_version(tmp_path: Path) -> None:
    """What is copied, scaled or zero is the same; what is drawn is not."""
    source = make_checkpoint(tmp_path / "a", "tele")
    growths = [growth_by(draw, "zero", **SIZES) for draw in (1, 2)]
    one, two = (
        stored_arrays(carry_out(source, tmp_path / str(growth.draw), growth)) for growth in growths
    )
    different = drawn = 0
    for name, tensor in logical_tensors(growths[0].new).items():
        whole = full_box(one[name].shape)
        for move in moves(growths[0], tensor, whole):
            cut = move.box.relative_to(whole)
            if move.fill is Fill.DRAWN and tensor.init is Init.NORMAL:
                different += int((one[name][cut] != two[name][cut]).sum())
                drawn += move.box.count
            else:
                assert np.array_equal(one[name][cut], two[name][cut]), name
    assert different > 0.99 * drawn > 1000


def test_a_run_that_another_version_began_is_not_resumed(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "tele")
    grow_checkpoint(source, tmp_path / "b", Target(ffn=28))
    outcome = flmgrow("expand", source, tmp_path / "b", "--ffn-hidden-size", 28)
    assert outcome.code == 0, outcome.err
    edit_manifest(tmp_path / "b", lambda manifest: manifest["growth"].pop("draw"))
    outcome = flmgrow("expand", source, tmp_path / "b", "--ffn-hidden-size", 28)
    assert outcome.code == 5
