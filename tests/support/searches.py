"""Small searches for tests."""

from pathlib import Path
from typing import Any

import yaml

PEAK = "learning_rate.peak"
STD = "training.init_std"
STEPS = 8


def write_search(folder: Path, data: Path, grid: dict[str, list[Any]], **more: Any) -> Path:
    """Write a search over a small stage, and return its file."""
    proxy = {
        "model": {
            "num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 257,
            "multipliers": {"mup_base_width": 32},
        },
        "data": {"sequence_length": 32, "corpora": [{"path": str(data / "corpus")}],
                 "validation_share": 0.05},
        "training": {"steps": STEPS, "batch": 8, "micro_batch": 8},
        "learning_rate": {"peak": 1e-3},
        "log": {"validation_every": STEPS, "validation_samples": 16},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "proxy.yaml").write_text(yaml.safe_dump(proxy))
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({"stage": "proxy.yaml", "grid": grid, **more}))
    return file
