"""What somebody says of a cluster, made into rates."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from flmgrow.costing.accelerators import Accelerator, accelerator
from flmgrow.costing.calibration import utilisations_of
from flmgrow.costing.rates import Rates
from flmgrow.errors import UsageError
from flmgrow.given import ClusterGiven
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.text import Setting, Text

USUAL = "A100"
"""The accelerator, where nobody says which."""

_OF_A_DEVICE = {
    "bfloat16": "peak_tflops",
    "float32": "peak_tflops",
    "watts": "watts",
    "memory": "memory",
}
_OF_RATES = ("gpus", "price", "carbon", "overhead", "storage")


def rates_of(stages: Sequence[PlannedStage], **given: Unpack[ClusterGiven]) -> Rates:
    """Return the rates of a cluster for the stages of a schedule.

    Raises:
        UsageError: For what cannot be, and as ``utilisations_of`` does.
    """
    said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    device = device_of(said)
    shares = _shares(stages, device, given)
    return Rates(device, shares, **{name: said[name] for name in _OF_RATES if name in said})


def device_of(said: Mapping[str, Any]) -> Accelerator:
    """Return the device of that name, with what else is said of it.

    Raises:
        UsageError: What was asked for cannot be.
    """
    known = accelerator(str(said.get("accelerator", USUAL)))
    changes = {field: said[name] for field, name in _OF_A_DEVICE.items() if name in said}
    return replace(known, name=f"{known.name}, changed", **changes) if changes else known


def _shares(
    stages: Sequence[PlannedStage], device: Accelerator, given: ClusterGiven
) -> Sequence[float]:
    run, shares = given.get("calibrate"), given.get("utilisation")
    if run is None:
        return (shares,) if isinstance(shares, float | int) else tuple(shares or ())
    if shares is not None:
        raise UsageError(
            Text(
                Setting("utilisation"), " and ", Setting("calibrate"), " both say what is reached"
            ),
            "give one",
        )
    found = utilisations_of(Path(os.fspath(run)), device, stages[0].stage.training.precision)
    return found if len(found) == len(stages) else found[-1:]
