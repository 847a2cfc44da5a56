"""What a command is asked for: sizes and methods, layout, files. Each option is declared once here,
as a field of the group that commands take whole.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from flmgrow.cli import options
from flmgrow.cli.parsing import parse_layers, shard_bytes

_SIZES = "What to grow (sizes that are not given stay)"
_GROWTH = "How to grow"
_LAYOUT = "Layout of the result"
_FILES = options.FILES


@dataclass(frozen=True)
class GrowthOptions:
    """What to grow, and how."""

    num_layers: Annotated[
        int | None, typer.Option("--num-layers", min=1, help="Layers.", rich_help_panel=_SIZES)
    ] = None
    hidden_size: Annotated[
        int | None,
        typer.Option("--hidden-size", min=1, help="Hidden width.", rich_help_panel=_SIZES),
    ] = None
    ffn_hidden_size: Annotated[
        int | None,
        typer.Option("--ffn-hidden-size", min=1, help="FFN width.", rich_help_panel=_SIZES),
    ] = None
    num_attention_heads: Annotated[
        int | None,
        typer.Option(
            "--num-attention-heads",
            min=1,
            help="Query heads. Under grouped-query attention they are added inside each group.",
            rich_help_panel=_SIZES,
        ),
    ] = None
    num_query_groups: Annotated[
        int | None,
        typer.Option(
            "--num-query-groups",
            min=1,
            help="Key-value groups; of a multi-head model they follow the heads.",
            rich_help_panel=_SIZES,
        ),
    ] = None
    kv_channels: Annotated[
        int | None,
        typer.Option(
            "--kv-channels", min=1, help="Head size; it cannot grow.", rich_help_panel=_SIZES
        ),
    ] = None
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size", min=1, help="Vocabulary, without padding.", rich_help_panel=_SIZES
        ),
    ] = None
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE.yaml",
            help="Read sizes, method and layout from a file; options given here win.",
            rich_help_panel=_SIZES,
        ),
    ] = None
    to_params: Annotated[
        float | None,
        typer.Option(
            "--to-params",
            metavar="51e9",
            help="Choose sizes near the source's proportions for this many parameters.",
            rich_help_panel=_SIZES,
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(
            metavar="mask|zero|copy|width=...,ffn=...",
            help="mask (default), zero or copy for all, or one per dimension (width, heads, ffn, "
            "depth); depth also stack and interleave, which change the function.",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    depth_placement: Annotated[
        str | None,
        typer.Option(
            metavar="end|interleave|0,0,1,1",
            help="Where new layers go (default end); or the old layer behind each new one.",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    new_layers: Annotated[
        str | None,
        typer.Option(
            metavar="copy|random",
            help="New layers start as copies of a neighbour (default), or drawn.",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    copy_noise: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=10.0,
            help="Noise that tells copied hidden channels apart, relative to a tensor's spread "
            "(default 0.1); it cancels over the copies.",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    ramp_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Optimizer steps in which masks open (default 5000).",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    bake: Annotated[
        bool,
        typer.Option(
            "--bake",
            help="Put the masks into the weights (at 0), for a stock trainer; not for width.",
            rich_help_panel=_GROWTH,
        ),
    ] = False
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="keep|reset|asymmetric",
            help="Adam's moments: grown with the weights (default), zero, or for the first copy "
            "only.",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    fresh_second_moment: Annotated[
        str | None,
        typer.Option(
            metavar="zero|mean",
            help="exp_avg_sq of fresh entries: zero (default), or the mean of the old ones beside "
            "them, so that their first steps are no larger than usual.",
            rich_help_panel=_GROWTH,
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of fresh values.", rich_help_panel=_GROWTH)
    ] = None
    init_std: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1e3,
            help="Spread of fresh values, which the noise on rows of new ids is relative to; "
            "each tensor's own if not given.",
            rich_help_panel=_GROWTH,
        ),
    ] = None

    def asked(self) -> dict[str, object]:
        """Return what is asked of the plan; ``to`` is a file with more of it, ``init_std`` is for
        who carries it out.
        """
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("to", "init_std")}


@dataclass(frozen=True)
class LayoutOptions:
    """How a result is divided among ranks."""

    tp: Annotated[
        int | None,
        typer.Option("--tp", min=1, help="Tensor-parallel size.", rich_help_panel=_LAYOUT),
    ] = None
    pp: Annotated[
        int | None,
        typer.Option("--pp", min=1, help="Pipeline-parallel size.", rich_help_panel=_LAYOUT),
    ] = None
    vpp: Annotated[
        int | None,
        typer.Option(
            "--vpp",
            min=1,
            help="Model chunks per pipeline rank (1: none).",
            rich_help_panel=_LAYOUT,
        ),
    ] = None
    pipeline_layers: Annotated[
        str | None,
        typer.Option(
            metavar="8,8,7,7",
            help="Layers per pipeline rank, or per chunk in model order.",
            rich_help_panel=_LAYOUT,
        ),
    ] = None
    padded_vocab_size: Annotated[
        int | None,
        typer.Option(
            "--padded-vocab-size",
            min=1,
            help="Rows of the embedding table; by Megatron-LM's rule (a multiple of "
            "make_vocab_size_divisible_by x TP) if not given, or the source's where it follows "
            "none.",
            rich_help_panel=_LAYOUT,
        ),
    ] = None

    def asked(self) -> dict[str, object]:
        """Return what is asked of the plan.

        Raises:
            UsageError: For what is no list of numbers.
        """
        return {**vars(self), "pipeline_layers": parse_layers(self.pipeline_layers)}


@dataclass(frozen=True)
class FileOptions:
    """The files of a result."""

    file_format: options.Format = None
    torch_dist_version: Annotated[
        str | None,
        typer.Option(
            "--torch-dist-version",
            metavar="0.16|0.19",
            help="Write torch_dist as megatron-core 0.16 to 0.18 do (default; 0.19 reads it, too), "
            "or as 0.19 does.",
            rich_help_panel=_FILES,
        ),
    ] = None
    shard_size: options.ShardSize = "5G"
    dtype: options.Dtype = None

    def asked(self) -> dict[str, object]:
        """Return what is asked of the plan.

        Raises:
            UsageError: For what is no size.
        """
        return {
            "format": self.file_format,
            "torch_dist_version": self.torch_dist_version,
            "shard_size": shard_bytes(self.shard_size),
            "dtype": self.dtype,
        }
