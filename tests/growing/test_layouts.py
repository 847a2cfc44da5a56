"""On ranks of every kind a model that grows in memory goes on as one that went over the disk.

Compared is all that the last checkpoint holds: weights, masters, both moments, sources of chance,
masks, the place in the data; and loss and gradient norm of every step before.
"""

from pathlib import Path
from typing import Any

import pytest
from in_place import MASK, SMALL, assert_same, between, stages
from often import often
from stage_runs import make_data
from warm_ranks import train_warm

from flmgrow.errors import UsageError

FOUR = {**SMALL, "num_layers": 4}
ZERO = {"num_layers": 4, "ffn_hidden_size": 192, "method": "zero", "seed": 3}
COPY = {"hidden_size": 64, "num_attention_heads": 8, "method": "copy", "seed": 1}
SLOW_MASK = {**MASK, "ramp_steps": 5}
"""Of which the masks are not open when the stage ends."""

DISTRIBUTED = {"dp": 2, "distributed_optimizer": True}

LAYOUTS: dict[str, dict[str, Any]] = {
    "replicas": {
        "layout": {"dp": 2},
        "growth": ZERO,
    },
    "pipeline ranks, frozen": {
        "layout": {"pp": 2},
        "large_layout": {"pipeline_layers": [1, 2]},
        "training": {"precision": "bfloat16", "freeze": [{"layers": 0}, {"tensors": "embedding"}]},
        "growth": {**ZERO, "num_layers": 3},
    },
    "tensor and pipeline ranks": {
        "layout": {"tp": 2, "pp": 2, "sequence_parallel": True},
        "large_layout": {"pipeline_layers": [1, 2]},
        "growth": SLOW_MASK,
    },
    "virtual pipeline": {
        "layout": {"pp": 2, "vpp": 2},
        "model": FOUR,
        "growth": {**ZERO, "num_layers": 8},
    },
    "tensor ranks and replicas that share an optimizer": {
        "layout": {"tp": 2, **DISTRIBUTED, "sequence_parallel": True},
        "growth": COPY,
    },
    "tensor ranks, grouped queries, bfloat16": {
        "layout": {"tp": 2, "sequence_parallel": True},
        "model": {**SMALL, "num_query_groups": 2, "normalization": "rmsnorm", "tied": False},
        "training": {"precision": "bfloat16"},
        "growth": COPY,
    },
    "tensor ranks, virtual pipeline": {
        "layout": {"tp": 2, "pp": 2, "vpp": 2},
        "model": {**FOUR, "tied": False},
        "training": {"precision": "bfloat16"},
        "growth": {**COPY, "num_layers": 8, "depth_placement": "interleave"},
    },
    "virtual pipeline, replicas that share an optimizer": {
        "layout": {"pp": 2, "vpp": 2, **DISTRIBUTED},
        "model": FOUR,
        "growth": {**SLOW_MASK, "num_layers": 8},
    },
    "uneven virtual pipeline, frozen": {
        "layout": {"pp": 2, "vpp": 2},
        "large_layout": {"pipeline_layers": [2, 1, 1, 2]},
        "model": FOUR,
        "training": {"freeze": [{"layers": "0-1"}, {"layers": 2, "axes": {"ffn": "0-63"}}]},
        "growth": {**ZERO, "num_layers": 6},
    },
    "tensor and pipeline ranks, what is new alone": {
        "layout": {"tp": 2, "pp": 2, "sequence_parallel": True},
        "large_layout": {"pipeline_layers": [1, 2]},
        "large_training": {"freeze": "old", "unfreeze_at": 2},
        "training": {"precision": "bfloat16"},
        "growth": MASK,
    },
    "replicas that share an optimizer, what is new alone": {
        "layout": DISTRIBUTED,
        "large_training": {"freeze": "old", "unfreeze_at": 2},
        "training": {"precision": "bfloat16"},
        "growth": {**ZERO, "depth_placement": "interleave"},
    },
    "overlapping replicas": {
        "layout": {**DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True},
        "growth": SLOW_MASK,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("name", often(LAYOUTS, "tensor and pipeline ranks", "virtual pipeline"))
def test_the_bits_are_those_of_expand(data: Path, tmp_path: Path, name: str) -> None:
    first, second = stages(data, tmp_path / "here", **LAYOUTS[name])
    assert "note: grown in memory" in train_warm(second)
    assert_same(second, between(first, second, tmp_path / "between", train_warm))


@pytest.mark.slow
def test_layers_that_do_not_fill_the_pipeline_are_refused_before_the_first_step(
    data: Path, tmp_path: Path
) -> None:
    layout = {"pp": 2, "vpp": 2}
    first, second = stages(data, tmp_path, {**ZERO, "num_layers": 6}, FOUR, layout=layout)
    told = train_warm(second, UsageError.exit_code)
    assert "layout: 6 layers cannot be spread evenly over PP2 x VPP2" in told
    assert len([line for line in told.splitlines() if line.startswith(("error", "hint"))]) == 2
    assert not (first.parent / "checkpoints").exists()
