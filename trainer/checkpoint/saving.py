"""Saving a run: whole or not at all, in a format that any tool can read, without losing a step.

Each model rank writes its own file, its first replica that is, straight from memory through the
formats' own writers; in ``torch_dist`` each replica of a distributed optimizer writes a file of
what it keeps most of. What other replicas keep is asked of them as the writing comes to it
(:mod:`flmgrow.trainer.checkpoint.lending`). All files go into a hidden folder beside the
iteration's; when every rank has its file on the disk, one rename makes the iteration appear, and
only then the tracker points to it. So a kill at any moment leaves the checkpoint before, and at
worst a hidden folder, which the next save removes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
import xxhash

from flmgrow.formats.checkpoint import Checkpoint, OptimizerState, TargetModel
from flmgrow.formats.companions import NO_COMPANIONS, Companions
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.history.training_state import TrainingState
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.megatron.arguments.run_rows import ITERATION, SAMPLES_SEEN
from flmgrow.formats.megatron.folders import folder_name, tracker
from flmgrow.formats.megatron.new_model import new_model
from flmgrow.formats.pieces import DTYPES
from flmgrow.formats.targets import Buffer, PlannedFile, TargetArray
from flmgrow.formats.torch_file.file_writer import new_scalar
from flmgrow.formats.writing import described_files, written_format
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import State
from flmgrow.storage.checksums import FileRecord
from flmgrow.storage.crc import Bytes
from flmgrow.storage.durable import new_file, storage_errors, sync_folder, write_small
from flmgrow.storage.folders import make_folders, remove_tree, sync_tree
from flmgrow.trainer.checkpoint.lending import LentStates, Shares
from flmgrow.trainer.checkpoint.random_states import RANDOM, random_states
from flmgrow.trainer.checkpoint.saved import iterations
from flmgrow.trainer.megatron.parameters import (
    Counted,
    ModelRank,
    OptimizerView,
    Parameter,
    own_model_rank,
)
from flmgrow.trainer.ranks.agreement import gathered, together

_PLAIN = (bool, int, float, str, type(None), tuple)


@dataclass(frozen=True, eq=False)
class Saving:
    """How and where a run is saved.

    ``arguments`` are Megatron-LM's, of this run; ``companions`` say how its model is spoken to.
    """

    folder: Path
    format: str
    keep: int | None
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    dtype: str
    arguments: Mapping[str, object]
    companions: Companions = NO_COMPANIONS

    def save(
        self,
        state: TrainingState,
        parameters: Sequence[Parameter],
        optimizer: OptimizerView,
        counted: Counted,
        schedule: Mapping[str, object],
    ) -> Path:
        """Save the run as it is now, on all ranks at once, and return the iteration's folder.

        ``schedule`` is that of the learning rate.

        Raises:
            StorageError: On every rank.
        """
        name = folder_name(state.iteration)
        hidden = self.folder / f".{name}.flmgrow"
        together(lambda: self._begin(hidden, name))
        described = optimizer_state(optimizer, self.dtype, counted)
        states = LentStates.here(parameters, optimizer)
        shares = states.shares() if written_format(self.format).shared else {}
        own = together(lambda: self._write_chance(hidden / name))
        own += together(lambda: self._write(hidden, state, described, schedule, states, shares))
        files = sorted(chain.from_iterable(gathered(own)), key=lambda record: record.path)
        together(lambda: self._appear(hidden, name, replace(state, files=tuple(files))))
        return self.folder / name

    def _begin(self, hidden: Path, name: str) -> None:
        """Make the hidden folder, on the first rank, and remove those that are left over."""
        if torch.distributed.get_rank() != 0:
            return
        make_folders(Path(self.folder.anchor), self.folder)
        for left in self.folder.glob(".iter_*.flmgrow"):
            remove_tree(left)
        with storage_errors(hidden, "creating"):
            (hidden / name).mkdir(parents=True)

    def _write_chance(self, folder: Path) -> list[FileRecord]:
        """Write this rank's sources of chance, and return the file by its path in ``folder``."""
        path, content = f"{RANDOM}/rank_{torch.distributed.get_rank():05d}.json", random_states()
        make_folders(folder.parent, folder / RANDOM)
        write_small(folder / path, content)
        return [FileRecord(path, len(content), xxhash.xxh3_128_hexdigest(content))]

    def _write(
        self,
        hidden: Path,
        state: TrainingState,
        optimizer: OptimizerState,
        schedule: Mapping[str, object],
        states: LentStates,
        shares: Shares,
    ) -> list[FileRecord]:
        """Write this rank's files, while its replicas write theirs, and return them by their paths
        in the iteration's folder.
        """
        folder, written = hidden / folder_name(state.iteration), []
        target = TargetModel(
            config=self.config,
            layout=self.layout,
            padded_vocab=self.padded_vocab,
            donors=tuple(range(self.config.layers)),
            optimizer=optimizer,
            format=self.format,
            shares=shares,
        )
        here = (own_model_rank(), states.replica)
        with states.lent() as blocks:
            for file in described_files(self._source(state, schedule), target):
                if _writer(file, target) == here and not file.sums_of:
                    path, sum_ = hidden / file.path, _write_file(file, hidden, blocks)
                    path_inside = str(path.relative_to(folder))
                    written.append(FileRecord(path_inside, file.total_size, sum_))
        return written

    def _source(self, state: TrainingState, schedule: Mapping[str, object]) -> Checkpoint:
        arguments = {
            **self.arguments,
            ITERATION.name: state.iteration,
            SAMPLES_SEEN.name: state.carried.consumed_samples,
        }
        extra = {"optimizer": None, "opt_param_scheduler": dict(schedule)}
        return new_model(
            state.stage,
            self.config,
            arguments,
            self.padded_vocab,
            self.dtype,
            state.iteration,
            extra,
            self.companions,
        )

    def _appear(self, hidden: Path, name: str, state: TrainingState) -> None:
        """Let a finished iteration appear, point to it, and remove what need not be kept.

        All on the first rank.
        """
        if torch.distributed.get_rank() != 0:
            return
        write_small(hidden / name / TRAINING, state.encode())
        sync_tree(hidden)
        target = self.folder / name
        if target.exists():  # of a run that went on from further back
            remove_tree(target)
        with storage_errors(target, "renaming"):
            (hidden / name).rename(target)
            hidden.rmdir()
        sync_folder(self.folder)
        point_to(self.folder, state.iteration)
        if self.keep is not None:
            # Later ones are of a run that was taken up again from further back: not this one's.
            own = [found for found in iterations(self.folder) if found <= state.iteration]
            for old in own[: -self.keep]:
                remove_tree(self.folder / folder_name(old))


def point_to(folder: Path, iteration: int) -> None:
    """Let the tracker in a folder of checkpoints name an iteration.

    Raises:
        StorageError: The file system failed.
    """
    pointer, content = tracker(iteration)
    write_small(folder / pointer, content)


def _writer(file: PlannedFile, target: TargetModel) -> tuple[ModelRank, int]:
    """Return the rank whose values are in a file, and which of its replicas writes it; the first
    writes what has none.
    """
    if not file.arrays:
        return (0, 0), 0
    placement = file.arrays[0].placement
    return placement.rank, target.replica_of(placement)


def optimizer_state(optimizer: OptimizerView, dtype: str, counted: Counted) -> OptimizerState:
    """Describe the optimizer, which has ``counted`` so many steps, as a checkpoint keeps it."""
    mixed, count = dtype != "float32", counted.steps
    in_groups = optimizer.distributed or optimizer.counts_by_group
    in_group: dict[object, object] = {"step": count} if in_groups else {}
    groups = tuple({**_settings(group), **in_group} for group in optimizer.groups)
    kinds = State.beside_weights(dtype, distributed=optimizer.distributed)
    return OptimizerState(
        groups=groups,
        step=None if in_groups else new_scalar(count),
        mixed_precision=mixed,
        dtypes=dict.fromkeys(kinds, "float32"),
        gradient_dtype="float32" if optimizer.distributed else None,
        lags=counted.lags,
    )


def _settings(group: Mapping[str, object]) -> dict[object, object]:
    return {k: v for k, v in group.items() if k != "params" and isinstance(v, _PLAIN)}


def _write_file(
    file: PlannedFile, root: Path, blocks: Callable[[TargetArray], Iterator[Bytes]]
) -> str:
    """Write a file below ``root``, its arrays from ``blocks``, and return the XXH3 of what was
    written (128 bits, in hex).
    """
    path = root / file.path
    make_folders(root, path.parent)

    def fill(buffer: Buffer, arrays: Sequence[TargetArray]) -> Iterator[Bytes]:
        width = DTYPES[arrays[0].dtype].itemsize
        position = 0
        for array in arrays:
            yield bytes((array.start - position) * width)
            yield from blocks(array)
            position = array.stop
        yield bytes(buffer.nbytes - position * width)

    found = xxhash.xxh3_128()
    with new_file(path, file.total_size) as output:

        def write(data: Bytes) -> None:
            flat = memoryview(data).cast("B")
            found.update(flat)
            output.write(flat)

        file.produce(write, fill, {})
    return found.hexdigest()
