"""A schedule of two stages for tests that plan, and train nothing."""

import copy
from pathlib import Path
from typing import Any

import yaml

from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.schedule import read_schedule

BASE: dict[str, Any] = {
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 257},
    "data": {"sequence_length": 32, "corpora": [{"path": "corpus"}]},
    "training": {"batch": 8, "micro_batch": 2},
    "stages": [
        {"name": "small", "training": {"steps": 6}, "learning_rate": {"peak": 3e-3}},
        {
            "name": "large",
            "model": {"num_layers": 3, "hidden_size": 48, "num_attention_heads": 6},
            "training": {"steps": 4},
            "learning_rate": {"peak": 2e-3},
        },
    ],
}


def planned(
    folder: Path, model: Any = None, large: Any = None, **common: Any
) -> list[PlannedStage]:
    """Plan the schedule above, with changes to the model, the second stage, and all stages."""
    return read_schedule(written(folder, model=model, large=large, **common))


def written(folder: Path, model: Any = None, large: Any = None, **common: Any) -> Path:
    """Write that schedule into ``folder``, and return its path."""
    content = copy.deepcopy(BASE) | common
    content["model"] |= model or {}
    content["stages"][1] |= large or {}
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
