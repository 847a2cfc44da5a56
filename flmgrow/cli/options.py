"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

_SIZES = "What to grow (sizes that are not given stay)"
_GROWTH = "How to grow"
_LAYOUT = "Layout of the result"
_FILES = "Files of the result"
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
Optimizer = Annotated[
    str | None,
    typer.Option(
        metavar="keep|reset|asymmetric",
        help="Adam's moments: grown with the weights (default), zero, or for the first copy only.",
        rich_help_panel=_GROWTH,
    ),
]
FreshSecondMoment = Annotated[
    str | None,
    typer.Option(
        metavar="zero|mean",
        help="exp_avg_sq of fresh entries: zero (default), or the mean of the old ones beside "
        "them, so that their first steps are no larger than usual.",
        rich_help_panel=_GROWTH,
    ),
]
NoOptimizer = Annotated[
    bool,
    typer.Option(
        "--no-optimizer",
        help="Leave out optimizer state and learning-rate schedule.",
        rich_help_panel=_FILES,
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
NumLayers = Annotated[
    int | None, typer.Option("--num-layers", min=1, help="Layers.", rich_help_panel=_SIZES)
]
HiddenSize = Annotated[
    int | None, typer.Option("--hidden-size", min=1, help="Hidden width.", rich_help_panel=_SIZES)
]
FfnHiddenSize = Annotated[
    int | None, typer.Option("--ffn-hidden-size", min=1, help="FFN width.", rich_help_panel=_SIZES)
]
NumAttentionHeads = Annotated[
    int | None,
    typer.Option(
        "--num-attention-heads",
        min=1,
        help="Query heads. Under grouped-query attention they are added inside each group.",
        rich_help_panel=_SIZES,
    ),
]
NumQueryGroups = Annotated[
    int | None,
    typer.Option(
        "--num-query-groups",
        min=1,
        help="Key-value groups; of a multi-head model they follow the heads.",
        rich_help_panel=_SIZES,
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        "--vocab-size", min=1, help="Vocabulary, without padding.", rich_help_panel=_SIZES
    ),
]
KvChannels = Annotated[
    int | None,
    typer.Option("--kv-channels", min=1, help="Head size; it cannot grow.", rich_help_panel=_SIZES),
]
To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        metavar="FILE.yaml",
        help="Read sizes, method and layout from a file; options given here win.",
        rich_help_panel=_SIZES,
    ),
]
ToParams = Annotated[
    float | None,
    typer.Option(
        "--to-params",
        metavar="51e9",
        help="Choose sizes near the source's proportions for this many parameters.",
        rich_help_panel=_SIZES,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="mask|zero|copy|width=...,ffn=...",
        help="mask (default), zero or copy for all, or one per dimension (width, heads, ffn, "
        "depth); depth also stack and interleave, which change the function.",
        rich_help_panel=_GROWTH,
    ),
]
DepthPlacement = Annotated[
    str | None,
    typer.Option(
        metavar="end|interleave|0,0,1,1",
        help="Where new layers go (default end); or the old layer behind each new one.",
        rich_help_panel=_GROWTH,
    ),
]
NewLayers = Annotated[
    str | None,
    typer.Option(
        metavar="copy|random",
        help="New layers start as copies of a neighbour (default), or drawn.",
        rich_help_panel=_GROWTH,
    ),
]
CopyNoise = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=10.0,
        help="Noise that tells copied hidden channels apart, relative to a tensor's spread "
        "(default 0.1); it cancels over the copies.",
        rich_help_panel=_GROWTH,
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
RampSteps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Optimizer steps in which masks open (default 5000).", rich_help_panel=_GROWTH
    ),
]
BakeMasks = Annotated[
    bool,
    typer.Option(
        "--bake",
        help="Put the masks into the weights (at 0), for a stock trainer; not for width.",
        rich_help_panel=_GROWTH,
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed of fresh values.", rich_help_panel=_GROWTH)
]
InitStd = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1e3,
        help="Spread of fresh values, which the noise on rows of new ids is relative to; "
        "each tensor's own if not given.",
        rich_help_panel=_GROWTH,
    ),
]
TensorParallel = Annotated[
    int | None,
    typer.Option("--tp", min=1, help="Tensor-parallel size.", rich_help_panel=_LAYOUT),
]
PipelineParallel = Annotated[
    int | None,
    typer.Option("--pp", min=1, help="Pipeline-parallel size.", rich_help_panel=_LAYOUT),
]
VirtualPipeline = Annotated[
    int | None,
    typer.Option(
        "--vpp", min=1, help="Model chunks per pipeline rank (1: none).", rich_help_panel=_LAYOUT
    ),
]
PipelineLayers = Annotated[
    str | None,
    typer.Option(
        metavar="8,8,7,7",
        help="Layers per pipeline rank, or per chunk in model order.",
        rich_help_panel=_LAYOUT,
    ),
]
PaddedVocab = Annotated[
    int | None,
    typer.Option(
        "--padded-vocab-size",
        min=1,
        help="Rows of the embedding table; by Megatron-LM's rule (a multiple of "
        "make_vocab_size_divisible_by x TP) if not given, or the source's where it follows none.",
        rich_help_panel=_LAYOUT,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="megatron|torch_dist|huggingface",
        help="Format of the result; the source's if not given.",
        rich_help_panel=_FILES,
    ),
]
TorchDistVersion = Annotated[
    str | None,
    typer.Option(
        "--torch-dist-version",
        metavar="0.16|0.19",
        help="Write torch_dist as megatron-core 0.16 to 0.18 do (default; 0.19 reads it, too), or "
        "as 0.19 does.",
        rich_help_panel=_FILES,
    ),
]
ShardSize = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="Largest size of a safetensors shard, such as 500M or 5G.",
        rich_help_panel=_FILES,
    ),
]
Family = Annotated[
    str | None,
    typer.Option(
        metavar="llama|qwen2|qwen3|gpt2|gpt_neox|mistral|flm",
        help="Family of transformers to write; the first that can say the model if not given.",
        rich_help_panel=_FILES,
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Tokenizer files to carry: those in a folder, or made from a file of tiktoken ranks.",
        rich_help_panel=_FILES,
    ),
]
KeepCode = Annotated[
    bool,
    typer.Option(
        "--keep-code",
        help="Carry *.py files of a Hugging Face source along; they are never run.",
        rich_help_panel=_FILES,
    ),
]
TransformerImpl = Annotated[
    str,
    typer.Option(
        metavar="transformer_engine|local",
        help="Whose parameter names the result has.",
        rich_help_panel=_FILES,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16|...",
        help="Cast the weights; the source's dtype if not given.",
        rich_help_panel=_FILES,
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
