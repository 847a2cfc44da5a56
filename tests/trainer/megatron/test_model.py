"""ModelConfig must reach megatron-core whole: every option computes what it says, or is refused.

What it says is the reference forward, which shares no code with megatron-core. The weights are
translated here in a few lines of their own, so that no checkpoint format takes part either.
megatron-core runs in a process of its own (see ``megatron_runs``): this file, run as a script.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from megatron_runs import megatron_logits, told_by, torchrun

from flmgrow.errors import UsageError
from flmgrow.model import forward
from flmgrow.model.config import LayerKind, ModelConfig, Multipliers, RotarySettings

BASE = ModelConfig(
    layers=2,
    hidden=32,
    ffn=48,
    kv_groups=2,
    queries_per_group=2,
    head_dim=8,
    vocab=50,
    max_positions=16,
)

XPOS = RotarySettings(xpos_scale_base=8.0, xpos_centre=5)
PAPER: dict[str, Any] = {
    "positions": "xpos",
    "rotary": XPOS,
    "activation": "gelu_tanh",
    "multipliers": Multipliers(
        embedding=1.5, output=2.0, mup_base_width=16, attention_by_inverse_layer=True
    ),
}

# What changes, and the tensors that must be there, or gone, because of it.
BUILDS: dict[str, tuple[dict[str, Any], str]] = {
    "as is": ({}, "layers.0.mlp.linear_fc1.bias"),
    "rmsnorm": ({"norm": "rmsnorm"}, "-layers.0.input_layernorm.bias"),
    "gelu_tanh": ({"activation": "gelu_tanh"}, ""),
    "swiglu": ({"activation": "swiglu"}, ""),
    "squared_relu": ({"activation": "squared_relu"}, ""),
    "no bias": ({"linear_bias": False, "qkv_bias": False}, "-self_attention.linear_qkv.bias"),
    "qkv bias": ({"linear_bias": False}, "self_attention.linear_qkv.bias"),
    "qk norm": ({"qk_norm": True}, "self_attention.q_layernorm.weight"),
    "untied": ({"tied": False}, "output_layer.weight"),
    "zero-centred": ({"zero_centred_gain": True, "qk_norm": True}, ""),
    "zero-centred rmsnorm": ({"zero_centred_gain": True, "norm": "rmsnorm"}, ""),
    "learned": ({"positions": "learned"}, "embedding.position_embeddings.weight"),
    "no positions": ({"positions": "none"}, "-position_embeddings"),
    "mha": ({"kv_groups": 4, "queries_per_group": 1}, ""),
    "head_dim": ({"head_dim": 16}, ""),
    "epsilon": ({"norm_eps": 1e-2}, ""),
    "rotary percent": ({"rotary": RotarySettings(percent=0.5)}, ""),
    "odd rotary": ({"head_dim": 6, "rotary": RotarySettings(percent=0.5)}, ""),
    "odd rotary scaled": (
        {"head_dim": 6, "rotary": RotarySettings(base=5e5, percent=0.9, scaling_factor=8.0)},
        "",
    ),
    "odd rotary interleaved": (
        {"head_dim": 7, "rotary": RotarySettings(percent=0.75, interleaved=True)},
        "",
    ),
    "nothing rotary": ({"head_dim": 6, "rotary": RotarySettings(percent=0.1)}, ""),
    "rotary base": ({"rotary": RotarySettings(base=500.0)}, ""),
    "interleaved": ({"rotary": RotarySettings(interleaved=True)}, ""),
    "scaling": ({"rotary": RotarySettings(base=5e5, scaling_factor=8.0)}, ""),
    "interpolation": ({"rotary": RotarySettings(interpolation=2.0)}, ""),
    "attention": ({"multipliers": Multipliers(attention=1.0)}, ""),
    "xpos": ({"positions": "xpos"}, ""),
    "xpos partly": ({"positions": "xpos", "rotary": RotarySettings(percent=0.5)}, ""),
    "xpos odd": ({"positions": "xpos", "head_dim": 6, "rotary": replace(XPOS, percent=0.5)}, ""),
    "xpos centre": ({"positions": "xpos", "rotary": XPOS}, ""),
    "xpos interleaved": ({"positions": "xpos", "rotary": replace(XPOS, interleaved=True)}, ""),
    "xpos qk norm": ({"positions": "xpos", "rotary": XPOS, "qk_norm": True}, ""),
    "embedding": ({"multipliers": Multipliers(embedding=2.0)}, ""),
    "embedding only": ({"positions": "learned", "multipliers": Multipliers(embedding=2.0)}, ""),
    "output": ({"multipliers": Multipliers(output=0.5)}, ""),
    "output untied": ({"tied": False, "multipliers": Multipliers(output=0.5)}, ""),
    "residual": ({"multipliers": Multipliers(residual=0.22)}, ""),
    "mup": ({"multipliers": Multipliers(output=2.0, mup_base_width=16)}, ""),
    "damped": ({"multipliers": Multipliers(attention_by_inverse_layer=True)}, ""),
    "damped attention": (
        {"multipliers": Multipliers(attention=1.0, attention_by_inverse_layer=True)},
        "",
    ),
    "window": ({"layer_kinds": (LayerKind(5),) * 2}, ""),
    "a window in one layer": ({"layer_kinds": (LayerKind(), LayerKind(3))}, ""),
    "a layer without rotation": ({"layer_kinds": (LayerKind(4, rotates=False), LayerKind())}, ""),
    "xpos in one layer": (
        {"positions": "xpos", "rotary": XPOS, "layer_kinds": (LayerKind(), LayerKind(6, False))},
        "",
    ),
    "the paper's": (PAPER, "layers.0.self_attention.linear_qkv.bias"),
}

REFUSALS: dict[str, dict[str, Any]] = {
    "qkv_bias False": {"qkv_bias": False},
    "out_bias False": {"out_bias": False},
    "residual parallel": {"residual": "parallel"},
    "norm_places after": {"norm_places": "after"},
    "score_cap 50.0": {"score_cap": 50.0},
    "layer_kinds 1 x a window of 5, 1 x a window of 3": {
        "layer_kinds": (LayerKind(5), LayerKind(3))
    },
}


class MegatronWeights:
    """The tensors of a whole Megatron model under the reference forward's names."""

    NAMES: ClassVar = {
        "embedding": "embedding.word_embeddings.weight",
        "position_embedding": "embedding.position_embeddings.weight",
        "head": "output_layer.weight",
        "final_norm": "decoder.final_layernorm",
        "attention_norm": "input_layernorm",
        "query_norm": "self_attention.q_layernorm",
        "key_norm": "self_attention.k_layernorm",
        "attention_out": "self_attention.linear_proj.weight",
        "ffn_norm": "pre_mlp_layernorm",
        "down": "mlp.linear_fc2.weight",
    }

    def __init__(self, config: ModelConfig, state: dict[str, torch.Tensor]) -> None:
        self.config, self.state = config, state

    def tensor(self, name: str, layer: int | None = None) -> torch.Tensor:
        """Return a logical tensor."""
        prefix = "" if layer is None else f"decoder.layers.{layer}."
        base, _, part = name.partition(".")
        kind = "bias" if part == "bias" else "weight"
        config = self.config
        if base in ("query", "key", "value"):
            fused = self.state[f"{prefix}self_attention.linear_qkv.{kind}"]
            queries = config.queries_per_group
            sizes = (config.kv_groups, queries + 2, config.head_dim)
            groups = fused.reshape(*sizes, *fused.shape[1:])
            if base == "query":
                return groups[:, :queries]
            return groups[:, queries if base == "key" else queries + 1]
        if base in ("up", "gate"):
            fused = self.state[f"{prefix}mlp.linear_fc1.{kind}"]
            return fused.chunk(2)[base == "up"] if config.gated else fused
        stored = self.NAMES[base].removesuffix(".weight")
        found = self.state[f"{prefix}{stored}.{kind}"]
        if part == "gain" and config.zero_centred_gain:
            found = found + 1.0
        if name == "attention_out":
            heads = (config.kv_groups, config.queries_per_group, config.head_dim)
            return found.reshape(config.hidden, *heads)
        return found

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of a table."""
        return self.state[self.NAMES[name]][ids]

    def parts(
        self, name: str, layer: int | None = None, inputs: int = 1, stop: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield a matrix in one part."""
        whole = self.tensor(name, layer) if layer is not None else self.state[self.NAMES[name]]
        yield whole[:stop].flatten(-inputs).flatten(0, -2)


def run_as_script() -> None:
    """Build every option in one process and print its tensors and its distance to the reference."""
    from flmgrow.trainer.megatron.model import (
        build_model_chunks,
        full_logits,
        start_parallel,
        stop_parallel,
        transformer_config,
    )

    start_parallel(tp=1, pp=1)
    built: dict[str, Any] = {}
    tokens = torch.arange(32).view(2, 16)
    for name, (change, _) in BUILDS.items():
        config = replace(BASE, **change)
        settings = transformer_config(config, tp=1, pp=1, dtype=torch.float64)
        models = build_model_chunks(config, settings, 128)
        for parameter in models[0].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        logits = full_logits(models, tokens)
        state = models[0].state_dict()
        with torch.no_grad():
            expected = forward.logits(config, MegatronWeights(config, state), tokens)
        assert logits is not None
        difference = (logits[..., : config.vocab] - expected).abs().max() / expected.abs().max()
        built[name] = {"tensors": list(state), "difference": difference.item()}
    refused = {}
    for name, change in REFUSALS.items():
        try:
            transformer_config(replace(BASE, **change), tp=1, pp=1)
        except UsageError as error:
            refused[name] = error.message
    stop_parallel()
    print(json.dumps({"built": built, "refused": refused}))


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    return told_by(__file__)


@pytest.mark.parametrize("option", BUILDS)
def test_option_has_its_tensors(outcome: dict[str, Any], option: str) -> None:
    tensors = " ".join(outcome["built"][option]["tensors"])
    expected = BUILDS[option][1]
    if expected.startswith("-"):
        assert expected[1:] not in tensors
    else:
        assert expected in tensors


@pytest.mark.parametrize("option", BUILDS)
def test_option_computes_what_it_says(outcome: dict[str, Any], option: str) -> None:
    assert outcome["built"][option]["difference"] < 1e-12


@pytest.mark.parametrize("field", REFUSALS)
def test_refused_by_name(outcome: dict[str, Any], field: str) -> None:
    assert outcome["refused"][field].endswith(f"cannot express {field}")


@pytest.mark.slow
def test_tiny_checkpoint_is_sound(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny"
    report = torchrun(4, "train", checkpoint, "--tp", "2", "--pp", "2", "--steps", "20")
    losses = [float(line.split()[-1]) for line in report.splitlines()]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 1

    tokens = torch.tensor([list(b"the value of an expression")])
    first = megatron_logits(checkpoint, tokens)
    assert first.shape == (1, tokens.shape[1], 300)
    assert torch.equal(first, megatron_logits(checkpoint, tokens))
    exact = megatron_logits(checkpoint, tokens, "float64")
    assert exact.dtype == torch.float64
    assert (first - exact).abs().max() < 1e-4


if __name__ == "__main__":
    run_as_script()
