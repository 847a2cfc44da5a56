"""Building megatron-core's model from a ModelConfig.

A model described once, as ModelConfig, must become the very same function in megatron-core.
megatron-core spreads the description over a TransformerConfig, a layer spec and GPTModel's own
arguments, with defaults that differ from one another and between versions. The functions here set
every value that changes the function explicitly, from one :class:`ModelConfig`, and refuse by name
what megatron-core's layer specs cannot express. Masks, xPos and scores damped by depth come in
through the layer specs (``layer_spec.py``), multipliers of the embedding and the logits through
hooks: parameters and their names stay those of an ordinary model.
"""

import os
import random
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from flmgrow.errors import UsageError
from flmgrow.formats.megatron.arguments.kind_rows import KIND_ROWS
from flmgrow.formats.megatron.arguments.unsaid import refuse_unsaid
from flmgrow.model.config import ModelConfig
from flmgrow.text import Found, Text
from flmgrow.trainer.megatron import cpu
from flmgrow.trainer.megatron.core import (
    GPTModel,
    TransformerConfig,
    get_forward_backward_func,
    parallel_state,
    squared_relu,
    tensor_parallel,
)
from flmgrow.trainer.megatron.layer_spec import block_spec
from flmgrow.trainer.megatron.live_masks import LiveMasks
from flmgrow.trainer.megatron.switches import Switches
from flmgrow.trainer.ranks.agreement import close_channel, open_channel
from flmgrow.trainer.ranks.meeting import meeting

cpu.patch_megatron()

PipelineLayers = str | tuple[int | None, int | None]

NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
POSITIONS = {"learned": "learned_absolute", "rope": "rope", "xpos": "rope", "none": "none"}
ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "swiglu": functional.silu,
    "squared_relu": squared_relu,
}


def start_parallel(*, tp: int, pp: int, vpp: int | None = None, seed: int = 1234) -> None:
    """Join the process group of the launch and split it into tensor and pipeline ranks.

    Raises:
        UsageError: If there are more ranks on a node than devices.
    """
    torch.cuda.set_device(_own_device(int(os.environ.get("LOCAL_RANK", "0"))))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, **meeting())
    open_channel()
    parallel_state.initialize_model_parallel(tp, pp, vpp)
    start_chance(seed)


def start_chance(seed: int) -> None:
    """Let all sources of chance of this rank begin from ``seed``."""
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    # Pipeline stages must start from different weights; tensor-parallel ranks cut the same ones.
    torch.manual_seed(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())
    random.seed(seed)
    np.random.seed(seed)


def _own_device(place: int) -> int:
    """Return the device of the rank with this ``place`` on its node.

    A launcher may show each rank one device of its own.

    Raises:
        UsageError: If there are too few.
    """
    devices = torch.cuda.device_count()
    if devices > 1 and place >= devices:
        raise UsageError(
            Text(f"rank {place} of its node: sees ", Found(devices), " GPUs"),
            "start fewer ranks on a node, or look at CUDA_VISIBLE_DEVICES",
            wanted="one for each rank",
        )
    return place if devices > 1 else 0


def stop_parallel() -> None:
    """Leave what :func:`start_parallel` joined."""
    close_channel()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def transformer_config(
    config: ModelConfig,
    *,
    tp: int,
    pp: int,
    vpp: int | None = None,
    pipeline_layers: PipelineLayers | None = None,
    sequence_parallel: bool = False,
    dtype: torch.dtype = torch.float32,
    init_std: float | None = 0.02,
    switches: Switches | None = None,
) -> Any:
    """Return megatron-core's TransformerConfig for ``config`` in a layout.

    ``pipeline_layers`` makes the pipeline uneven: either the layer counts of the first and the last
    stage (None: an equal share), or a layout such as ``"Et|tt|ttL"`` with an entry per pipeline
    chunk, chunk v of stage p at v * pp + p. Dropout is off: growth is proved on the function, not
    on its noise. ``init_std`` is the spread of fresh weights at muP's base width, if there is one;
    None leaves weights as they are found in memory, to be filled. ``switches`` are its own faster
    ways of computing.
    """
    refuse_unsaid(config)
    first, last, layout = None, None, None
    if isinstance(pipeline_layers, str):
        layout = pipeline_layers
    elif pipeline_layers is not None:
        first, last = pipeline_layers
    std = init_std or 0.0
    # Not perform_initialization=False: with it, parameters lack the marks of tensor parallelism.
    fill = None if init_std is not None else _leave
    fused = {
        "transformer_impl": "local",
        "bias_activation_fusion": False,
        "gradient_accumulation_fusion": False,
        **(switches or Switches()).settings,
    }
    return TransformerConfig(
        num_layers=config.layers,
        hidden_size=config.hidden,
        ffn_hidden_size=config.ffn,
        num_attention_heads=config.heads,
        num_query_groups=config.kv_groups,
        kv_channels=config.head_dim,
        normalization=NORMS[config.norm],
        layernorm_epsilon=config.norm_eps,
        layernorm_zero_centered_gamma=config.zero_centred_gain,
        gated_linear_unit=config.gated,
        activation_func=ACTIVATIONS[config.activation],
        add_bias_linear=config.linear_bias,
        add_qkv_bias=config.qkv_bias,
        qk_layernorm=config.qk_norm,
        rotary_interleaved=config.rotary.interleaved,
        softmax_scale=config.multipliers.attention,
        **{row.name: row.value(config) for row in KIND_ROWS},
        init_method_std=std / config.width_multiplier**0.5,
        embedding_init_method_std=std,
        init_method=fill,
        output_layer_init_method=fill,
        embedding_init_method=fill,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_dropout_fusion=True,
        masked_softmax_fusion=False,
        use_cpu_initialization=True,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        pipeline_model_parallel_layout=layout,
        sequence_parallel=sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        # Batched sends give interleaved stages on two ranks wrong activations, without an error.
        batch_p2p_comm=False,
        overlap_p2p_comm=vpp is not None,
        **fused,
    )


def _leave(weight: torch.Tensor) -> torch.Tensor:
    return weight


def build_model_chunks(
    config: ModelConfig,
    transformer_config: Any,
    padded_vocab: int,
    masks: LiveMasks | None = None,
) -> list[GPTModel]:
    """Build this rank's part of the model: one GPTModel per pipeline chunk it holds.

    The model reads ``masks`` in every forward pass. It has the state keys of an ordinary model, and
    if no mask is below 1 it is one.
    """
    chunks = transformer_config.virtual_pipeline_model_parallel_size or 1
    first_stage = parallel_state.get_pipeline_model_parallel_rank() == 0
    last_stage = (
        parallel_state.get_pipeline_model_parallel_rank()
        == transformer_config.pipeline_model_parallel_size - 1
    )
    rotary, rotates = config.rotary, POSITIONS[config.positions] == "rope"
    masks = masks or LiveMasks({}, config, transformer_config.params_dtype)
    models = []
    for chunk in range(chunks):
        virtual = chunk if chunks > 1 else None
        model = GPTModel(
            config=transformer_config,
            transformer_layer_spec=block_spec(config, masks, transformer_config, virtual),
            vocab_size=padded_vocab,
            max_sequence_length=config.max_positions,
            pre_process=first_stage and chunk == 0,
            post_process=last_stage and chunk == chunks - 1,
            share_embeddings_and_output_weights=config.tied,
            position_embedding_type=POSITIONS[config.positions],
            rotary_percent=rotary.percent,
            rotary_base=rotary.base,
            rope_scaling=rotary.scaling_factor is not None,
            rope_scaling_factor=rotary.scaling_factor or 1.0,
            seq_len_interpolation_factor=rotary.interpolation,
            vp_stage=virtual,
        )
        _multiply_embedding_and_logits(model, config)
        _widen_head(model, config)
        # Norms and position tables are made in float32 whatever the requested dtype.
        models.append(model.to(torch.cuda.current_device(), transformer_config.params_dtype))
        if rotates and transformer_config.params_dtype == torch.float64:
            _rotate_in_float64(model, config)
    return models


@torch.no_grad()
def full_logits(models: list[GPTModel], tokens: torch.Tensor) -> torch.Tensor | None:
    """Run the pipeline forward on ``tokens`` (b, s).

    The last stage's ranks return all logits (b, s, v), padding among them, the others None.
    """
    batch, length = tokens.shape
    positions = torch.arange(length).expand(batch, length)
    collected: list[torch.Tensor] = []

    def forward(_: Any, model: Any) -> Any:
        def collect(output: torch.Tensor) -> Any:
            collected.append(output)
            return torch.zeros(()), {}

        return model(tokens, positions, None), collect

    # Interleaved stages want a micro-batch per pipeline rank; each is the same whole batch.
    microbatches = parallel_state.get_pipeline_model_parallel_world_size() if models[1:] else 1
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[None] * len(models),
        model=models,
        num_microbatches=microbatches,
        seq_length=length,
        micro_batch_size=batch,
        forward_only=True,
    )
    if not collected:
        return None
    gathered: torch.Tensor = tensor_parallel.gather_from_tensor_model_parallel_region(collected[0])
    return gathered


def _multiply_embedding_and_logits(model: GPTModel, config: ModelConfig) -> None:
    """Put the model's multipliers behind its embedding and in front of its head, if any."""
    embedding, logits = config.multipliers.embedding, config.logit_factor

    def behind(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output * embedding

    def in_front(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return arguments[0] * logits, *arguments[1:]

    if model.pre_process and embedding != 1.0:
        model.embedding.word_embeddings.register_forward_hook(behind)
    if model.post_process and logits != 1.0:
        model.output_layer.register_forward_pre_hook(in_front)


@torch.no_grad()
def _widen_head(model: GPTModel, config: ModelConfig) -> None:
    """Undo muP's factor in a head of its own, which megatron-core starts like a hidden matrix."""
    if model.post_process and not config.tied:
        model.output_layer.weight *= config.width_multiplier**0.5


def _rotate_in_float64(model: GPTModel, config: ModelConfig) -> None:
    """Compute rotary frequencies in float64: megatron-core always does so in float32."""
    rotary = model.rotary_pos_emb
    size = config.rotary.size(config.head_dim)
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    rotary.inv_freq = config.rotary.base**-exponents
    if config.rotary.scaling_factor is not None:
        factor = config.rotary.scaling_factor
        rotary.inv_freq = rotary._apply_scaling(rotary.inv_freq, factor=factor)
