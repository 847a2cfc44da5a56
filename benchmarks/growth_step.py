"""What growth does to the loss: at the moment of growth, and in the steps after it.

A tiny model (the paper's: xPos, muP, LayerNorm; with a head of its own, which every method can
grow) is trained for 300 steps. Then it goes on for 120 steps as it is, and 120 steps after growth
along all four dimensions by each method, on the same batches with the same learning rate. Masks
are opened over 40 steps, and over 100. Told of each: how far the first loss is from the small
model's on the same batch; by how much the loss was above the small model's at worst, in the first
50 steps and in all; and the mean loss of the last 10.

    python benchmarks/growth_step.py [FOLDER]

It takes some minutes on two cores. ``tests/test_growth_step.py`` insists on what the documentation
says of it.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
BEFORE, AFTER, SOON = 300, 120, 50
SIZES = {"num_layers": 4, "hidden_size": 96, "ffn_hidden_size": 384, "num_attention_heads": 6}
MODEL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "vocab_size": 257,
    "tied": False,
    "positions": "xpos",
}
MULTIPLIERS = {"mup_base_width": 64, "output": 2.0, "attention_by_inverse_layer": True}
METHODS = {
    "mask, open after 40": ("--method", "mask", "--ramp-steps", "40"),
    "mask, open after 100": ("--method", "mask", "--ramp-steps", "100"),
    "zero": ("--method", "zero"),
    "copy": ("--method", "copy"),
}


@dataclass(frozen=True)
class Effect:
    """What a method did: the change of the first loss, the worst excess over the small model's loss
    in the first 50 steps and in all, and the mean at the end.
    """

    step: float
    soon: float
    worst: float
    end: float


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if sys.argv[1:] else temporary)
        small, effects = measure(folder)
    print(f"{'method':<20} {'first':>8} {'in 50':>8} {'in 120':>8} {'last 10':>8}")
    print(f"{'none':<20} {'':>8} {'':>8} {'':>8} {small:8.4f}")
    for method, found in effects.items():
        numbers = f"{found.step:8.1e} {found.soon:+8.4f} {found.worst:+8.4f} {found.end:8.4f}"
        print(f"{method:<20} {numbers}")


def measure(folder: Path) -> tuple[float, dict[str, Effect]]:
    """Return the small model's mean loss at the end, and the effect of each method."""
    data = folder / "data"
    _python(str(ROOT / "examples/demo_data.py"), str(data))
    for name in ("english", "chinese"):
        corpus = [str(data / f"{name}.jsonl"), str(data / name), "--tokenizer", "bytes"]
        _flmgrow("data", "prepare", *corpus)
    _train(folder / "small", data, {**MODEL, "multipliers": MULTIPLIERS}, BEFORE, None)
    source = str(folder / "small" / "checkpoints")
    plain = _train(folder / "none", data, MODEL, AFTER, source)
    effects = {}
    for number, (method, options) in enumerate(METHODS.items()):
        own = folder / f"grown-{number}"
        own.mkdir()
        start = own / "start"
        sizes = [f"--{key.replace('_', '-')}={value}" for key, value in SIZES.items()]
        _flmgrow("expand", source, str(start), *sizes, *options, "--seed", "1")
        _flmgrow("verify", source, str(start))
        model = {**MODEL, **SIZES, "multipliers": {"base_output": MULTIPLIERS["output"]}}
        grown = _train(own, data, model, AFTER, str(start))
        excess = [loss - other for loss, other in zip(grown, plain, strict=True)]
        soon, worst = max(excess[:SOON]), max(excess)
        effects[method] = Effect(abs(excess[0]), soon, worst, fmean(grown[-10:]))
    return fmean(plain[-10:]), effects


def _train(
    folder: Path, data: Path, model: dict[str, Any], steps: int, load: str | None
) -> list[float]:
    """Train a stage in ``folder`` and return its losses."""
    corpora = [{"path": str(data / "english"), "weight": 53.5}]
    corpora.append({"path": str(data / "chinese"), "weight": 46.5})
    content = {
        "name": folder.name,
        "model": model,
        "data": {"sequence_length": 128, "corpora": corpora},
        "training": {"steps": steps, "batch": 16, "micro_batch": 8},
        "learning_rate": {"peak": 2e-3, "warmup_samples": 160, "style": "constant"},
        "checkpoint": {} if load is None else {"load": load},
        "log": {"every": 100},
    }
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / "stage.yaml"
    stage.write_text(yaml.safe_dump(content))
    _flmgrow("train", str(stage))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _flmgrow(*words: str) -> None:
    _python("-m", "flmgrow", *words)


def _python(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")


if __name__ == "__main__":
    main()
