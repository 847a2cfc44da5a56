"""``flmgrow import``: a Hugging Face folder as a Megatron checkpoint; weights stay bit for bit."""

from flmgrow.cli import options
from flmgrow.cli.asked import LayoutOptions
from flmgrow.cli.grouped import grouped
from flmgrow.cli.in_ranks import in_ranks
from flmgrow.cli.reading import SourceOptions
from flmgrow.cli.running import Running, carry_out
from flmgrow.opened import is_fused
from flmgrow.planned import plan_import, requested


@grouped
@in_ranks
def import_(
    src: options.Source,
    dst: options.Destination,
    *,
    layout: LayoutOptions,
    file_format: options.Format = None,
    transformer_impl: options.TransformerImpl = "transformer_engine",
    dtype: options.Dtype = None,
    reading: SourceOptions,
    running: Running,
) -> None:
    """Write a Hugging Face model as a Megatron checkpoint, in any layout.

    \b
    Example: flmgrow import llama-hf ckpt-llama --tp 4 --pp 2
    """
    request = requested(**layout.asked(), dtype=dtype, format=file_format)
    with reading.open(src, fused=is_fused(transformer_impl)) as source:
        carry_out(plan_import(source, request), dst, running)
