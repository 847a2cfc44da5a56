"""``flmgrow expand``: grow a checkpoint, and lay it out anew, in one pass."""

from dataclasses import replace

from flmgrow.cli import options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.parsing import parse_layers
from flmgrow.cli.running import Reading, Running, carry_out, check_dtype, huggingface_options
from flmgrow.cli.target_file import read_target_file
from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.operators.shape import shape_for
from flmgrow.operators.target import Target
from flmgrow.surgery.plan import FileRequest, LayoutRequest, make_plan


@grouped
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
    check_dtype(dtype)
    wanted = read_target_file(to).overridden(
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
    reading = replace(reading, untie=wanted.untie if reading.untie is None else reading.untie)
    with reading.open(src, iteration) as source:
        target, request = _untied(wanted.target(), source), wanted.layout()
        _check_moments(target, no_optimizer)
        _check_head_size(source, wanted.kv_channels)
        if to_params is not None:
            target = _solved(source, target, request, to_params)
        plan = make_plan(
            source,
            target,
            request,
            FileRequest(
                dtype, file_format, torch_dist_version, huggingface_options(source, shard_size)
            ),
            drop_optimizer=no_optimizer,
            pending=masks_of(source),
            bake={} if bake else None,
        )
        carry_out(plan, dst, replace(running, init_std=init_std))


def _untied(target: Target, source: Checkpoint) -> Target:
    """Return the target without a request to untie that reading the source has fulfilled."""
    return replace(target, untie=False) if source.untied else target


def _check_moments(target: Target, dropped: bool) -> None:
    if dropped and target.fresh_second_moment != "zero":
        raise UsageError(
            f"--fresh-second-moment {target.fresh_second_moment}: --no-optimizer leaves all "
            "moments out",
            "leave out one of the two",
        )


def _check_head_size(source: Checkpoint, wanted: int | None) -> None:
    if wanted is not None and wanted != source.config.head_dim:
        raise UsageError(
            f"--kv-channels {wanted}: the source has heads of {source.config.head_dim}",
            "the frequencies of rotary positions and the attention scale depend on the head size, "
            "so it cannot grow; add heads instead",
        )


def _solved(
    source: Checkpoint, target: Target, request: LayoutRequest, parameters: float
) -> Target:
    """Choose the sizes for ``--to-params``; sizes the user gave as well would contradict it."""
    if any((target.layers, target.hidden, target.ffn, target.heads, target.kv_groups)):
        raise UsageError(
            "--to-params chooses the sizes", "leave out the size options, or --to-params"
        )
    pp = request.pp or source.layout.pp
    chunks = pp * (request.vpp or (source.layout.vpp if pp == source.layout.pp else 1))
    shape = shape_for(source.config, parameters, request.tp or source.layout.tp, chunks)
    return replace(
        target,
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        heads=shape.heads,
        kv_groups=shape.kv_groups,
    )
