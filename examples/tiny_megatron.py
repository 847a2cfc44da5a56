"""A tool that changes checkpoints must be tried on real ones, and real ones fill a cluster.

This script makes a real one in seconds on a CPU: megatron-core trains a tiny model on English text,
with its own parallel layers, pipeline schedule and optimizer, and every rank saves what Megatron-LM
saves, where Megatron-LM's legacy format puts it. It also reads such a checkpoint back, strictly,
and writes the logits it gives; so a checkpoint that flmgrow wrote can be shown to load, and to
compute what it should. It goes on training from one, too, with the optimizer's state: a run that
was stopped, changed by flmgrow and resumed can be compared with the run that never stopped.

    export OMP_NUM_THREADS=1
    torchrun --nproc-per-node 4 examples/tiny_megatron.py train OUT --tp 2 --pp 2
    torchrun --nproc-per-node 4 examples/tiny_megatron.py train MORE --load OUT --steps 40
    torchrun --nproc-per-node 4 examples/tiny_megatron.py logits OUT logits.pt --tokens tokens.pt

``tokens.pt`` holds an integer tensor (batch x length). The result is a dictionary: ``logits``
without the padded vocabulary, and ``loss``, of predicting each next token. Only checkpoints saved
with ``--optimizer`` can be resumed.
"""

import argparse
import os
import warnings
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import torch

from flmgrow.trainer.megatron import cpu

# On a CPU even where there are GPUs: few machines have as many as a layout has ranks.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# What megatron-core says wherever there is neither Transformer Engine nor a GPU, once per rank.
for usual in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "full scope is deprecated",
    "When using async grad allreduce",
    "`torch.distributed.all_gather_into_tensor` is deprecated",
):
    warnings.filterwarnings("ignore", message=usual)
cpu.install()

from legacy_checkpoint import (  # noqa: E402
    Run,
    arguments,
    load_legacy,
    model_config,
    read_arguments,
    save_legacy,
)
from megatron.core.distributed import finalize_model_grads  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from tiny_steps import (  # noqa: E402
    forward_step,
    micro_batches,
    optimizer_and_schedule,
    replicated,
    report,
)

from flmgrow.model.config import ModelConfig  # noqa: E402
from flmgrow.trainer.megatron.model import (  # noqa: E402
    PipelineLayers,
    build_model_chunks,
    full_logits,
    start_parallel,
    stop_parallel,
    transformer_config,
)

# All bytes, and some ids no text uses: not a size that vocabularies are padded to.
VOCAB = 300
# fmt: off
ARCHITECTURES = {
    "llama": ModelConfig(
        layers=4, hidden=64, ffn=176, kv_groups=4, queries_per_group=2, head_dim=8, vocab=VOCAB,
        max_positions=64, norm="rmsnorm", activation="swiglu", linear_bias=False, qkv_bias=False,
        tied=True, positions="rope",
    ),
    "gpt": ModelConfig(
        layers=4, hidden=64, ffn=256, kv_groups=8, queries_per_group=1, head_dim=8, vocab=VOCAB,
        max_positions=64, norm="layernorm", activation="gelu", linear_bias=True, qkv_bias=True,
        tied=False, positions="learned",
    ),
    # No size is a multiple of what buffers are aligned to.
    "odd": ModelConfig(
        layers=4, hidden=60, ffn=174, kv_groups=2, queries_per_group=3, head_dim=10, vocab=VOCAB,
        max_positions=64, norm="layernorm", activation="gelu", linear_bias=True, qkv_bias=True,
        tied=True, positions="learned",
    ),
}
# fmt: on


def train(options: argparse.Namespace) -> None:
    """Train a tiny model from nothing, or from where a checkpoint ends, and save it."""
    config, run = described(options)
    start_parallel(tp=run.tp, pp=run.pp, vpp=run.vpp, seed=run.seed)
    layers = run.pipeline_layers
    settings = transformer_config(
        config, tp=run.tp, pp=run.pp, vpp=run.vpp, pipeline_layers=layers, dtype=run.dtype
    )
    # Without it the two copies of a tied embedding, on the first and the last stage, drift apart.
    settings.finalize_model_grads_func = finalize_model_grads
    args = arguments(config, run)
    plain = build_model_chunks(config, settings, args.padded_vocab_size)
    models = replicated(plain, run)
    optimizer, scheduler = optimizer_and_schedule(models, run)
    done = load_legacy(options.load, plain, optimizer, scheduler) if options.load else 0
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    for step in range(done + 1, run.stop + 1):
        for model in models:
            model.zero_grad_buffer()
        optimizer.zero_grad()
        losses = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[micro_batches(text, run, step) for _ in models],
            model=models,
            num_microbatches=run.micro_batches // args.data_parallel_size,
            seq_length=run.length,
            micro_batch_size=run.micro_batch,
            forward_only=False,
        )
        _, norm, _ = optimizer.step()
        scheduler.step(increment=1)
        report(options.report, done + 1, step, losses, norm)
    saved = (optimizer, scheduler) if run.optimizer else ()
    save_legacy(run.out, args, plain, *saved)
    stop_parallel()


def described(options: argparse.Namespace) -> tuple[ModelConfig, Run]:
    """Return the model and the run that are asked for; a checkpoint to go on from decides most."""
    run = Run(
        options.out,
        tp=options.tp,
        pp=options.pp,
        vpp=options.vpp,
        pipeline_layers=options.pipeline_layers,
        world=options.world,
        steps=options.steps,
        seed=options.seed,
        optimizer=options.optimizer,
        stop=options.stop or options.steps,
        bf16=options.bf16,
        distributed=options.distributed_optimizer,
        vocab_multiple=options.vocab_multiple,
        bucket_size=options.bucket_size,
    )
    if not options.load:
        return ARCHITECTURES[options.arch], run
    args = read_arguments(options.load)
    return model_config(args), replace(
        run,
        tp=args.tensor_model_parallel_size,
        pp=args.pipeline_model_parallel_size,
        vpp=args.virtual_pipeline_model_parallel_size,
        pipeline_layers=saved_pipeline_layers(args),
        bf16=args.bf16,
        distributed=args.use_distributed_optimizer,
        vocab_multiple=args.make_vocab_size_divisible_by,
        bucket_size=args.ddp_bucket_size,
    )


def saved_pipeline_layers(args: argparse.Namespace) -> PipelineLayers:
    """Return how the arguments of a checkpoint spread layers over the pipeline."""
    ends = (args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers)
    return args.pipeline_model_parallel_layout or ends


def logits(options: argparse.Namespace) -> None:
    """Load a checkpoint in the layout it was written in and save the logits of the given tokens."""
    args = read_arguments(options.checkpoint)
    tp, pp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    vpp = args.virtual_pipeline_model_parallel_size
    if options.world != tp * pp:
        raise SystemExit(f"the checkpoint has {tp * pp} model ranks, this run {options.world}")
    config = model_config(args)
    start_parallel(tp=tp, pp=pp, vpp=vpp)
    settings = transformer_config(
        config,
        tp=tp,
        pp=pp,
        vpp=vpp,
        pipeline_layers=saved_pipeline_layers(args),
        dtype=getattr(torch, options.dtype),
    )
    models = build_model_chunks(config, settings, args.padded_vocab_size)
    load_legacy(options.checkpoint, models)
    tokens = torch.load(options.tokens, weights_only=True)
    result = full_logits(models, tokens)
    if result is not None and torch.distributed.get_rank() == options.world - 1:
        result = result[..., : config.vocab].clone()
        loss = torch.nn.functional.cross_entropy(
            result[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        torch.save({"logits": result, "loss": loss}, options.out)
        print(f"lm loss {loss:.6f}", flush=True)
    stop_parallel()


def pipeline_layers(text: str) -> PipelineLayers:
    """Read ``Et|tttL`` (a layout) or ``1,3`` (layers of the first and the last stage)."""
    if "|" in text:
        return text
    first, last = (int(part) if part else None for part in text.split(","))
    return first, last


def main() -> None:
    """Read the command line and run one rank."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train a tiny model and save a checkpoint")
    command.set_defaults(run=train)
    command.add_argument("out", type=Path, help="folder to make")
    command.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks")
    command.add_argument("--pp", type=int, default=1, help="pipeline ranks")
    command.add_argument("--vpp", type=int, help="model chunks per pipeline rank")
    command.add_argument("--pipeline-layers", type=pipeline_layers, help="'Et|tttL', or '1,3'")
    command.add_argument("--arch", choices=ARCHITECTURES, default="llama")
    command.add_argument("--steps", type=int, default=30)
    command.add_argument("--seed", type=int, default=1234)
    command.add_argument("--stop", type=int, help="stop and save behind this one of the steps")
    command.add_argument("--load", type=Path, help="go on from this checkpoint, in its own layout")
    command.add_argument("--optimizer", action="store_true", help="save the optimizer's state too")
    command.add_argument("--bf16", action="store_true", help="bfloat16 weights, float32 masters")
    command.add_argument("--distributed-optimizer", action="store_true", help="Megatron's own")
    command.add_argument("--bucket-size", type=int, help="reduce gradients early, in such buckets")
    command.add_argument("--vocab-multiple", type=int, default=128, help="pad per tensor rank")
    # Not --log: torchrun would take it for an abbreviation of one of its own options.
    command.add_argument("--report", type=Path, help="file to append a line of JSON per step to")

    command = commands.add_parser("logits", help="write the logits a checkpoint gives")
    command.set_defaults(run=logits)
    command.add_argument("checkpoint", type=Path, help="folder with the tracker file")
    command.add_argument("out", type=Path, help="file to write")
    command.add_argument("--tokens", type=Path, required=True, help="file of batch x length ids")
    command.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")

    options = parser.parse_args()
    options.world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()
