"""Describing the files of a new checkpoint, in whatever format it shall have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint, Dropped, TargetModel
from flmgrow.formats.companions import companion_files
from flmgrow.formats.huggingface.config_writing import UnsayableError
from flmgrow.formats.huggingface.writer import (
    huggingface_dropped,
    huggingface_files,
    huggingface_notes,
)
from flmgrow.formats.megatron.arguments.kind_rows import layer_options
from flmgrow.formats.megatron.arguments.model import written_arguments
from flmgrow.formats.megatron.arguments.mup import mup_options
from flmgrow.formats.megatron.arguments.run_rows import FSDP_DTENSOR
from flmgrow.formats.megatron.arguments.unsaid import refuse_unsaid, unsaid
from flmgrow.formats.megatron.carried import dropped_content
from flmgrow.formats.megatron.content import arguments_in
from flmgrow.formats.megatron.folders import folder_name, tracker
from flmgrow.formats.megatron.fsdp_dtensor.writer import fsdp_dropped, fsdp_files
from flmgrow.formats.megatron.legacy.writer import target_files
from flmgrow.formats.megatron.rank_contents import RankContents
from flmgrow.formats.megatron.torch_dist.writer import VERSIONS, torch_dist_files
from flmgrow.formats.targets import PlannedFile
from flmgrow.model.config import ModelConfig
from flmgrow.text import Setting, Text


def megatron_notes(source: Checkpoint, target: TargetModel) -> list[str]:
    """Return what one must tell Megatron-LM of the target, as no file says it to it."""
    told = []
    eps, factor = target.config.norm_eps, target.config.rotary.scaling_factor
    if eps != source.config.norm_eps:
        told.append(
            f"the norm epsilon is now {eps:.9g}: Megatron-LM does not take it from a checkpoint, "
            f"so pass --norm-epsilon {eps!r}"
        )
    if factor not in (None, _STOCK_ROPE_FACTOR) and not has_ranks(source.format):
        told.append(
            f"Llama 3's rotary scaling has the factor {factor:g} here: Megatron-LM's "
            f"pretrain_gpt.py computes with {_STOCK_ROPE_FACTOR:g} whatever the checkpoint says; "
            "flmgrow train takes it as it is"
        )
    if target.format == FSDP_DTENSOR != source.format:
        told.append(f"{FSDP_DTENSOR} is what a run with --use-megatron-fsdp loads, and no other")
    kinds = target.config.layer_kinds
    if kinds and (kinds != source.config.layer_kinds or not has_ranks(source.format)):
        told.append(
            "what layers differ in, Megatron-LM does not take from a checkpoint: pass "
            f"{layer_options(target.config)}"
        )
    if isinstance(source.contents, RankContents):
        old = arguments_in(source.contents.content((0, 0)), str(source.folder))
        if options := mup_options(old, written_arguments(old, target.config)):
            told.append(
                "muP's arguments, Megatron-LM does not take from a checkpoint: pass "
                f"{options}, and all others of muP and of the learning rate as before"
            )
    return told


@dataclass(frozen=True)
class Format:
    """A format that can be written.

    ``describe`` gives its files, ``dropped`` the kinds of carried content that it leaves out,
    ``notes`` what one must know of the rest.
    ``ranks`` says that it knows tensor and pipeline ranks (and so pads the vocabulary, and counts
    iterations in folders of its own), ``shared`` that several replicas of a rank can write, each a
    file of its own.
    """

    describe: Callable[[Checkpoint, TargetModel], Sequence[PlannedFile]]
    dropped: Callable[[Checkpoint, TargetModel], list[Dropped]] = dropped_content
    notes: Callable[[Checkpoint, TargetModel], list[str]] = megatron_notes
    ranks: bool = True
    shared: bool = False


_STOCK_ROPE_FACTOR = 8.0
"""``GPTModel``'s default, which Megatron-LM 0.11 to 0.19 never overrides."""

FORMATS: Mapping[str, Format] = {
    "megatron": Format(target_files),
    "torch_dist": Format(torch_dist_files, shared=True),
    FSDP_DTENSOR: Format(fsdp_files, fsdp_dropped),
    "huggingface": Format(huggingface_files, huggingface_dropped, huggingface_notes, ranks=False),
}


def has_ranks(name: str) -> bool:
    """Whether checkpoints of the format called ``name`` know ranks."""
    return written_format(name).ranks


def written_format(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        UsageError: If there is none.
    """
    if name not in FORMATS:
        raise UsageError(Text(Setting("format"), f" {name}: wanted {' or '.join(FORMATS)}"))
    return FORMATS[name]


def described_files(source: Checkpoint, target: TargetModel) -> Sequence[PlannedFile]:
    """Return every file of the target checkpoint, described but not produced.

    Raises:
        UsageError: For a layout that the model cannot take, or content the format cannot hold.
    """
    if written_format(target.format).ranks:
        refuse_unsaid(target.config)
    if (version := target.torch_dist_version) not in (None, *VERSIONS):
        raise UsageError(
            Text(Setting("torch_dist_version"), f" {version}: wanted {' or '.join(VERSIONS)}")
        )
    if version is not None and target.format != "torch_dist":
        raise UsageError(
            Text(
                Setting("torch_dist_version"),
                f" {version}: the result has format {target.format}",
            ),
            Text("add ", Setting("format", "torch_dist"), ", or leave the version out"),
        )
    try:
        files = written_format(target.format).describe(source, target)
    except UnsayableError as error:
        raise error.with_hint(_ways_out(target.config, error.hint)) from None
    if not written_format(target.format).ranks:
        return files
    return [*files, *companion_files(source.companions, folder_name(source.iteration))]


def _ways_out(config: ModelConfig, hint: str) -> str:
    """Return what can be done with a model that Hugging Face's formats cannot hold."""
    if unsaid(config):
        return hint
    megatron = Setting("format", "megatron")
    return Text("keep it as a Megatron checkpoint (", megatron, "), or ", hint)


def left_out(source: Checkpoint, target: TargetModel) -> list[Dropped]:
    """Name what of the source's carried content the target will not have, and why if need be."""
    return written_format(target.format).dropped(source, target)


def notes(source: Checkpoint, target: TargetModel) -> list[str]:
    """Return what one must know to go on from the target's files."""
    return written_format(target.format).notes(source, target)


def written_iteration(source: Checkpoint, target: TargetModel) -> int | None:
    """Return the iteration that the target will be of; None for a release, or without a count."""
    return source.iteration if written_format(target.format).ranks else None


def pointers(source: Checkpoint, target: TargetModel) -> dict[str, bytes]:
    """Return the small files that are written last and make the folder a checkpoint."""
    if not written_format(target.format).ranks:
        return {}
    return dict([tracker(source.iteration)])


def manifest_folders(source: Checkpoint, target: TargetModel) -> tuple[str, ...]:
    """Return where the target's manifest lies: in its folder, and in that of its iteration.

    An iteration is often moved alone, and masks that nobody knows of any more would be open.
    """
    if not written_format(target.format).ranks:
        return ("",)
    return ("", folder_name(source.iteration))
