"""The public face: what a notebook or another trainer needs, in the words of the command line.

``import flmgrow`` gives all of it, and imports what each function needs when it is first used. The
commands are made of the same functions. Errors are :class:`flmgrow.FlmgrowError`; what is to be
known of a checkpoint or a plan is in its ``notes``. Nothing is printed, but a note on stderr where
tidying up after a complete result fails.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from flmgrow.errors import UsageError
from flmgrow.formats.checkpoint import Checkpoint, ReadOptions
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.tokenizer.files import NO_TOKENIZER, tokenizer_files
from flmgrow.given import (
    FilesGiven,
    ImportGiven,
    LayoutPlanGiven,
    PlanGiven,
    ReadOptionsGiven,
    RunningGiven,
)
from flmgrow.hub.publication import Publication
from flmgrow.model.config import ModelConfig
from flmgrow.opened import Source, opened, opened_as_recorded, read_options
from flmgrow.storage.outputs import named_output
from flmgrow.storage.remote.addresses import is_remote
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import ALONE, World
from flmgrow.surgery import plan as planning
from flmgrow.surgery.execute import Execution, Executor
from flmgrow.surgery.plan import LayoutRequest
from flmgrow.surgery.replicas import Replicated, replicated_as
from flmgrow.surgery.requests import (
    SHARD_SIZE,
    Files,
    plan_bake_of,
    plan_growth_of,
    plan_import_of,
    plan_layout_of,
)
from flmgrow.surgery.target_file import parse_target

if TYPE_CHECKING:
    import torch

    from flmgrow.surgery.evidence.check import Verdict

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Written:
    """A checkpoint that is complete at ``path``; ``found``: the same request had made it before."""

    path: Path
    manifest: Manifest
    found: bool


class Plan:
    """What will be written, exactly, before a weight is read; its source must stay open.

    ``str(plan)`` is what ``--dry-run`` shows, in Python's words; ``to_json()`` the same as data.
    """

    def __init__(self, details: planning.Plan) -> None:
        self.details = details

    def __str__(self) -> str:
        return str(self.details)

    def to_json(self) -> Json:
        """Return the plan as plain data: sizes, axis maps, files with their sizes, elements."""
        return self.details.to_json()

    @property
    def model(self) -> ModelConfig:
        """The model that will be written."""
        return self.details.target.config

    @property
    def total_bytes(self) -> int:
        """Bytes to be written, without the manifest."""
        return self.details.total_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What one must know of the result."""
        return tuple(str(note) for note in self.details.growth.notes)

    @property
    def dropped(self) -> tuple[str, ...]:
        """What of the source is left out."""
        return tuple(map(str, self.details.dropped))

    def write(self, destination: PathLike, **running: Unpack[RunningGiven]) -> Written:
        """Write the checkpoint into the new folder ``destination``: complete, or not at all.

        A run that was interrupted is resumed by the same request. Several processes share the
        work if each says its ``rank``, and all call it. Raises OutputExistsError, StorageError,
        LostRankError, BadCheckpointError for a damaged source, UsageError.
        """
        return write(self.details, Path(destination), execution_of(**running))


def execution_of(**running: Unpack[RunningGiven]) -> Execution:
    """Return the execution that ``running`` means: one worker per core, up to 16, if not said."""
    told: dict[str, Any] = {
        **running,
        "workers": default_workers(running.get("workers")),
        "replicated": replicated_as(running.get("replicated", Replicated.CHECK)),
    }
    rank, size = told.pop("rank", 0), told.pop("world_size", 1)
    return Execution(**told, world=World(rank, size, launch=told.pop("launch", "")))


def default_workers(wanted: int | None, world: World = ALONE) -> int:
    """Return the number of threads to use: what was asked for, or one per core up to 16; ranks on
    one machine share its cores.
    """
    return wanted or max(1, min(16, (os.cpu_count() or 1) // world.local_size))


def write(
    plan: planning.Plan,
    destination: Path,
    execution: Execution,
    publication: Publication | None = None,
) -> Written:
    """Write the result of a plan, unless it is there already, whole; with a model card, if it is to
    be published.
    """
    destination = named_output(destination)
    check_apart(plan.source.path, destination)
    pushing = publication is not None and publication.push is not None
    if pushing and is_remote(destination):
        raise UsageError(
            "is in an object store, and the Hub wants files of this machine",
            "export into a folder to push it",
            where=destination,
        )
    if publication is not None:
        execution = replace(execution, beside=publication.beside)
    executor = Executor(plan, execution)
    found = executor.written(destination) if pushing else executor.found(destination)
    manifest = executor.run(destination) if found is None else found
    return Written(destination, manifest, found is not None)


def check_apart(source: Path, destination: Path) -> None:
    """Raise UsageError if one folder lies in the other: the source is never written to."""
    read, written = (_real(path) for path in (source, destination))
    if read in written.parents or written in read.parents:
        inner, outer = (written, read) if read in written.parents else (read, written)
        raise UsageError(
            f"lies inside {outer}", "choose an output folder apart from the source", where=inner
        )


def _real(path: Path) -> Path:
    """Return where a path leads to; an address is what it is."""
    return path if is_remote(path) else Path(os.path.realpath(path))


def open(
    path: PathLike, iteration: int | None = None, **options: Unpack[ReadOptionsGiven]
) -> Source:
    """Open a checkpoint: a Megatron folder (torch or torch_dist), a Hugging Face folder, or
    ``hf://ORG/NAME[@REVISION]`` or ``s3://BUCKET/KEY``.

    ``iteration`` is the latest if not given. Raises BadCheckpointError, naming file and tensor, for
    anything missing, extra or not understood; HubError.
    """
    return Source(opened(Path(path), iteration, read_options(**options)))


def plan(source: Source, **wanted: Unpack[PlanGiven]) -> Plan:
    """Return the plan that grows ``source``, lays it out anew, or both; only headers are read.

    Raises UsageError for a target that cannot be reached, and for requests that contradict each
    other.
    """
    files, target = _parted(wanted)
    details = plan_growth_of(
        source.checkpoint,
        parse_target({k: v for k, v in target.items() if k not in _OF_A_PLAN}),
        files,
        parameters=wanted.get("to_params"),
        drop_optimizer=wanted.get("no_optimizer", False),
        bake=wanted.get("bake", False),
    )
    return Plan(details)


_OF_A_PLAN = ("to_params", "no_optimizer", "bake")


def _parted(wanted: Mapping[str, Any]) -> tuple[Files, dict[str, Any]]:
    """Return what is said of the files, and what is said of all else."""
    names = FilesGiven.__annotations__.keys()
    files = Files(**{name: value for name, value in wanted.items() if name in names})
    return files, {name: value for name, value in wanted.items() if name not in names}


def expand(
    source: PathLike,
    destination: PathLike,
    *,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
    **wanted: Unpack[PlanGiven],
) -> Written:
    """Grow the checkpoint at ``source`` into ``destination``, so that its function stays.

    Raises as :func:`open`, :func:`plan` and :meth:`Plan.write` do.
    """
    with open(source, iteration, **(reading or {})) as opened_source:
        return plan(opened_source, **wanted).write(destination, **(running or {}))


def reshard(
    source: PathLike,
    destination: PathLike,
    *,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
    **wanted: Unpack[LayoutPlanGiven],
) -> Written:
    """Lay the checkpoint at ``source`` out anew, or write it in another format; weights stay bit
    for bit. Raises as :func:`expand` does.
    """
    return expand(
        source, destination, iteration=iteration, reading=reading, running=running, **wanted
    )


def import_(
    source: PathLike,
    destination: PathLike,
    *,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
    **wanted: Unpack[ImportGiven],
) -> Written:
    """Write the Hugging Face model at ``source`` as a Megatron checkpoint, in any layout.

    Raises as :func:`expand` does, and UsageError if ``source`` is no Hugging Face folder.
    """
    files, others = _parted(wanted)
    with open(source, **(reading or {})) as opened_source:
        layout = parse_target(others).layout()
        details = plan_import_of(opened_source.checkpoint, layout, files)
        return Plan(details).write(destination, **(running or {}))


def export(
    source: PathLike,
    destination: PathLike,
    *,
    dtype: str | None = None,
    family: str | None = None,
    shard_size: int = SHARD_SIZE,
    tokenizer: PathLike | None = None,
    keep_code: bool = False,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
) -> Written:
    """Write the model at ``source`` as a Hugging Face folder that transformers loads.

    ``tokenizer`` is a folder or a file to take the tokenizer from. Raises as :func:`expand` does,
    and UsageError, with the reasons, for a model that no family of transformers can say.
    """
    with open(source, iteration, **(reading or {})) as opened_source:
        model = opened_source.model
        files = Files(
            dtype=dtype,
            format="huggingface",
            shard_size=shard_size,
            family=family,
            keep_code=keep_code,
            tokenizer=NO_TOKENIZER
            if tokenizer is None
            else tokenizer_files(Path(tokenizer), model),
        )
        details = plan_layout_of(opened_source.checkpoint, LayoutRequest(), files)
        return Plan(details).write(destination, **(running or {}))


def bake(
    source: PathLike,
    destination: PathLike,
    value: float | None = None,
    *,
    no_optimizer: bool = False,
    iteration: int | None = None,
    reading: ReadOptionsGiven | None = None,
    running: RunningGiven | None = None,
) -> Written:
    """Put the masks of ``source`` into its weights, at ``value`` if given.

    Raises as :func:`expand` does, and UsageError if there are none.
    """
    with open(source, iteration, **(reading or {})) as opened_source:
        details = plan_bake_of(opened_source.checkpoint, value, drop_optimizer=no_optimizer)
        return Plan(details).write(destination, **(running or {}))


def verify(
    source: PathLike,
    result: PathLike,
    *,
    tokens: "torch.Tensor | None" = None,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
    gradients: bool = False,
    checksums: bool = True,
    elements: bool = True,
    seed: int = 0,
    workers: int | None = None,
    max_memory: int = 1 << 30,
    reading: ReadOptionsGiven | None = None,
) -> "Verdict":
    """Prove that ``result`` computes what ``source`` does; ``verdict.equal`` and ``.proven`` say
    what came out, ``verdict.checks`` why. No receipt is written.

    ``tokens`` are (batch, length), drawn from ``seed`` if not given; ``dtype`` is float64 for
    models of up to 2e9 parameters. Models run on the ``device``. Raises as :func:`open` does.
    """
    import torch

    from flmgrow.surgery.evidence.check import Verdict
    from flmgrow.surgery.verify import Verification, computing_dtype
    from flmgrow.surgery.verify import verify as run

    options = read_options(**(reading or {}))
    with (
        opened(Path(result), None, replace(options, only_missing=True)) as new,
        _opened_source(Path(source), new, options) as old,
    ):
        how = Verification(
            dtype=computing_dtype(old, new) if dtype is None else dtype,
            device=torch.device(device),
            tokens=tokens,
            seed=seed,
            checksums=checksums,
            elements=elements,
            gradients=gradients,
            workers=default_workers(workers),
            max_memory=max_memory,
        )
        return Verdict(run(old, new, how))


def _opened_source(path: Path, result: Checkpoint, options: ReadOptions) -> Checkpoint:
    """Open a source with the arguments that are given, or else recorded in ``result``."""
    if options.given_arguments:
        return opened(path, None, options)
    return opened_as_recorded(
        result, lambda given: opened(path, None, replace(options, given_arguments=given or {}))
    )
