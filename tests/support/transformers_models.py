"""Tiny models of transformers, with values that matter in every parameter, and their logits."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]

VOCAB = 70
_IDS = {"bos_token_id": None, "eos_token_id": None}
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "vocab_size": VOCAB, "max_position_embeddings": 64, **_IDS,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64, **_IDS}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_FACTORS = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 2.0, 3.0, 8.0]}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 1000.0, **_FACTORS}
_PHI3 = {**_GROUPED, "pad_token_id": None}
_GEMMA = {**_GROUPED, "pad_token_id": None, "head_dim": 16}
_MULTIPLIERS = {
    "embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}  # fmt: skip

CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "llama": ("LlamaConfig", {**_GROUPED, "rms_norm_eps": 1e-3}),
        "llama tied with biases": (
            "LlamaConfig",
            {**_SIZES, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        ),
        "llama 3": (
            "LlamaConfig",
            {**_GROUPED, "max_position_embeddings": 16384, "rope_parameters": _LLAMA3},
        ),
        "llama interpolated": (
            "LlamaConfig",
            {**_GROUPED, "rope_parameters": {"rope_type": "linear", "factor": 4.0,
                                             "rope_theta": 100.0}},
        ),
        "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": None, "head_dim": 16}),
        "llama with attention's biases": ("LlamaConfig", {**_GROUPED, "attention_bias": True}),
        "llama with other bands": (
            "LlamaConfig",
            {**_GROUPED, "rope_parameters": {**_LLAMA3, "rope_theta": 100.0, "factor": 3.0,
                                             "low_freq_factor": 2.0,
                                             "original_max_position_embeddings": 16}},
        ),
        "llama with yarn": ("LlamaConfig", {**_GROUPED, "rope_parameters": _YARN}),
        "qwen3 with yarn": (
            "Qwen3Config",
            {**_GROUPED, "head_dim": 16,
             "rope_parameters": {**_YARN, "beta_fast": 8, "beta_slow": 2, "mscale": 0.7,
                                 "mscale_all_dim": 1.2, "truncate": False}},
        ),
        "mistral in windows": ("MistralConfig", {**_GROUPED, "sliding_window": 5}),
        "smollm3": ("SmolLM3Config", {**_GROUPED, "pad_token_id": None}),
        "smollm3 untied": (
            "SmolLM3Config",
            {**_GROUPED, "pad_token_id": None, "no_rope_layers": [0, 1, 1, 0],
             "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        ),
        "starcoder2": ("Starcoder2Config", {**_GROUPED, "sliding_window": None}),
        "starcoder2 in windows": (
            "Starcoder2Config",
            {**_GROUPED, "sliding_window": 7, "use_bias": False, "tie_word_embeddings": False},
        ),
        "phi3 in windows": ("Phi3Config", {**_PHI3, "sliding_window": 6}),
        "phi3 with short factors": (
            "Phi3Config",
            {**_PHI3, "original_max_position_embeddings": 32, "rope_parameters": _LONGROPE},
        ),
        "phi3 with long factors": (
            "Phi3Config",
            {**_PHI3, "original_max_position_embeddings": 16, "rope_parameters": _LONGROPE},
        ),
        "olmo2": ("Olmo2Config", {**_GROUPED, "pad_token_id": None, "rms_norm_eps": 1e-3}),
        "olmo2 tied with biases": (
            "Olmo2Config",
            {**_SIZES, "pad_token_id": None, "attention_bias": True, "tie_word_embeddings": True},
        ),
        "gemma": ("GemmaConfig", {**_GEMMA, "rms_norm_eps": 1e-3}),
        "gemma untied": (
            "GemmaConfig", {**_GEMMA, "attention_bias": True, "tie_word_embeddings": False},
        ),
        "gemma2": (
            "Gemma2Config",
            {**_GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 24,
             "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        ),
        "gemma2 uncapped": (
            "Gemma2Config",
            {**_GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None,
             "layer_types": ["full_attention"] * 3 + ["sliding_attention"], "sliding_window": 7,
             "hidden_activation": "gelu"},
        ),
        "gemma3": (
            "Gemma3TextConfig",
            {**_GEMMA, "num_hidden_layers": 7, "sliding_window": 5, "query_pre_attn_scalar": 24,
             "rms_norm_eps": 1e-3},
        ),
        "gemma3 interpolated": (
            "Gemma3TextConfig",
            {**_GEMMA, "sliding_window": 6, "sliding_window_pattern": 2,
             "final_logit_softcapping": 3.0,
             "rope_parameters": {
                 "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                 "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
             }},
        ),
        "qwen2 in windows": (
            "Qwen2Config",
            {**_GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        ),
        "qwen3 in windows": (
            "Qwen3Config",
            {**_GROUPED, "head_dim": 16, "use_sliding_window": True, "sliding_window": 6,
             "layer_types": ["sliding_attention", "full_attention"] * 2},
        ),
        "smollm3 in windows": (
            "SmolLM3Config",
            {**_GROUPED, "pad_token_id": None, "use_sliding_window": True, "sliding_window": 5},
        ),
        "qwen2": ("Qwen2Config", {**_GROUPED, "tie_word_embeddings": True}),
        "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}),
        "granite": ("GraniteConfig", {**_GROUPED, **_MULTIPLIERS, "rms_norm_eps": 1e-3}),
        "granite tied": (
            "GraniteConfig",
            {**_SIZES, **_MULTIPLIERS, "tie_word_embeddings": True, "logits_scaling": 0.31},
        ),
        "gpt2": ("GPT2Config", _GPT2),
        "gpt2 by layer": (
            "GPT2Config",
            {**_GPT2, "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False,
             "n_inner": 40, "activation_function": "gelu", "tie_word_embeddings": False},
        ),
        "gpt_neox": (
            "GPTNeoXConfig",
            {**_SIZES, "use_parallel_residual": False,
             "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0,
                                 "partial_rotary_factor": 0.5}},
        ),
        "gpt_neox without attention's biases": (
            "GPTNeoXConfig",
            {**_SIZES, "use_parallel_residual": False, "attention_bias": False},
        ),
        "gpt_neox in parallel": (
            "GPTNeoXConfig",
            {**_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0,
                                           "partial_rotary_factor": 0.25}},
        ),
        "stablelm in parallel": (
            "StableLmConfig",
            {**_GROUPED, "use_parallel_residual": True, "tie_word_embeddings": True},
        ),
        "arcee": ("ArceeConfig", {**_GROUPED, "rms_norm_eps": 1e-3}),
        "nemotron": ("NemotronConfig", {**_GROUPED, "norm_eps": 1e-3}),
        "nemotron with biases": (
            "NemotronConfig",
            {**_SIZES, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
        ),
        "stablelm": ("StableLmConfig", {**_GROUPED, "use_qkv_bias": True}),
        "phi3": ("Phi3Config", {**_GROUPED, "pad_token_id": None}),
        "phi3 tied": (
            "Phi3Config",
            {**_SIZES, "num_key_value_heads": 4, "tie_word_embeddings": True, "pad_token_id": None,
             "partial_rotary_factor": 0.75},
        ),
        "gpt_bigcode": ("GPTBigCodeConfig", {**_GPT2, "n_inner": 48}),
        "gpt_bigcode of heads": (
            "GPTBigCodeConfig",
            {**_GPT2, "multi_query": False, "scale_attn_weights": False,
             "tie_word_embeddings": False},
        ),
        "seed_oss": ("SeedOssConfig", {**_GROUPED, "head_dim": 16, "pad_token_id": None}),
        "seed_oss with an output bias": (
            "SeedOssConfig",
            {**_GROUPED, "head_dim": 16, "pad_token_id": None, "attention_out_bias": True,
             "tie_word_embeddings": True},
        ),
    }
)  # fmt: skip


MEGATRON_LACKS: Mapping[str, str] = MappingProxyType(
    {
        "llama with attention's biases": "out_bias True",
        "gpt_neox without attention's biases": "qkv_bias False, out_bias False",
        "seed_oss with an output bias": "out_bias True",
        "gpt_neox in parallel": "residual parallel",
        "llama with other bands": "rotary.scaling_slow",
        "llama with yarn": "rotary.yarn",
        "qwen3 with yarn": "rotary.yarn",
        "phi3 with short factors": "rotary.longrope",
        "phi3 with long factors": "rotary.longrope",
        "stablelm in parallel": "residual parallel_one_norm",
        "olmo2": "norm_places after, qk_norm_of_all True",
        "olmo2 tied with biases": "norm_places after, out_bias True, qk_norm_of_all True",
        "gemma": "activation geglu_tanh",
        "gemma untied": "activation geglu_tanh, out_bias True",
        "gemma2": "norm_places around",
        "gemma2 uncapped": "norm_places around",
        "gemma3": "norm_places around",
        "gemma3 interpolated": "norm_places around",
    }
)
"""The models that megatron-core has no block for, and what it lacks."""


def make_model(name: str, dtype: torch.dtype, **changes: Any) -> Any:
    """Return the model, each parameter drawn: no gain is one, no bias zero."""
    kind, options = CONFIGS[name]
    options = {**options, **changes}
    torch.manual_seed(len(name))
    config = getattr(transformers, kind)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.to(dtype).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and key.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.3)
    return model


def save_model(name: str, folder: Path, dtype: torch.dtype, shard: str = "5GB") -> Any:
    """Save the model as transformers does and return it."""
    model = make_model(name, dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def load_model(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Load a folder with transformers; return the model, and what was missing or unexpected."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), info


@contextlib.contextmanager
def no_single_precision() -> Iterator[None]:
    """transformers computes norms, rotary tables and softmax in float32 whatever the dtype of the
    model: here it finds float64 under that name.
    """
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


def model_logits(model: Any, tokens: Tensor) -> Tensor:
    """Return a model's logits, (b, s, v)."""
    with torch.no_grad():
        result: Tensor = model(tokens, use_cache=False).logits
    return result


def exact_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Return the logits of a folder's model, computed by transformers in float64 throughout."""
    with no_single_precision():
        model, info = load_model(folder, torch.float64)
        assert not any(info.values()), info
        return model_logits(model, tokens)
