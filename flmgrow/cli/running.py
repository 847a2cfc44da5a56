"""What expand, reshard and bake have in common: open, plan, show or carry out."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flmgrow.cli import options, report
from flmgrow.cli.parsing import parse_size
from flmgrow.errors import UsageError, printable
from flmgrow.formats.arguments_elsewhere import arguments_from
from flmgrow.formats.checkpoint import Checkpoint, HubOrigin, HuggingFaceOptions, ReadOptions
from flmgrow.formats.history.manifest import provenance_of
from flmgrow.formats.megatron.arguments.given import parse_given
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.reading import DTYPES
from flmgrow.formats.tokenizer.files import NO_TOKENIZER, GivenTokenizer
from flmgrow.hub.names import hub_name, is_on_hub
from flmgrow.hub.publication import Publication
from flmgrow.hub.reading import fetch
from flmgrow.surgery.execute import Execution, Executor
from flmgrow.surgery.plan import Plan


def local_folder(path: Path) -> tuple[Path, HubOrigin | None]:
    """Return the folder that ``path`` stands for, fetched first if it is on the Hub."""
    return fetch(hub_name(path)) if is_on_hub(path) else (path, None)


@dataclass(frozen=True)
class Reading:
    """How to open a source: the options that every command has which reads one."""

    ignore_arg: options.IgnoreArgument = None
    set_arg: options.SetArgument = None
    args_from: options.ArgumentsFrom = None
    ignore_field: options.IgnoreField = None
    max_position_embeddings: options.MaxPositions = None
    untie: options.Untie = None
    true_vocab_size: options.TrueVocab = None

    @cached_property
    def given_arguments(self) -> dict[str, object]:
        """The arguments given in the place of the source's; notes on them go to stderr, once."""
        elsewhere: dict[str, object] = {}
        if self.args_from is not None:
            elsewhere, notes = arguments_from(self.args_from)
            for note in notes:
                print(f"note: {printable(note)}", file=sys.stderr)
        return {**elsewhere, **parse_given("--set-arg", self.set_arg or ())}

    def open(
        self,
        path: Path,
        iteration: int | None = None,
        fused: bool = True,
        look_only: bool = False,
        given: Mapping[str, object] | None = None,
        only_missing: bool = False,
    ) -> Checkpoint:
        """Open the checkpoint at ``path``, fetched first if it is on the Hub; the caller closes
        it. What is to be known of how it was read is told on stderr.

        ``given`` arguments take the place of those that the options give. ``only_missing``: none
        of them changes arguments that are stored.
        """
        folder, origin = local_folder(path)
        said = ReadOptions(
            ignored_arguments=tuple(self.ignore_arg or ()),
            ignored_fields=tuple(self.ignore_field or ()),
            max_positions=self.max_position_embeddings,
            untie=self.untie,
            true_vocab=self.true_vocab_size,
            fused=fused,
            look_only=look_only,
            given_arguments=self.given_arguments if given is None else given,
            only_missing=only_missing,
        )
        opened = open_checkpoint(folder, iteration, said)
        for note in opened.notes:
            print(f"note: {printable(note)}", file=sys.stderr)
        return replace(opened, hub=origin)


@dataclass(frozen=True)
class Running:
    """How to carry out a plan, or only to show it: the options of every command that writes.

    ``init_std`` is none of them; where growth draws values, it is their spread.
    """

    replicated: options.Replicated = "check"
    allow_nonfinite: options.AllowNonfinite = False
    max_memory: options.MaxMemory = "1G"
    workers: options.Workers = None
    restart: options.Restart = False
    dry_run: options.DryRun = False
    as_json: options.AsJson = False
    init_std: float | None = None

    def execution(self, progress: Callable[[int], None]) -> Execution:
        """Return the execution these options mean."""
        return Execution(
            max_memory=parse_size(self.max_memory),
            workers=default_workers(self.workers),
            restart=self.restart,
            allow_nonfinite=self.allow_nonfinite,
            replicated=self.replicated,
            init_std=self.init_std,
            progress=progress,
        )


def default_workers(wanted: int | None) -> int:
    """Return the number of threads to use: what was asked for, or one per core up to 16."""
    return wanted or min(16, os.cpu_count() or 1)


def huggingface_options(
    source: Checkpoint,
    shard_size: str,
    family: str | None = None,
    keep_code: bool = False,
    tokenizer: GivenTokenizer = NO_TOKENIZER,
) -> HuggingFaceOptions:
    """Return how a Hugging Face folder shall be written of ``source``.

    Raises UsageError for no size.
    """
    size = parse_size(shard_size, "--shard-size")
    if size < 1:
        raise UsageError(f"--shard-size {shard_size}: wanted at least one byte", "such as 5G")
    provenance = provenance_of(source)
    return HuggingFaceOptions(size, family, keep_code, provenance, tokenizer.files, tokenizer.ids)


def check_dtype(dtype: str | None) -> None:
    """Raise UsageError for a dtype weights cannot have."""
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: unknown", f"one of {', '.join(DTYPES)}")


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with bytes per second and time left on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def check_apart(source: Path, destination: Path) -> None:
    """Raise UsageError if one folder lies in the other: the source is never written to."""
    read, written = (Path(os.path.realpath(path)) for path in (source, destination))
    if read in written.parents or written in read.parents:
        inner, outer = (written, read) if read in written.parents else (read, written)
        raise UsageError(
            f"{inner}: lies inside {outer}", "choose an output folder apart from the source"
        )


def carry_out(
    plan: Plan, destination: Path, running: Running, publication: Publication | None = None
) -> None:
    """Print the plan; carry it out, and publish it, unless this is a dry run.

    The result may have been written by an earlier run of the same plan: that is found, and checked.
    """
    if is_on_hub(destination):
        raise UsageError(
            f"{hub_name(destination)}: is on the Hub, wanted a folder",
            "flmgrow export SRC FOLDER --push-to ORG/NAME writes both",
        )
    execution = running.execution(lambda _: None)
    check_apart(plan.source.path, destination)
    if running.dry_run:
        if running.as_json:
            print(json.dumps(report.plan_data(plan, execution), indent=1))
        else:
            print("\n".join(report.plan_lines(plan, execution)))
        return
    for note in plan.growth.notes:
        print(f"note: {note}", file=sys.stderr)
    for item in plan.dropped:
        print(f"note: left out: {printable(item)}", file=sys.stderr)
    pushing = publication is not None and publication.push is not None
    with progress_bar(plan.total_bytes, "writing") as progress:
        execution = running.execution(progress)
        if publication is not None:
            execution = replace(execution, beside=publication.beside)
        executor = Executor(plan, execution)
        look = executor.written if pushing else executor.found
        there = look(destination)
        manifest = executor.run(destination) if there is None else there
    if not running.as_json:
        did = "wrote" if there is None else "found"
        print("\n".join(report.result_lines(plan, destination, did)), flush=True)
    if publication is not None and pushing:
        commit = publication.publish(destination, manifest)
        manifest = {**manifest, "pushed": commit}
        if not running.as_json:
            print(commit)
    if running.as_json:
        print(json.dumps(manifest, indent=1))
