"""Growing a checkpoint in a test, and looking at what came out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.layout.placements import Layout
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.pieces import read_whole
from flmgrow.model.arrays import Array
from flmgrow.model.axes import full_box
from flmgrow.model.forward import logits
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import Target
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import FileRequest, LayoutRequest
from flmgrow.surgery.plan import GrowthPlan, make_plan, plan_growth
from flmgrow.surgery.weights import CheckpointWeights, unit_masks

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

EXACT = 1e-10
"""The largest difference of logits that counts as none in float64."""


@dataclass(frozen=True)
class SmallBlocks(Execution):
    """Works in blocks of a few elements, as a large model would in blocks of a few MiB."""

    elements: int = 7

    @property
    def block_elements(self) -> int:
        return self.elements


@contextmanager
def _no_waiting_for_the_disk() -> Iterator[None]:
    """These tests look at numbers; what survives a power cut is tested elsewhere."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


def grow_checkpoint(
    source: Path,
    out: Path,
    target: Target | None = None,
    request: LayoutRequest | None = None,
    execution: Execution | None = None,
    dtype: str | None = None,
    file_format: str | None = None,
    version: str | None = None,
) -> GrowthPlan:
    """Grow or reshard the checkpoint at ``source`` into ``out`` and return the plan that was."""
    with open_checkpoint(source) as opened:
        plan = make_plan(
            opened,
            target or Target(),
            request or LayoutRequest(),
            FileRequest(dtype, file_format, version),
        )
        with _no_waiting_for_the_disk():
            Executor(plan, execution or Execution()).run(out)
    return plan


def carry_out(source: Path, out: Path, growth: Growth) -> Path:
    """Carry out a growth of one's own, onto one rank; the vocabulary stays."""
    layout = Layout(1, 1, 1, (growth.new.layers,))
    with open_checkpoint(source) as opened:
        plan = plan_growth(opened, growth, layout, opened.padded_vocab)
        with _no_waiting_for_the_disk():
            Executor(plan, Execution()).run(out)
    return out


def tokens_for(vocab: int, length: int = 12, batch: int = 2) -> Tensor:
    """Return token ids that are the same on every call."""
    generator = torch.Generator().manual_seed(vocab)
    return torch.randint(vocab, (batch, length), generator=generator)


def checkpoint_logits(path: Path, tokens: Tensor) -> Tensor:
    """Return the float64 logits of a checkpoint, with the masks its manifest declares."""
    with open_checkpoint(path) as opened:
        masks = unit_masks(masks_of(opened), opened, torch.float64)
        weights = CheckpointWeights(opened, torch.float64)
        return logits(opened.config, weights, tokens, masks)


def stored_arrays(path: Path) -> dict[str, Array]:
    """Return every logical tensor in full, as stored, padding included."""
    with open_checkpoint(path) as opened:
        reader = opened.reader
        return {n: reader.read(n, full_box(reader.shape(n))) for n in reader.tensors}


def rank_arrays(path: Path) -> dict[str, bytes]:
    """Return the bytes of every stored array, replicas included, by rank, chunk and key."""
    with open_checkpoint(path) as opened:
        return {
            f"{a.placement.tensor_rank} {a.placement.pipeline_rank} {a.placement.chunk} "
            f"{a.placement.key}": read_whole(a).tobytes()
            for a in opened.reader.arrays
        }


def all_files(path: Path) -> dict[str, bytes]:
    """Return the content of every file below ``path``."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays have one shape, one dtype and the same bits."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and np.array_equal(
            np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)
        )
    )
