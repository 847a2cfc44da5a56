"""Arguments of every version at their defaults pass; what changes the function stops, all at
once.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted, flmgrow, refused
from hypothesis import given
from hypothesis import strategies as st
from pico import CONFIGS, arguments, even, make_checkpoint
from pico_dist import make_dist_checkpoint
from strategies import examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.classes import judge, notes_of, patterns_for
from flmgrow.formats.megatron.arguments.defaults import defaults, defaults_of, versions
from flmgrow.formats.megatron.arguments.model import read_config, written_arguments
from flmgrow.formats.megatron.arguments.names import FEATURES, HARMLESS, UNCLEAR, UNDERSTOOD
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.config import ModelConfig
from flmgrow.text import COMMAND_LINE, render

PADDED = 56
STOCK = replace(CONFIGS["gpt"], norm_eps=1e-5, activation="gelu_tanh", tied=True)
"""A GPT of Megatron-LM's own defaults."""

OF_PICO = ("params_dtype", "make_vocab_size_divisible_by")

ON = {
    "num_experts": 8,
    "multi_latent_attention": True,
    "attention_output_gate": True,
    "qk_l2_norm": True,
    "mtp_num_layers": 1,
    "softmax_type": "off-by-one",
    "apply_residual_connection_post_layernorm": True,
    "quick_geglu": True,
    "heterogeneous_layers_config_path": "layers.json",
    "retro_add_retriever": True,
    "hybrid_attention_ratio": 0.25,
    "experimental_attention_variant": "dsa",
    "glu_linear_offset": 1.0,
}
NEW = {
    "flmgrow_future_feature": 1,
    "gated_attention_of_tomorrow": True,
    "residual_multiplier": 0.5,
    "logit_softcap": 30.0,
    "new_norm": object(),
    "spec": ["a.module", "layer_spec"],
}


def args_of(config: ModelConfig, **changes: object) -> dict[str, object]:
    return {**vars(arguments(config, even(config))), **changes}


def stock(version: str) -> dict[str, Any]:
    """The arguments of a version, at their defaults, that a pico checkpoint does not fix."""
    found = {name: value for name, value in defaults_of(version).items() if name not in OF_PICO}
    return {n: torch.float32 if v == "torch.float32" else v for n, v in found.items()}


@pytest.mark.parametrize("version", versions())
def test_every_version_at_its_defaults_is_read(version: str, tmp_path: Path) -> None:
    place = make_checkpoint(tmp_path / "legacy", STOCK, **stock(version))
    other = make_dist_checkpoint(tmp_path / "dist", STOCK, **stock(version))
    for path in (place, other):
        with open_checkpoint(path) as opened:
            assert opened.config == STOCK
            assert opened.notes == ()


def test_the_table_covers_what_the_issue_of_every_version_was() -> None:
    assert (len(defaults()), versions()[0], versions()[-1]) == (849, "0.11.0", "0.19.0")
    assert defaults()["cuda_graph_scope"] == ("full", [])
    assert "retro_encoder_layers" in defaults_of("0.12.3")
    assert "retro_encoder_layers" not in defaults_of("0.19.0")


def test_a_name_is_of_one_class() -> None:
    classes = [UNDERSTOOD, FEATURES.keys(), UNCLEAR, HARMLESS]
    names = [name for one in classes for name in one]
    assert len(names) == len(set(names))
    assert not HARMLESS & defaults().keys(), "the table says so already"


@examples(60)
@given(st.sets(st.sampled_from(sorted(ON)), min_size=1))
def test_features_are_named_all_at_once_and_no_option_is_offered(names: set[str]) -> None:
    args = args_of(CONFIGS["llama"], **{name: ON[name] for name in names})
    with pytest.raises(BadCheckpointError) as refusal:
        read_config(args, "file", PADDED)
    for name in names:
        assert name in refusal.value.message
        assert FEATURES[name] in refusal.value.message or len(names) > 5
    assert "ignore_arguments" not in refusal.value.hint
    assert read_config(args, "file", PADDED, names) == CONFIGS["llama"]


@examples(60)
@given(st.sets(st.sampled_from(sorted(NEW)), min_size=1))
def test_unknown_features_are_named_all_at_once_with_the_options(names: set[str]) -> None:
    args = args_of(CONFIGS["llama"], **{name: NEW[name] for name in names})
    with pytest.raises(BadCheckpointError, match="does not understand") as refusal:
        read_config(args, "file", PADDED)
    assert all(f"args.{name}: found " in refusal.value.message for name in names)
    hint = render(refusal.value.hint, COMMAND_LINE)
    offered = shlex.split(hint.partition("pass ")[2])[1::2]
    assert read_config(args, "file", PADDED, offered) == CONFIGS["llama"]


def test_every_feature_there_is_fits_into_one_message() -> None:
    args = args_of(CONFIGS["llama"], **dict.fromkeys(FEATURES, 7))
    with pytest.raises(BadCheckpointError) as refusal:
        read_config(args, "checkpoints/iter_0000100/mp_rank_00_000/model_optim_rng.pt", PADDED)
    assert all(name in refusal.value.message for name in FEATURES)


def test_a_feature_and_an_unknown_argument_are_both_named() -> None:
    args = args_of(CONFIGS["llama"], num_experts=8, new_gate=True)
    with pytest.raises(BadCheckpointError, match=r"num_experts.*new_gate.*mixture of") as error:
        read_config(args, "file", PADDED)
    assert "ignore_arguments" not in error.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_dropout", 0.3),
        ("attention_backend", object()),
        ("moe_router_topk", 8),
        ("mamba_state_dim", 64),
        ("num_experts", None),
        ("num_experts", 0),
        ("window_size", None),
        ("window_size", [-1, 0]),
        ("expert_model_parallel_size", 1),
        ("softmax_type", "vanilla"),
        ("rope_type", "rope"),
        ("fp8", "hybrid"),
        ("save_interval", 100),
        ("wandb_project", "gated attention"),
        ("gated_attention_of_tomorrow", False),
        ("gated_attention_of_tomorrow", []),
        ("log_params_norm", True),
        ("use_flash_attn", True),
        ("apply_query_key_layer_scaling", True),
    ],
)
def test_what_cannot_matter_passes_and_is_carried(name: str, value: object) -> None:
    args = args_of(CONFIGS["llama"], **{name: value})
    config = read_config(args, "file", PADDED)
    assert config == CONFIGS["llama"]
    assert written_arguments(args, config)[name] is value


def test_unknown_arguments_are_told_and_known_ones_are_not() -> None:
    args = args_of(CONFIGS["llama"], gate_of_tomorrow=False, advantage_estimator="grpo", lr=1.0)
    (note,) = notes_of(args, "file")
    assert note.endswith("carried as they are: gate_of_tomorrow, advantage_estimator")
    assert judge(args).unknown == ["gate_of_tomorrow", "advantage_estimator"]


def test_ignored_patterns_that_match_nothing_are_told() -> None:
    args = args_of(CONFIGS["llama"])
    notes = notes_of(args, "file", ["sglang_*", "swiglu"])
    assert tuple(render(note, COMMAND_LINE) for note in notes) == (
        "file: --ignore-arg 'sglang_*': no argument is called so",
        "file: --ignore-arg swiglu: flmgrow understands it, and uses it",
    )


SERVER: dict[str, Any] = {
    "sglang_moe_runner_backend": "auto",
    "sglang_kv_cache_dtype": "auto",
    "sglang_attention_backend": "fa3",
    "sglang_mem_fraction_static": 0.7,
    "rollout_function_path": "slime.rollout",
}


def test_another_programs_settings_become_one_pattern(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", "llama", **SERVER)
    seen = accepted("inspect", source)
    assert "--ignore-arg 'sglang_*'" in seen.err
    outcome = refused(3, "sglang_kv_cache_dtype", "reshard", source, tmp_path / "b", place=tmp_path)
    hint = outcome.err.splitlines()[-1]
    assert hint.endswith("pass --ignore-arg 'sglang_*'")
    options = shlex.split(hint.partition("pass ")[2])
    done = accepted("reshard", source, tmp_path / "b", *options)
    assert "carried as they are: rollout_function_path" in done.err
    again = flmgrow("verify", source, tmp_path / "b", *options, "--ignore-arg", "vllm_*")
    assert again.code == 0
    assert "--ignore-arg 'vllm_*': no argument is called so" in again.err


def test_names_of_megatrons_own_prefixes_are_not_made_a_pattern() -> None:
    names = ["num_gates", "num_heads_of_kind_b"]
    assert patterns_for(names) == names
    assert patterns_for(["vllm_a", "b_c", "vllm_d"]) == ["vllm_*", "b_c"]
    assert patterns_for([f"kind{n}_of_head" for n in range(60)]) == ["*"]
    assert patterns_for(["gate\x1b[31m"]) == ["gate?[31m"]
