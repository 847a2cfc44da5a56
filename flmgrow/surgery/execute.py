"""Carrying out a plan: bounded memory, several workers, and the same bytes whatever their number.

Blocks of the output are computed by workers and written in order by one thread, which also computes
the checksums. A window of blocks is in flight; its size and theirs follow from the memory budget.
The output folder appears complete or not at all (``output.py``), with ``flmgrow.json`` written
last. Several ranks may share the files: which one writes a file decides on nothing in it.
"""

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from flmgrow.errors import (
    BadCheckpointError,
    OutputExistsError,
    StorageError,
    UsageError,
    printable,
)
from flmgrow.formats.history.manifest import MANIFEST, encode, read_manifest
from flmgrow.formats.history.manifest_value import Manifest, Options
from flmgrow.formats.layout.segments import Strip
from flmgrow.formats.reading import DTYPES, Array, as_bytes
from flmgrow.formats.targets import Buffer, PlannedFile, TargetArray
from flmgrow.formats.writing import manifest_folders, pointers
from flmgrow.model.axes import Box
from flmgrow.model.checks import check_finite, check_whole
from flmgrow.model.states import State
from flmgrow.operators.choices import hold
from flmgrow.storage.checksums import FileRecord, verify_files
from flmgrow.storage.crc import Bytes
from flmgrow.storage.outputs import Output, begin_output, clear_leftovers, finished_output
from flmgrow.storage.ranks import Ranks, first_of
from flmgrow.storage.shares import shared_out
from flmgrow.storage.world import ALONE, World
from flmgrow.surgery.finite import non_finite
from flmgrow.surgery.heap import keep_freed_memory
from flmgrow.surgery.kept_statistics import KeptStatistics
from flmgrow.surgery.manifest import describe, identity_of, tells_of
from flmgrow.surgery.plan import Plan
from flmgrow.surgery.replicas import Replicated, check_replicas, replicated_as
from flmgrow.surgery.states import ModelValues
from flmgrow.text import Setting, Text

T = TypeVar("T")
Progress = Callable[[int], None]

BASE_MEMORY = 160 << 20
"""What the process needs before the first block: interpreter, libraries, headers."""

BYTES_PER_ELEMENT = 72
"""Peak bytes of temporaries per element of a block being computed (float64 values, draws,
hashes).
"""

MIN_BLOCK = 1 << 14
MAX_BLOCK = 1 << 19


@dataclass(frozen=True)
class Execution:
    """How to carry out a plan; none of it changes the result, but for ``init_std``.

    ``max_memory`` is in bytes. ``replicated`` is ``check`` or ``rank0``. ``restart`` drops a
    half-done run of another plan, and ``double_check`` reads the output back from the disk.
    ``progress`` is told bytes as they are written, on rank 0 those of all ranks of ``world``, which
    share the work. ``beside`` makes small files out of the manifest, which are written with it and
    have no checksum in it.
    """

    max_memory: int = 1 << 30
    workers: int = 1
    restart: bool = False
    double_check: bool = True
    allow_nonfinite: bool = False
    replicated: Replicated = Replicated.CHECK
    init_std: float | None = None
    progress: Progress = lambda _: None
    beside: Callable[[Manifest], Mapping[str, bytes]] = lambda _: {}
    world: World = ALONE

    def __post_init__(self) -> None:
        hold(self, replicated=replicated_as(self.replicated))
        check_whole("workers", self.workers)
        check_whole("max memory", self.max_memory)
        if self.init_std is not None:
            check_finite("init std", self.init_std, least=0)

    @property
    def block_elements(self) -> int:
        """Elements per block, so that all blocks in flight fit the budget."""
        spare = self.max_memory - BASE_MEMORY
        elements = spare // (BYTES_PER_ELEMENT * (self.workers + 1))
        if elements < MIN_BLOCK:
            needed = BASE_MEMORY + MIN_BLOCK * BYTES_PER_ELEMENT * (self.workers + 1)
            raise UsageError(
                Text(
                    Setting("max_memory"),
                    f" is {self.max_memory >> 20} MiB, {self.workers} workers need at least "
                    f"{-(-needed >> 20)} MiB",
                ),
                "give more memory or fewer workers",
            )
        return min(elements, MAX_BLOCK)


def in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], window: int
) -> Iterator[T]:
    """Run ``tasks`` on the pool and yield their results in order, at most ``window`` ahead."""
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Executor:
    """Carries out one plan into one output folder."""

    def __init__(self, plan: Plan, execution: Execution) -> None:
        self.plan = plan
        self.execution = execution
        self.values = ModelValues(plan.growth, plan.source, execution.init_std)
        self.summed = {path for file in plan.files for path in file.sums_of}

    def _block(self, array: TargetArray, name: str, box: Box) -> Array:
        with np.errstate(all="ignore"):  # what is not finite is found below, in any thread
            values = self.values.box(array.state, name, box, DTYPES[array.dtype])
        if not self.execution.allow_nonfinite and (count := non_finite(values)):
            raise self._not_finite(name, box, values, count)
        return values

    def _strip(self, array: TargetArray, strip: Strip) -> Array:
        parts = zip(strip.segments, strip.boxes, strict=True)
        return strip.arrange([self._block(array, part.tensor, box) for part, box in parts])

    def _not_finite(self, name: str, box: Box, values: Array, count: int) -> BadCheckpointError:
        inside = np.argwhere(~np.isfinite(values.astype(np.float64)))[0].tolist()
        place = [start + i for (start, _), i in zip(box.ranges, inside, strict=True)]
        cast = self.plan.target.dtype
        return BadCheckpointError(
            f"{name}{place}: {values[tuple(inside)]}, the first of {count} that are not finite",
            Text(
                f"it may not fit {cast}, or " if cast else "",
                "the source is damaged or has diverged; ",
                Setting("allow_nonfinite", True),
                " carries them over",
            ),
            where=self.plan.source.folder,
        )

    def blocks(
        self, pool: ThreadPoolExecutor, buffer: Buffer, arrays: Sequence[TargetArray]
    ) -> Iterator[Array]:
        """Yield the values of a buffer from front to back, computed ahead by the pool.

        ``arrays`` fill it, in this order; what lies between them is zero.
        """
        limit = self.execution.block_elements
        dtype = DTYPES[arrays[0].dtype]

        def gap(start: int, stop: int) -> Iterator[Callable[[], Array]]:
            assert start <= stop, "arrays overlap"
            for low in range(start, stop, limit):
                yield partial(np.zeros, min(limit, stop - low), dtype)

        def tasks() -> Iterator[Callable[[], Array]]:
            position = 0
            for array in arrays:
                yield from gap(position, array.start)
                for strip in array.placement.strips(limit):
                    yield partial(self._strip, array, strip)
                position = array.stop
            yield from gap(position, buffer.nbytes // dtype.itemsize)

        return in_order(pool, tasks(), self.execution.workers + 1)

    def _write(self, pool: ThreadPoolExecutor, file: PlannedFile, folder: Output) -> None:
        def fill(buffer: Buffer, arrays: Sequence[TargetArray]) -> Iterator[memoryview]:
            named = (
                contextlib.nullcontext()
                if file.names_damage
                else output.part(arrays[0].placement.key)
            )
            with named:
                yield from map(as_bytes, self.blocks(pool, buffer, arrays))

        sums = {path: folder.finished[path].sha256 for path in file.sums_of}
        summed = file.path in self.summed
        with folder.file(file.path, self.plan.file_sizes[file.path], sha256=summed) as output:

            def write(data: Bytes) -> None:
                output.write(data)
                self.execution.progress(memoryview(data).nbytes)

            file.produce(write, fill, sums)

    @property
    def _options(self) -> Options:
        """The options that decide on content."""
        execution = self.execution
        return Options(replicated=execution.replicated, init_std=execution.init_std)

    def written(self, destination: Path) -> Manifest | None:
        """Return the manifest of ``destination`` if this plan's result is there already, whole.

        Raises BadCheckpointError for a result that was damaged.
        """
        place = finished_output(destination)
        manifest = None if place is None else read_manifest(place)
        if manifest is None or not tells_of(manifest, self.plan, self._options):
            return None
        if place is not None and self.execution.world.first:
            verify_files(place, manifest.files, self.execution.progress)
        return manifest

    def found(self, destination: Path) -> Manifest | None:
        """Return the manifest of ``destination`` as :meth:`written`, or None for a damaged one.

        A run that was ended after its last step, or could not tidy up, has left such a result; the
        same command then has nothing to do but the tidying up.
        """
        try:
            manifest = self.written(destination)
        except BadCheckpointError:
            return None
        if manifest is not None:
            with contextlib.suppress(OSError, StorageError, OutputExistsError):
                clear_leftovers(destination)
        return manifest

    def run(self, destination: Path) -> Manifest:
        """Write the checkpoint to ``destination`` and return its manifest.

        Raises OutputExistsError, StorageError, LostRankError, or BadCheckpointError for a damaged
        source; what a damaged source led to is removed, and so is a run that failed before its
        first file was finished.
        """
        with self._begun(destination) as folder:
            drift = self._drift()
            self._write_share(folder, self.plan.files)
            return self._finish(folder, drift)

    def write_some(self, destination: Path, files: Sequence[PlannedFile]) -> list[FileRecord]:
        """Write these files of the checkpoint alone, and let no output appear; :meth:`run` writes
        the rest. Returns what was written or found written. Raises as it does.
        """
        with self._begun(destination) as folder:
            self._drift()
            self._write_share(folder, files)
            return [folder.finished[file.path] for file in files]

    def _drift(self) -> list[str]:
        """Compare the source's copies; rank 0 does it for all, while the others begin to write.

        Returns what they differ in.
        """
        readers = self.plan.source.readers if self.execution.world.first else {}
        return [
            line
            for state, reader in readers.items()
            for line in check_replicas(
                reader,
                Replicated.CHECK if reader.ways_out else self.execution.replicated,
                "" if state is State.WEIGHT else state,
                self.plan.source.folder,
            )
        ]

    @contextlib.contextmanager
    def _begun(self, destination: Path) -> Iterator[Output]:
        """Give the folder of this plan's output, begun or resumed."""
        keep_freed_memory()
        execution, identity = self.execution, identity_of(self.plan, self._options)
        output = begin_output(
            destination,
            identity,
            restart=execution.restart,
            double_check=execution.double_check,
            world=execution.world,
        )
        with output as folder:
            folder.ranks.watch(execution.progress)
            if folder.note:
                print(f"note: {printable(folder.note)}", file=sys.stderr)
            try:
                with self._kept(folder, identity):
                    yield folder
            except BaseException as error:
                stopped = folder.ranks.stop(error)
                if stopped and (isinstance(error, BadCheckpointError) or folder.empty):
                    folder.discard()
                raise

    @contextlib.contextmanager
    def _kept(self, folder: Output, identity: Mapping[str, object]) -> Iterator[None]:
        """Keep spreads and means for whoever has to go on with this plan."""
        if folder.beside is None:
            yield
            return
        with contextlib.closing(KeptStatistics(folder.beside, identity)) as kept:
            self.values.keep(kept)
            yield

    def _write_share(self, folder: Output, files: Sequence[PlannedFile]) -> None:
        """Write what is not finished of ``files``: each rank its share, and rank 0 at the end what
        is made of the sums of others.
        """
        sizes, world = self.plan.file_sizes, self.execution.world
        rest = [file for file in files if file.path not in folder.finished]
        if world.first:
            folder.free_space_check(sum(sizes[file.path] for file in rest))
        for path in folder.finished:
            self.execution.progress(sizes[path])
        alone = [file for file in rest if not file.sums_of]
        shares = shared_out(alone, lambda file: sizes[file.path], world.size)
        with ThreadPoolExecutor(self.execution.workers, "flmgrow") as pool:
            for file in shares[world.rank]:
                self._write(pool, file, folder)
            folder.unite()
            summed = [file for file in rest if file.sums_of]
            for file in summed if world.first else []:
                self._write(pool, file, folder)
        if summed:
            folder.unite()

    def _finish(self, folder: Output, drift: list[str]) -> Manifest:
        """Let the output appear, with its manifest."""
        plan, execution = self.plan, self.execution
        plan.source.contents.check_unchanged()
        with np.errstate(all="ignore"):
            spreads = self._spreads(folder.ranks)
        records = [folder.finished[file.path] for file in plan.files]
        drift = folder.ranks.exchange(drift, first_of)
        manifest = describe(plan, self._options, records, spreads, drift)
        last = {**execution.beside(manifest), **pointers(plan.source, plan.target)}
        places = [str(Path(at, MANIFEST)) for at in manifest_folders(plan.source, plan.target)]
        note = folder.commit({**last, **dict.fromkeys(places, encode(manifest))})
        if note:
            print(f"note: {printable(note)}", file=sys.stderr)
        return manifest

    def _spreads(self, ranks: Ranks) -> dict[str, float]:
        """Return the spreads that were drawn with; each rank finds its share of them."""
        world = ranks.world
        share = world.rank, world.size
        own = self.values.weights.spreads(self.plan.tensors, self.plan.stored_sizes, share)
        parts = ranks.exchange(list(own.items()), lambda parts: parts)
        total = sum(len(part) for part in parts)
        return dict(parts[i % world.size][i // world.size] for i in range(total))
