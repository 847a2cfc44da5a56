"""Models that were published, field by field: each is understood, and nothing vouched for.

Those of which another program has the whole file are read from there (``published_models.py``). Of
the others no whole file was found: they are put together from the defaults of transformers'
classes, which name the model, and from quotations of parts (``published.json`` has some). A field
of theirs may be missing here, or stand here for another value.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from published_models import fields_of

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.checkpoint import ReadOptions
from flmgrow.formats.huggingface.config import family_of, notes_on_fields, read_fields
from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, RotarySettings
from flmgrow.model.rotary import LongRope

_USUAL: dict[str, object] = {
    "attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16",
    "use_cache": True, "transformers_version": "4.48.0",
}  # fmt: skip
NEMOTRON = {
    **_USUAL, "architectures": ["NemotronForCausalLM"], "bos_token_id": 2, "eos_token_id": 3,
    "hidden_act": "relu2", "hidden_size": 3072, "intermediate_size": 9216,
    "max_position_embeddings": 4096, "model_type": "nemotron", "num_attention_heads": 24,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "norm_eps": 1e-05, "rope_theta": 10000,
    "partial_rotary_factor": 0.5, "tie_word_embeddings": False, "vocab_size": 256000,
    "kv_channels": 128,
}  # fmt: skip
PYTHIA = {  # of 1B
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 16,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True,
    "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
SMOLLM3 = {
    **_USUAL, "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False,
    "bos_token_id": 128000, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
    "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
    "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
    "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": 128256, "pad_token_id": 128004,
}  # fmt: skip
STARCODER = {
    **_USUAL, "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode",
    "activation_function": "gelu", "attention_softmax_in_fp32": True, "multi_query": True,
    "attn_pdrop": 0.1, "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0,
    "inference_runner": 0, "layer_norm_epsilon": 1e-05, "max_batch_size": None,
    "max_sequence_length": None, "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_layer": 40,
    "n_positions": 8192, "pad_key_length": True, "pre_allocate_kv_cache": False,
    "resid_pdrop": 0.1, "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "validate_runner_input": True,
    "vocab_size": 49152,
}  # fmt: skip
SEED_OSS = {
    **_USUAL, "architectures": ["SeedOssForCausalLM"], "attention_bias": True,
    "attention_out_bias": False, "mlp_bias": False, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "intermediate_size": 27648, "max_position_embeddings": 524288,
    "model_type": "seed_oss", "num_attention_heads": 80, "num_hidden_layers": 64,
    "num_key_value_heads": 8, "residual_dropout": 0.1, "rms_norm_eps": 1e-06,
    "rope_scaling": {"rope_type": "default"}, "rope_theta": 10000000.0,
    "tie_word_embeddings": False, "vocab_size": 155136, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1,
}  # fmt: skip
ARCEE = {  # from before its texts were made longer, which takes a scaling of its own
    **_USUAL, "architectures": ["ArceeForCausalLM"], "attention_bias": False, "mlp_bias": False,
    "head_dim": 128, "hidden_act": "relu2", "hidden_size": 2560, "intermediate_size": 18432,
    "max_position_embeddings": 4096, "model_type": "arcee", "num_attention_heads": 20,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "vocab_size": 128004, "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
PHI3 = fields_of("microsoft/Phi-3-mini-4k-instruct")
PHI4 = fields_of("microsoft/phi-4")
PHI4_MINI = fields_of("microsoft/Phi-4-mini-instruct")
STARCODER2 = fields_of("bigcode/starcoder2-7b")
STABLELM = fields_of("stabilityai/stablelm-2-zephyr-1_6b")
MISTRAL = fields_of("mistralai/Mistral-7B-v0.1")
OLMO2 = fields_of("allenai/OLMo-2-1124-7B-Instruct")
GEMMA = fields_of("google/gemma-2b")
GEMMA2 = fields_of("google/gemma-2-2b-it")
GEMMA3 = fields_of("google/gemma-3-1b-it")
GEMMA3_12B = fields_of("google/gemma-3-12b-it")
QWEN2 = {  # with its windows turned on
    **fields_of("Qwen/Qwen2.5-7B-Instruct"), "use_sliding_window": True, "max_window_layers": 26,
    "sliding_window": 4096,
}  # fmt: skip

_GEMMA = ModelConfig(
    layers=18, hidden=2048, ffn=16384, kv_groups=1, queries_per_group=8, head_dim=256,
    vocab=256000, max_positions=8192, norm="rmsnorm", norm_eps=1e-6, zero_centred_gain=True,
    activation="geglu_tanh", linear_bias=False, qkv_bias=False,
    multipliers=Multipliers(embedding_by_width=True),
)  # fmt: skip
_LOCAL = LayerKind(512, rotary=RotarySettings())
_LOCAL_12B = LayerKind(1024, rotary=RotarySettings())
_PHI = ModelConfig(
    layers=40, hidden=5120, ffn=17920, kv_groups=10, queries_per_group=4, head_dim=128,
    vocab=100352, max_positions=16384, norm="rmsnorm", activation="swiglu", linear_bias=False,
    qkv_bias=False, tied=False, rotary=RotarySettings(base=250000.0),
)  # fmt: skip
PUBLISHED: dict[str, tuple[Mapping[str, object], ModelConfig]] = {
    "Minitron 4B": (
        NEMOTRON,
        ModelConfig(
            layers=32, hidden=3072, ffn=9216, kv_groups=8, queries_per_group=3, head_dim=128,
            vocab=256000, max_positions=4096, zero_centred_gain=True, activation="squared_relu",
            linear_bias=False, qkv_bias=False, tied=False, rotary=RotarySettings(percent=0.5),
        ),
    ),
    "Pythia 1B": (
        PYTHIA,
        ModelConfig(
            layers=16, hidden=2048, ffn=8192, kv_groups=8, queries_per_group=1, head_dim=256,
            vocab=50304, max_positions=2048, tied=False, residual="parallel",
            rotary=RotarySettings(percent=0.25),
        ),
    ),
    "Phi-4": (PHI4, _PHI),
    "Phi-3 mini": (
        PHI3,
        replace(
            _PHI, layers=32, hidden=3072, ffn=8192, kv_groups=32, queries_per_group=1, head_dim=96,
            vocab=32064, max_positions=4096, rotary=RotarySettings(),
            layer_kinds=(LayerKind(2047),) * 32,
        ),
    ),
    "Phi-4 mini": (
        PHI4_MINI,
        replace(
            _PHI, layers=32, hidden=3072, ffn=8192, kv_groups=8, queries_per_group=3,
            vocab=200064, max_positions=131072, tied=True,
            rotary=RotarySettings(
                percent=0.75,
                longrope=LongRope(
                    (1.0,) * 48, tuple(map(float, PHI4_MINI["rope_scaling"]["long_factor"])),
                    4096, 1.1902380714238083,
                ),
            ),
        ),
    ),
    "SmolLM3 3B": (
        SMOLLM3,
        replace(
            _PHI, layers=36, hidden=2048, ffn=11008, kv_groups=4, queries_per_group=4,
            vocab=128256, max_positions=65536, norm_eps=1e-6, tied=True,
            rotary=RotarySettings(base=5e6),
            layer_kinds=(*(LayerKind(),) * 3, LayerKind(rotates=False)) * 9,
        ),
    ),
    "StarCoder 2 7B": (
        STARCODER2,
        ModelConfig(
            layers=32, hidden=4608, ffn=18432, kv_groups=4, queries_per_group=9, head_dim=128,
            vocab=49152, max_positions=16384, activation="gelu_tanh",
            rotary=RotarySettings(base=1e6), layer_kinds=(LayerKind(4096),) * 32,
        ),
    ),
    "StarCoder": (
        STARCODER,
        ModelConfig(
            layers=40, hidden=6144, ffn=24576, kv_groups=1, queries_per_group=48, head_dim=128,
            vocab=49152, max_positions=8192, positions="learned",
        ),
    ),
    "StableLM 2 1.6B": (
        STABLELM,
        ModelConfig(
            layers=24, hidden=2048, ffn=5632, kv_groups=32, queries_per_group=1, head_dim=64,
            vocab=100352, max_positions=4096, activation="swiglu", linear_bias=False, tied=False,
            rotary=RotarySettings(percent=0.25),
        ),
    ),
    "Seed-OSS 36B": (
        SEED_OSS,
        replace(
            _PHI, layers=64, ffn=27648, kv_groups=8, queries_per_group=10, vocab=155136,
            max_positions=524288, norm_eps=1e-6, qkv_bias=True, rotary=RotarySettings(base=1e7),
        ),
    ),
    "OLMo 2 7B": (
        OLMO2,
        replace(
            _PHI, layers=32, hidden=4096, ffn=11008, kv_groups=32, queries_per_group=1,
            max_positions=4096, norm_eps=1e-6, norm_places="after", qk_norm=True,
            qk_norm_of_all=True, rotary=RotarySettings(base=500000.0),
        ),
    ),
    "Gemma 2B": (GEMMA, _GEMMA),
    "Gemma 2 2B": (
        GEMMA2,
        replace(
            _GEMMA, layers=26, hidden=2304, ffn=9216, kv_groups=4, queries_per_group=2,
            norm_places="around", score_cap=50.0, logit_cap=30.0,
            layer_kinds=(LayerKind(4096), LayerKind()) * 13,
        ),
    ),
    "Gemma 3 1B": (
        GEMMA3,
        replace(
            _GEMMA, layers=26, hidden=1152, ffn=6912, kv_groups=1, queries_per_group=4,
            vocab=262144, max_positions=32768, norm_places="around", qk_norm=True,
            rotary=RotarySettings(base=1e6),
            layer_kinds=((*(_LOCAL,) * 5, LayerKind()) * 5)[:26],
        ),
    ),
    "Gemma 3 12B": (
        GEMMA3_12B,
        replace(
            _GEMMA, layers=48, hidden=3840, ffn=15360, kv_groups=8, queries_per_group=2,
            vocab=262208, max_positions=131072, norm_places="around", qk_norm=True,
            rotary=RotarySettings(base=1e6, interpolation=8.0),
            layer_kinds=(*(_LOCAL_12B,) * 5, LayerKind()) * 8,
        ),
    ),
    "Qwen2 7B in windows": (
        QWEN2,
        replace(
            _PHI, layers=28, hidden=3584, ffn=18944, kv_groups=4, queries_per_group=7,
            vocab=152064, max_positions=32768, norm_eps=1e-6, qkv_bias=True,
            rotary=RotarySettings(base=1e6),
            layer_kinds=(*(LayerKind(),) * 26, *(LayerKind(4096),) * 2),
        ),
    ),
    "Mistral 7B v0.1": (
        MISTRAL,
        replace(
            _PHI, layers=32, hidden=4096, ffn=14336, kv_groups=8, queries_per_group=4,
            vocab=32000, max_positions=32768, rotary=RotarySettings(),
            layer_kinds=(LayerKind(4096),) * 32,
        ),
    ),
    "AFM": (
        ARCEE,
        replace(
            _PHI, layers=36, hidden=2560, ffn=18432, kv_groups=4, queries_per_group=5,
            vocab=128004, max_positions=4096, activation="squared_relu", rotary=RotarySettings(),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_understood(name: str) -> None:
    fields, wanted = PUBLISHED[name]
    family = family_of(fields, "x")
    assert read_fields(family, fields, "x") == wanted
    assert notes_on_fields(family, fields, ReadOptions()) == []


def test_code_that_transformers_has_by_now_is_known_by_its_names() -> None:
    other = {**PHI3, "auto_map": {"AutoModelForCausalLM": "modeling_other.Phi3ForCausalLM"}}
    with pytest.raises(BadCheckpointError, match="auto_map"):
        read_fields(family_of(other, "x"), other, "x")


REFUSED: list[tuple[dict[str, object], str]] = [
    ({**STABLELM, "qk_layernorm": True}, "qk_layernorm: found True"),
    ({**STARCODER, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({**PHI4, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "found 'yarn'"),
    ({**GEMMA, "hidden_act": "silu"}, "hidden_act: found 'silu'"),
    ({**GEMMA, "hidden_activation": "gelu"}, "hidden_activation: found 'gelu'"),
    ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention: found True"),
    ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping: found 50.0"),
    ({**GEMMA2, "attn_logit_softcapping": 0.0}, "the cap of scores"),
    ({**GEMMA2, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar: found 0, wanted a positive"),
    ({**GEMMA2, "sliding_window": None}, "sliding_window: found None, wanted a positive whole"),
    ({**GEMMA2, "hidden_size": 2305}, "hidden_size: found 2305, wanted a multiple"),
    ({**GEMMA3, "rope_parameters": {"rope_type": "default"}}, "rope_parameters: found .*full_att"),
    ({**GEMMA3, "rope_parameters": {"sliding_attention": 3}}, "sliding_attention: found 3"),
    (
        {**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_theta": 5.0}}},
        "rope_local_base_freq is 10000, rope_parameters.sliding_attention.rope_theta is 5",
    ),
    ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping: found 50.0"),
    ({**OLMO2, "sliding_window_size": 4096}, "sliding_window_size: found 4096"),
    ({**GEMMA3, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "found 'yarn'"),
    ({**OLMO2, "clip_qkv": 8.0}, "clip_qkv: found 8.0"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_is_not_supported_of_them_is_named(fields: dict[str, object], says: str) -> None:
    with pytest.raises(BadCheckpointError, match=says):
        read_fields(family_of(fields, "x"), fields, "x")
