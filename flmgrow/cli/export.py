"""``flmgrow export``: a checkpoint as a Hugging Face folder; weights stay bit for bit."""

from flmgrow.cli import options
from flmgrow.cli.running import Reading, Running, carry_out, check_dtype, huggingface_options
from flmgrow.formats.tokenizer_files import tokenizer_files
from flmgrow.operators.target import Target
from flmgrow.surgery.manifest import masks_of
from flmgrow.surgery.plan import LayoutWish, make_plan


def export(
    src: options.Source,
    dst: options.Destination,
    family: options.Family = None,
    shard_size: options.ShardSize = "5G",
    tokenizer: options.Tokenizer = None,
    keep_code: options.KeepCode = False,
    iteration: options.Iteration = None,
    ignore_arg: options.IgnoreArgument = None,
    true_vocab_size: options.TrueVocab = None,
    replicated: options.Replicated = "check",
    allow_nonfinite: options.AllowNonfinite = False,
    dtype: options.Dtype = None,
    max_memory: options.MaxMemory = "1G",
    workers: options.Workers = None,
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a model as a Hugging Face folder that transformers loads.

    Only the model: optimizer state and vocabulary padding are left out, with a note.

    \b
    Example: flmgrow export ckpt-51b flm-51b-hf --dtype bfloat16
    """
    check_dtype(dtype)
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
        files = None if tokenizer is None else tokenizer_files(tokenizer, source.config)
        plan = make_plan(
            source,
            Target(),
            LayoutWish(),
            dtype=dtype,
            file_format="huggingface",
            pending=masks_of(source),
            huggingface=huggingface_options(shard_size, family, keep_code, files),
        )
        carry_out(plan, dst, running)
