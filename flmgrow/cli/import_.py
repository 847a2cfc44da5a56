"""``flmgrow import``: a Hugging Face folder as a Megatron checkpoint; weights stay bit for bit."""

from flmgrow.cli import options
from flmgrow.cli.grouped import grouped
from flmgrow.cli.parsing import parse_layers
from flmgrow.cli.running import Reading, Running, carry_out, check_dtype
from flmgrow.errors import UsageError
from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.writing import written_format
from flmgrow.operators.target import Target
from flmgrow.surgery.plan import FileRequest, LayoutRequest, make_plan

_IMPLEMENTATIONS = ("transformer_engine", "local")


@grouped
def import_(
    src: options.Source,
    dst: options.Destination,
    tp: options.TensorParallel = None,
    pp: options.PipelineParallel = None,
    vpp: options.VirtualPipeline = None,
    pipeline_layers: options.PipelineLayers = None,
    padded_vocab_size: options.PaddedVocab = None,
    file_format: options.Format = None,
    transformer_impl: options.TransformerImpl = "transformer_engine",
    dtype: options.Dtype = None,
    *,
    reading: Reading,
    running: Running,
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
    request = LayoutRequest(tp, pp, vpp, parse_layers(pipeline_layers), padded_vocab_size)
    fused = transformer_impl == "transformer_engine"
    with reading.open(src, fused=fused) as source:
        if source.format != "huggingface":
            raise UsageError(
                f"{src}: is a Megatron checkpoint, wanted a Hugging Face folder",
                "use flmgrow reshard",
            )
        plan = make_plan(
            source,
            Target(),
            request,
            FileRequest(dtype, file_format or "megatron"),
            pending=masks_of(source),
        )
        carry_out(plan, dst, running)
