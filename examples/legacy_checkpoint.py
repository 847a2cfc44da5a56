"""Megatron-LM's training script is not on PyPI, and its legacy checkpoints are what people have.

megatron-core brings layers, schedules and optimizers, but neither the arguments a checkpoint holds
nor the code that lays its files out. This module supplies both for one small run: ``args`` with
Megatron-LM's own names and defaults, and ``save_legacy`` and ``load_legacy`` for a rank's files.
"""

import argparse
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmgrow.trainer.megatron import cpu

cpu.install()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.enums import ModelType  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402

from flmgrow.formats.megatron.arguments.model import read_config  # noqa: E402
from flmgrow.model.config import ModelConfig  # noqa: E402
from flmgrow.trainer.megatron.model import PipelineLayers  # noqa: E402


@dataclass(frozen=True)
class Run:
    """How a model was trained and laid out: all that ``args`` holds beside the model itself.

    It would take ``steps`` steps, and stops behind step ``stop``. ``micro_batches`` are those of
    all replicas together, so that runs on more of them see the same batches.
    """

    out: Path
    tp: int
    pp: int
    vpp: int | None
    pipeline_layers: PipelineLayers | None
    world: int
    steps: int
    seed: int
    optimizer: bool
    stop: int
    bf16: bool = False
    distributed: bool = False
    vocab_multiple: int = 128
    bucket_size: int | None = None
    length: int = 64
    micro_batch: int = 2
    micro_batches: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 5

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def min_learning_rate(self) -> float:
        """Where the learning rate ends."""
        return self.learning_rate / 10

    @property
    def decay_steps(self) -> int:
        """When the learning rate ends; Megatron asks for more than the warmup."""
        return max(self.steps, self.warmup + 1)


def save_legacy(
    root: Path,
    args: argparse.Namespace,
    models: list[Any],
    optimizer: Any = None,
    scheduler: Any = None,
) -> None:
    """Save this rank's state as Megatron-LM's ``--ckpt-format torch`` does.

    Without ``optimizer``, only weights are saved; ``args`` says whether it is a distributed one.
    """
    folder = rank_folder(root, f"iter_{args.iteration:07d}")
    names = ["model"] if len(models) == 1 else [f"model{chunk}" for chunk in range(len(models))]
    states = {
        name: model.state_dict_for_save_checkpoint()
        for name, model in zip(names, models, strict=True)
    }
    random_states = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state(),
        "rng_tracker_states": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    extra = {}
    if optimizer is not None:
        extra = {"optimizer": optimizer.state_dict(), "opt_param_scheduler": scheduler.state_dict()}
    content = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": args.iteration,
        **states,
        **extra,
        "rng_state": [random_states],
        "num_floating_point_operations_so_far": 0,
    }
    if parallel_state.get_data_parallel_rank() == 0:
        folder.mkdir(parents=True)
        torch.save(content, folder / "model_optim_rng.pt")
    if optimizer is not None and args.use_distributed_optimizer:
        optimizer.save_parameter_state(str(folder / "distrib_optim.pt"))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        (root / "latest_checkpointed_iteration.txt").write_text(str(args.iteration))
    torch.distributed.barrier()


def load_legacy(root: Path, models: list[Any], optimizer: Any = None, scheduler: Any = None) -> int:
    """Load this rank's files and return their iteration; a missing or unexpected key is an error.

    Without ``optimizer``, only weights are loaded.
    """
    folder = rank_folder(root, iteration_folder(root))
    # Megatron-LM's files hold enums and an argparse.Namespace; load only what you made yourself.
    content = torch.load(folder / "model_optim_rng.pt", weights_only=False)
    for chunk, model in enumerate(models):
        name = "model" if len(models) == 1 else f"model{chunk}"
        model.load_state_dict(content[name], strict=True)
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer"])
        if content["args"].use_distributed_optimizer:
            optimizer.load_parameter_state(str(folder / "distrib_optim.pt"))
        scheduler.load_state_dict(content["opt_param_scheduler"])
    iteration: int = content["iteration"]
    return iteration


def read_arguments(root: Path) -> argparse.Namespace:
    """Return the arguments any rank's file holds about the model and its layout."""
    file = min((root / iteration_folder(root)).glob("mp_rank_*/model_optim_rng.pt"))
    content = torch.load(file, weights_only=False, mmap=True)
    args: argparse.Namespace = content["args"]
    return args


def iteration_folder(root: Path) -> str:
    """Return the folder the tracker file of a checkpoint names."""
    latest = (root / "latest_checkpointed_iteration.txt").read_text().strip()
    return latest if latest == "release" else f"iter_{int(latest):07d}"


def rank_folder(root: Path, iteration: str) -> Path:
    """Return where this rank's file lies; a pipeline rank is named only where there are several."""
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    return root / iteration / name


def model_config(args: argparse.Namespace) -> ModelConfig:
    """Return the model that Megatron-LM's arguments describe."""
    return read_config(vars(args), "args", args.padded_vocab_size)


def arguments(config: ModelConfig, run: Run) -> argparse.Namespace:
    """Return what Megatron-LM would hold in ``args`` for this run: its own names and defaults."""
    tp, pp, vpp, steps = run.tp, run.pp, run.vpp, run.steps
    layout, ends = (
        (run.pipeline_layers, None)
        if isinstance(run.pipeline_layers, str)
        else (None, run.pipeline_layers)
    )
    first, last = ends or (None, None)
    padding = run.vocab_multiple * tp
    data_parallel = run.world // (tp * pp)
    batch = run.micro_batch * run.micro_batches
    positions = {"learned": "learned_absolute"}.get(config.positions, config.positions)
    rotary = config.rotary
    # fmt: off
    return argparse.Namespace(
        # The model
        num_layers=config.layers, encoder_num_layers=config.layers, decoder_num_layers=None,
        hidden_size=config.hidden, ffn_hidden_size=config.ffn, num_attention_heads=config.heads,
        kv_channels=config.head_dim, group_query_attention=config.queries_per_group > 1,
        num_query_groups=config.kv_groups if config.queries_per_group > 1 else 1,
        max_position_embeddings=config.max_positions, position_embedding_type=positions,
        add_position_embedding=True, use_rotary_position_embeddings=False,
        rotary_base=int(rotary.base), rotary_percent=rotary.percent,
        rotary_interleaved=rotary.interleaved, rope_type=None, no_rope_freq=None,
        rotary_seq_len_interpolation_factor=rotary.interpolation,
        use_rope_scaling=rotary.scaling_factor is not None,
        rope_scaling_factor=rotary.scaling_factor or 8.0, mrope_section=None,
        relative_attention_num_buckets=32, relative_attention_max_distance=128,
        normalization="RMSNorm" if config.norm == "rmsnorm" else "LayerNorm",
        norm_epsilon=config.norm_eps, apply_layernorm_1p=config.zero_centred_gain,
        apply_residual_connection_post_layernorm=False, swiglu=config.gated, quick_geglu=False,
        squared_relu=config.activation == "squared_relu", glu_linear_offset=0.0,
        openai_gelu=config.activation == "gelu_tanh", activation_func_clamp_value=None,
        onnx_safe=None, bert_binary_head=True, untie_embeddings_and_output_weights=not config.tied,
        add_bias_linear=config.linear_bias,
        add_qkv_bias=config.qkv_bias and not config.linear_bias,
        qk_layernorm=config.qk_norm, qk_l2_norm=False, qk_clip=False, softmax_type="vanilla",
        attention_output_gate=False, multi_latent_attention=False, mtp_num_layers=None,
        mtp_loss_scaling_factor=0.1, window_size=None, window_attn_skip_freq=None,
        num_experts=None, moe_layer_freq=1, moe_ffn_hidden_size=None, moe_grouped_gemm=False,
        moe_shared_expert_intermediate_size=None, moe_router_topk=2, moe_aux_loss_coeff=0.0,
        moe_router_load_balancing_type="aux_loss", moe_token_dispatcher_type="allgather",
        heterogeneous_layers_config_path=None, heterogeneous_layers_config_encoded_json=None,
        hybrid_override_pattern=None, is_hybrid_model=False, retro_add_retriever=False,
        transformer_impl="local", attention_backend=AttnBackend.auto, spec=None,
        model_type=ModelType.encoder_or_decoder, use_legacy_models=False, yaml_cfg=None,
        # The vocabulary and the data
        vocab_size=config.vocab, padded_vocab_size=-(-config.vocab // padding) * padding,
        make_vocab_size_divisible_by=run.vocab_multiple, tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=None, vocab_file=None, merge_file=None, vocab_extra_ids=0,
        seq_length=run.length,
        encoder_seq_length=run.length, decoder_seq_length=None, data_path=None, split=None,
        train_data_path=None, valid_data_path=None, test_data_path=None, data_cache_path=None,
        mock_data=False, num_workers=2, dataloader_type="single", reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask_in_dataloader=True,
        mask_prob=0.15, short_seq_prob=0.1, sample_rate=1.0,
        # The layout
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
        transformer_pipeline_model_parallel_size=pp, context_parallel_size=1,
        expert_model_parallel_size=1, expert_tensor_parallel_size=tp, cp_comm_type=["p2p"],
        virtual_pipeline_model_parallel_size=vpp, pipeline_model_parallel_layout=layout,
        num_layers_per_virtual_pipeline_stage=(
            config.layers // pp // vpp if vpp and not layout else None
        ),
        num_virtual_stages_per_pipeline_rank=None, microbatch_group_size_per_vp_stage=None,
        decoder_first_pipeline_num_layers=first, decoder_last_pipeline_num_layers=last,
        account_for_embedding_in_pipeline_split=False, account_for_loss_in_pipeline_split=False,
        sequence_parallel=False, world_size=run.world, rank=torch.distributed.get_rank(),
        local_rank=0, data_parallel_size=data_parallel, lazy_mpu_init=None,
        distributed_backend="gloo", distributed_timeout_minutes=10, use_tp_pp_dp_mapping=False,
        overlap_p2p_comm=vpp is not None, overlap_grad_reduce=run.bucket_size is not None,
        overlap_param_gather=False, use_distributed_optimizer=run.distributed,
        use_ring_exchange_p2p=False,
        scatter_gather_tensors_in_pipeline=True, tp_comm_overlap=False,
        defer_embedding_wgrad_compute=False,
        nccl_communicator_config_path=None, ddp_bucket_size=run.bucket_size,
        ddp_average_in_collective=False,
        # Numbers and kernels
        params_dtype=run.dtype, fp16=False, bf16=run.bf16, fp8=None, fp8_param_gather=False,
        main_grads_dtype=torch.float32, main_params_dtype=torch.float32,
        exp_avg_dtype=torch.float32, exp_avg_sq_dtype=torch.float32, loss_scale=None,
        initial_loss_scale=4294967296, min_loss_scale=1.0, loss_scale_window=1000, hysteresis=2,
        fp32_residual_connection=False, apply_query_key_layer_scaling=False,
        attention_softmax_in_fp32=False, accumulate_allreduce_grads_in_fp32=run.bf16,
        fp16_lm_cross_entropy=False, masked_softmax_fusion=False, bias_gelu_fusion=False,
        bias_swiglu_fusion=False, bias_dropout_fusion=False, apply_rope_fusion=False,
        cross_entropy_loss_fusion=False, gradient_accumulation_fusion=False,
        no_persist_layer_norm=True, use_flash_attn=False, deterministic_mode=False,
        use_cpu_initialization=True, perform_initialization=True, init_method_std=0.02,
        init_method_xavier_uniform=False, embedding_init_method_std=None,
        recompute_granularity=None, recompute_method=None, recompute_num_layers=None,
        recompute_modules=None, distribute_saved_activations=False, cpu_offloading_num_layers=0,
        # Training
        seed=run.seed, data_parallel_random_init=False, micro_batch_size=run.micro_batch,
        global_batch_size=batch, rampup_batch_size=None, decrease_batch_size_if_needed=False,
        train_iters=steps, train_samples=None, iteration=run.stop,
        consumed_train_samples=run.stop * batch, consumed_valid_samples=0, skipped_train_samples=0,
        skip_train=False, eval_iters=0, eval_interval=1000, log_interval=10,
        exit_interval=None, exit_duration_in_mins=None,
        exit_signal=signal.SIGTERM, exit_signal_handler=False, tensorboard_dir=None,
        check_for_nan_in_loss_and_grad=True, hidden_dropout=0.0, attention_dropout=0.0,
        optimizer="adam", lr=run.learning_rate, min_lr=run.min_learning_rate,
        lr_decay_style="cosine", lr_decay_iters=run.decay_steps, lr_decay_samples=None,
        lr_warmup_iters=run.warmup, lr_warmup_samples=0, lr_warmup_fraction=None,
        lr_warmup_init=0.0, lr_wsd_decay_iters=None,
        lr_wsd_decay_style="exponential", lr_wsd_decay_samples=None, decoupled_lr=None,
        decoupled_min_lr=None, weight_decay=run.weight_decay, start_weight_decay=run.weight_decay,
        end_weight_decay=run.weight_decay, weight_decay_incr_style="constant", clip_grad=1.0,
        adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8, sgd_momentum=0.9,
        override_opt_param_scheduler=False, use_checkpoint_opt_param_scheduler=False,
        calculate_per_token_loss=False,
        # Checkpoints
        ckpt_format="torch", use_dist_ckpt=False, save=str(run.out), load=None,
        save_interval=steps, save_retain_interval=None, no_save_optim=not run.optimizer,
        no_save_rng=None, no_load_optim=None, no_load_rng=None, finetune=False, ckpt_step=None,
        pretrained_checkpoint=None, use_checkpoint_args=False, exit_on_missing_checkpoint=False,
        use_mp_args_from_checkpoint_args=False, auto_detect_ckpt_format=False,
        ckpt_convert_format=None, ckpt_convert_save=None, ckpt_fully_parallel_save=True,
        ckpt_fully_parallel_load=False, ckpt_assume_constant_structure=False, async_save=None,
        non_persistent_save_interval=None, non_persistent_ckpt_type=None,
        dist_ckpt_strictness="assume_ok_unexpected", dist_ckpt_save_pre_mcore_014=False,
    )
    # fmt: on
