"""``flmgrow import``: a Hugging Face folder as a Megatron checkpoint; weights stay bit for bit."""

from flmgrow.cli import options
from flmgrow.cli.running import Reading, Running, carry_out, check_dtype
from flmgrow.errors import UsageError
from flmgrow.formats.manifest_file import masks_of
from flmgrow.formats.writing import written_format
from flmgrow.operators.target import Target
from flmgrow.surgery.plan import FileWish, LayoutWish, make_plan

_IMPLEMENTATIONS = ("transformer_engine", "local")


def import_(
    src: options.Source,
    dst: options.Destination,
    tp: options.TensorParallel = None,
    pp: options.PipelineParallel = None,
    vpp: options.VirtualPipeline = None,
    pipeline_layers: options.PipelineLayers = None,
    file_format: options.Format = None,
    transformer_impl: options.TransformerImpl = "transformer_engine",
    ignore_arg: options.IgnoreArgument = None,
    true_vocab_size: options.TrueVocab = None,
    allow_nonfinite: options.AllowNonfinite = False,
    replicated: options.Replicated = "check",
    dtype: options.Dtype = None,
    max_memory: options.MaxMemory = "1G",
    workers: options.Workers = None,
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a Hugging Face model as a Megatron checkpoint, in any layout.

    \b
    Example: flmgrow import llama-hf ckpt-llama --tp 4 --pp 2
    """
    check_dtype(dtype)
    if not written_format(file_format or "megatron").ranks:
        raise UsageError(f"--format {file_format}: import writes Megatron's", "use flmgrow export")
    if transformer_impl not in _IMPLEMENTATIONS:
        raise UsageError(
            f"--transformer-impl {transformer_impl}: unknown", f"{' or '.join(_IMPLEMENTATIONS)}"
        )
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
    fused = transformer_impl == "transformer_engine"
    with Reading(None, ignore_arg, true_vocab_size, fused).open(src) as source:
        if source.format != "huggingface":
            raise UsageError(
                f"{src}: is a Megatron checkpoint, wanted a Hugging Face folder",
                "use flmgrow reshard",
            )
        plan = make_plan(
            source,
            Target(),
            wish,
            FileWish(dtype, file_format or "megatron"),
            pending=masks_of(source),
        )
        carry_out(plan, dst, running)
