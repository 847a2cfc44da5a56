"""New ids must not take a model's predictions, though every old logit is what it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow
from damage import edit_all, edit_manifest
from growing import grow_checkpoint
from pico import CONFIGS, make_checkpoint, stored_weights
from pico_model import skewed_weights

from flmgrow.operators.choices import FreshRows
from flmgrow.operators.target import Target


def young(model: str) -> dict[str, torch.Tensor]:
    """Weights of a model whose logits are all alike, so that the bound is tight."""
    weights = stored_weights(CONFIGS[model])
    table = "embedding" if CONFIGS[model].tied else "head"
    return {**weights, table: weights[table] * 1e-3}


@pytest.mark.parametrize("weights", ["trained", "young"])
@pytest.mark.parametrize("model", ["tele", "llama"])
def test_new_ids_near_the_mean_are_equal(model: str, weights: str, tmp_path: Path) -> None:
    values = young(model) if weights == "young" else None
    source = make_checkpoint(tmp_path / "a", model, weights=values)
    accepted("expand", source, tmp_path / "b", "--vocab-size", 100)
    out = accepted("verify", source, tmp_path / "b").out
    assert "e-10, computed in float64)" in out
    assert "49 new ids take at most 4" in out
    assert "of the softmax (allowed 50.25%)" in out
    assert out.splitlines()[-1] == "equal"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("alike", [False, True])
def test_a_row_that_was_rounded_is_still_near_the_mean(
    alike: bool, dtype: str, tmp_path: Path
) -> None:
    """The mean of 16-bit rows is none itself, which counts where logits are large and alike."""
    weights = skewed_weights(CONFIGS["tele"], 0, dtype)
    weights["head"][:, 0] = 7.0
    if alike:
        weights["head"][:, 1:] = weights["head"][:1, 1:]
        weights["head"][::2, 0] = 7.03125
    source = make_checkpoint(tmp_path / "a", "tele", dtype=dtype, weights=weights)
    accepted("expand", source, tmp_path / "b", "--vocab-size", 100)
    out = accepted("verify", source, tmp_path / "b").out
    assert "49 new ids take at most" in out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_large_logits_hide_no_new_ids(dtype: str, tmp_path: Path) -> None:
    """What is allowed is what the mean row's rounding can do there, however large others are: as
    likely as an old id that is picked is far too likely.
    """
    weights = stored_weights(CONFIGS["tele"], dtype=dtype)
    weights["head"] = weights["head"] * 2.0**10
    source = make_checkpoint(tmp_path / "a", "tele", dtype=dtype, weights=weights)
    accepted("expand", source, tmp_path / "b", "--vocab-size", 100)

    def judged() -> dict[str, Any]:
        outcome = flmgrow("verify", source, tmp_path / "b", "--json", "--no-receipt")
        checks: list[dict[str, Any]] = json.loads(outcome.out)["checks"]
        return next(check for check in checks if check["name"] == "function")

    function = judged()
    assert function["largest_logit"] > 1e3
    assert function["passed"] is True
    assert function["new_ids_allowed"] < 0.9

    def copy(content: dict[str, Any]) -> None:
        rows = content["model"]["output_layer.weight"]
        rows[51:100] = rows[:49]

    edit_all(tmp_path / "b", copy)
    function = judged()
    assert function["max_logit"] <= function["tolerance"]
    assert function["new_ids"]["share"] > 0.49
    assert function["passed"] is False
    at_largest = torch.finfo(getattr(torch, dtype)).eps / 2 * function["largest_logit"]
    assert (function["new_ids"]["excess"] < at_largest) is (dtype == "bfloat16")


@pytest.mark.parametrize("change", ["rows", "old rule", "noise"])
def test_new_ids_that_take_the_predictions_are_found(change: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "tele")
    if change == "old rule":
        grow_checkpoint(source, tmp_path / "b", Target(vocab=100, fresh_rows=FreshRows.DRAWN))
    elif change == "noise":
        accepted("expand", source, tmp_path / "b", "--vocab-size", 100, "--init-std", 1000)
    else:
        accepted("expand", source, tmp_path / "b", "--vocab-size", 100)
        accepted("verify", source, tmp_path / "b")
        generator = torch.Generator().manual_seed(1)

        def draw(content: dict[str, Any]) -> None:
            rows = content["model"]["output_layer.weight"][51:100]
            rows.normal_(0.0, 0.5, generator=generator)

        edit_all(tmp_path / "b", draw)
    outcome = flmgrow("verify", source, tmp_path / "b")
    assert outcome.code == 1
    function = next(line for line in outcome.out.splitlines() if "function" in line)
    assert function.startswith("DIFFERENT")
    assert "times as likely as the average old one" in function
    elements = next(line for line in outcome.out.splitlines() if "elements" in line)
    assert elements.startswith("DIFFERENT" if change == "rows" else "ok")


def test_losses_and_picks_are_those_over_all_ids(tmp_path: Path) -> None:
    """One new row as large as the largest old ones is picked, and costs."""
    source = make_checkpoint(tmp_path / "a", "tele")
    accepted("expand", source, tmp_path / "b", "--vocab-size", 52)

    def enlarge(content: dict[str, Any]) -> None:
        rows = content["model"]["output_layer.weight"]
        rows[51] = rows[:51][rows[:51].norm(dim=1).argmax()] * 8

    edit_all(tmp_path / "b", enlarge)
    outcome = flmgrow("verify", source, tmp_path / "b", "--json", "--no-receipt")
    function = next(c for c in json.loads(outcome.out)["checks"] if c["name"] == "function")
    assert function["passed"] is False
    assert function["max_logit"] <= 1e-10
    assert function["argmax_agreement"] < 1
    assert function["loss_difference"] > 0.01
    assert function["new_ids"]["new"] == 1
    assert function["new_ids"]["share"] > function["new_ids_allowed"]


def test_outputs_from_before_there_was_a_choice_are_derived_again(tmp_path: Path) -> None:
    """Their manifests say nothing of how new rows were made; those of today do."""
    source = make_checkpoint(tmp_path / "a", "tele")
    grow_checkpoint(source, tmp_path / "b", Target(vocab=60, fresh_rows=FreshRows.DRAWN))

    def forget(manifest: dict[str, Any]) -> None:
        assert manifest["growth"]["request"].pop("fresh_rows") == "drawn"

    edit_manifest(tmp_path / "b", forget)
    out = flmgrow("verify", source, tmp_path / "b", "--no-receipt").out
    assert "ok         elements" in out
    accepted("expand", source, tmp_path / "c", "--vocab-size", 60)
    edit_manifest(tmp_path / "c", lambda m: m["growth"]["request"].pop("fresh_rows"))
    out = flmgrow("verify", source, tmp_path / "c", "--no-receipt").out
    assert "DIFFERENT  elements" in out
