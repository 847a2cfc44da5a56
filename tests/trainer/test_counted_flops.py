"""The operations that metrics and ``flmgrow cost`` tell are those that torch counts."""

from pathlib import Path
from typing import Any

import pytest
from counting_rank import counting, file_of
from stage_runs import make_data, metrics, write_stage
from trained_here import small, trained_in
from warm_ranks import train_warm

from flmgrow.costing.operations import executed
from flmgrow.model.flops import TrainedParts, training_flops
from flmgrow.stages.alone import read_stages
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.trainer import loop

STEPS, LENGTH = 3, 32
TOKENS = 8 * LENGTH
"""Of a batch."""

GATED: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 48,
    "activation": "swiglu",
    "linear_bias": False,
    "positions": "rope",
    "tied": False,
    "vocab_size": 257,
    "make_vocab_size_divisible_by": 1,
}
TIED: dict[str, Any] = {**GATED, "activation": "gelu", "linear_bias": True, "tied": True}

OUTER = ["embedding", "head"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": (GATED, {}),
    "what is before the last layer": (
        GATED,
        {"freeze": [{"layers": "0-1"}, {"tensors": "embedding"}]},
    ),
    "a layer in between": (TIED, {"freeze": {"layers": 1}}),
    "all but one layer": (
        TIED,
        {"freeze": [{"layers": [0, 2]}, {"tensors": ["embedding", "final_norm.gain"]}]},
    ),
    "tensors": (GATED, {"freeze": {"tensors": [*OUTER, "down", "attention_out"]}}),
    "entries": (TIED, {"freeze": {"axes": {"ffn": "0-31"}}}),
    "weights beside their biases": (TIED, {"freeze": {"tensors": ["up", "down"]}}),
    "what trains later": (
        GATED,
        {"freeze": [{"layers": "0-1"}, {"tensors": OUTER}], "unfreeze_at": 2},
    ),
    "selective recomputation": (
        GATED,
        {"freeze": [{"layers": 0}, {"tensors": OUTER}], "recompute": "selective"},
    ),
    "full recomputation": (
        GATED,
        {"freeze": [{"layers": 0}, {"tensors": OUTER}], "recompute": "full"},
    ),
}


OFTEN = ("what is before the last layer", "what trains later")
AS_MANY = ("nothing", "entries", "weights beside their biases")
"""Of which the operations are those of a model that trains as a whole."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    "name",
    [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name not in OFTEN)],
)
def test_they_are_those_that_torch_counts(
    data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(loop, "run_batch", counting(counted))
    model, training = CASES[name]
    content = small(data, model=model, training={"steps": STEPS, **training})
    trained_in(tmp_path, content)
    planned = check(tmp_path / "stage.yaml", sum(counted))
    everything = STEPS * TOKENS * training_flops(planned.config, LENGTH)
    assert (planned.flops < everything) == (name not in AS_MANY)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"pp": 2}, {"pp": 2, "vpp": 2}])
def test_what_another_rank_sends_has_a_gradient(
    data: Path, tmp_path: Path, layout: dict[str, int]
) -> None:
    rules = [{"layers": "0-2"}, {"tensors": OUTER}]
    content = small(
        data, model={**GATED, "num_layers": 4}, layout=layout,
        training={"steps": 1, "freeze": rules},
    )  # fmt: skip
    stage = write_stage(tmp_path, content)
    train_warm(stage, module="counting_rank")
    by_rank = [int(file_of(stage, rank).read_text()) for rank in range(2)]
    planned = check(stage, sum(by_rank))
    alone = training_flops(planned.config, LENGTH, TrainedParts(planned.still))
    assert planned.flops > TOKENS * alone


def check(stage: Path, counted: int) -> PlannedStage:
    """Insist that what a stage, as it is planned, and its metrics tell was ``counted``."""
    (planned,) = read_stages(stage)
    recompute = planned.stage.training.recompute
    foretold = sum(
        tokens * executed(planned.config, LENGTH, recompute, trained)
        for tokens, trained in planned.trained
    )
    assert counted == foretold
    assert metrics(stage)[-1]["flops"] == planned.flops
    assert (planned.flops == foretold) == (recompute == "none")
    return planned
