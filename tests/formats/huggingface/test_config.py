"""``config.json`` of Hugging Face folders, both ways: what is said, understood and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import accepted, flmgrow, refused
from expressible import expressible
from hf_folders import CONFIG, EVERY, FLM, GPT2, MODELS, NEOX, fields, make_folder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from strategies import configs, decoders, examples

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.huggingface.config import family_of, read_fields
from flmgrow.formats.huggingface.config_writing import written_fields
from flmgrow.formats.megatron.arguments.model import read_config
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, RotarySettings
from flmgrow.model.rotary import LongRope, Yarn


@examples(200)
@given(expressible())
def test_what_a_family_says_it_understands(case: tuple[str, ModelConfig]) -> None:
    name, config = case
    family, fields = written_fields(config, name)
    told = json.loads(json.dumps(fields))
    assert family.name == told["model_type"] == name
    assert read_fields(family, told, "config.json") == config


@examples(100)
@given(decoders())
def test_a_model_is_said_rightly_or_refused(config: ModelConfig) -> None:
    try:
        family, fields = written_fields(config)
    except UsageError:
        return
    assert read_fields(family, json.loads(json.dumps(fields)), "config.json") == config


@pytest.mark.parametrize("name", EVERY)
def test_the_family_is_chosen_by_what_the_model_is(name: str) -> None:
    assert written_fields(EVERY[name])[0].name == name


def test_what_layers_differ_in_chooses_the_family() -> None:
    config = MODELS["llama"]
    alone = replace(config, layer_kinds=(LayerKind(), LayerKind(rotates=False)))
    assert written_fields(alone)[0].name == "smollm3"
    window = replace(config, layer_kinds=(LayerKind(7),) * 2)
    assert written_fields(window)[0].name == "mistral"
    mixed = replace(config, layer_kinds=(LayerKind(7), LayerKind()))
    assert written_fields(mixed)[0].name == "smollm3"
    several = replace(config, layer_kinds=(LayerKind(7), LayerKind(6)))
    with pytest.raises(UsageError, match="cannot say layer_kinds 1 x a window of 7, 1 x a window"):
        written_fields(several)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"zero_centred_gain": True}, "llama cannot say zero_centred_gain True"),
        ({"activation": "gelu", "qk_norm": True}, "arcee cannot say qk_norm True"),
        ({"positions": "none"}, "llama cannot say positions none"),
        ({"rotary": RotarySettings(interleaved=True)}, "llama cannot say rotary.interleaved True"),
        (
            {"rotary": RotarySettings(scaling_factor=8.0, interpolation=2.0)},
            "llama cannot say rotary.interpolation 2.0",
        ),
        (
            {"multipliers": Multipliers(output=2.0, attention_by_inverse_layer=True)},
            "granite cannot say multipliers.attention_by_inverse_layer True; nor can 19 others",
        ),
        (
            {"multipliers": Multipliers(output=0.0)},
            "granite cannot say multipliers.output 0.0",
        ),
        ({"multipliers": Multipliers(residual=0.5), "qk_norm": True}, "granite cannot say qk_norm"),
        (
            {"norm": "layernorm", "linear_bias": True},
            "seed_oss cannot say norm layernorm",
        ),
        ({"rotary": RotarySettings(percent=0.5), "qk_norm": True}, "phi3 cannot say qk_norm True"),
        ({"qk_norm": True, "qkv_bias": True}, "qwen3 cannot say qkv_bias True"),
        ({"norm": "layernorm", "qk_norm": True}, "stablelm cannot say qk_norm True"),
    ],
)
def test_what_no_family_can_say_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refusal:
        written_fields(replace(MODELS["llama"], **changes))
    assert says in refusal.value.message


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

REFUSED: list[tuple[dict[str, object], str]] = [
    ({}, "model_type: found None, wanted one of llama"),
    (fields(model_type="mamba"), "model_type: found 'mamba'"),
    (fields(model_type=["llama"]), "model_type: found"),
    (fields(hidden_act="relu"), "hidden_act: found 'relu', wanted silu"),
    (fields(hidden_act=None, hidden_size="8"), "hidden_size: found '8'"),
    (fields(hidden_size=0), "hidden_size: found 0"),
    (fields(hidden_size=10), "hidden_size: found 10, wanted a multiple of num_attention_heads 4"),
    (fields(num_hidden_layers=10**6), "num_hidden_layers: .* at most"),
    (fields(num_key_value_heads=3), "num_key_value_heads: found 3, which does not divide"),
    (fields(rms_norm_eps=float("inf")), "rms_norm_eps: .*finite"),
    (fields(rms_norm_eps=-1.0), "norm epsilon"),
    (fields(sliding_window=16), "sliding_window: found 16, wanted null or at least max_position"),
    ({**GPT2, "sliding_window": 8}, "sliding_window: found 8, .*hint: attention in windows"),
    (fields(quantization_config={"bits": 4}), "quantization_config: found"),
    ({**FLM, "n_embd": 10**400}, "n_embd: found .*, wanted at most"),
    ({**FLM, "mup_base_width": 10**400}, "mup_base_width: found .*, wanted at most"),
    ({**FLM, "rotary_theta": 0}, "rotary_theta: found 0, wanted a positive number"),
    ({**FLM, "relative_encoding": "alibi"}, "relative_encoding: found 'alibi', wanted rotary"),
    ({**FLM, "n_head": 5}, "n_embd: found 16, wanted a multiple of n_head 5"),
    ({**FLM, "mup_base_width": None}, "mup_scale_factor: found 4, wanted n_embd"),
    (fields(auto_map={"AutoModel": "x.py"}), "auto_map: found .*hint: .*--ignore-field auto_map"),
    (fields(clip_qkv=8.0), "clip_qkv: found 8.0"),
    (fields(some_new_switch=True), "some_new_switch: found True"),
    (fields(partial_rotary_factor=0.5), "partial_rotary_factor: found 0.5"),
    (fields(rope_theta=0.0), "rope_theta: found 0, wanted a positive number"),
    (fields(rope_scaling={"type": "linear", "factor": -2.0}), "factor: found -2, wanted a pos"),
    (fields(rope_scaling="linear"), "rope_scaling: found 'linear', wanted an object"),
    (fields(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling.type: found "
     "'dynamic', wanted default or linear or llama3 or yarn or longrope"),
    (fields(rope_scaling={"rope_type": "yarn", "factor": -2.0}), "factor: found -2, wanted a pos"),
    (fields(rope_scaling={"rope_type": "yarn", "factor": 2.0, "odd": 1}), "rope_scaling.odd"),
    (fields(rope_scaling={"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2]}),
     "LongRoPE has 2 factors for the 1 pairs"),
    (fields(rope_scaling={"rope_type": "longrope", "short_factor": [-1], "long_factor": [1]}),
     "short_factor: found .*wanted a list of positive numbers"),
    (fields(model_type="phi3", rope_scaling={"type": "linear", "factor": 2.0}), "found 'linear'"),
    (fields(model_type="smollm3", no_rope_layers=[1]), "no_rope_layers: found .*0 or 1 for each"),
    (fields(model_type="smollm3", no_rope_layers=[1, 2]), "no_rope_layers: found .*0 or 1 for"),
    (fields(rope_scaling={"type": "linear"}), "rope_scaling.factor: found 'nothing'"),
    (fields(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta": 1}), "rope_scaling.beta"),
    (fields(rope_scaling={**LLAMA3, "high_freq_factor": 1.0}), "fast end of rotary scaling"),
    (fields(rope_parameters={"rope_theta": 5.0}), "rope_theta is 10000, rope_parameters.rope_t"),
    (fields(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor: found 0.5"),
    (fields(rope_parameters={"rope_type": "default"}, rope_scaling={"factor": 2.0}), "differ"),
    (fields(model_type="mistral", sliding_window=0), "sliding_window: found 0"),
    (fields(model_type="qwen3", use_sliding_window=True, sliding_window=0, max_window_layers=0),
     "sliding_window: found 0, wanted a positive whole number"),
    (fields(model_type="qwen3", use_sliding_window=True, sliding_window=8,
            layer_types=["sliding_attention"]), "layer_types: found .*for each of 2 layers"),
    (fields(model_type="qwen3", layer_types=["full_attention", "sliding_attention"]),
     "layer_types: found"),
    (fields(model_type="qwen3", layer_types=[{}]), "layer_types: found"),
    (fields(model_type="qwen3", attention_bias=True), "attention_bias: found True"),
    ({**GPT2, "activation_function": "relu"}, "activation_function: found 'relu'"),
    ({**GPT2, "add_cross_attention": True}, "add_cross_attention: found True"),
    ({**GPT2, "n_head": 3}, "n_embd: found 8, wanted a multiple of n_head 3"),
    ({**NEOX, "partial_rotary_factor": 0.5}, "rotary_pct is 0.25, partial_rotary_factor is 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_fields_that_matter_and_are_not_understood(
    given: dict[str, object], says: str, tmp_path: Path
) -> None:
    source = make_folder(tmp_path / "hf", config=given)
    text = json.dumps(given).replace("Infinity", "1e999")
    (source / "config.json").write_text(text)
    refused(3, f"config.json: .*({says})", "import", source, tmp_path / "out", place=tmp_path)


ACCEPTED: list[tuple[dict[str, object], dict[str, object]]] = [
    (fields(), {"head_dim": 2, "tied": False, "norm_eps": 1e-5}),
    (fields(head_dim=4), {"head_dim": 4}),
    (fields(tie_word_embeddings=True), {"tied": True}),
    (fields(attention_bias=True, mlp_bias=True), {"linear_bias": True, "qkv_bias": True}),
    (fields(attention_bias=True), {"linear_bias": False, "qkv_bias": True, "out_bias": True}),
    (fields(mlp_bias=True), {"linear_bias": True, "qkv_bias": False, "out_bias": False}),
    ({**NEOX, "use_parallel_residual": True}, {"residual": "parallel"}),
    ({k: v for k, v in NEOX.items() if k != "use_parallel_residual"}, {"residual": "parallel"}),
    ({**NEOX, "attention_bias": False}, {"qkv_bias": False, "out_bias": False}),
    (fields(rope_scaling=LLAMA3), {"rotary": RotarySettings(scaling_factor=8.0)}),
    (
        fields(rope_theta=None, rope_parameters={**LLAMA3, "rope_theta": 7.0}),
        {"rotary": RotarySettings(base=7.0, scaling_factor=8.0)},
    ),
    (
        fields(rope_scaling={"type": "linear", "factor": 2}),
        {"rotary": RotarySettings(interpolation=2.0)},
    ),
    (
        fields(
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        ),
        {"rotary": RotarySettings(scaling_factor=8.0, scaling_context=32)},
    ),
    (
        fields(rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        {"rotary": RotarySettings(yarn=Yarn(2.0, 32, attention=1.0693147180559945))},
    ),
    (
        fields(
            rope_scaling={"type": "su", "short_factor": [1], "long_factor": [2.5]},
            original_max_position_embeddings=8,
        ),
        {"rotary": RotarySettings(longrope=LongRope((1.0,), (2.5,), 8, 1.2909944487358056))},
    ),
    (fields(model_type="mistral", sliding_window=16), {"layer_kinds": (LayerKind(16),) * 2}),
    (
        fields(model_type="mistral", max_position_embeddings=32768),
        {"layer_kinds": (LayerKind(4096),) * 2},
    ),
    (
        fields(model_type="smollm3", no_rope_layer_interval=2),
        {"layer_kinds": (LayerKind(), LayerKind(rotates=False))},
    ),
    (fields(model_type="mistral", sliding_window=32), {"qkv_bias": False, "layer_kinds": ()}),
    (fields(model_type="mistral"), {"qkv_bias": False}),  # 4096 by default, which is enough for 32
    (fields(model_type="qwen2", sliding_window=8, max_window_layers=9), {"qkv_bias": True}),
    (fields(model_type="qwen3", layer_types=["full_attention"] * 2), {"qk_norm": True}),
    (
        fields(model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
        {"layer_kinds": (LayerKind(), LayerKind(8))},
    ),
    (
        fields(
            model_type="qwen3",
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        {"layer_kinds": (LayerKind(8), LayerKind()), "head_dim": 128},
    ),
    (
        fields(
            model_type="smollm3",
            use_sliding_window=True,
            sliding_window=8,
            no_rope_layer_interval=2,
        ),
        {"layer_kinds": (LayerKind(), LayerKind(8, rotates=False))},
    ),
    (GPT2, {"ffn": 32, "activation": "gelu_tanh", "positions": "learned", "tied": True}),
    ({**GPT2, "n_inner": 12}, {"ffn": 12}),
    ({**GPT2, "scale_attn_weights": False}, {"multipliers": Multipliers(attention=1.0)}),
    (
        {**NEOX, "partial_rotary_factor": 0.25, "rope_theta": 10000.0},  # as transformers 4.57 does
        {"rotary": RotarySettings(percent=0.25)},
    ),
    (NEOX, {"rotary": RotarySettings(percent=0.25), "activation": "gelu", "tied": False}),
    (
        FLM,
        {
            "positions": "xpos",
            "head_dim": 4,
            "tied": True,
            "activation": "gelu_tanh",
            "rotary": RotarySettings(base=10000.0, xpos_scale_base=512.0),
            "logit_factor": 0.5,
            "multipliers": Multipliers(
                output=2.0, mup_base_width=4, attention_by_inverse_layer=True
            ),
        },
    ),
    ({**FLM, "use_mup": False}, {"multipliers": Multipliers(attention_by_inverse_layer=True)}),
]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@examples(400)
@given(data=st.data())
def test_any_field_may_hold_anything(data: DataObject) -> None:
    given = dict(data.draw(st.sampled_from([CONFIG, GPT2, NEOX, FLM])))
    name = data.draw(st.sampled_from([*given, "rope_parameters", "layer_types", "sliding_window"]))
    given[name] = data.draw(_JSON)
    try:
        config = read_fields(family_of(given, "x"), given, "x")
    except BadCheckpointError:
        return
    assert config.layers > 0
    assert isinstance(config.logit_factor, float)  # nothing is divided by zero


@pytest.mark.parametrize(("given", "wanted"), ACCEPTED)
def test_fields_that_are_understood(given: dict[str, object], wanted: dict[str, object]) -> None:
    config = read_fields(family_of(given, "x"), given, "x")
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_a_field_can_be_vouched_for(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf", config=fields(odd=3))
    assert flmgrow("import", source, tmp_path / "out").code == 3
    accepted("import", source, tmp_path / "out", "--ignore-field", "odd")


@examples(100)
@given(configs())
def test_new_arguments_say_the_model(config: ModelConfig) -> None:
    config = replace(config, positions="rope" if config.positions == "xpos" else config.positions,
                     multipliers=Multipliers(attention=config.multipliers.attention))  # fmt: skip
    config = replace(
        config,
        rotary=replace(config.rotary, xpos_scale_base=512.0, xpos_centre=0),
    )
    told = new_arguments(config, 128, "float32", "local")
    assert read_config(told, "args", 128) == config
