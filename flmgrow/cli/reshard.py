"""``flmgrow reshard``: the identity growth to another layout."""

from flmgrow.cli import options
from flmgrow.cli.running import Reading, Running, carry_out, check_dtype, huggingface_options
from flmgrow.formats.manifest_file import masks_of
from flmgrow.operators.target import Target
from flmgrow.surgery.plan import FileWish, LayoutWish, make_plan


def reshard(
    src: options.Source,
    dst: options.Destination,
    tp: options.TensorParallel = None,
    pp: options.PipelineParallel = None,
    vpp: options.VirtualPipeline = None,
    pipeline_layers: options.PipelineLayers = None,
    iteration: options.Iteration = None,
    ignore_arg: options.IgnoreArgument = None,
    true_vocab_size: options.TrueVocab = None,
    replicated: options.Replicated = "check",
    no_optimizer: options.NoOptimizer = False,
    allow_nonfinite: options.AllowNonfinite = False,
    file_format: options.Format = None,
    torch_dist_version: options.TorchDistVersion = None,
    shard_size: options.ShardSize = "5G",
    dtype: options.Dtype = None,
    max_memory: options.MaxMemory = "1G",
    workers: options.Workers = None,
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Lay a checkpoint out for another tensor x pipeline parallelism; weights stay bit for bit.

    \b
    Example: flmgrow reshard ckpt-tp2 ckpt-tp4pp4 --tp 4 --pp 4
    """
    check_dtype(dtype)
    wish = LayoutWish(tp, pp, vpp, options.parse_layers(pipeline_layers))
    running = Running(
        max_memory=max_memory,
        workers=workers,
        restart=restart,
        allow_nonfinite=allow_nonfinite,
        replicated=replicated,
        dry_run=dry_run,
        as_json=as_json,
    )
    with Reading(iteration, ignore_arg, true_vocab_size).open(src) as source:
        plan = make_plan(
            source,
            Target(),
            wish,
            FileWish(
                dtype, file_format, torch_dist_version, huggingface_options(source, shard_size)
            ),
            drop_optimizer=no_optimizer,
            pending=masks_of(source),
        )
        carry_out(plan, dst, running)
