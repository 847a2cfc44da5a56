"""A rotated share that comes to an odd number of a head's entries, from one format to another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import accepted, refused
from growing import checkpoint_logits, tokens_for
from pico import CONFIGS, make_checkpoint
from transformers_models import CONFIGS as MODELS
from transformers_models import exact_logits, make_model

from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig, RotarySettings

EXACT = 1e-9
ODD = replace(
    CONFIGS["gpt"],
    positions="rope",
    head_dim=6,
    hidden=24,
    norm_eps=1e-3,
    rotary=RotarySettings(base=100.0, percent=0.5),
)


def test_transformers_agrees_on_what_was_imported_and_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = MODELS["gpt_neox"]
    monkeypatch.setattr(
        "transformers_models.CONFIGS", {"odd": (kind, {**options, "hidden_size": 24})}
    )
    make_model("odd", torch.float64).save_pretrained(tmp_path / "hf")
    tokens = tokens_for(70)
    accepted("import", tmp_path / "hf", tmp_path / "megatron")
    wanted = exact_logits(tmp_path / "hf", tokens)
    assert wanted.abs().max() > 1
    assert (checkpoint_logits(tmp_path / "megatron", tokens) - wanted).abs().max() <= EXACT
    accepted("expand", tmp_path / "hf", tmp_path / "grown", "--num-layers", 5, "--method", "zero")
    accepted("verify", tmp_path / "hf", tmp_path / "grown")
    assert (exact_logits(tmp_path / "grown", tokens) - wanted).abs().max() <= EXACT


def test_a_family_that_rotates_so_takes_it_and_others_refuse(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", ODD)
    accepted("export", source, tmp_path / "b", "--family", "gpt_neox")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["rotary_pct"] == 0.5
    tokens = tokens_for(ODD.vocab)
    ours, theirs = checkpoint_logits(source, tokens), exact_logits(tmp_path / "b", tokens)
    assert (ours - theirs).abs().max() <= EXACT
    refused(
        2, "percent|rotary", "export", source, tmp_path / "c", "--family", "flm", place=tmp_path
    )


@pytest.mark.parametrize(
    ("share", "says"),
    [(1.0, "heads of 5 entries have no 3"), (1.5, "share of a head is 1.5"), (-0.5, "is -0.5")],
)
def test_shares_that_no_head_has_are_refused(share: float, says: str, tmp_path: Path) -> None:
    """Whole heads of an odd size: megatron-core would fail at the first step."""
    with pytest.raises(UsageError, match=says):
        replace(ODD, head_dim=5, rotary=RotarySettings(percent=share))
    source = make_checkpoint(tmp_path / "a", replace(ODD, head_dim=5), rotary_percent=share)
    refused(3, f"model_optim_rng.pt: .*{says}", "inspect", source, place=tmp_path)


@pytest.mark.parametrize(("share", "pairs"), [(0.0, 0), (0.1, 0), (0.5, 2), (0.7, 2), (1.0, 3)])
def test_pairs(share: float, pairs: int) -> None:
    config: ModelConfig = replace(ODD, rotary=RotarySettings(percent=share))
    assert config.rotary.pairs(config.head_dim) == pairs
