"""Plans of what will be written, from what is asked for; and carrying them out.

Each function that makes a plan takes an opened source. What can be checked without one is checked
when a request is made (:func:`requested`), before a source is fetched or read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from flmgrow.errors import UsageError
from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.formats.tokenizer.files import NO_TOKENIZER, tokenizer_files
from flmgrow.given import FilesGiven, PlanGiven, RunningGiven
from flmgrow.hub.publication import Publication
from flmgrow.model.config import ModelConfig
from flmgrow.opened import Source
from flmgrow.storage.cores import usable_cores
from flmgrow.storage.outputs import named_output
from flmgrow.storage.remote.addresses import is_remote
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import ALONE, World
from flmgrow.surgery import plan as planning
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.replicas import Replicated, replicated_as
from flmgrow.surgery.requests import (
    Files,
    plan_bake_of,
    plan_growth_of,
    plan_import_of,
    plan_layout_of,
)
from flmgrow.surgery.target_file import GrowthRequest, parse_target


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

    def __init__(self, details: planning.GrowthPlan) -> None:
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

    def write(
        self, destination: str | os.PathLike[str], **running: Unpack[RunningGiven]
    ) -> Written:
        """Write the checkpoint into the new folder ``destination``: complete, or not at all.

        A run that was interrupted is resumed by the same request. Several processes share the work
        if each says its ``rank``, and all call it.

        Raises:
            OutputExistsError: The output is there, or another run is writing it.
            StorageError: The file system failed.
            LostRankError: Another rank is lost.
            BadCheckpointError: For a damaged source.
            UsageError: What was asked for cannot be.
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
    return wanted or max(1, min(16, usable_cores() // world.local_size))


def write(
    plan: planning.GrowthPlan,
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


@dataclass(frozen=True)
class ResultRequest:
    """What somebody asks of a result, checked as far as it can be without a source.

    ``parameters`` lets the sizes be chosen for so many; ``bake`` puts masks into the weights.
    """

    target: GrowthRequest
    files: Files
    parameters: float | None = None
    drop_optimizer: bool = False
    bake: bool = False


NOTHING: Mapping[str, Any] = {}

_APART = ("to_params", "no_optimizer", "bake")
"""What is asked for beside sizes, methods, layout and files."""


def requested(file: Mapping[str, Any] = NOTHING, /, **wanted: Any) -> ResultRequest:
    """Return the request that ``wanted`` describes, in the words of :class:`PlanGiven`; what is
    None is as a ``file`` says, if there is one.

    Raises:
        UsageError: For what no source could be made into.
    """
    given = {**file, **{name: value for name, value in wanted.items() if value is not None}}
    files = {name: given.pop(name) for name in FilesGiven.__annotations__ if name in given}
    apart = {name: given.pop(name) for name in _APART if name in given}
    return ResultRequest(
        parse_target(given),
        Files(**files),
        apart.get("to_params"),
        apart.get("no_optimizer", False),
        apart.get("bake", False),
    )


def plan(source: Source, **wanted: Unpack[PlanGiven]) -> Plan:
    """Return the plan that grows ``source``, lays it out anew, or both; only headers are read.

    Raises:
        UsageError: For a target that cannot be reached, and for requests that contradict each
            other.
    """
    return plan_of(source, requested(**wanted))


def plan_of(source: Source, request: ResultRequest) -> Plan:
    """Return the plan that makes of ``source`` what is requested.

    Raises:
        FlmgrowError: As :func:`plan` does.
    """
    return Plan(
        plan_growth_of(
            source.checkpoint,
            request.target,
            request.files,
            parameters=request.parameters,
            drop_optimizer=request.drop_optimizer,
            bake=request.bake,
        )
    )


def plan_import(source: Source, request: ResultRequest) -> Plan:
    """Return the plan that makes a Megatron checkpoint of a Hugging Face folder.

    Raises:
        UsageError: If ``source`` is none.
    """
    return Plan(plan_import_of(source.checkpoint, request.target.layout(), request.files))


def plan_export(
    source: Source, files: Files, tokenizer: str | os.PathLike[str] | None = None
) -> Plan:
    """Return the plan that makes a Hugging Face folder of ``source``, with the tokenizer of a file
    or a folder if one is named.

    Raises:
        UsageError: For a model that no family of transformers can say; the message has the reasons.
    """
    given = NO_TOKENIZER if tokenizer is None else tokenizer_files(Path(tokenizer), source.model)
    files = replace(files, format="huggingface", tokenizer=given)
    return Plan(plan_layout_of(source.checkpoint, LayoutRequest(), files))


def plan_bake(source: Source, value: float | None = None, no_optimizer: bool = False) -> Plan:
    """Return the plan that puts the masks of ``source`` into its weights, at ``value`` if given.

    Raises:
        UsageError: If there are none.
    """
    return Plan(plan_bake_of(source.checkpoint, value, drop_optimizer=no_optimizer))
