"""megatron-core 0.16 and 0.19 train alike: the same losses, and the same files to the last byte.

The newer one wants a newer Python; its wheel, unpacked, runs on this one as far as the trainer
needs it. ``make test-slow`` unpacks it.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from stage_runs import (
    LARGE,
    MODEL,
    NEWER,
    make_data,
    metrics,
    saved,
    stage_data,
    train,
    write_stage,
)

from flmgrow.cli.app import run

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(not NEWER, reason="FLMGROW_MEGATRON_019 names no folder with a wheel in it"),
]
STEPS = 4

CASES: dict[str, dict[str, Any]] = {
    "tensor and pipeline": {
        "layout": {"tp": 2, "pp": 2, "sequence_parallel": True},
        "training": {"recompute": "selective"},
    },
    "virtual pipeline": {"layout": {"pp": 2, "vpp": 2}, "training": {"recompute": "full"}},
    "frozen on the first stage, then not": {
        "layout": {"pp": 2},
        "training": {"freeze": [{"layers": "0-1"}, {"tensors": "embedding"}], "unfreeze_at": 2},
    },
    "replicas, half precision": {
        "layout": {"dp": 2, "distributed_optimizer": True, "overlap_grad_reduce": True},
        "training": {"precision": "bfloat16"},
        "checkpoint": {"format": "megatron"},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, trained and grown by masks, with its optimizer state."""
    folder = tmp_path_factory.mktemp("small")
    train(write_stage(folder, stage_data(data, training={"steps": 3})))
    words = ["expand", str(folder / "checkpoints"), str(folder / "start"), *LARGE]
    assert run([*words, "--ramp-steps", "3"]) == 0
    return folder / "start"


@pytest.mark.parametrize("case", CASES)
def test_both_train_alike(data: Path, start: Path, tmp_path: Path, case: str) -> None:
    """From masks at 0 until they are open, stopped half-way and resumed by the other one."""
    model = {**MODEL, "num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 176}
    model |= {"num_attention_heads": 6, "multipliers": {"mup_base_width": 16}}
    changes = {**CASES[case], "name": "large", "model": model}
    changes["checkpoint"] = {"load": str(start), "every": 2, **changes.get("checkpoint", {})}

    def stage(folder: str, steps: int = STEPS) -> Path:
        training = {**changes["training"], "steps": steps}
        return write_stage(tmp_path / folder, stage_data(data, **{**changes, "training": training}))

    older, newer, mixed = stage("older"), stage("newer"), stage("mixed", 2)
    train(older)
    train(newer, PYTHONPATH=NEWER)
    train(mixed, PYTHONPATH=NEWER)
    train(stage("mixed"))
    for other in (newer, mixed):
        assert [(r["loss"], r["grad_norm"]) for r in metrics(other)] == [
            (r["loss"], r["grad_norm"]) for r in metrics(older)
        ]
        assert saved(other, 3 + STEPS) == saved(older, 3 + STEPS)


def test_it_is_the_newer_one(tmp_path: Path) -> None:
    """The control: PYTHONPATH goes before what is installed."""
    stage = write_stage(tmp_path, stage_data(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: print([m for m in sys.modules.values()"
        " if m.__name__ == 'megatron.core'], file=sys.stderr))\n"
    )
    told = train(stage, expect=3, PYTHONPATH=os.pathsep.join([str(tmp_path), NEWER]))
    assert NEWER in told
