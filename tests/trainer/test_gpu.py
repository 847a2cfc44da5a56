"""On a GPU the trainer takes the steps that it takes on a CPU. Skipped where there is none."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import (
    command,
    environment,
    make_data,
    metrics,
    saved,
    stage_data,
    train,
    write_stage,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

STEPS = 20
TOLERANCE = {"float32": (1e-6, 1e-4), "bfloat16": (2e-3, 5e-2)}
"""Of losses and of gradient norms, relative."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def stage(data: Path, folder: Path, precision: str, **changes: Any) -> Path:
    training = {"steps": STEPS, "precision": precision}
    checkpoint = {"every": STEPS // 2, "format": "torch_dist"}
    return write_stage(
        folder, stage_data(data, training=training, checkpoint=checkpoint, **changes)
    )


@pytest.mark.parametrize("precision", TOLERANCE)
def test_it_takes_the_steps_of_a_cpu(
    data: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = stage(data, tmp_path / "gpu", precision)
    train(on_gpu)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu = stage(data, tmp_path / "cpu", precision)
    train(on_cpu)
    for one, other in zip(metrics(on_gpu), metrics(on_cpu), strict=True):
        for key, within in zip(("loss", "grad_norm"), TOLERANCE[precision], strict=True):
            assert one[key] == pytest.approx(other[key], rel=within), one["step"]


@pytest.mark.parametrize("distributed", [False, True])
def test_killed_and_resumed_it_saves_the_same_bytes(
    data: Path, tmp_path: Path, distributed: bool
) -> None:
    layout = {"distributed_optimizer": distributed}
    whole = stage(data, tmp_path / "whole", "bfloat16", layout=layout)
    train(whole)
    cut = stage(data, tmp_path / "cut", "bfloat16", layout=layout)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command(cut), env=environment(), stdout=quiet, stderr=quiet)
    tracker = cut.parent / "checkpoints" / "latest_checkpointed_iteration.txt"
    while not tracker.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(cut)
    assert saved(cut, STEPS) == saved(whole, STEPS)
