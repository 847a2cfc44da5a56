"""Small studies for tests."""

from pathlib import Path
from typing import Any

import yaml

SCRATCH, MASK = "scratch", "mask"


def study_data(corpora: Path, **changes: Any) -> dict[str, Any]:
    """Return a study of two sizes: from scratch for two lengths, and grown; arms may be added."""
    stages = [{"size": "small", "share": 60}, {"size": "large", "share": 40}]
    arms = {
        "scratch-half": {"size": "large", "tokens": 2560, "scratch": True},
        SCRATCH: {"size": "large", "tokens": 5120, "scratch": True},
        MASK: {"tokens": 5120, "stages": stages, "grown": {"growth": {"ramp_steps": 3}}},
    }
    content: dict[str, Any] = {
        "base": {
            "model": {"vocab_size": 257, "positions": "xpos", "tied": False, "kv_channels": 16,
                      "multipliers": {"mup_base_width": 32}},
            "data": {"sequence_length": 32, "corpora": [{"path": str(corpora / "corpus")}],
                     "validation_share": 0.05},
            "training": {"batch": 8, "micro_batch": 8},
            "learning_rate": {"warmup_samples": 16},
            "log": {"validation_every": 5, "validation_samples": 16},
        },
        "sizes": {
            "small": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
            "large": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
        },
        "rates": {"values": {"small": 8e-3, "large": 4e-3}, "source": "a guess"},
        "seeds": [1, 2],
        "arms": arms,
    }  # fmt: skip
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    return content


def write_study(folder: Path, content: dict[str, Any]) -> Path:
    """Write a study file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
