"""What one device must hold to train a stage: weights, gradients, optimizer, activations.

A layout that does not fit shows itself after a queue of days, in the first step. What lies on each
rank is known before: parameters by the same rows that checkpoints are written by, so uneven
pipelines, padded vocabularies and a table that two ranks hold count as they are. Activations are
what autograd keeps for the backward pass of the trainer's model, piece by piece, without dropout.

Not counted: the allocator's waste, kernels' workspaces, and the communicators' buffers.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from math import prod

from flmgrow.costing.activations import (
    FULL,
    HEAD,
    Microbatch,
    gradients_of,
    head_activations,
    layer_activations,
    whole_layer,
)
from flmgrow.formats.layout.placements import Layout, Slice, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.trainer.stage.freezing import trained_of
from flmgrow.trainer.stage.training import LayoutSection

WIDTHS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes on the devices of one pipeline rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The bytes of all parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_json(self) -> dict[str, int]:
        """Return the parts and their sum by name."""
        return {**asdict(self), "total": self.total}


def memory_of(planned: PlannedStage) -> list[Memory]:
    """Return what the devices of each pipeline rank hold while a stage is trained."""
    stage = planned.stage
    training, section = stage.training, stage.layout
    width = WIDTHS[training.precision]
    states = State.beside_weights(training.precision, distributed=False)  # masters are views else
    sharers = section.dp if section.distributed_optimizer else 1
    held = planned.config, planned.layout, planned.padded_vocab
    counts, trained = parameters_by_rank(*held), parameters_by_rank(*held, planned.still)
    batch = Microbatch(
        training.micro_batch,
        stage.data.sequence_length,
        width,
        section.tp,
        section.sequence_parallel,
        training.recompute,
        stage.data.teacher is not None and stage.data.teacher.packed,
    )
    return [
        Memory(
            count * width,
            trains * FULL,
            -(-trains * FULL * len(states) // sharers),
            _activations(planned, batch, rank),
        )
        for rank, (count, trains) in enumerate(zip(counts, trained, strict=True))
    ]


def parameters_by_rank(
    config: ModelConfig, layout: Layout, padded_vocab: int, without: Collection[Slice] = ()
) -> list[int]:
    """Return how many parameters a device of each pipeline rank holds, but for some slices."""
    sizes = {**config.sizes, Axis.VOCAB: padded_vocab}
    held: Counter[int] = Counter()
    for each in placements(ROWS, logical_tensors(config), sizes, layout):
        if each.tensor_rank == 0 and each.slices[0] not in without:
            held[each.pipeline_rank] += prod(each.shape)
    return [held[rank] for rank in range(layout.pp)]


def _activations(planned: PlannedStage, batch: Microbatch, rank: int) -> int:
    config, layout, stage = planned.config, planned.layout, planned.stage
    trained = trained_of(planned.still, layout, stage.training.recompute)
    inside = gradients_of(config, stage.data.sequence_length, trained)
    chunks = [
        (count, [inside[layer] for layer in range(*layout.chunk_range(rank, chunk))])
        for chunk, count in enumerate(in_flight(planned, rank))
    ]
    kept = sum(
        count * layer_activations(config, batch, each)
        for count, layers in chunks
        for each in layers
    )
    head = 0
    if rank == layout.pp - 1:
        head = head_activations(config, planned.padded_vocab, batch, inside[HEAD])
    if batch.recompute != "full":
        return kept + head
    # The head's are gone when the first layer is computed again, as a whole.
    again = (whole_layer(config, batch, each) for _, layers in chunks for each in layers)
    return kept + max(head, *again)


def in_flight(planned: PlannedStage, rank: int) -> list[int]:
    """Return how many micro-batches a pipeline rank keeps at once, for each of its chunks.

    One forward, one backward: a rank runs ahead of the last one by its distance (Narayanan et al.,
    2021, section 2.2), with chunks by as much again for each.
    """
    section: LayoutSection = planned.stage.layout
    training = planned.stage.training
    micro_batches = training.batch // (training.micro_batch * section.dp)
    ahead = section.pp - rank - 1
    if section.vpp == 1:
        return [min(micro_batches, ahead + 1)]
    kept = min(2 * ahead + (section.vpp - 1) * section.pp + 1, micro_batches * section.vpp)
    groups = [0] * section.vpp
    for number in range(kept):  # chunk by chunk, a pipeline's length of micro-batches each
        groups[number // section.pp % section.vpp] += 1
    return groups
