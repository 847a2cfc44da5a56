"""What utilisation a run reached, from its own metrics."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from flmgrow.costing.accelerators import Accelerator
from flmgrow.errors import BadDataError
from flmgrow.stages.metrics_files import find_metrics
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import StepRecord
from flmgrow.trainer.stage.file import read_stage

WARM = 5
"""Steps at a stage's begin that are left out: kernels are chosen, and caches are cold."""


def utilisations_of(run: Path, device: Accelerator, supposed: str) -> Sequence[float]:
    """Return the share of the device's peak that each stage of a run reached: its median step.

    The peak is that of the precision in which the stage was trained, as its ``stage.yaml`` beside
    the metrics tells; the ``supposed`` one where there is no such file. The records tell the
    operations per second of one device, so ``device`` must be what the run was trained on.

    Raises:
        UsageError: If ``run`` has no metrics.
        BadDataError: If they have no steps that can be used.
    """
    found = []
    for file in find_metrics(run):
        steps = [each for each in read_metrics(file) if isinstance(each, StepRecord)]
        speeds = [each.model_tflops for each in steps[WARM:] if each.model_tflops > 0]
        if not speeds:
            raise BadDataError(
                f"has {len(steps)} steps, of which the first {WARM} do not count",
                "let the stage run on",
                where=file,
            )
        share = 1e12 * median(speeds) / device.peak(_precision(file, supposed))
        if share > 1:
            raise BadDataError(
                f"its steps reach {share:.3g} times the peak of {device.name}",
                "name the accelerator that the run was trained on",
                where=file,
            )
        found.append(share)
    return found


def _precision(metrics: Path, supposed: str) -> str:
    file = metrics.with_name("stage.yaml")
    return read_stage(file).training.precision if file.is_file() else supposed
