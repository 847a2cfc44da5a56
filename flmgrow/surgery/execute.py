"""Carrying out a plan: bounded memory, several workers, and the same bytes whatever their number.

Blocks of the output are computed by workers (``blocks.py``) and written in order by one thread,
which also computes the checksums. The output folder appears complete or not at all
(``output.py``), with ``flmgrow.json`` written last. Several ranks may share the files: which one
writes a file decides on nothing in it.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from flmgrow.errors import (
    BadCheckpointError,
    OutputExistsError,
    StorageError,
    printable,
)
from flmgrow.formats.history.manifest import MANIFEST, encode, read_manifest
from flmgrow.formats.history.manifest_value import Manifest, Options
from flmgrow.formats.pieces import as_bytes
from flmgrow.formats.targets import Buffer, PlannedFile, TargetArray
from flmgrow.formats.writing import manifest_folders, pointers
from flmgrow.model.states import State
from flmgrow.storage.checksums import FileRecord, verify_files
from flmgrow.storage.crc import Bytes
from flmgrow.storage.outputs import Output, begin_output, clear_leftovers, finished_output
from flmgrow.storage.ranks import Ranks, first_of
from flmgrow.storage.shares import shared_out
from flmgrow.surgery.blocks import Blocks
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.heap import keep_freed_memory
from flmgrow.surgery.kept_statistics import KeptStatistics
from flmgrow.surgery.manifest import describe, identity_of, tells_of
from flmgrow.surgery.plan import GrowthPlan
from flmgrow.surgery.replicas import Replicated, check_replicas
from flmgrow.surgery.states import ModelValues


class Executor:
    """Carries out one plan into one output folder."""

    def __init__(self, plan: GrowthPlan, execution: Execution) -> None:
        self.plan = plan
        self.execution = execution
        self.values = ModelValues(plan.growth, plan.source, execution.init_std)
        self.blocks = Blocks(plan, execution, self.values)
        self.summed = {path for file in plan.files for path in file.sums_of}

    def _write(self, pool: ThreadPoolExecutor, file: PlannedFile, folder: Output) -> None:
        def fill(buffer: Buffer, arrays: Sequence[TargetArray]) -> Iterator[memoryview]:
            named = (
                contextlib.nullcontext()
                if file.names_damage
                else output.part(arrays[0].placement.key)
            )
            with named:
                yield from map(as_bytes, self.blocks.of(pool, buffer, arrays))

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

        Raises:
            BadCheckpointError: For a result that was damaged.
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

        Raises:
            OutputExistsError: The output is there, or another run is writing it.
            StorageError: The file system failed.
            LostRankError: Another rank is lost.
            BadCheckpointError: For a damaged source; what a damaged source led to is removed, and
                so is a run that failed before its first file was finished.
        """
        with self._begun(destination) as folder:
            drift = self._drift()
            self._write_share(folder, self.plan.files)
            return self._finish(folder, drift)

    def write_some(self, destination: Path, files: Sequence[PlannedFile]) -> list[FileRecord]:
        """Write these files of the checkpoint alone, and let no output appear; :meth:`run` writes
        the rest. Returns what was written or found written.

        Raises:
            FlmgrowError: As :meth:`run` does.
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
