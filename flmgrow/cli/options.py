"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

FILES = "Files of the result"
_SOURCE_PANEL = "Reading the source"
_WAYS_OUT = "Ways out, where a source is unusual"
RUNNING = "Running"

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        help="A checkpoint folder: Megatron's or Hugging Face's; or hf://ORG/NAME[@REVISION], or "
        "s3://BUCKET/KEY.",
    ),
]
Destination = Annotated[
    Path,
    typer.Argument(metavar="DST", help="Folder to create; must not exist yet. Or s3://BUCKET/KEY."),
]
Iteration = Annotated[
    int | None,
    typer.Option(
        min=0, help="Iteration to read instead of the latest.", rich_help_panel=_SOURCE_PANEL
    ),
]
IgnoreArgument = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-arg",
        metavar="NAME",
        help="Carry this unknown training argument along; you vouch that it changes nothing. "
        "May be a pattern such as 'sglang_*', and be given several times.",
        rich_help_panel=_WAYS_OUT,
    ),
]
IgnoreField = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-field",
        metavar="NAME",
        help="Pass over this field of config.json, or all that match (unsloth_*); you vouch that "
        "it changes nothing.",
        rich_help_panel=_WAYS_OUT,
    ),
]
MaxPositions = Annotated[
    int | None,
    typer.Option(
        "--max-position-embeddings",
        min=1,
        help="Read a Hugging Face model for texts up to this length, such as its sliding window.",
        rich_help_panel=_WAYS_OUT,
    ),
]
SetArgument = Annotated[
    list[str] | None,
    typer.Option(
        "--set-arg",
        metavar="NAME=VALUE",
        help="Read the source as if this training argument were so, where it is missing or wrong. "
        "May be given several times; held against every array.",
        rich_help_panel=_WAYS_OUT,
    ),
]
ArgumentsFrom = Annotated[
    Path | None,
    typer.Option(
        "--args-from",
        metavar="FILE|FOLDER",
        help="Take what the model is from a run_config.yaml, a config.json or another checkpoint; "
        "--set-arg comes on top.",
        rich_help_panel=_WAYS_OUT,
    ),
]
TrueVocab = Annotated[
    int | None,
    typer.Option(
        "--true-vocab-size",
        min=1,
        help="Vocabulary size without padding, where the checkpoint does not say.",
        rich_help_panel=_WAYS_OUT,
    ),
]
Replicated = Annotated[
    str,
    typer.Option(
        metavar="check|rank0",
        help="What to do with copies that should be equal: check them, or take rank0's.",
        rich_help_panel=_WAYS_OUT,
    ),
]
NoOptimizer = Annotated[
    bool,
    typer.Option(
        "--no-optimizer",
        help="Leave out optimizer state and learning-rate schedule.",
        rich_help_panel=FILES,
    ),
]
AllowNonfinite = Annotated[
    bool,
    typer.Option(
        "--allow-nonfinite",
        help="Carry NaN and infinite weights over instead of stopping.",
        rich_help_panel=_WAYS_OUT,
    ),
]
Untie = Annotated[
    bool | None,
    typer.Option(
        "--untie/--tie",
        help="Of a model with a shared table: keep the head that is stored beside it, or write a "
        "copy of the table as one (expand); or pass over a stored head.",
        rich_help_panel=_WAYS_OUT,
        show_default=False,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="megatron|torch_dist|fsdp_dtensor|huggingface",
        help="Format of the result; the source's if not given.",
        rich_help_panel=FILES,
    ),
]
ShardSize = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="Largest size of a safetensors shard, such as 500M or 5G.",
        rich_help_panel=FILES,
    ),
]
Family = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Family of transformers to write, such as llama; the first that can say the model if "
        "not given.",
        rich_help_panel=FILES,
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Tokenizer files to carry: those in a folder, or made from a file of tiktoken ranks.",
        rich_help_panel=FILES,
    ),
]
KeepCode = Annotated[
    bool,
    typer.Option(
        "--keep-code",
        help="Carry *.py files of a Hugging Face source along; they are never run.",
        rich_help_panel=FILES,
    ),
]
TransformerImpl = Annotated[
    str,
    typer.Option(
        metavar="transformer_engine|local",
        help="Whose parameter names the result has.",
        rich_help_panel=FILES,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16|...",
        help="Cast the weights; the source's dtype if not given.",
        rich_help_panel=FILES,
    ),
]
MaxMemory = Annotated[
    str,
    typer.Option(
        metavar="SIZE", help="Memory to stay below, such as 800M or 4G.", rich_help_panel=RUNNING
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=256, help="Threads; the number of cores if not given.", rich_help_panel=RUNNING
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Drop an interrupted run of another plan on the same DST.",
        rich_help_panel=RUNNING,
    ),
]
DoubleCheck = Annotated[
    bool,
    typer.Option(help="Read DST back from the disk before it appears.", rich_help_panel=RUNNING),
]
OnlyShards = Annotated[
    str | None,
    typer.Option(
        "--only-shards",
        metavar="0-1|NAME,...",
        help="Write only these of the files that hold weights, by number or by name "
        "(mp_rank_00_000, *-00001-of-*), to see that it works; DST does not appear until a run "
        "without it has written the rest.",
        rich_help_panel=RUNNING,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan and write nothing.", rich_help_panel=RUNNING),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=RUNNING)]
