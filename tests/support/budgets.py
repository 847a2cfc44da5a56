"""Budget files, and stages that ended somewhere, as files."""

import json
from pathlib import Path
from typing import Any

import yaml
from stage_runs import stage_data


def write_stage_of(folder: Path, width: int, loss: float, count: int) -> None:
    folder.mkdir(parents=True)
    model = {"num_layers": 2, "hidden_size": width, "num_attention_heads": 4, "vocab_size": 257}
    data = stage_data(Path("/corpora"), model=model, training={"steps": 1})
    (folder / "stage.yaml").write_text(yaml.safe_dump(data))
    record: dict[str, Any] = {
        "step": 100, "samples": 8, "tokens": count, "flops": 1000, "loss": loss,
        "language_loss": None, "teacher_loss": None, "grad_norm": 1.0, "learning_rate": 1e-3,
        "seconds": 0.1, "tokens_per_second": 100.0, "model_tflops": 1.0, "utilisation": None,
        "masks": {}, "stage": "small", "kind": "step",
    }  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")


def write_budget(folder: Path, **changes: Any) -> Path:
    model = {
        "num_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 257,
        "multipliers": {"mup_base_width": 64},
    }  # fmt: skip
    stage = {
        "model": model,
        "data": {"sequence_length": 128, "corpora": [{"path": "corpus"}]},
        "training": {"steps": 100, "batch": 16, "micro_batch": 4},
        "learning_rate": {"peak": 1e-3, "floor": 1e-4, "warmup_samples": 160},
    }
    folder.mkdir(exist_ok=True)
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))
    content = {
        "stage": "stage.yaml", "budget": {"flops": 1e17}, "tokens": "20B",
        "cluster": {"gpus": 2}, "prior": "hoffmann", **changes,
    }  # fmt: skip
    file = folder / "budget.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return file
