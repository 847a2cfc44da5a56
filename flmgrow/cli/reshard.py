"""``flmgrow reshard``: the identity growth to another layout."""

from flmgrow.cli import options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.parsing import parse_layers, shard_bytes
from flmgrow.cli.reading import Reading
from flmgrow.cli.running import Running, carry_out
from flmgrow.planned import plan_of, requested


@grouped
@in_ranks
def reshard(
    src: options.Source,
    dst: options.Destination,
    tp: options.TensorParallel = None,
    pp: options.PipelineParallel = None,
    vpp: options.VirtualPipeline = None,
    pipeline_layers: options.PipelineLayers = None,
    padded_vocab_size: options.PaddedVocab = None,
    iteration: options.Iteration = None,
    no_optimizer: options.NoOptimizer = False,
    file_format: options.Format = None,
    torch_dist_version: options.TorchDistVersion = None,
    shard_size: options.ShardSize = "5G",
    dtype: options.Dtype = None,
    *,
    reading: Reading,
    running: Running,
) -> None:
    """Lay a checkpoint out for another tensor x pipeline parallelism; weights stay bit for bit.

    \b
    Example: flmgrow reshard ckpt-tp2 ckpt-tp4pp4 --tp 4 --pp 4
    """
    request = requested(
        tp=tp,
        pp=pp,
        vpp=vpp,
        pipeline_layers=parse_layers(pipeline_layers),
        padded_vocab_size=padded_vocab_size,
        no_optimizer=no_optimizer,
        dtype=dtype,
        format=file_format,
        torch_dist_version=torch_dist_version,
        shard_size=shard_bytes(shard_size),
    )
    with reading.open(src, iteration) as source:
        carry_out(plan_of(source, request), dst, running)
