"""megatron-core's own muP: its own model computes the same before growth and after.

The judge is GPTModel of megatron-core 0.19 with nothing in it but the arguments that were written.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from growing import tokens_for
from newer_megatron import answer_of
from pico import CONFIGS, make_checkpoint
from stage_runs import NEWER

from flmgrow.formats.megatron.param_groups import by_group
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.forward import logits
from flmgrow.model.mup import grown_native_groups
from flmgrow.surgery.weights import CheckpointWeights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NEWER, reason="FLMGROW_MEGATRON_019 names no folder with a wheel in it"),
]
EXACT = 1e-10
PLAIN = replace(CONFIGS["tele"], positions="none")
TOKENS = tokens_for(PLAIN.vocab, 12)
ZERO = ("--hidden-size", 30, "--num-layers", 5, "--ffn-hidden-size", 25, "--method", "zero")
COPY = ("--hidden-size", 24, "--num-layers", 5, "--method", "copy")
Case = tuple[dict[str, Any], tuple[object, ...], dict[str, Any]]

CASES: dict[str, Case] = {
    "from the base": (
        {},
        COPY,
        {"mup_base_hidden_size": 12, "mup_output_mult": 1.0000000000000002},
    ),
    "left to megatron-core": ({"mup_base_hidden_size": 8}, ZERO, {"mup_output_mult": 1 / 1.5}),
    "all given": (
        {"mup_base_hidden_size": 5, "mup_output_mult": 0.3, "mup_embedding_mult": 2.5,
         "mup_base_head_dim": 9.0, "mup_attn_scale_power": 0.7},
        ZERO,
        {"mup_output_mult": 0.3, "mup_base_hidden_size": 5},
    ),
    "scores as usual": (
        {"mup_base_hidden_size": 48, "mup_attn_scale_power": 0.5},
        COPY,
        {"mup_base_hidden_size": 48, "mup_output_mult": 4.0},
    ),
}  # fmt: skip


Groups = list[dict[Any, Any]]
Told = tuple[torch.Tensor, Groups]


def told_by_megatron(models: list[tuple[Path, dict[str, Any]]]) -> list[Told]:
    """What megatron-core 0.19 computes from folders, with arguments changed, and its groups."""
    asked = {"tokens": TOKENS.tolist(), "models": [(str(path), c) for path, c in models]}
    return [
        (torch.tensor(one["logits"], dtype=torch.float64), one["groups"])
        for one in answer_of("stock_logits.py", asked)
    ]


def reference(path: Path) -> torch.Tensor:
    with open_checkpoint(path) as opened:
        return logits(opened.config, CheckpointWeights(opened, torch.float64), TOKENS)


def settings(groups: Groups) -> Groups:
    return [{n: value for n, value in group.items() if n != "params"} for group in groups]


def check_groups(name: str, place: Path, before: Groups, after: Groups) -> None:
    """The groups of the small model, grown, are those that megatron-core makes for the large one.

    To the last bit, as it looks for them by their settings; and parameters are found in them.
    """
    with open_checkpoint(place / "small") as small, open_checkpoint(place / "large") as large:
        widths = small.config.width_multiplier, large.config.width_multiplier
        placements = large.reader.arrays
    assert len(before) == (2 if widths[0] == 1 else 3)
    grown = grown_native_groups(settings(before), *widths)
    assert grown is not None
    assert [dict(group) for group in grown] == [
        {**group, "lr": pytest.approx(group["lr"])} for group in settings(after)
    ]
    assert settings(before) != settings(after)
    for group, members in zip(after, by_group(after, placements), strict=True):
        assert sorted(member.placement.key for member in members) == sorted(group["params"]), name


def test_its_own_model_computes_the_same_after_growth(tmp_path: Path) -> None:
    """And one that is left to itself, or whose multiplier stays as it was stored, does not."""
    models: list[tuple[Path, dict[str, Any]]] = []
    said: dict[str, str] = {}
    for name, (given, growth, _) in CASES.items():
        small, large = tmp_path / name / "small", tmp_path / name / "large"
        make_checkpoint(small, PLAIN, use_mup=True, multiple=1, **given)
        said[name] = accepted("expand", small, large, *growth).err
        accepted("verify", small, large)
        models += [(small, {}), (large, {}), (large, {"mup_output_mult": 1.0})]
        models += [(large, {"use_mup": False})]
    found = iter(told_by_megatron(models))
    for name, (given, _, written) in CASES.items():
        told = [next(found) for _ in range(4)]
        before, after, trapped, without = (computed for computed, _ in told)
        check_groups(name, tmp_path / name, told[0][1], told[1][1])
        assert before.abs().max() > 0.1
        assert (after - before).abs().max() <= EXACT, name
        for size, computed in (("small", before), ("large", after)):
            assert (reference(tmp_path / name / size) - computed).abs().max() <= EXACT, name
        for wrong in (trapped, without):
            assert (wrong - before).abs().max() > 1e-2, name
        (file,) = (tmp_path / name / "large").rglob("model_optim_rng.pt")
        args = vars(torch.load(file, weights_only=False)["args"])
        assert {n: args[n] for n in written} == pytest.approx(written, rel=1e-16), name
        assert args["use_mup"] is True
        for option in written:
            anew = f"--{option.replace('_', '-')} {args[option]!r}"
            assert (anew in said[name]) == (args[option] != given.get(option)), (name, anew)
