"""Run in a process of its own, with a newer megatron-core: the logits of its own model.

The arguments of each checkpoint (of one rank, in Megatron's legacy format) go where Megatron-LM
puts them, into TransformerConfig and GPTModel, and nowhere else. Input and output are JSON: folders
with arguments to change, logits of fixed tokens and the param groups of AdamW.
"""

import json
import sys
from pathlib import Path
from typing import Any

from flmgrow.trainer.megatron import cpu

cpu.install()

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from flmgrow.trainer.megatron.core import (  # noqa: E402
    GPTModel,
    TransformerConfig,
    get_gpt_layer_local_spec,
    parallel_state,
)
from flmgrow.trainer.megatron.model import start_parallel, stop_parallel  # noqa: E402

SAME = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels",
    "normalization", "add_bias_linear", "use_mup", "mup_base_hidden_size", "mup_embedding_mult",
    "mup_output_mult", "mup_base_head_dim", "mup_attn_scale_power", "mup_width_mult",
    "window_size", "window_attn_skip_freq", "no_rope_freq",
)  # fmt: skip


def stock_model(args: Any) -> GPTModel:
    """Return this rank's part of the model that Megatron-LM makes of arguments, in float64."""
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    config = TransformerConfig(
        **{name: getattr(args, name) for name in SAME if hasattr(args, name)},
        num_query_groups=groups,
        layernorm_epsilon=args.norm_epsilon,
        gated_linear_unit=args.swiglu,
        activation_func=functional.silu,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        params_dtype=torch.float64,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_dtype=args.params_dtype,
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization=args.normalization),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        position_embedding_type=args.position_embedding_type,
        rotary_base=args.rotary_base,
        rotary_percent=args.rotary_percent,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    return model.double().eval()


def param_groups(model: GPTModel) -> list[dict[str, Any]]:
    """Return the groups of AdamW as Megatron-LM makes them, with the names of their parameters."""
    from megatron.core.optimizer import (
        OptimizerConfig,
        _get_param_groups,
        get_mup_config_overrides,
        get_standard_config_overrides,
    )

    settings = OptimizerConfig(lr=3e-4, min_lr=3e-5, adam_eps=1e-8, weight_decay=0.1)
    overrides = get_standard_config_overrides(settings)
    overrides |= get_mup_config_overrides(settings, model.config.mup_width_mult)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [  # torch's Adam fills in what a group does not say
        {"eps": settings.adam_eps, "lr": group["max_lr"], **group,
         "params": [names[parameter] for parameter in group["params"]]}
        for group in _get_param_groups([model], settings, overrides)
    ]  # fmt: skip


@torch.no_grad()
def computed(folder: Path, changes: dict[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
    """Return what the model in a folder computes, its arguments changed, and its groups."""
    (file,) = folder.rglob("model_optim_rng.pt")
    content = torch.load(file, weights_only=False)
    vars(content["args"]).update(changes)
    model = stock_model(content["args"])
    missing, unexpected = model.load_state_dict(content["model"], strict=False)
    assert not [key for key in [*missing, *unexpected] if not key.endswith("_extra_state")]
    positions = torch.arange(tokens.shape[-1]).expand_as(tokens)
    found: torch.Tensor = model(tokens, positions, None)
    return {"logits": found.tolist(), "groups": param_groups(model)}


def main() -> None:
    """Answer one request on standard input."""
    asked = json.load(sys.stdin)
    start_parallel(tp=1, pp=1)
    tokens = torch.tensor(asked["tokens"])
    told = [computed(Path(f), changes, tokens) for f, changes in asked["models"]]
    stop_parallel()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
