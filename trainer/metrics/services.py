"""The records of a run for services that keep and draw them: Weights & Biases, and trackio.

What a service is told stands in ``metrics.jsonl`` as well, so a service may fail: that is told
once, and the training goes on without it. A run that is resumed goes on under the identity that it
had there, which is kept beside its metrics.
"""

import importlib
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol, Self

from flmgrow.errors import UsageError
from flmgrow.storage.durable import storage_errors, write_small
from flmgrow.storage.files import read_if_there
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.metrics.event_files import scalars
from flmgrow.trainer.metrics.records import Measured
from flmgrow.trainer.stage.file import StageFile

IDENTITIES = "services.json"
"""The file beside the metrics that keeps by which identity each service knows the run."""

_MAX_BYTES = 1 << 16


class TrackedRun(Protocol):
    """A run in a service, as its package has it."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell numbers, by name."""

    def finish(self) -> None:
        """Tell that there are no more."""


class TrackingService:
    """The run of a stage in the service ``name``. A context manager.

    ``warn`` is told, once, that it failed.
    """

    def __init__(
        self, name: str, stage: StageFile, warn: Callable[[str], None], *, resumed: bool
    ) -> None:
        """Begin the run, or go on with it if the stage is ``resumed``.

        Raises:
            UsageError: If the package is missing.
        """
        self._name, self._warn = name, warn
        self._run: TrackedRun | None = None
        section = getattr(stage.log, name)
        try:
            module = importlib.import_module(name)
        except ImportError:
            raise UsageError(
                f"the package {name} is not installed",
                f"pip install 'flmgrow[{name}]', or leave out log.{name}",
                where=f"log.{name}",
            ) from None
        title = section.name or stage.name
        identity = identity_of(stage.log.metrics, name, resumed=resumed)
        content: Json = stage.model_dump(mode="json")
        with self._suffered():
            self._run = _STARTS[name](module, section.project, title, identity, content)

    def write(self, record: Measured) -> None:
        """Tell the numbers of a record."""
        counts = {"step": record.step, "tokens": record.tokens, "flops": float(record.flops)}
        with self._suffered():
            if self._run is not None:
                self._run.log({**counts, **scalars(record)}, record.step)

    def sync(self) -> None:
        """Do nothing: the service knows when it sends."""

    def close(self) -> None:
        """End the run there."""
        with self._suffered():
            if self._run is not None:
                self._run.finish()
        self._run = None

    @contextmanager
    def _suffered(self) -> Iterator[None]:
        """Let what the service raises end the service, and not the training."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # whatever a package that is not ours may raise
            self._run = None
            reason = (str(error).splitlines() or [""])[0]
            self._warn(
                f"log.{self._name}: {type(error).__name__}: {reason}: nothing more is told there, "
                "the training goes on"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def identity_of(metrics: Path, name: str, *, resumed: bool) -> str:
    """Return by which identity the service ``name`` knows the run with these ``metrics``.

    A run that begins has a new one, which is kept beside them.

    Raises:
        StorageError: The file system failed.
    """
    path = metrics.with_name(IDENTITIES)
    with storage_errors(path, "reading"):
        content = read_if_there(path, _MAX_BYTES)
    try:
        known = dict(json.loads(content or b"{}"))
    except (ValueError, TypeError):  # damaged: a new one costs a second run in the service
        known = {}
    if not (resumed and isinstance(known.get(name), str)):
        known[name] = secrets.token_hex(4)
        write_small(path, json.dumps(known, indent=1).encode() + b"\n")
    return str(known[name])


class _WandbRun:
    """A run of Weights & Biases: all numbers against the step, which a resumed run repeats."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        del step  # is among them; the service's own count never goes back
        self._run.log(dict(values))

    def finish(self) -> None:
        self._run.finish()


def _start_wandb(module: Any, project: str, title: str, identity: str, content: Json) -> TrackedRun:
    settings = module.Settings(console="off", silent=True)
    run = module.init(
        project=project, id=identity, name=title, resume="allow", config=content, settings=settings
    )
    return _WandbRun(run)


class _TrackioRun:
    """A run of trackio."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def finish(self) -> None:
        self._module.finish()


def _start_trackio(
    module: Any, project: str, title: str, identity: str, content: Json
) -> TrackedRun:
    # Its name is all that trackio knows a run by.
    name = f"{title}-{identity}"
    module.init(project=project, name=name, resume="allow", config=content)
    return _TrackioRun(module)


_STARTS: Mapping[str, Callable[[Any, str, str, str, Json], TrackedRun]] = {
    "wandb": _start_wandb,
    "trackio": _start_trackio,
}
SERVICES = tuple(_STARTS)
"""The services, by their packages and by their keys in ``log``."""
