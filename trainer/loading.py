"""What a run begins with: any checkpoint that flmgrow can open, in any layout, or nothing.

Ranks read the boxes of logical tensors that they hold, so a checkpoint need not have the layout,
the format or the precision of the run. What decides on the result must agree, and is compared
before a byte of a weight is read: the model as far as the stage file speaks of it.
"""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from flmgrow.errors import BadCheckpointError, UsageError
from flmgrow.formats.checkpoint import Checkpoint, OptimizerState
from flmgrow.formats.inert_values import TensorRecord
from flmgrow.formats.iterations import TRACKER
from flmgrow.formats.manifest_file import Json, family, masks_of, training_of
from flmgrow.formats.megatron_optimizer import with_optimizer
from flmgrow.formats.megatron_writing import folder_name
from flmgrow.formats.opening import open_checkpoint
from flmgrow.formats.reading import AssembledArray, LogicalReader
from flmgrow.formats.torch_zip import scalar
from flmgrow.formats.training_state import TRAINING, Carried, read_training_state
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.trainer import cpu
from flmgrow.trainer.model_section import FIELDS, ModelSection
from flmgrow.trainer.parameters import OptimizerView, Parameter, empty, fill
from flmgrow.trainer.saving import RANDOM, iterations, point_to
from flmgrow.trainer.section import Section
from flmgrow.trainer.stage import StageFile

cpu.install()

from megatron.core import tensor_parallel  # noqa: E402


@dataclass(frozen=True, eq=False)
class Begin:
    """Where a stage goes on, or begins.

    ``checkpoint`` is what it reads, None for fresh weights. ``resumed`` says that the stage itself
    saved it. ``masks`` are those that are not open yet, as the checkpoint has them.
    """

    checkpoint: Checkpoint | None
    resumed: bool
    iteration: int
    stage_begin: int
    carried: Carried
    masks: Mapping[Dimension, Mask]
    losses: tuple[float, ...] = ()
    family: tuple[Json, ...] = ()


def find_begin(stage: StageFile) -> Begin:
    """Return where ``stage`` goes on; the caller closes its checkpoint.

    On all ranks at once. Raises BadCheckpointError, StorageError, or UsageError if the checkpoint
    in its folder is of another stage.
    """
    folder = stage.checkpoint.folder
    if (folder / TRACKER).exists():
        return _resumed(stage, with_optimizer(open_checkpoint(folder)))
    # Killed between the first iteration and the tracker: it appeared whole.
    if saved := [n for n in iterations(folder) if (folder / folder_name(n) / TRAINING).is_file()]:
        begin = _resumed(stage, with_optimizer(open_checkpoint(folder, saved[-1])))
        if torch.distributed.get_rank() == 0:
            point_to(folder, begin.iteration)
        return begin
    if stage.checkpoint.load is None:
        return Begin(None, False, 0, 0, Carried(), {})
    checkpoint = with_optimizer(open_checkpoint(stage.checkpoint.load))
    iteration = checkpoint.iteration or 0
    masks = stage.masks.rising(masks_of(checkpoint))
    carried = training_of(checkpoint) or Carried()
    ancestors = tuple(family(checkpoint))
    return Begin(checkpoint, False, iteration, iteration, carried, masks, family=ancestors)


def _resumed(stage: StageFile, checkpoint: Checkpoint) -> Begin:
    state = read_training_state(checkpoint.folder)
    if state is None or state.stage != stage.name:
        found = "no run of flmgrow's trainer" if state is None else f"the stage {state.stage!r}"
        raise UsageError(
            f"{checkpoint.folder}: is of {found}, this is the stage {stage.name!r}",
            "give the stage a checkpoint folder of its own, and name this one as checkpoint.load",
        )
    if state.iteration != checkpoint.iteration:
        raise BadCheckpointError(
            f"{checkpoint.folder / TRAINING}: is of iteration {state.iteration}, the checkpoint of "
            f"{checkpoint.iteration}",
            "it was altered: restore it from a copy",
        )
    return Begin(
        checkpoint,
        True,
        state.iteration,
        state.stage_begin,
        state.carried,
        stage.masks.rising(state.masks),
        state.losses,
        state.family,
    )


def check_model(section: ModelSection, checkpoint: Checkpoint) -> None:
    """Raise UsageError, naming each difference, if a stage file contradicts its checkpoint.

    Only what the file says is compared: what it leaves out is as the checkpoint has it.
    """
    found, wanted = _fields(checkpoint.config), _spoken(section)
    differences = [
        f"{name} is {found[name]}, the stage file says {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    if differences:
        raise UsageError(
            f"{checkpoint.folder}: {'; '.join(differences)}",
            "give the checkpoint of this model, or grow it first",
        )


def _spoken(section: ModelSection) -> dict[str, object]:
    """Return what a section says of a model's fields; a default says nothing."""
    spoken: dict[str, object] = {}
    for key in section.model_fields_set:
        value = getattr(section, key)
        if isinstance(value, Section):
            spoken |= {f"{key}.{name}": getattr(value, name) for name in value.model_fields_set}
        elif value is not None:
            spoken[FIELDS.get(key, key)] = value
    return spoken


def _fields(config: ModelConfig) -> dict[str, object]:
    """Return all fields of a model, those of its parts by the part's name and their own."""
    fields: dict[str, object] = {"heads": config.heads}
    for name, value in asdict(config).items():
        parts = value.items() if isinstance(value, dict) else ()
        fields |= {f"{name}.{part}": inner for part, inner in parts} or {name: value}
    return fields


def load(checkpoint: Checkpoint, parameters: Sequence[Parameter], optimizer: OptimizerView) -> None:
    """Fill parameters and optimizer with what ``checkpoint`` holds of them.

    Raises BadCheckpointError for damaged bytes, as far as the format has sums.
    """
    step = 0 if checkpoint.optimizer is None else step_count(checkpoint.optimizer)
    for parameter in parameters:
        values = {state: _values(parameter, reader) for state, reader in checkpoint.readers.items()}
        fill(parameter, optimizer, values, step)
    if optimizer.counts_by_group and step:
        for group in optimizer.groups:
            group["step"] = step


def _values(parameter: Parameter, reader: LogicalReader) -> torch.Tensor:
    stored = AssembledArray(parameter.placement, reader)
    values, data = empty(stored.dtype, prod(parameter.placement.shape))
    stored.read_into(0, data)
    return values


def step_count(optimizer: OptimizerState) -> int:
    """Return how many steps Adam has counted. Raises BadCheckpointError if it does not say."""
    found = optimizer.step
    if found is None:
        found = next((g["step"] for g in optimizer.groups if "step" in g), None)
    if isinstance(found, TensorRecord):
        found = scalar(found)
    if not isinstance(found, int | float):
        raise BadCheckpointError(f"optimizer: counts {found!r:.40}, wanted a number of steps")
    return int(found)


def restore_random_states(folder: Path) -> None:
    """Continue this rank's sources of chance where the checkpoint in ``folder`` left them.

    A run with other ranks than before, or on another kind of device, keeps those it was started
    with.
    """
    files = sorted((folder / RANDOM).glob("rank_*.json"))
    if len(files) != torch.distributed.get_world_size():
        return
    path = files[torch.distributed.get_rank()]
    try:
        found = json.loads(path.read_bytes())
        version, keys, gauss = found["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numbers, *rest = found["numpy"]
        np.random.set_state((kind, np.array(numbers, np.uint32), *rest))
        torch.set_rng_state(_state(found["torch"]))
        device = _state(found["device"])
        if len(device) == len(torch.cuda.get_rng_state()):
            torch.cuda.set_rng_state(device)
            trackers = {name: _state(text) for name, text in found["trackers"].items()}
            tensor_parallel.get_cuda_rng_tracker().set_states(trackers)
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise BadCheckpointError(f"{path}: not as the trainer wrote it: {error}") from None


def _state(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
