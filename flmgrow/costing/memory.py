"""What one device must hold to train a stage: weights, gradients, optimizer, activations.

A layout that does not fit shows itself after a queue of days, in the first step. What lies on each
rank is known before: parameters by the same rows that checkpoints are written by, so uneven
pipelines, padded vocabularies and a table that two ranks hold count as they are. Activations are
what autograd keeps for the backward pass of the trainer's model, piece by piece, without dropout.

Not counted: the allocator's waste, kernels' workspaces, and the communicators' buffers.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from math import prod

from flmgrow.formats.layout.placements import Layout, Slice, placements
from flmgrow.formats.tables.gpt import ROWS
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.flops import computations
from flmgrow.model.states import State
from flmgrow.model.tensors import logical_tensors
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.trainer.stage.freezing import trained_of
from flmgrow.trainer.stage.training import LayoutSection

FULL = 4
"""Bytes of a float32: gradients are summed in it, and the optimizer's states kept."""

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


@dataclass(frozen=True)
class Microbatch:
    """What a rank computes on at once: ``sequences`` of ``length`` tokens, in numbers of so many
    bytes, and how its layers are run; ``packed`` samples need masks.
    """

    sequences: int
    length: int
    width: int
    tp: int
    sequence_parallel: bool
    recompute: str
    packed: bool

    @property
    def tokens(self) -> int:
        """The tokens of it."""
        return self.sequences * self.length


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
    config, layout = planned.config, planned.layout
    reached = _reached(planned)
    kept = sum(
        count * layer_activations(config, batch, reached[layer])
        for chunk, count in enumerate(in_flight(planned, rank))
        for layer in range(*layout.chunk_range(rank, chunk))
        if layer in reached
    )
    head = 0
    if rank == layout.pp - 1:
        head = _head_activations(config, planned.padded_vocab, batch, trains=reached[None])
    # The head's are gone when the first layer is computed again, as a whole.
    again = layer_activations(config, replace(batch, recompute="none"))
    return kept + (max(head, again) if batch.recompute == "full" else head)


def _reached(planned: PlannedStage) -> dict[int | None, bool]:
    """Return the layers that gradients come to, and whether matrices in them have their own.

    None stands for the head. A layer of which some matrices train counts as if all did.
    """
    stage = planned.stage
    trained = trained_of(planned.still, planned.layout, stage.training.recompute)
    found: dict[int | None, bool] = {}
    for each in computations(planned.config, stage.data.sequence_length, trained):
        if each.part is not None and each.reached:
            _, layer = each.part
            found[layer] = found.get(layer, False) or (each.trains and each.flops > 0)
    return found


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


def layer_activations(config: ModelConfig, batch: Microbatch, trains: bool = True) -> int:
    """Return the bytes that one layer keeps of one micro-batch for its backward pass.

    If no matrix of it ``trains``, no product keeps its input; what norms, attention and activation
    functions need is kept all the same.

    Inputs of norms and of products, as in Korthikanti et al. (2022), section 4.1; attention is
    fused and keeps no scores, so ``selective`` recomputation spares the mask of packed samples
    only.
    """
    whole = batch.tokens * config.hidden * batch.width
    spread = batch.tp if batch.sequence_parallel else 1
    if batch.recompute == "full":
        return whole // spread
    # Of a gated FFN: both inputs, the gate's activation, a copy of the other, and the product.
    ffn = (4 if config.gated else 1) + trains
    inside = _attention_activations(config) + ffn * config.ffn
    per_token = batch.width * ((2 + 2 * trains) * config.hidden / spread + inside / batch.tp)
    masks = batch.packed and batch.recompute == "none"
    return round(batch.tokens * per_token) + masks * batch.tokens * batch.length * batch.width


def _attention_activations(config: ModelConfig) -> int:
    """Return how many numbers fused attention keeps of a token: queries, keys, values, context.

    Values are a view of the projection, which stays as a whole; rotated queries and keys are
    copies. Groups' keys and values are repeated for each of their queries.
    """
    inner = config.heads * config.head_dim
    projected = inner + 2 * config.kv_groups * config.head_dim
    rotated = config.positions in ("rope", "xpos")
    if config.queries_per_group > 1:
        return 4 * inner + (0 if rotated else projected - inner)
    return projected + inner + (2 * inner if rotated else 0)


def _head_activations(
    config: ModelConfig, padded_vocab: int, batch: Microbatch, *, trains: bool
) -> int:
    """Return the bytes of what lies behind the last layer: the norm's input, its output if the head
    ``trains``, and the logits, in float32 beside narrower ones.
    """
    spread = batch.tp if batch.sequence_parallel else 1
    norm = (1 + trains) * config.hidden * batch.width / spread
    logits = padded_vocab * (FULL + (batch.width if batch.width < FULL else 0)) / batch.tp
    return round(batch.tokens * (norm + logits))
