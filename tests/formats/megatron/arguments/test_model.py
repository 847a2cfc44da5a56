"""Arguments to model and back."""

from dataclasses import replace

import pytest
from hypothesis import given
from pico import CONFIGS, arguments, even
from strategies import any_config, examples

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.megatron.arguments.model import read_config, written_arguments
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings

PADDED = 64


def args_of(config: ModelConfig, **changes: object) -> dict[str, object]:
    """As for a table of 64 rows."""
    return {**vars(arguments(config, even(config), multiple=PADDED)), **changes}


def read(args: dict[str, object]) -> ModelConfig:
    return read_config(args, "file", PADDED)


@examples(100)
@given(any_config())
def test_arguments_say_the_model(config: ModelConfig) -> None:
    config = replace(config, rotary=replace(config.rotary, base=10000.0))
    if config.positions != "xpos":
        xpos = RotarySettings()
        rotary = replace(
            config.rotary,
            xpos_scale_base=xpos.xpos_scale_base,
            xpos_centre=xpos.xpos_centre,
        )
        config = replace(config, rotary=rotary)
    assert read(args_of(config)) == config


@examples(100)
@given(any_config(), any_config())
def test_written_arguments_say_the_grown_model(old: ModelConfig, other: ModelConfig) -> None:
    grown = replace(
        old.with_sizes({**other.sizes, Axis.HEAD_DIM: old.head_dim}),
        max_positions=old.max_positions,
        norm_eps=old.norm_eps * 0.6,
        tied=False,
    )
    args = args_of(read(args_of(old)))
    expected = replace(grown, rotary=read(args).rotary)
    assert read(written_arguments(args, expected)) == expected


def test_older_names_and_absent_arguments_mean_megatrons_defaults() -> None:
    args: dict[str, object] = {
        "num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "padded_vocab_size": 64,
        "max_position_embeddings": 32, "layernorm_epsilon": 1e-6,
    }  # fmt: skip
    config = read(args)
    assert config == ModelConfig(
        layers=2, hidden=16, ffn=64, kv_groups=4, queries_per_group=1, head_dim=4, vocab=64,
        max_positions=32, norm="layernorm", norm_eps=1e-6, activation="gelu", positions="learned",
        linear_bias=True, qkv_bias=True, tied=True,
    )  # fmt: skip
    written = written_arguments(args, replace(config, norm_eps=2e-6))
    assert written["layernorm_epsilon"] == 2e-6
    assert "norm_epsilon" not in written


def test_fused_gelu_is_the_tanh_approximation() -> None:
    args = args_of(CONFIGS["gpt"], bias_gelu_fusion=True)
    assert read(args).activation == "gelu_tanh"
    without_bias = args_of(CONFIGS["nemotron"], bias_gelu_fusion=True, squared_relu=False)
    assert read(without_bias).activation == "gelu"


@pytest.mark.parametrize(
    ("changes", "vocab"),
    [
        ({}, 51),
        ({"vocab_size": None}, PADDED),
        ({"vocab_size": 99}, PADDED),
        ({"tokenizer_type": "NullTokenizer"}, 52),
        ({"flmgrow_true_vocab_size": 50, "tokenizer_type": "NullTokenizer"}, 50),
    ],
)
def test_the_true_vocabulary_is_kept_as_far_as_anybody_knows(
    changes: dict[str, object], vocab: int
) -> None:
    assert read(args_of(CONFIGS["llama"], **changes)).vocab == vocab


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_layers", None),
        ("num_layers", 0),
        ("hidden_size", True),
        ("hidden_size", "12"),
        ("norm_epsilon", "small"),
        ("norm_epsilon", float("nan")),
        ("normalization", "BatchNorm"),
        ("position_embedding_type", "mrope"),
        ("swiglu", "yes"),
        ("num_query_groups", 3),
        ("rotary_percent", float("inf")),
    ],
)
def test_malformed_values_are_named(name: str, value: object) -> None:
    with pytest.raises(BadCheckpointError, match="file: "):
        read(args_of(CONFIGS["llama"], **{name: value}))


def test_our_own_names_are_written_only_where_needed() -> None:
    plain = written_arguments(args_of(CONFIGS["llama"]), CONFIGS["llama"])
    assert [n for n in plain if n.startswith("flmgrow_")] == ["flmgrow_true_vocab_size"]
    config = replace(CONFIGS["llama"], multipliers=Multipliers(output=2.0))
    assert written_arguments(plain, config)["flmgrow_output_multiplier"] == 2.0


def test_groups_are_written_where_megatron_will_look() -> None:
    """Without --group-query-attention Megatron-LM leaves num_query_groups at 1 and ignores it."""
    args = args_of(CONFIGS["tele"])
    assert (args["group_query_attention"], args["num_query_groups"]) == (False, 1)
    more_heads = replace(CONFIGS["tele"], kv_groups=6)
    assert written_arguments(args, more_heads)["num_query_groups"] == 1
    grouped = replace(CONFIGS["tele"], queries_per_group=2)
    written = written_arguments(args, grouped)
    assert (written["group_query_attention"], written["num_query_groups"]) == (True, 4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"num_query_groups": 4}, {"num_query_groups": 6, "group_query_attention": False}),
        ({"num_query_groups": None}, {"num_query_groups": None}),
        ({"moe_ffn_hidden_size": 20}, {"moe_ffn_hidden_size": 24, "ffn_hidden_size": 24}),
        ({"moe_ffn_hidden_size": 256}, {"moe_ffn_hidden_size": 256}),
        ({"encoder_num_layers": 4}, {"encoder_num_layers": 8, "num_layers": 8}),
        ({"encoder_num_layers": None}, {"encoder_num_layers": None}),
        ({"cp_comm_type": ["p2p"] * 4}, {"cp_comm_type": ["p2p"]}),
        ({"seq_length": 8}, {"seq_length": 8, "max_position_embeddings": 16}),
    ],
)
def test_what_megatron_derives_from_sizes_follows_them(
    before: dict[str, object], after: dict[str, object]
) -> None:
    args = args_of(CONFIGS["tele"], **before)
    grown = replace(CONFIGS["tele"], kv_groups=6, ffn=24, layers=8)
    written = written_arguments(args, grown)
    assert {name: written[name] for name in after} == after
    assert read(written) == grown
    assert (written["kv_channels"], written["num_attention_heads"]) == (4, 6)
