"""The layout of each stage: the first that fits the devices, with the least communication."""

from itertools import product

from flmgrow.costing.memory import memory_of
from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import padded_size
from flmgrow.model.config import ModelConfig
from flmgrow.model.tensors import parameter_count
from flmgrow.model.wording import amount, size
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.trainer.stage.file import StageFile, layout_of
from flmgrow.trainer.stage.training import LayoutSection

TENSOR, PIPELINE = (1, 2, 4, 8), (1, 2, 4, 8, 16)
SPARE = 0.1
"""Of a device's memory, left for kernels and communicators."""


def layout_for(stage: StageFile, model: ModelConfig, gpus: int, room: float) -> LayoutSection:
    """Return the layout on so many devices of ``room`` bytes: as few tensor and pipeline ranks as
    do.

    Raises:
        UsageError: If none fits.
    """
    least = None
    for tp, pp in sorted(product(TENSOR, PIPELINE), key=lambda each: (each[0] * each[1], each[1])):
        if gpus % (tp * pp):
            continue
        dp = gpus // (tp * pp)
        section = LayoutSection(
            tp=tp, pp=pp, dp=dp, distributed_optimizer=dp > 1, sequence_parallel=tp > 1
        )
        planned = _planned(stage, model, section)
        if planned is None:
            continue
        held = max(each.total for each in memory_of(planned))
        least = held if least is None else min(least, held)
        if held <= (1 - SPARE) * room:
            return section
    found = "no layout divides it" if least is None else f"the least is {size(least)} on a device"
    raise UsageError(
        f"{amount(parameter_count(model))} parameters fit no layout of {gpus} devices: {found}",
        "more devices, a smaller micro-batch, or training.recompute: full",
    )


def _planned(stage: StageFile, model: ModelConfig, section: LayoutSection) -> PlannedStage | None:
    """Return the stage as it would be planned, None where the layout does not divide it."""
    training = stage.training
    if training.batch % (training.micro_batch * section.dp):
        return None
    changed = stage.model_copy(update={"layout": section})
    padded = padded_size(model.vocab, stage.model.make_vocab_size_divisible_by, section.tp)
    try:
        layout = layout_of(changed, model, padded)
    except UsageError:
        return None
    return PlannedStage(changed, model, layout, padded, 0, 1, "")
