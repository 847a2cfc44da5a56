"""Granite: Llama with a multiplier for embeddings, scores, branches and logits, and so muP's home.

What it computes is compared with transformers in ``tests/test_real_transformers.py``; here it is
what a file says, what each number does, and models trained elsewhere that leave as Granite.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, refused
from growing import tokens_for
from hf_folders import MODELS, fields, make_folder
from pico import even, logical_weights, make_checkpoint
from pico_model import DictWeights
from transformers_models import VOCAB, exact_logits, save_model

from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.huggingface.config import family_of, notes_on_fields, read_fields
from flmgrow.formats.huggingface.config_writing import written_fields
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig, Multipliers
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

EXACT = 1e-9
TOKENS = tokens_for(VOCAB, length=24)

PUBLISHED: Mapping[str, object] = {  # Granite 3.1 2B, base
    "architectures": ["GraniteForCausalLM"], "attention_bias": False, "attention_dropout": 0.1,
    "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "granite", "num_attention_heads": 32,
    "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0,
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 5000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0.dev0", "use_cache": True, "vocab_size": 49155,
}  # fmt: skip
MULTIPLIERS = (
    "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling",
)  # fmt: skip


def test_a_published_model_is_understood() -> None:
    family = family_of(PUBLISHED, "x")
    config = read_fields(family, PUBLISHED, "x")
    assert config == ModelConfig(
        layers=40, hidden=2048, ffn=8192, kv_groups=8, queries_per_group=4, head_dim=64,
        vocab=49155, max_positions=131072, norm="rmsnorm", norm_eps=1e-5, activation="swiglu",
        linear_bias=False, qkv_bias=False, tied=True, rotary=config.rotary,
        multipliers=Multipliers(
            embedding=12.0, output=0.125, attention=1 / 64, residual=0.22
        ),
    )  # fmt: skip
    assert config.rotary.base == 5e6
    assert notes_on_fields(family, PUBLISHED, ReadOptions()) == []
    written = written_fields(config)[1]
    assert {n: written[n] for n in MULTIPLIERS} == {n: PUBLISHED[n] for n in MULTIPLIERS}
    assert not written.keys() & {"mup_base_width", "flmgrow_output_multiplier"}


@pytest.mark.parametrize("divisor", [3, 6.0, 7.3, 8, 10, 12.0, 13.0, 49.0, 0.31, 1e-3])
def test_a_divisor_comes_back_as_it_was(divisor: float) -> None:
    given = {**PUBLISHED, "logits_scaling": divisor}
    config = read_fields(family_of(given, "x"), given, "x")
    assert written_fields(config)[1]["logits_scaling"] == divisor


def test_an_absent_multiplier_is_one() -> None:
    """Of the scores too, which no other family leaves unscaled."""
    given = {name: value for name, value in PUBLISHED.items() if name not in MULTIPLIERS}
    config = read_fields(family_of(given, "x"), given, "x")
    assert config.multipliers == Multipliers(attention=1.0)


def test_scores_scaled_as_usual_are_the_usual_ones() -> None:
    """So that a Llama, whatever it was before, is known as one."""
    given = {**PUBLISHED, **dict.fromkeys(MULTIPLIERS, 1.0), "attention_multiplier": 64**-0.5}
    config = read_fields(family_of(given, "x"), given, "x")
    assert config.multipliers == Multipliers()
    assert written_fields(config)[0].name == "llama"
    assert written_fields(config, "granite")[1]["attention_multiplier"] == 0.125


def test_a_factor_that_no_divisor_says_is_said_again() -> None:
    """To the last bit by a field of our own, and to the last but one to transformers."""
    config = replace(MODELS["granite"], multipliers=Multipliers(output=0.9999999999999997))
    told = written_fields(config)[1]
    assert told["flmgrow_output_multiplier"] == 0.9999999999999997
    assert abs(1 / told["logits_scaling"] - 0.9999999999999997) < 3e-16  # type: ignore[operator]
    assert read_fields(family_of(told, "x"), told, "x") == config


WRONG: list[tuple[dict[str, object], str]] = [
    ({"logits_scaling": 0}, "logits_scaling: found 0, wanted a number other than 0"),
    ({"logits_scaling": "8"}, "logits_scaling: found '8', wanted a finite number"),
    ({"residual_multiplier": True}, "residual_multiplier: found True, wanted a finite number"),
    ({"logits_scaling": 5e-324}, "logits' multiplier"),
    ({"flmgrow_output_multiplier": 0.1251}, "flmgrow_output_multiplier: found 0.1251, wanted 0.12"),
    ({"mup_base_width": -1}, "mup_base_width: found -1"),
    ({"model_type": "llama"}, "residual_multiplier: found 0.22, .*hint: factors that embeddings"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG, ids=[says[:40] for _, says in WRONG])
def test_what_makes_no_granite_is_refused(
    changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    source = make_folder(tmp_path / "hf", config={**PUBLISHED, **changes})
    refused(3, says, "inspect", source, place=tmp_path)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_every_multiplier_matters(name: str, tmp_path: Path) -> None:
    """The control of all comparisons: who loses one computes something else."""
    save_model("granite", tmp_path / "hf", torch.float64)
    wanted = exact_logits(tmp_path / "hf", TOKENS)
    with open_checkpoint(tmp_path / "hf") as opened:
        whole = opened.config.multipliers
        without = {
            "embedding_multiplier": replace(whole, embedding=1.0),
            "attention_multiplier": replace(whole, attention=None),
            "residual_multiplier": replace(whole, residual=1.0),
            "logits_scaling": replace(whole, output=1.0),
        }
        lost = replace(opened.config, multipliers=without[name])
        weights = CheckpointWeights(opened, torch.float64)
        assert (logits(opened.config, weights, TOKENS) - wanted).abs().max() <= EXACT
        assert (logits(lost, weights, TOKENS) - wanted).abs().max() > 1e-2


GROWTHS: dict[str, tuple[object, ...]] = {
    "zero": ("--hidden-size", 24, "--num-layers", 3, "--ffn-hidden-size", 28, "--method", "zero"),
    "copy": ("--hidden-size", 32, "--num-layers", 3, "--method", "copy"),
}
MUP = Multipliers(embedding=2.5, output=1.7, mup_base_width=8, residual=0.22)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("growth", GROWTHS)
def test_a_model_trained_with_mup_leaves_as_granite(
    growth: str, tied: bool, tmp_path: Path
) -> None:
    """From Megatron's files, before growth and after, and back with muP's base width in it."""
    config = replace(MODELS["granite"], tied=tied, multipliers=MUP, vocab=VOCAB)
    source = make_checkpoint(tmp_path / "a", config, even(config, 2), multiple=1)
    accepted("expand", source, tmp_path / "b", *GROWTHS[growth])
    wanted = logits(config, DictWeights(logical_weights(config)), TOKENS)
    for folder in "ab":
        accepted("export", tmp_path / folder, tmp_path / f"{folder}-hf")
        told: dict[str, Any] = json.loads((tmp_path / f"{folder}-hf" / "config.json").read_text())
        assert told["model_type"] == "granite"
        assert told["logits_scaling"] == pytest.approx(2 / 1.7, rel=1e-15)  # of 16 over 8
        found = exact_logits(tmp_path / f"{folder}-hf", TOKENS)
        assert (found - wanted).abs().max() <= EXACT
        accepted("import", tmp_path / f"{folder}-hf", tmp_path / f"{folder}-back", "--tp", 2)
        with (
            open_checkpoint(tmp_path / folder) as before,
            open_checkpoint(tmp_path / f"{folder}-back") as after,
        ):
            assert after.config == before.config
            assert after.config.multipliers.mup_base_width == 8
    accepted("verify", tmp_path / "b-hf", tmp_path / "b-back")


def test_a_grown_granite_keeps_its_own_file(tmp_path: Path) -> None:
    """All that growth does not change, spelt as it was."""
    save_model("granite", tmp_path / "hf", torch.float32)
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "logits_scaling": 6, "_x": 1}))
    accepted("expand", tmp_path / "hf", tmp_path / "big", "--hidden-size", 64, "--method", "copy")
    before = json.loads(path.read_text())
    after = json.loads((tmp_path / "big" / "config.json").read_text())
    added = {"head_dim", "rope_theta", "rope_scaling", "torch_dtype"}  # read by transformers 4
    assert after.keys() - before.keys() <= added
    assert {n for n in before if after[n] != before[n]} == {"hidden_size"}
    assert repr(after["logits_scaling"]) == "6"


def test_other_families_have_no_such_fields(tmp_path: Path) -> None:
    for name in MULTIPLIERS[:3]:
        given = fields(**{name: 0.5})
        refused(3, f"{name}: found 0.5", "inspect", make_folder(tmp_path / name, config=given),
                place=tmp_path)  # fmt: skip
