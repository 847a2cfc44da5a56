"""What a run will do and cost, before it does anything: for people, and as data."""

from collections.abc import Sequence

from flmgrow.model.tensors import parameter_count
from flmgrow.model.wording import amount, decimal_size, kind_text, model_text
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.start import Start
from flmgrow.storage.strict_json import Json
from flmgrow.trainer.stage.file import StageFile, checkpoint_bytes
from flmgrow.trainer.stage.freezing import frozen_text

Rows = list[tuple[str, str]]


def stage_data(planned: PlannedStage) -> Json:
    """Return the numbers of a stage."""
    stage, layout = planned.stage, planned.stage.layout
    parameters = parameter_count(planned.config)
    tokens = stage.tokens_after(planned.steps)
    return {
        "name": stage.name,
        "parameters": parameters,
        "layout": str(planned.layout),
        "replicas": layout.dp,
        "processes": layout.world,
        "first_iteration": planned.first,
        "steps": planned.steps,
        "tokens": tokens,
        "batch": stage.training.batch,
        "batch_tokens": stage.tokens_per_step,
        "warmup_steps": stage.warmup_steps,
        "peak": stage.learning_rate.peak,
        "floor": stage.learning_rate.floor,
        "flops": planned.flops,
        "checkpoint_bytes": checkpoint_bytes(stage, planned.config, planned.still),
        "precision": stage.training.precision,
        "growth": {} if planned.growth is None else _methods(planned),
    }


def _methods(planned: PlannedStage) -> dict[str, str]:
    assert planned.growth is not None
    return {str(dimension): method for dimension, method in planned.growth.methods.items()}


def stage_rows(planned: PlannedStage, before: PlannedStage | None) -> Rows:
    """Return what a person wants to know of a stage, by name."""
    data, stage = stage_data(planned), planned.stage
    rows = [("stage", f"{stage.name}, {planned.folder}")]
    if planned.start is not None:
        rows.append(("start", _start_text(planned.start)))
    if planned.growth is not None:
        rows += _growth_rows(planned, before)
    batch = f"{_batches(stage)} sequences of {stage.data.sequence_length:,}"
    rate = stage.learning_rate
    return [
        *rows,
        ("model", f"{amount(data['parameters'])} parameters: {model_text(planned.config)}"),
        ("kind", kind_text(planned.config)),
        *_frozen_rows(planned),
        ("layout", f"{data['layout']} x DP{data['replicas']}: {_processes(data)}"),
        ("steps", f"{data['steps']:,}, iterations {planned.first:,} to {planned.last:,}"),
        ("tokens", f"{amount(data['tokens'])} in batches of {batch}"),
        ("learning", f"{rate.style} from {rate.peak:g}, {_warm_up(stage)}{_cooldown(stage)}"),
        ("cost", f"{data['flops']:.3e} FLOPs in {data['precision']}"),
        ("checkpoint", f"{decimal_size(data['checkpoint_bytes'])} each, optimizer state included"),
    ]


def _batches(stage: StageFile) -> str:
    """Return the sizes of a stage's batches, and of that which its ramp does not come to."""
    whole, last, ramp = stage.training.batch, stage.last_batch, stage.training.batch_ramp
    smallest = "" if ramp is None or ramp[0] == last else f"{ramp[0]:,} to "
    return f"{smallest}{last:,}" + (f" (of {whole:,})" if last < whole else "")


def _growth_rows(planned: PlannedStage, before: PlannedStage | None) -> Rows:
    assert planned.growth is not None
    smaller = planned.start if before is None else before
    assert smaller is not None
    methods = ", ".join(f"{name} by {method}" for name, method in _methods(planned).items())
    ramps = {mask.ramp_steps for mask in planned.growth.masks.values()}
    ramp = f", open after {max(ramps):,} steps" if ramps else ""
    if ramps and planned.unfinished:
        ramp += f", of which the stage has {planned.steps:,}"
    moved = f"{smaller.layout} -> {planned.layout}"
    place = "; in memory" if planned.in_place else ""
    other = "; changes the function, which is accepted" if planned.accepts else ""
    return [("growth", f"{methods or 'none'}{ramp}; {moved}{place}{other}")]


def _frozen_rows(planned: PlannedStage) -> Rows:
    if not planned.frozen:
        rules = planned.stage.training.freeze
        return [] if rules is None else [("frozen", "what is old; how much is not known here")]
    at = planned.stage.unfreeze_step
    until = None if at is None else planned.first + at
    told = frozen_text(planned.frozen, planned.still_at_first, planned.config, until, planned.last)
    return [("frozen", told)]


def _start_text(start: Start) -> str:
    """Return what a run begins with, and what of it."""
    taken = "weights only" if start.anew else f"all that it has, from iteration {start.iteration:,}"
    return f"{start.place}: {taken}"


def _processes(data: Json) -> str:
    count = data["processes"]
    return f"{count:,} process{'' if count == 1 else 'es'}"


def _warm_up(stage: StageFile) -> str:
    steps = stage.warmup_steps
    early = f", of which the stage has {stage.steps:,}" if steps >= stage.steps else ""
    return f"{steps:,} steps of warm-up{early}"


def _cooldown(stage: StageFile) -> str:
    tokens = stage.learning_rate.cooldown_tokens
    return (
        "" if tokens is None else f", {stage.learning_rate.cooldown} over {amount(tokens)} tokens"
    )


def total_row(stages: Sequence[PlannedStage]) -> tuple[str, str]:
    """Return tokens and cost of all stages together."""
    data = [stage_data(planned) for planned in stages]
    tokens = sum(each["tokens"] for each in data)
    flops = sum(each["flops"] for each in data)
    return ("all stages", f"{amount(tokens)} tokens, {flops:.3e} FLOPs")
