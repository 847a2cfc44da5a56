"""What expand, reshard and bake have in common: open, plan, show or carry out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flmgrow.cli import options
from flmgrow.cli.in_ranks import RankTimeout, Scratch, this_world
from flmgrow.cli.parsing import parse_size
from flmgrow.cli.printing import in_columns, json_text, note
from flmgrow.cli.progress import progress_bar
from flmgrow.errors import UsageError
from flmgrow.hub.names import hub_name, is_on_hub
from flmgrow.hub.publication import Publication
from flmgrow.model.wording import amount, model_text, size
from flmgrow.planned import Plan, check_apart, default_workers, write
from flmgrow.storage.outputs import named_output, unfinished_place
from flmgrow.storage.world import PATIENCE
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.plan import GrowthPlan as Details
from flmgrow.surgery.plan_text import plan_data, plan_lines
from flmgrow.surgery.replicas import replicated_as
from flmgrow.surgery.shards import chosen_shards, shards_of
from flmgrow.text import COMMAND_LINE


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
    double_check: options.DoubleCheck = True
    only_shards: options.OnlyShards = None
    rank_timeout: RankTimeout = PATIENCE
    scratch: Scratch = None
    dry_run: options.DryRun = False
    as_json: options.AsJson = False
    init_std: float | None = None

    def execution(self, progress: Callable[[int], None]) -> Execution:
        """Return the execution these options mean."""
        world = this_world(self.rank_timeout, self.scratch)
        return Execution(
            max_memory=parse_size(self.max_memory),
            workers=default_workers(self.workers, world),
            restart=self.restart,
            double_check=self.double_check,
            allow_nonfinite=self.allow_nonfinite,
            replicated=replicated_as(self.replicated),
            init_std=self.init_std,
            progress=progress,
            world=world,
        )


def carry_out(
    made: Plan, destination: Path, running: Running, publication: Publication | None = None
) -> None:
    """Print the plan; carry it out, and publish it, unless this is a dry run.

    The result may have been written by an earlier run of the same plan: that is found, and checked.
    """
    if is_on_hub(destination):
        raise UsageError(
            "is on the Hub",
            "flmgrow export SRC FOLDER --push-to ORG/NAME writes both",
            where=hub_name(destination),
            wanted="a folder",
        )
    plan, destination = made.details, named_output(destination)
    execution = running.execution(lambda _: None)
    check_apart(plan.source.path, destination)
    if running.dry_run:
        print(_shown(plan, execution, running.as_json))
        return
    for text in plan.growth.notes:
        note(text)
    for item in plan.dropped:
        note(f"left out: {item}")
    if running.only_shards is not None:
        _write_some(plan, destination, running)
        return
    with progress_bar(plan.total_bytes, "writing") as progress:
        written = write(plan, destination, running.execution(progress), publication)
    if not running.as_json:
        did = "found" if written.found else "wrote"
        print("\n".join(_result_lines(plan, destination, did)), flush=True)
    told = written.manifest.to_json()
    if publication is not None and publication.push is not None and execution.world.first:
        commit = publication.publish(destination, written.manifest)
        told["pushed"] = commit
        if not running.as_json:
            print(commit)
    if running.as_json:
        print(json_text(told))


def _write_some(plan: Details, destination: Path, running: Running) -> None:
    """Write the shards that are asked for, and say where they are."""
    files = chosen_shards(plan, running.only_shards or "")
    total = sum(plan.file_sizes[file.path] for file in files)
    with progress_bar(total, "writing") as progress:
        records = Executor(plan, running.execution(progress)).write_some(destination, files)
    folder = unfinished_place(destination)
    if running.as_json:
        found = [asdict(record) for record in records]
        print(json_text({"only_shards": found, "folder": str(folder)}))
        return
    count = f"{len(files)} of {len(shards_of(plan))} shards"
    rows = [
        ("wrote", f"{count} ({size(total)}), in {folder}"),
        ("left", f"the same command without --only-shards writes the rest, and {destination}"),
    ]
    print("\n".join(in_columns(rows)))


def _shown(plan: Details, execution: Execution, as_json: bool) -> str:
    """Return a plan as it is printed, with the memory and the workers it would take."""
    memory, workers = execution.max_memory, execution.workers
    if as_json:
        return json_text(plan_data(plan, memory=memory, workers=workers))
    limit = f"at most {size(memory)}, {workers} workers"
    return "\n".join(plan_lines(plan, ("memory", limit), words=COMMAND_LINE))


def _result_lines(plan: Details, destination: Path, did: str = "wrote") -> list[str]:
    """Return what was written, or found written, as lines."""
    old, new = plan.parameters
    grown = (
        f"{amount(old)} -> {amount(new)} parameters" if old != new else f"{amount(new)} parameters"
    )
    rows = [
        (did, f"{destination}  ({size(plan.total_bytes)}, {len(plan.files)} files)"),
        ("model", f"{grown}: {model_text(plan.target.config)}"),
        ("layout", f"{plan.source.layout} -> {plan.target.layout}"),
    ]
    return in_columns(rows)
