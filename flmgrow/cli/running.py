"""What expand, reshard and bake have in common: open, plan, show or carry out."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flmgrow.api import check_apart, default_workers, opened, write
from flmgrow.cli import options, report
from flmgrow.cli.parsing import parse_size
from flmgrow.errors import UsageError, printable
from flmgrow.formats.arguments_elsewhere import arguments_from
from flmgrow.formats.checkpoint import Checkpoint, ReadOptions
from flmgrow.formats.megatron.arguments.given import parse_given
from flmgrow.hub.names import hub_name, is_on_hub
from flmgrow.hub.publication import Publication
from flmgrow.model.wording import size
from flmgrow.surgery.execute import Execution
from flmgrow.surgery.plan import Plan
from flmgrow.surgery.plan_text import plan_data, plan_lines


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
        found = opened(path, iteration, said)
        for note in found.notes:
            print(f"note: {printable(note)}", file=sys.stderr)
        return found


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
        print(_shown(plan, execution, running.as_json))
        return
    for note in plan.growth.notes:
        print(f"note: {note}", file=sys.stderr)
    for item in plan.dropped:
        print(f"note: left out: {printable(item)}", file=sys.stderr)
    with progress_bar(plan.total_bytes, "writing") as progress:
        written = write(plan, destination, running.execution(progress), publication)
    if not running.as_json:
        did = "found" if written.found else "wrote"
        print("\n".join(report.result_lines(plan, destination, did)), flush=True)
    manifest = written.manifest
    if publication is not None and publication.push is not None:
        commit = publication.publish(destination, manifest)
        manifest = {**manifest, "pushed": commit}
        if not running.as_json:
            print(commit)
    if running.as_json:
        print(json.dumps(manifest, indent=1))


def _shown(plan: Plan, execution: Execution, as_json: bool) -> str:
    """Return a plan as it is printed, with the memory and the workers it would take."""
    memory, workers = execution.max_memory, execution.workers
    if as_json:
        return json.dumps(plan_data(plan, memory=memory, workers=workers), indent=1)
    limit = f"at most {size(memory)}, {workers} workers"
    return "\n".join(plan_lines(plan, ("memory", limit)))
