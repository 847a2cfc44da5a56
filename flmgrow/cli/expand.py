"""``flmgrow expand``: grow a checkpoint, and lay it out anew, in one pass."""

from dataclasses import replace

from flmgrow.cli import options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.parsing import parse_layers, shard_bytes
from flmgrow.cli.reading import Reading
from flmgrow.cli.running import Running, carry_out
from flmgrow.cli.target_file import read_target_file
from flmgrow.planned import plan_of, requested


@grouped
@in_ranks
def expand(
    src: options.Source,
    dst: options.Destination,
    num_layers: options.NumLayers = None,
    hidden_size: options.HiddenSize = None,
    ffn_hidden_size: options.FfnHiddenSize = None,
    num_attention_heads: options.NumAttentionHeads = None,
    num_query_groups: options.NumQueryGroups = None,
    kv_channels: options.KvChannels = None,
    vocab_size: options.VocabSize = None,
    to: options.To = None,
    to_params: options.ToParams = None,
    method: options.Method = None,
    depth_placement: options.DepthPlacement = None,
    new_layers: options.NewLayers = None,
    copy_noise: options.CopyNoise = None,
    ramp_steps: options.RampSteps = None,
    bake: options.BakeMasks = False,
    optimizer: options.Optimizer = None,
    fresh_second_moment: options.FreshSecondMoment = None,
    seed: options.Seed = None,
    init_std: options.InitStd = None,
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
    """Grow a checkpoint so that its function does not change.

    Any subset of width, FFN, heads, depth and vocabulary grows in one pass, into any layout. The
    result appears complete or not at all; after an interruption the same command resumes.

    \b
    Example: flmgrow expand ckpt-16b ckpt-51b --hidden-size 8192 --num-layers 62 --tp 4 --pp 2
    """
    request = requested(
        read_target_file(to),
        to_params=to_params,
        bake=bake,
        no_optimizer=no_optimizer,
        dtype=dtype,
        format=file_format,
        torch_dist_version=torch_dist_version,
        shard_size=shard_bytes(shard_size),
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=ffn_hidden_size,
        num_attention_heads=num_attention_heads,
        num_query_groups=num_query_groups,
        kv_channels=kv_channels,
        vocab_size=vocab_size,
        method=method,
        depth_placement=depth_placement,
        new_layers=new_layers,
        copy_noise=copy_noise,
        untie=reading.untie or None,
        ramp_steps=ramp_steps,
        optimizer=optimizer,
        fresh_second_moment=fresh_second_moment,
        seed=seed,
        tp=tp,
        pp=pp,
        vpp=vpp,
        pipeline_layers=parse_layers(pipeline_layers),
        padded_vocab_size=padded_vocab_size,
    )
    if reading.untie is None:
        reading = replace(reading, untie=request.target.untie)
    with reading.open(src, iteration) as source:
        carry_out(plan_of(source, request), dst, replace(running, init_std=init_std))
