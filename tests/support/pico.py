"""A factory of tiny Megatron checkpoints, written with ``torch.save`` as Megatron-LM does.

The logical model comes first (``pico_model.py``). It is then fused and cut for each rank by code
that shares nothing with flmgrow's own layout code: reading such a checkpoint tests that code.
"""

import argparse
import io
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from pico_model import CONFIGS, DictWeights, draw, logical_weights, stored_weights
from torch import Tensor

from flmgrow.formats.layout.placements import Layout
from flmgrow.model.config import ModelConfig

__all__ = [
    "CONFIGS", "ITERATION", "DictWeights", "arguments", "even", "logical_weights",
    "make_checkpoint", "padded_vocab", "stored_weights",
]  # fmt: skip

ITERATION = 30


def padded_vocab(config: ModelConfig, tp: int, multiple: int = 8) -> int:
    """Return the number of stored rows, as Megatron-LM pads a table."""
    size = config.vocab
    while size % (multiple * tp):
        size += 1
    return size


def _padded(table: Tensor, name: str, seed: int, rows: int) -> Tensor:
    """Put random rows behind a table; the first of them are the same for any number of rows."""
    extra = draw(seed, f"{name} padding", "table", (rows - len(table), table.shape[1]))
    return torch.cat((table, torch.from_numpy(extra).to(table.dtype)))


def _cut(values: Tensor, dim: int, rank: int, tp: int) -> Tensor:
    return values.chunk(tp, dim)[rank]


def _layer_state(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    prefix: str,
    rank: tuple[int, int],
    naming: str,
    extra: Callable[[], object],
) -> Iterator[tuple[str, object]]:
    """The entries of one layer on one tensor rank, as megatron-core names them."""
    qkv, proj = f"{prefix}self_attention.linear_qkv", f"{prefix}self_attention.linear_proj"
    fc1, fc2 = f"{prefix}mlp.linear_fc1", f"{prefix}mlp.linear_fc2"

    def norm(name: str, local: str, fused: str = "") -> Iterator[tuple[str, object]]:
        stem = fused + ".layer_norm_" if fused and naming == "fused" else local + "."
        yield stem + "weight", weights[f"{name}.gain"]
        if config.norm == "layernorm":
            yield stem + "bias", weights[f"{name}.bias"]

    def attention_rows(end: str) -> Tensor:
        """Group after group: its queries, its key, its value."""
        rows = []
        for group in range(config.kv_groups):
            rows += [head[:] for head in weights[f"query{end}"][group]]
            rows += [weights[f"key{end}"][group], weights[f"value{end}"][group]]
        return _cut(torch.cat(rows), 0, *rank)

    def ffn_rows(end: str) -> Tensor:
        """This rank's gates, then this rank's ups."""
        parts = ("gate", "up") if config.gated else ("up",)
        return torch.cat([_cut(weights[f"{part}{end}"], 0, *rank) for part in parts])

    attention_norm = norm("attention_norm", f"{prefix}input_layernorm", qkv)
    if naming == "local":
        yield from attention_norm
    yield f"{proj}.weight", _cut(weights["attention_out"].flatten(1), 1, *rank)
    if config.linear_bias:
        yield f"{proj}.bias", weights["attention_out.bias"]
    yield f"{proj}._extra_state", extra()
    yield from attention_norm  # nothing more, or the first of what it is fused with
    yield f"{qkv}.weight", attention_rows("")
    if config.qkv_bias:
        yield f"{qkv}.bias", attention_rows(".bias")
    yield f"{qkv}._extra_state", extra()
    if config.qk_norm:
        yield from norm("query_norm", f"{prefix}self_attention.q_layernorm")
        yield from norm("key_norm", f"{prefix}self_attention.k_layernorm")
    yield from norm("ffn_norm", f"{prefix}pre_mlp_layernorm", fc1)
    yield f"{fc1}.weight", ffn_rows("")
    if config.linear_bias:
        yield f"{fc1}.bias", ffn_rows(".bias")
    yield f"{fc1}._extra_state", extra()
    yield f"{fc2}.weight", _cut(weights["down"], 1, *rank)
    if config.linear_bias:
        yield f"{fc2}.bias", weights["down.bias"]
    yield f"{fc2}._extra_state", extra()


def _owner(layout: Layout, place: int) -> tuple[int, int]:
    """The pipeline rank and its chunk at a place of the model: rank after rank, and round again."""
    return place % layout.pp, place // layout.pp


def _chunk_state(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    layout: Layout,
    place: int,
    tensor_rank: int,
    naming: str,
    extra: Callable[[], object],
) -> dict[str, object]:
    """The state dict of the chunk at ``place`` of the model on one tensor rank."""
    state: dict[str, object] = {}
    rank = (tensor_rank, layout.tp)
    last = place == len(layout.chunk_layers) - 1
    if place == 0:
        state["embedding.word_embeddings.weight"] = _cut(weights["embedding"], 0, *rank)
        if config.positions == "learned":
            state["embedding.position_embeddings.weight"] = weights["position_embedding"]
    begin = sum(layout.chunk_layers[:place])
    unlayered = ("embedding", "position_embedding", "final_norm.gain", "final_norm.bias", "head")
    for local in range(layout.chunk_layers[place]):
        layer = {n: w[begin + local] for n, w in weights.items() if n not in unlayered}
        prefix = f"decoder.layers.{local}."
        state.update(_layer_state(config, layer, prefix, rank, naming, extra))
    if last:
        state["decoder.final_layernorm.weight"] = weights["final_norm.gain"]
        if config.norm == "layernorm":
            state["decoder.final_layernorm.bias"] = weights["final_norm.bias"]
        if not config.tied:
            state["output_layer.weight"] = _cut(weights["head"], 0, *rank)
        elif layout.pp > 1:
            state["output_layer.weight"] = _cut(weights["embedding"], 0, *rank)
        state["output_layer._extra_state"] = extra()
    return {key: w.clone() if isinstance(w, Tensor) else w for key, w in state.items()}


def arguments(
    config: ModelConfig, layout: Layout, dtype: str = "float64", multiple: int = 8
) -> argparse.Namespace:
    """Return the arguments Megatron-LM would have had, as far as anybody looks at them."""
    rotary, factors = config.rotary, config.multipliers
    learned = config.positions == "learned"
    virtual = layout.vpp if layout.vpp > 1 else None
    args = argparse.Namespace(
        num_layers=config.layers, encoder_num_layers=config.layers, decoder_num_layers=None,
        hidden_size=config.hidden, ffn_hidden_size=config.ffn, num_attention_heads=config.heads,
        kv_channels=config.head_dim, group_query_attention=config.queries_per_group > 1,
        num_query_groups=config.kv_groups if config.queries_per_group > 1 else 1,
        max_position_embeddings=config.max_positions, seq_length=config.max_positions,
        position_embedding_type="learned_absolute" if learned
        else "none" if config.positions == "none" else "rope",
        use_rotary_position_embeddings=False, rotary_base=int(rotary.base),
        rotary_percent=rotary.percent, rotary_interleaved=rotary.interleaved,
        rotary_seq_len_interpolation_factor=rotary.interpolation,
        use_rope_scaling=rotary.scaling_factor is not None,
        rope_scaling_factor=rotary.scaling_factor or 8.0,
        normalization="LayerNorm" if config.norm == "layernorm" else "RMSNorm",
        norm_epsilon=config.norm_eps, apply_layernorm_1p=config.zero_centred_gain,
        qk_layernorm=config.qk_norm, swiglu=config.activation == "swiglu",
        squared_relu=config.activation == "squared_relu", bias_swiglu_fusion=True,
        openai_gelu=config.activation == "gelu_tanh", bias_gelu_fusion=False,
        add_bias_linear=config.linear_bias,
        add_qkv_bias=config.qkv_bias and not config.linear_bias,
        untie_embeddings_and_output_weights=not config.tied, softmax_scale=factors.attention,
        vocab_size=config.vocab, padded_vocab_size=padded_vocab(config, layout.tp, multiple),
        make_vocab_size_divisible_by=multiple, tokenizer_type="GPT2BPETokenizer",
        tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=virtual,
        num_layers_per_virtual_pipeline_stage=layout.chunk_layers[0] if virtual else None,
        num_virtual_stages_per_pipeline_rank=None, pipeline_model_parallel_layout=None,
        decoder_first_pipeline_num_layers=None, decoder_last_pipeline_num_layers=None,
        account_for_embedding_in_pipeline_split=False, account_for_loss_in_pipeline_split=False,
        params_dtype=getattr(torch, dtype), bf16=dtype == "bfloat16", fp16=dtype == "float16",
        hidden_dropout=0.0, attention_dropout=0.0, init_method_std=0.02, sequence_parallel=True,
        apply_query_key_layer_scaling=False, num_experts=None, multi_latent_attention=False,
        accumulate_allreduce_grads_in_fp32=dtype == "bfloat16",
        lr=3e-4, min_lr=3e-5, train_iters=100, micro_batch_size=1, global_batch_size=8, seed=1234,
        iteration=ITERATION, consumed_train_samples=240, save="/checkpoints/pico", rank=0,
    )  # fmt: skip
    if len(set(layout.chunk_layers)) > 1:
        chunks = ["t" * count for count in layout.chunk_layers]
        args.pipeline_model_parallel_layout = f"E{'|'.join(chunks)}L"
        args.num_layers_per_virtual_pipeline_stage = None
    kinds = [config.kind(layer) for layer in range(config.layers)]
    if windows := [kind.window for kind in kinds if kind.window is not None]:
        args.window_size = (windows[0] - 1, 0)
        args.window_attn_skip_freq = [int(kind.window is not None) for kind in kinds]
    if not all(kind.rotates for kind in kinds):
        args.no_rope_freq = [int(not kind.rotates) for kind in kinds]
    own = {
        "flmgrow_xpos_scale_base": rotary.xpos_scale_base if config.positions == "xpos" else None,
        "flmgrow_xpos_centre": rotary.xpos_centre if config.positions == "xpos" else None,
        "flmgrow_embedding_multiplier": factors.embedding if factors.embedding != 1 else None,
        "flmgrow_output_multiplier": factors.output if factors.output != 1 else None,
        "flmgrow_mup_base_width": factors.mup_base_width,
        "flmgrow_attention_by_inverse_layer": factors.attention_by_inverse_layer or None,
        "flmgrow_residual_multiplier": factors.residual if factors.residual != 1 else None,
    }
    vars(args).update({name: value for name, value in own.items() if value is not None})
    return args


def _rng_state(rank: int) -> list[dict[str, object]]:
    torch_state = torch.Generator().manual_seed(rank).get_state()
    return [
        {
            "random_rng_state": random.Random(rank).getstate(),
            "np_rng_state": np.random.RandomState(rank).get_state(),
            "torch_rng_state": torch_state,
            "cuda_rng_state": torch_state.clone(),
            "rng_tracker_states": {"model-parallel-rng": torch_state.clone()},
        }
    ]


def _optimizer(models: Mapping[str, dict[str, object]], half: bool) -> dict[str, object]:
    """Adam's state in Megatron-LM's two groups; moments are made from the weights."""
    weights = [
        (key, w) for state in models.values() for key, w in state.items() if isinstance(w, Tensor)
    ]
    groups = [
        [w for key, w in weights if (w.ndim == 1 or key.endswith(".bias")) == plain]
        for plain in (False, True)
    ]
    wide = [[w.float() if half else w for w in group] for group in groups]
    ordered = [w for group in wide for w in group]
    inner = {
        "state": {
            number: {"step": torch.tensor(30.0), "exp_avg": w * 0.125, "exp_avg_sq": w * w}
            for number, w in enumerate(ordered)
        },
        "param_groups": [
            {"lr": 3e-4, "wd_mult": 1.0, "params": list(range(len(wide[0])))},
            {"lr": 3e-4, "wd_mult": 0.0, "params": list(range(len(wide[0]), len(ordered)))},
        ],
    }
    masters = [[w * (1 + 2**-12) for w in group] for group in wide]
    return {
        "optimizer": {"optimizer": inner, "fp32_from_fp16_params": masters} if half else inner,
        "opt_param_scheduler": {"max_lr": 3e-4, "num_steps": 240},
    }


def _extra_state(kind: str) -> object:
    return {"none": None, "bytes": b"scales", "bytesio": io.BytesIO(b"scales")}[kind]


def even(config: ModelConfig, tp: int = 1, pp: int = 1, vpp: int = 1) -> Layout:
    """Return the layout that spreads the layers evenly."""
    chunks = pp * vpp
    assert config.layers % chunks == 0
    return Layout(tp, pp, vpp, (config.layers // chunks,) * chunks)


def make_checkpoint(
    path: Path,
    model: str | ModelConfig,
    layout: Layout | None = None,
    *,
    seed: int = 0,
    dtype: str = "float64",
    naming: str = "local",
    extra_state: str = "none",
    multiple: int = 8,
    iteration: int | None = ITERATION,
    optimizer: bool = False,
    weights: Mapping[str, Tensor] | None = None,
    **changed_arguments: object,
) -> Path:
    """Write a checkpoint at ``path`` (made if need be) and return ``path``.

    ``model`` is a name in CONFIGS or a configuration; ``layout`` is one rank unless given.
    ``seed`` alone decides on the weights, or ``weights`` gives them, as stored. ``naming`` is local
    or fused, ``extra_state`` none, bytes or bytesio. ``multiple`` is what the vocabulary is padded
    to, for each tensor rank. ``iteration`` None is a release. Further names are put into ``args``.
    """
    config = CONFIGS[model] if isinstance(model, str) else model
    layout = layout or even(config)
    weights = dict(weights or stored_weights(config, seed, dtype))
    for name in ("embedding", "head"):
        if name in weights:
            rows = padded_vocab(config, layout.tp, multiple)
            weights[name] = _padded(weights[name], name, seed, rows)
    args = arguments(config, layout, dtype, multiple)
    vars(args).update(changed_arguments)
    name = "release" if iteration is None else f"iter_{iteration:07d}"
    for tensor_rank in range(layout.tp):
        for pipeline_rank in range(layout.pp):
            models: dict[str, dict[str, object]] = {}
            for place in range(len(layout.chunk_layers)):
                owner, chunk = _owner(layout, place)
                if owner == pipeline_rank:
                    key = "model" if layout.vpp == 1 else f"model{chunk}"
                    models[key] = _chunk_state(
                        config, weights, layout, place, tensor_rank, naming,
                        lambda: _extra_state(extra_state),
                    )  # fmt: skip
            content: dict[str, object] = {
                "args": args,
                "checkpoint_version": 3.0,
                "iteration": iteration or 0,
                **models,
                **(_optimizer(models, dtype != "float64") if optimizer else {}),
                "rng_state": _rng_state(tensor_rank + layout.tp * pipeline_rank),
                "num_floating_point_operations_so_far": 0,
            }
            folder = f"mp_rank_{tensor_rank:02d}"
            folder += f"_{pipeline_rank:03d}" if layout.pp > 1 else ""
            file = path / name / folder / "model_optim_rng.pt"
            file.parent.mkdir(parents=True)
            torch.save(content, file)
    tracker = path / "latest_checkpointed_iteration.txt"
    tracker.write_text("release" if iteration is None else str(iteration))
    return path
