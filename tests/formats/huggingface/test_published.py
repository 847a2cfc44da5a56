"""Configurations as published models carry them, and what can be vouched for beside them."""

import json
import re
from pathlib import Path

import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import tokens_for
from hf_folders import GPT2, NEOX, fields, make_folder
from transformers_models import VOCAB, exact_logits, save_model

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.huggingface.config import family_of, notes_on_fields, read_fields
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

PUBLISHED: dict[str, dict[str, object]] = {
    "SmolLM2": fields(is_llama_config=True, rope_interleaved=False,
                      **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
    "Qwen2.5": fields(model_type="qwen2", use_mrope=False, use_sliding_window=False,
                      sliding_window=16, max_window_layers=24),
    "unsloth": fields(unsloth_fixed=True, unsloth_version="2025.12.5"),
    "Vicuna": fields(max_sequence_length=2048, rope_scaling=None, pretraining_tp=1),
    "gpt2-medium": {**GPT2, "n_special": 0, "predict_special_tokens": True},
    "distilgpt2": {**GPT2, "_num_labels": 1, "id2label": {"0": "LABEL_0"}},
    "RedPajama": {**NEOX, "attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
    "Dolly": {**NEOX, "custom_pipelines": {"text-generation": {"impl": "x.Y"}}},
    "NEFTune": fields(neftune_noise_alpha=5.0),
    "saved by 4.36": fields(_flash_attn_2_enabled=True, _attn_implementation_internal="sdpa"),
    "axolotl": fields(tokenizer_model_max_length=2048, tokenizer_padding_side="right"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_models_carry_is_no_hindrance(name: str) -> None:
    given = PUBLISHED[name]
    family = family_of(given, "x")
    read_fields(family, given, "x")
    assert notes_on_fields(family, given, ReadOptions()) == []


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_a_new_name_that_says_nothing_passes_with_a_note(value: object) -> None:
    given = fields(some_new_switch=value)
    family = family_of(given, "x")
    assert read_fields(family, given, "x") == read_fields(family, fields(), "x")
    (note,) = notes_on_fields(family, given, ReadOptions())
    assert note == f"config.json: some_new_switch is {json.dumps(value)}: taken to change nothing"


@pytest.mark.parametrize("name", ["is_causal", "use_rope", "rms_norm", "pre_norm", "scale_attn"])
def test_a_name_whose_false_matters_is_refused(name: str) -> None:
    given = fields(**{name: False})
    with pytest.raises(BadCheckpointError, match=f"{name}: found False"):
        read_fields(family_of(given, "x"), given, "x")
    given = fields(**{name: True})
    read_fields(family_of(given, "x"), given, "x")


def test_all_fields_are_named_at_once_with_a_hint_to_paste(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", config=fields(odd=3, new_mode="x y"))
    outcome = refused(
        3, "odd: found 3; new_mode: found 'x y', which", "import", source,
        tmp_path / "out", place=tmp_path,
    )  # fmt: skip
    hint = outcome.err.split("pass ")[1].split()
    assert hint == "--ignore-field odd --ignore-field new_mode".split()
    for command in (["import", source, tmp_path / "out"], ["inspect", source],
                    ["expand", source, tmp_path / "big", "--num-layers", 3, "--method", "zero"],
                    ["export", source, tmp_path / "x"], ["reshard", source, tmp_path / "y"],
                    ["verify", source, source]):  # fmt: skip
        assert flmgrow(*command).code == 3
        accepted(*command, *hint)
    kept = json.loads((tmp_path / "big" / "config.json").read_text())
    assert (kept["odd"], kept["new_mode"]) == (3, "x y")


def test_no_hint_passes_over_what_changes_the_model(tmp_path: Path) -> None:
    """Its user may all the same, and is told what model is read."""
    source = make_folder(tmp_path / "hf", config=fields(odd=3, clip_qkv=8.0))
    outcome = refused(3, "odd: found 3; clip_qkv: found 8.0, which", "inspect", source,
                      place=tmp_path)  # fmt: skip
    assert "hint: queries, keys and values that are clipped are not supported" in outcome.err
    assert "--ignore-field" not in outcome.err
    outcome = accepted("inspect", source, "--ignore-field", "odd", "--ignore-field", "clip_qkv")
    assert outcome.err == (
        "note: config.json: clip_qkv is 8.0, and queries, keys and values that are clipped are not "
        "supported: the model is read as if it did not say so (--ignore-field)\n"
    )


@pytest.mark.parametrize("pattern", ["hidden_act", "*_eps", "vocab_*"])
def test_nobody_vouches_for_what_a_model_is(pattern: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", config=fields(rms_norm_eps=3e-4))
    plain = accepted("inspect", source)
    outcome = accepted("inspect", source, "--ignore-field", pattern)
    assert outcome.out == plain.out
    assert "0.0003" in outcome.out
    assert re.fullmatch(r"note: --ignore-field \S+: \w+ says what the model is, and is read\n",
                        outcome.err)  # fmt: skip


def test_everything_can_be_vouched_for_and_the_model_is_the_same(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", config=fields(odd=3))
    outcome = accepted("inspect", source, "--ignore-field", "*")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(fields()))
    assert outcome.out == accepted("inspect", source).out


def test_many_fields_can_be_vouched_for_by_a_pattern(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", config=fields(new_a=1, new_b="x"))
    outcome = accepted("inspect", source, "--ignore-field", "new_*", "--ignore-field", "nwe_c")
    assert outcome.err == "note: --ignore-field nwe_c: config.json has no such field\n"


WINDOWED = {"sliding_window": 8, "max_position_embeddings": 32}
LONG, SHORT = tokens_for(VOCAB, length=24), tokens_for(VOCAB, length=8)


def test_a_window_is_read_for_the_texts_that_fit_into_it(tmp_path: Path) -> None:
    """As the hint says; on short texts exactly what transformers computes, and as grown."""
    source = tmp_path / "hf"
    save_model("mistral", source, torch.float64)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **WINDOWED}))
    says = "sliding_window: found 8, .*hint: .*pass --max-position-embeddings 8,"
    refused(3, says, "import", source, tmp_path / "m", place=tmp_path)
    window = ("--max-position-embeddings", 8)
    accepted("import", source, tmp_path / "m", *window, "--tp", 2)
    with open_checkpoint(tmp_path / "m") as opened:
        assert opened.config.max_positions == 8
        found = logits(opened.config, CheckpointWeights(opened, torch.float64), SHORT)
        beyond = logits(opened.config, CheckpointWeights(opened, torch.float64), LONG)
    assert (found - exact_logits(source, SHORT)).abs().max() <= 1e-9
    assert (beyond - exact_logits(source, LONG)).abs().max() > 1e-3
    grow = ("--hidden-size", 40, "--num-layers", 5, "--method", "zero")
    accepted("expand", source, tmp_path / "big", *grow, *window)
    kept = json.loads((tmp_path / "big" / "config.json").read_text())
    assert {name: kept[name] for name in WINDOWED} == WINDOWED
    assert flmgrow("verify", source, tmp_path / "big", *window).code == 0
    for tokens in (SHORT, LONG):
        off = exact_logits(tmp_path / "big", tokens) - exact_logits(source, tokens)
        assert off.abs().max() <= 1e-9


def test_texts_longer_than_the_model_was_made_for_are_refused(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    refused(2, "--max-position-embeddings 33: the model is for 32", "inspect", source,
            "--max-position-embeddings", 33, place=tmp_path)  # fmt: skip
    with pytest.raises(Exception, match="a table of 16 positions"):
        read_fields(family_of(GPT2, "x"), GPT2, "x", ReadOptions(max_positions=8))


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"vision_config": {"x": 1}}, "a text model alone"),
        ({"num_local_experts": 8}, "mixtures of experts"),
        ({"is_encoder_decoder": True}, "an encoder"),
        ({}, "only these families"),
    ],
)
def test_a_model_of_no_family_is_told_what_it_is(more: dict[str, object], hint: str) -> None:
    with pytest.raises(BadCheckpointError) as refusal:
        family_of({"model_type": "other", **more}, "config.json")
    assert hint in refusal.value.hint


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_a_scaling_of_longer_texts_alone_is_left_out_as_the_hint_says(
    field: str, name: str, tmp_path: Path
) -> None:
    """What comes of it computes what transformers does with the scaling, on texts that fit."""
    source = tmp_path / "hf"
    save_model("llama", source, torch.float64)
    config = json.loads((source / "config.json").read_text())
    config.pop("rope_scaling", None)
    theta = config.pop("rope_parameters", {}).get("rope_theta", 10000.0)
    place = {"rope_theta": theta} if field == "rope_scaling" else {}
    inner = {} if place else {"rope_theta": theta}
    scaled = {**config, **place, field: {**inner, name: "dynamic", "factor": 4.0}}
    (source / "config.json").write_text(json.dumps(scaled))
    told = refused(3, f"{field}.{name}: found 'dynamic', wanted default or linear or llama3",
                   "inspect", source, place=tmp_path)  # fmt: skip
    assert f'set {field}.{name} to "default", and leave out the factor' in told.err
    wanted = exact_logits(source, LONG)
    (source / "config.json").write_text(
        json.dumps({**config, **place, field: {**inner, name: "default"}})
    )
    with open_checkpoint(source) as opened:
        found = logits(opened.config, CheckpointWeights(opened, torch.float64), LONG)
    assert (found - wanted).abs().max() <= 1e-9


def test_a_scaling_that_cannot_be_said_is_named_as_it_is() -> None:
    given = fields(rope_scaling={"type": "yarn", "factor": 4.0})
    with pytest.raises(BadCheckpointError, match=r"rope_scaling.type: found 'yarn'") as error:
        read_fields(family_of(given, "x"), given, "x")
    assert "ignore_fields" not in error.value.hint
