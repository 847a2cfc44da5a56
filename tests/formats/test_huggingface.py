"""Hugging Face folders as one more format: config.json both ways, rows, shards, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import accepted, flmgrow, refused
from growing import SmallBlocks, all_files, grow_checkpoint, same_bits, stored_arrays, tokens_for
from hf_folders import CONFIG, llama_arrays, make_folder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn
from pico import even, logical_weights, make_checkpoint
from pico_model import DictWeights
from strategies import configs, examples

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.arguments import read_config
from flmgrow.formats.huggingface import family_placements
from flmgrow.formats.huggingface_config import family_of, read_fields, written_fields
from flmgrow.formats.huggingface_families import FAMILIES
from flmgrow.formats.new_arguments import new_arguments
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.reading import read_whole
from flmgrow.model.axes import full_box
from flmgrow.model.config import ModelConfig, Multipliers, RotarySettings
from flmgrow.model.forward import logits
from flmgrow.model.tensors import logical_tensors
from flmgrow.operators.target import Target, parse_methods
from flmgrow.surgery.execute import Execution
from flmgrow.surgery.plan import LayoutWish
from flmgrow.surgery.weights import CheckpointWeights

_BASE: dict[str, Any] = {
    "layers": 2, "hidden": 16, "ffn": 20, "kv_groups": 4, "queries_per_group": 1, "head_dim": 4,
    "vocab": 24, "max_positions": 32,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    **_BASE, "norm": "rmsnorm", "activation": "swiglu", "linear_bias": False, "qkv_bias": False,
}  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    "llama": ModelConfig(**{**_LLAMA, "kv_groups": 2, "queries_per_group": 2, "tied": False}),
    "qwen2": ModelConfig(**{**_LLAMA, "qkv_bias": True}),
    "qwen3": ModelConfig(**{**_LLAMA, "qk_norm": True, "head_dim": 8}),
    "gpt2": ModelConfig(**_BASE, positions="learned", activation="gelu_tanh"),
    "gpt_neox": ModelConfig(**_BASE, tied=False, rotary=RotarySettings(percent=0.5)),
    "flm": ModelConfig(
        **_BASE, positions="xpos", rotary=RotarySettings(xpos_scale_base=16.0, xpos_centre=4),
        multipliers=Multipliers(
            embedding=2.5, output=1.7, mup_base_width=8, attention_by_inverse_layer=True
        ),
    ),
}  # fmt: skip
OWN_HEADS = ("gpt2", "gpt_neox", "flm")
"""Families whose heads are as many as their groups."""


# --- config.json


@st.composite
def flm(draw: DrawFn, config: ModelConfig) -> ModelConfig:
    """A model of these sizes, and with any of FLM's constants."""
    number = st.floats(1e-3, 1e3)
    xpos = draw(st.booleans())
    return replace(
        config,
        activation=draw(st.sampled_from(["gelu", "gelu_tanh"])),
        positions="xpos" if xpos else "rope",
        rotary=RotarySettings(
            base=config.rotary.base,
            interleaved=draw(st.booleans()),
            xpos_scale_base=draw(number) if xpos else 512.0,
            xpos_centre=draw(st.integers(0, 99)) if xpos else 0,
        ),
        multipliers=Multipliers(
            embedding=draw(st.sampled_from([1.0, 2.5])),
            output=draw(st.one_of(st.just(1.0), number)),
            mup_base_width=draw(st.one_of(st.none(), st.integers(1, 99))),
            attention=draw(st.sampled_from([None, 1.0])),
            attention_by_inverse_layer=draw(st.booleans()),
        ),
    )


@st.composite
def expressible(draw: DrawFn) -> tuple[str, ModelConfig]:
    """A family, and any model that it can say."""
    name = draw(st.sampled_from(list(FAMILIES)))
    queries = draw(st.integers(1, 3)) if FAMILIES[name].rows is FAMILIES["llama"].rows else 1
    groups, size = draw(st.integers(1, 4)), draw(st.sampled_from([4, 8]))
    rotary = RotarySettings(
        base=draw(st.floats(1.0, 1e7)),
        percent=draw(st.sampled_from([0.25, 0.5])) if name == "gpt_neox" else 1.0,
        scaling_factor=draw(st.sampled_from([None, 8.0])),
    )
    if rotary.scaling_factor is None and draw(st.booleans()):
        rotary = replace(rotary, interpolation=3.0)
    heads = groups * queries
    hidden = heads * size if name in ("gpt2", "gpt_neox") else heads * draw(st.integers(1, 9))
    config = replace(
        MODELS["llama" if name == "mistral" else name],
        layers=draw(st.integers(1, 5)), hidden=hidden, ffn=draw(st.integers(1, 50)),
        kv_groups=groups, queries_per_group=queries, head_dim=size,
        vocab=draw(st.integers(1, 99)), max_positions=draw(st.integers(1, 99)),
        norm_eps=draw(st.floats(0, 1)), tied=draw(st.booleans()), rotary=rotary,
    )  # fmt: skip
    if name == "llama" and draw(st.booleans()):
        config = replace(config, linear_bias=True, qkv_bias=True)
    if name == "gpt2":
        scores = Multipliers(
            attention=draw(st.sampled_from([None, 1.0])),
            attention_by_inverse_layer=draw(st.booleans()),
        )
        config = replace(config, activation=draw(st.sampled_from(["gelu", "gelu_tanh"])),
                         multipliers=scores)  # fmt: skip
    if name == "flm":
        config = draw(flm(config))
    return name, config


@examples(200)
@given(expressible())
def test_what_a_family_says_it_understands(case: tuple[str, ModelConfig]) -> None:
    name, config = case
    family, fields = written_fields(config, name)
    told = json.loads(json.dumps(fields))
    assert family.name == told["model_type"] == name
    assert read_fields(family, told, "config.json") == config


@examples(100)
@given(configs())
def test_a_model_is_said_rightly_or_refused(config: ModelConfig) -> None:
    try:
        family, fields = written_fields(config)
    except UsageError:
        return
    assert read_fields(family, json.loads(json.dumps(fields)), "config.json") == config


@pytest.mark.parametrize("name", MODELS)
def test_the_family_is_chosen_by_what_the_model_is(name: str) -> None:
    assert written_fields(MODELS[name])[0].name == name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"zero_centred_gain": True}, "llama cannot say zero_centred_gain True"),
        ({"activation": "squared_relu"}, "llama cannot say activation squared_relu"),
        ({"positions": "none"}, "llama cannot say positions none"),
        ({"rotary": RotarySettings(interleaved=True)}, "llama cannot say rotary.interleaved True"),
        ({"rotary": RotarySettings(percent=0.5)}, "llama cannot say rotary.percent 0.5"),
        (
            {"rotary": RotarySettings(scaling_factor=8.0, interpolation=2.0)},
            "llama cannot say rotary.interpolation 2.0",
        ),
        ({"multipliers": Multipliers(output=2.0)}, "llama cannot say multipliers.output 2.0"),
        (
            {"multipliers": Multipliers(mup_base_width=4)},
            "llama cannot say multipliers.mup_base_width 4",
        ),
        ({"linear_bias": True}, "llama cannot say attention_bias is False, mlp_bias is True"),
        ({"qk_norm": True, "qkv_bias": True}, "qwen3 cannot say qkv_bias True"),
        ({"norm": "layernorm"}, "llama cannot say norm layernorm"),
    ],
)
def test_what_no_family_can_say_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refusal:
        written_fields(replace(MODELS["llama"], **changes))
    assert says in refusal.value.message


def fields(**changed: object) -> dict[str, object]:
    return {**CONFIG, **changed}


GPT2: dict[str, object] = {
    "model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9,
    "n_positions": 16, "activation_function": "gelu_new", "n_ctx": 16, "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True}}, "resid_pdrop": 0.1,
}  # fmt: skip
NEOX: dict[str, object] = {
    "model_type": "gpt_neox", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "vocab_size": 9, "max_position_embeddings": 16, "hidden_act": "gelu",
    "use_parallel_residual": False, "rotary_pct": 0.25, "rotary_emb_base": 10000,
}  # fmt: skip
FLM = {  # of the published fields, those that describe FLM-101B; sizes are tiny
    "model_type": "flm", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 64,
    "n_positions": 2048, "vocab_size": 24, "activation_function": "gelu_fast",
    "layer_norm_epsilon": 1e-5, "relative_encoding": "rotary", "rotary_theta": 10000,
    "rotary_use_xpos": True, "rotary_xpos_scale_base": 512, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "use_mup": True,
    "mup_base_width": 4, "mup_scale_factor": 4.0, "input_mult": 1.0, "output_mult": 2.0,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "bos_token_id": 23,
}  # fmt: skip
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
    (fields(attention_bias=True), "attention_bias is True, mlp_bias is False"),
    (fields(mlp_bias=True), "attention_bias is False, mlp_bias is True"),
    (fields(sliding_window=16), "sliding_window: found 16, which flmgrow does not understand"),
    (fields(quantization_config={"bits": 4}), "quantization_config: found"),
    ({**FLM, "n_embd": 10**400}, "n_embd: found .*, wanted at most"),
    ({**FLM, "mup_base_width": 10**400}, "mup_base_width: found .*, wanted at most"),
    ({**FLM, "rotary_theta": 0}, "rotary_theta: found 0, wanted a positive number"),
    ({**FLM, "relative_encoding": "alibi"}, "relative_encoding: found 'alibi', wanted rotary"),
    ({**FLM, "n_head": 5}, "n_embd: found 16, wanted a multiple of n_head 5"),
    ({**FLM, "mup_base_width": None}, "mup_scale_factor: found 4, wanted n_embd"),
    (fields(auto_map={"AutoModel": "x.py"}), "auto_map: found .*hint: .*--ignore-arg auto_map"),
    (fields(clip_qkv=8.0), "clip_qkv: found 8.0"),
    (fields(some_new_switch=False), "some_new_switch: found False"),
    (fields(partial_rotary_factor=0.5), "partial_rotary_factor: found 0.5"),
    (fields(rope_theta=0.0), "rope_theta: found 0, wanted a positive number"),
    (fields(rope_scaling={"type": "linear", "factor": -2.0}), "factor: found -2, wanted a pos"),
    (fields(rope_scaling="linear"), "rope_scaling: found 'linear', wanted an object"),
    (fields(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling.rope_type: .*dynamic|"
     "rope_scaling.rope_type: found .*wanted default or linear or llama3"),
    (fields(rope_scaling={"type": "yarn", "factor": 2.0}), "rope_scaling.rope_type"),
    (fields(rope_scaling={"type": "linear"}), "rope_scaling.factor: found 'nothing'"),
    (fields(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta": 1}), "rope_scaling.beta"),
    (fields(rope_scaling={**LLAMA3, "high_freq_factor": 8.0}), "high_freq_factor: found 8, want"),
    (fields(rope_scaling={**LLAMA3, "original_max_position_embeddings": 4096}), "found 4096"),
    (fields(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0}), "original_max_position_embeddings: found 32"),
    (fields(rope_parameters={"rope_theta": 5.0}), "rope_theta is 10000, rope_parameters.rope_t"),
    (fields(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor: found 0.5"),
    (fields(rope_parameters={"rope_type": "default"}, rope_scaling={"factor": 2.0}), "differ"),
    (fields(model_type="mistral", max_position_embeddings=32768),
     "sliding_window: found 4096, wanted null or at least"),
    (fields(model_type="mistral", sliding_window=16), "sliding_window: found 16"),
    (fields(model_type="qwen2", use_sliding_window=True, sliding_window=8), "sliding_window: f"),
    (fields(model_type="qwen3", layer_types=["full_attention", "sliding_attention"]),
     "layer_types: found"),
    (fields(model_type="qwen3", layer_types=[{}]), "layer_types: found"),
    (fields(model_type="qwen3", attention_bias=True), "attention_bias: found True"),
    ({**GPT2, "activation_function": "relu"}, "activation_function: found 'relu'"),
    ({**GPT2, "add_cross_attention": True}, "add_cross_attention: found True"),
    ({**GPT2, "n_head": 3}, "n_embd: found 8, wanted a multiple of n_head 3"),
    ({**NEOX, "use_parallel_residual": True}, "use_parallel_residual: found True, wanted False"),
    ({k: v for k, v in NEOX.items() if k != "use_parallel_residual"}, "use_parallel_residual: fou"),
    ({**NEOX, "partial_rotary_factor": 0.5}, "rotary_pct is 0.25, partial_rotary_factor is 0.5"),
    ({**NEOX, "attention_bias": False}, "attention_bias: found False, wanted True"),
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
    (fields(rope_scaling=LLAMA3), {"rotary": RotarySettings(scaling_factor=8.0)}),
    (
        fields(rope_theta=None, rope_parameters={**LLAMA3, "rope_theta": 7.0}),
        {"rotary": RotarySettings(base=7.0, scaling_factor=8.0)},
    ),
    (
        fields(rope_scaling={"type": "linear", "factor": 2}),
        {"rotary": RotarySettings(interpolation=2.0)},
    ),
    (fields(model_type="mistral", sliding_window=32), {"qkv_bias": False}),
    (fields(model_type="mistral"), {"qkv_bias": False}),  # 4096 by default, which is enough for 32
    (fields(model_type="qwen2", sliding_window=8, max_window_layers=9), {"qkv_bias": True}),
    (fields(model_type="qwen3", layer_types=["full_attention"] * 2), {"qk_norm": True}),
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
    accepted("import", source, tmp_path / "out", "--ignore-arg", "odd")


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


# --- rows and weights


def numpy_tensors(family: str, config: ModelConfig, weights: Any) -> dict[str, Any]:
    """What transformers stores, made from whole logical tensors by code of its own."""
    hidden = config.hidden

    def flat(name: str, layer: int) -> Any:
        return weights[name][layer].reshape(-1, hidden)

    out: dict[str, Any] = {}
    for layer in range(config.layers):
        stem = f"transformer.h.{layer}."
        w = {
            name: values[layer] for name, values in weights.items() if len(values) == config.layers
        }
        if family == "gpt2":
            qkv = [flat(name, layer).T for name in ("query", "key", "value")]
            out[stem + "attn.c_attn.weight"] = np.concatenate(qkv, 1)
            biases = [w[f"{name}.bias"].reshape(-1) for name in ("query", "key", "value")]
            out[stem + "attn.c_attn.bias"] = np.concatenate(biases)
            out[stem + "attn.c_proj.weight"] = w["attention_out"].reshape(hidden, -1).T
            out[stem + "mlp.c_fc.weight"] = w["up"].T
            out[stem + "mlp.c_proj.weight"] = w["down"].T
        else:
            stem = f"gpt_neox.layers.{layer}."
            heads = [
                w[name][group].reshape(-1, hidden)
                for group in range(config.kv_groups)
                for name in ("query", "key", "value")
            ]
            out[stem + "attention.query_key_value.weight"] = np.concatenate(heads)
            out[stem + "attention.dense.weight"] = w["attention_out"].reshape(hidden, -1)
    return out  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_fused_and_transposed_matrices_lie_as_they_should(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, 2, 2))
    accepted("export", source, tmp_path / "b")
    wanted = numpy_tensors(name, config, logical_weights(config))
    with open_checkpoint(tmp_path / "b") as opened:
        found = {array.placement.key: read_whole(array) for array in opened.reader.arrays}
    for key, values in wanted.items():
        assert np.array_equal(found[key], values), key


@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_what_the_source_computes(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    source = make_checkpoint(tmp_path / "a", config, even(config, 2, 2), multiple=5)
    grow_checkpoint(source, tmp_path / "b", file_format="huggingface")
    tokens = tokens_for(config.vocab)
    wanted = logits(config, DictWeights(logical_weights(config)), tokens)
    with open_checkpoint(tmp_path / "b") as opened:
        assert (opened.format, opened.config, opened.padded_vocab) == (
            "huggingface", config, config.vocab
        )  # fmt: skip
        found = logits(opened.config, CheckpointWeights(opened, torch.float64), tokens)
    assert (found - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_equal(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    make_checkpoint(tmp_path / "a", config, even(config, 2), naming="fused", multiple=12)
    accepted("export", tmp_path / "a", tmp_path / "b", "--shard-size", 3000)
    accepted("import", tmp_path / "b", tmp_path / "c", "--tp", 2)
    before, after = stored_arrays(tmp_path / "a"), stored_arrays(tmp_path / "c")
    for key, values in before.items():
        rows = config.vocab if key in ("embedding", "head") else None
        assert same_bits(values[:rows], after[key][:rows]), key
    accepted("export", tmp_path / "c", tmp_path / "d", "--shard-size", 3000)
    histories = {"flmgrow.json", "README.md"}
    shards = [
        {n: c for n, c in all_files(tmp_path / x).items() if n not in histories} for x in "bd"
    ]
    assert len(shards[0]) > 5
    assert shards[0] == shards[1]


@examples(15)
@given(data=st.data())
def test_any_growth_is_the_same_from_either_format(
    data: DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("growth")
    name = data.draw(st.sampled_from(list(MODELS)))
    config = MODELS[name]
    source = make_checkpoint(place / "a", config, naming="fused", multiple=1)
    target = Target(
        layers=config.layers + data.draw(st.integers(0, 2)),
        ffn=config.ffn + data.draw(st.sampled_from([0, 4, 20])),
        hidden=config.hidden * data.draw(st.sampled_from([1, 2])),
        heads=config.heads * 2 if name in OWN_HEADS else None,
        methods=parse_methods("copy"),
        seed=data.draw(st.integers(0, 2)),
    )
    if name in OWN_HEADS:
        target = replace(target, hidden=2 * config.hidden)
    grow_checkpoint(source, place / "hf", file_format="huggingface")
    grow_checkpoint(source, place / "grown", target)
    grow_checkpoint(place / "hf", place / "grown-hf", target)
    wanted, found = stored_arrays(place / "grown"), stored_arrays(place / "grown-hf")
    assert wanted.keys() == found.keys()
    assert all(same_bits(wanted[key], found[key]) for key in wanted)


@pytest.mark.parametrize("elements", [5, 60])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "flm"])
def test_blocks_and_workers_do_not_change_a_byte(name: str, elements: int, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", MODELS[name], even(MODELS[name], 2))
    target = Target(hidden=32, heads=8, layers=3, methods=parse_methods("copy"))
    for out, execution in (
        ("whole", Execution()),
        ("small", SmallBlocks(elements=elements, workers=3)),
    ):
        grow_checkpoint(source, tmp_path / out, target, None, execution, None, "huggingface")
    assert all_files(tmp_path / "whole") == all_files(tmp_path / "small")


def test_every_row_is_used_by_some_model() -> None:
    used: dict[object, set[object]] = {family.rows: set() for family in FAMILIES.values()}
    for name, config in MODELS.items():
        variants = [config, replace(config, tied=not config.tied)]
        if name == "llama":
            variants.append(replace(config, linear_bias=True, qkv_bias=True))
        for variant in variants:
            sizes = variant.sizes
            for placement in family_placements(FAMILIES[name], variant, sizes, variant.tied):
                used[FAMILIES[name].rows].add(placement.row)
    for rows, seen in used.items():
        assert isinstance(rows, tuple)
        # The norms' biases stand there for LayerNorm; Llama's norms have none.
        unused = [row for row in rows if row not in seen]
        assert all("norm.bias" in row.parts[0] for row in unused), unused


@pytest.mark.parametrize("name", MODELS)
def test_placements_tile_every_tensor(name: str) -> None:
    config = MODELS[name]
    tensors = logical_tensors(config)
    held = {n: np.zeros(t.shape(config.sizes), int) for n, t in tensors.items()}
    for placement in family_placements(FAMILIES[name], config, config.sizes):
        for segment in placement.segments():
            shape = held[segment.tensor].shape
            held[segment.tensor][segment.box.relative_to(full_box(shape))] += 1
    assert all((counts == 1).all() for counts in held.values())


# --- what lies beside the weights


def with_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def test_tokenizer_files_come_along_and_programs_do_not(tmp_path: Path) -> None:
    source = with_files(
        make_folder(tmp_path / "hf"),
        "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "generation_config.json", "modeling_evil.py", "README.md",
    )  # fmt: skip
    outcome = accepted("export", source, tmp_path / "out", "--dtype", "bfloat16")
    assert "note: left out: programs (*.py): modeling_evil.py" in outcome.err
    assert "note: left out: other files: README.md" in outcome.err
    files = set(all_files(tmp_path / "out"))
    assert files == {
        "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "generation_config.json", "config.json", "model.safetensors", "flmgrow.json",
        "README.md",
    }  # fmt: skip
    assert (tmp_path / "out" / "README.md").read_bytes() != b"README.md"
    assert (tmp_path / "out" / "merges.txt").read_bytes() == b"merges.txt"
    accepted("export", source, tmp_path / "code", "--keep-code")
    assert (tmp_path / "code" / "modeling_evil.py").exists()


def test_what_no_megatron_checkpoint_holds_is_named(tmp_path: Path) -> None:
    source = with_files(make_folder(tmp_path / "hf"), "tokenizer.json")
    err = accepted("import", source, tmp_path / "out").err
    assert err == "note: left out: tokenizer files: tokenizer.json\n"


def test_names_of_files_cannot_drive_a_terminal(tmp_path: Path) -> None:
    source = with_files(make_folder(tmp_path / "hf"), "\x1b[2J.txt")
    err = accepted("import", source, tmp_path / "out").err
    assert "other files" in err
    assert "\x1b" not in err


def test_a_link_out_of_the_folder_is_not_copied(tmp_path: Path) -> None:
    """The cache of huggingface_hub consists of links; a link elsewhere may show a secret."""
    (tmp_path / "secret").write_text("secret")
    source = make_folder(tmp_path / "hf")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    refused(3, "tokenizer.json: is a symbolic link out", "export", source, tmp_path / "out",
            place=tmp_path)  # fmt: skip
    cache = tmp_path / "cache"
    for folder in ("snapshots", "blobs"):
        (cache / folder).mkdir(parents=True)
    snapshot = make_folder(cache / "snapshots" / "1a2b")
    (cache / "blobs" / "77").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/77")
    accepted("export", snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def test_unknown_harmless_fields_are_carried_and_private_ones_are_not(tmp_path: Path) -> None:
    rotary = {"rope_theta": 10000.0, "rope_type": "default"}
    own = fields(_name_or_path="/secret/place", bos_token_id=5, rope_parameters=rotary)
    source = make_folder(tmp_path / "hf", config=own)
    accepted("expand", source, tmp_path / "out", "--ffn-hidden-size", 20, "--method", "zero")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["bos_token_id"] == 5
    assert found["rope_parameters"] == rotary
    assert found["intermediate_size"] == 20
    assert "rope_scaling" not in found
    assert "/secret" not in "".join(
        path.read_text(errors="replace") for path in (tmp_path / "out").iterdir()
    )


def test_buffers_are_left_out_and_named(tmp_path: Path) -> None:
    arrays = llama_arrays()
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    arrays["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.uint8)
    source = make_folder(tmp_path / "hf", arrays=arrays)
    assert (
        "note: left out: 2 buffers that follow from config.json"
        in accepted("import", source, tmp_path / "out").err
    )


def test_a_stored_copy_of_the_shared_table_must_agree(tmp_path: Path) -> None:
    arrays = llama_arrays()
    tied = fields(tie_word_embeddings=True)
    source = make_folder(tmp_path / "bad", config=tied, arrays=arrays)
    refused(3, "lm_head.weight: not equal to .*embed_tokens", "import", source, tmp_path / "out",
            place=tmp_path)  # fmt: skip
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    good = make_folder(tmp_path / "good", config=tied, arrays=arrays)
    accepted("export", good, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as opened:
        assert "lm_head.weight" not in {array.placement.key for array in opened.reader.arrays}


# --- as a format among others


def test_formats_of_the_result(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    kinds = {"import": "megatron", "export": "huggingface", "reshard": "huggingface"}
    for command, kind in kinds.items():
        accepted(command, source, tmp_path / command)
        with open_checkpoint(tmp_path / command) as opened:
            assert (opened.format, opened.iteration) == (kind, None)
    accepted("reshard", source, tmp_path / "dist", "--format", "torch_dist", "--tp", 2)
    with open_checkpoint(tmp_path / "dist") as opened:
        assert (opened.format, opened.layout.tp) == ("torch_dist", 2)


@pytest.mark.parametrize("impl", ["transformer_engine", "local"])
def test_whose_names_an_import_has(impl: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    accepted("import", source, tmp_path / "out", "--transformer-impl", impl)
    with open_checkpoint(tmp_path / "out") as opened:
        assert opened.fused is (impl == "transformer_engine")
    (file,) = (tmp_path / "out").rglob("*.pt")
    content = torch.load(file, weights_only=False)
    assert content["args"].transformer_impl == impl
    assert content["args"].tokenizer_type == "HuggingFaceTokenizer"
    states = [key for key in content["model"] if key.endswith("_extra_state")]
    assert len(states) == 4 * 2 + 1
    assert file.parts[-3] == "release"


def test_optimizer_state_is_left_out_with_a_note(tmp_path: Path) -> None:
    config = MODELS["llama"]
    source = make_checkpoint(tmp_path / "a", config, dtype="bfloat16", optimizer=True)
    outcome = accepted("export", source, tmp_path / "b")
    assert "note: left out: optimizer\n" in outcome.err
    manifest = json.loads((tmp_path / "b" / "flmgrow.json").read_text())
    assert manifest["optimizer"] == "dropped"
    assert manifest["iteration"] is None
    assert manifest["source"]["iteration"] == 30
    assert flmgrow("verify", source, tmp_path / "b").code == 0


def test_padding_is_left_out_with_a_note(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "a", MODELS["llama"], multiple=32)
    assert "8 of 32 vocab rows (padding)" in accepted("export", source, tmp_path / "b").err


def test_rows_of_a_vocabulary_that_are_none(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    words = ("--true-vocab-size", 20)
    outcome = accepted("export", source, tmp_path / "out", *words)
    assert "4 of 24 vocab rows (padding)" in outcome.err
    with open_checkpoint(tmp_path / "out") as opened:
        assert (opened.config.vocab, opened.padded_vocab) == (20, 20)
    refused(2, "only 24 rows are stored", "export", source, tmp_path / "x", "--true-vocab-size", 25,
            place=tmp_path)  # fmt: skip


def test_masks_are_refused_with_the_ways_out(tmp_path: Path) -> None:
    place = tmp_path
    source = make_checkpoint(place / "a", MODELS["llama"])
    grow = ("--ffn-hidden-size", 40)
    refused(2, "cannot hold masks .ffn at 0.*finish the ramp.*--method zero or copy", "expand",
            source, place / "x", *grow, "--format", "huggingface", place=place)  # fmt: skip
    accepted("expand", source, place / "masked", *grow)
    refused(2, "cannot hold masks .ffn at 0", "export", place / "masked", place / "x", place=place)
    accepted("bake", place / "masked", place / "baked", "--value", 0)
    accepted("export", place / "baked", place / "out")
    accepted("expand", source, place / "at-once", *grow, "--bake", "--format", "huggingface")
    for result in ("out", "at-once"):
        with open_checkpoint(place / result) as opened:
            assert opened.config.ffn == 40


@pytest.mark.parametrize(
    ("code", "says", "words"),
    [
        (2, "No such option.*--tp", "export HF OUT --tp 2"),
        (2, "--tp 2: a Hugging Face folder has no ranks", "reshard HF OUT --tp 2"),
        (2, "--iteration 3: a Hugging Face folder has no iter", "reshard HF OUT --iteration 3"),
        (2, "is a Megatron checkpoint, wanted a Hugging Face", "import MEGATRON OUT"),
        (2, "--family bert: unknown", "export MEGATRON OUT --family bert"),
        (2, "gpt2 cannot say .*norm rmsnorm", "export MEGATRON OUT --family gpt2"),
        (2, "--shard-size 0: wanted at least one byte", "export HF OUT --shard-size 0"),
        (2, "--shard-size big: not a size", "export HF OUT --shard-size big"),
        (2, "--transformer-impl x: unknown", "import HF OUT --transformer-impl x"),
        (2, "--format bin: wanted megatron or torch_dist or hugg", "import HF OUT --format bin"),
        (2, "--format huggingface: import writes", "import HF OUT --format huggingface"),
        (2, "llama cannot say hidden_size: found 9", "expand HF OUT --hidden-size 9 --method copy"),
        (2, "TP4 cannot split kv_group 2", "import HF OUT --tp 4"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be(code: int, says: str, words: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "hf")
    make_checkpoint(tmp_path / "megatron", MODELS["llama"])
    places = {"HF": "hf", "MEGATRON": "megatron", "OUT": "out"}
    arguments = [str(tmp_path / places[w]) if w in places else w for w in words.split()]
    refused(code, says, *arguments, place=tmp_path)


def test_shards_are_filled_in_order(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    accepted("export", source, tmp_path / "out", "--shard-size", 1000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = list(dict.fromkeys(index["weight_map"].values()))
    assert names == sorted(names)
    assert len(names) > 3
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in llama_arrays().values())
    sizes = [(tmp_path / "out" / name).stat().st_size for name in names]
    assert max(sizes) < 3000
    assert stored_arrays(tmp_path / "out").keys() == stored_arrays(source).keys()


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    with open_checkpoint(source) as opened:
        opened.contents.check_unchanged()
        (source / "config.json").write_text((source / "config.json").read_text() + " ")
        with pytest.raises(BadCheckpointError, match=r"config.json: changed while it was"):
            opened.contents.check_unchanged()


def test_inspect_shows_a_folder(tmp_path: Path) -> None:
    source = with_files(make_folder(tmp_path / "hf"), "tokenizer.json")
    out = accepted("inspect", source, "--tensors", "--health").out
    assert "Hugging Face (safetensors)" in out
    assert "tokenizer files: tokenizer.json" in out
    assert "kv_group=2 query_per_group=2" in out


def test_the_one_rank_there_is_may_be_asked_for(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "hf")
    grow_checkpoint(source, tmp_path / "out", wish=LayoutWish(1, 1, 1))
    assert (tmp_path / "out" / "model.safetensors").exists()
