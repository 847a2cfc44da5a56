"""Stages of training for tests: small files, and the commands that run them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from flmgrow.cli.app import run
from flmgrow.formats.history.manifest import sealed
from flmgrow.stages.preparing import prepare
from flmgrow.stages.run_folder import RunFolder
from flmgrow.stages.schedule import read_schedule
from flmgrow.stages.steps import Step, steps_of
from flmgrow.storage.content_sum import SUM, with_sum

MODEL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "positions": "xpos",
    "multipliers": {
        "mup_base_width": 16,
        "output": 2.0,
        "attention_by_inverse_layer": True,
    },
}
LARGE = "--hidden-size 48 --ffn-hidden-size 176 --num-attention-heads 6 --num-layers 4".split()
STEPS = 6
NEWER = os.environ.get("FLMGROW_MEGATRON_019", "")
"""A folder with megatron-core 0.19 unpacked in it, if there is one."""
MANIFEST = "flmgrow.json"


def make_data(folder: Path) -> Path:
    """Prepare a corpus and a teacher's file in ``folder``, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (json.dumps({"text": text}) for text in topics.values())
    (folder / "text.jsonl").write_text("\n".join(texts))
    sums = ((i, i + 1, 2 * i + 1 + i % 2) for i in range(60))
    facts = ({"text": f"{a} + {b} = {c}", "label": a + b == c} for a, b, c in sums)
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    words = ["data", "prepare", str(folder / "text.jsonl"), str(folder / "corpus")]
    assert run([*words, "--tokenizer", "bytes", "--workers", "1"]) == 0
    return folder


def stage_data(corpora: Path, /, **changes: Any) -> dict[str, Any]:
    """Return the content of a stage file; ``changes`` are merged into its sections."""
    content: dict[str, Any] = {
        "name": "small",
        "model": MODEL,
        "data": {
            "sequence_length": 32,
            "corpora": [{"path": str(corpora / "corpus")}],
            "teacher": {"files": [str(corpora / "facts.jsonl")], "share": 0.25},
            "validation_share": 0.05,
        },
        "training": {"steps": STEPS, "batch": 8, "micro_batch": 2},
        "learning_rate": {"peak": 3e-3, "warmup_samples": 8, "decay_tokens": "4K"},
        "checkpoint": {"every": 3},
    }
    for name, value in changes.items():
        merged = isinstance(value, dict) and name != "model"
        content[name] = {**content.get(name, {}), **value} if merged else value
    return content


def write_stage(folder: Path, content: dict[str, Any]) -> Path:
    """Write a stage file into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def schedule_data(corpora: Path, **common: Any) -> dict[str, Any]:
    """Return a schedule of two stages, all dimensions grown, for one rank and for two."""
    content = stage_data(corpora, **common)
    del content["name"], content["training"]["steps"]
    content["model"] = {**MODEL, "vocab_size": 257}
    growth = {"method": "mask", "ramp_steps": 4, "seed": 1}
    sizes = {"num_layers": 4, "hidden_size": 48, "num_attention_heads": 6}
    content["stages"] = [
        {"name": "small", "training": {"steps": STEPS}},
        {
            "name": "large",
            "model": sizes,
            "growth": growth,
            "layout": {"tp": 2},
            "training": {"steps": STEPS},
        },
    ]
    return content


def write_schedule(folder: Path, content: dict[str, Any]) -> Path:
    """Write a schedule file."""
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(stage: Path) -> list[str]:
    """Return what trains a stage."""
    return [sys.executable, "-m", "flmgrow", "train", str(stage)]


def environment() -> dict[str, str]:
    """Return that of a command: one thread per rank, so that sums have one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train(stage: Path, expect: int = 0, **variables: str) -> str:
    """Train a stage, insist on its exit code, and return what it told.

    ``variables`` are set in its environment.
    """
    done = subprocess.run(
        command(stage), env={**environment(), **variables},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    assert done.stdout == ""
    return done.stderr


def metrics(stage: Path) -> list[dict[str, Any]]:
    """Return what a stage's metrics say of its steps."""
    lines = (stage.parent / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def saved(stage: Path, iteration: int) -> dict[str, bytes]:
    """Return all files of a checkpoint of a stage."""
    folder = stage.parent / "checkpoints" / f"iter_{iteration:07d}"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prepared(schedule: Path, path: Path) -> tuple[RunFolder, list[Step]]:
    """Write a run's files into its folder, and return that and the steps."""
    folder = RunFolder(path, read_schedule(schedule))
    prepare(folder, schedule)
    return folder, list(steps_of(folder))


def stand_in(finished: Path, folder: RunFolder, ran: list[str]) -> Callable[[tuple[str, ...]], int]:
    """What puts in place, for each command, what the finished run has there."""

    def carry_out(words: tuple[str, ...]) -> int:
        ran.append(words[0])
        made = Path(words[2] if words[0] != "train" else Path(words[1]).parent / "checkpoints")
        original = finished / made.relative_to(folder.path)
        if words[0] == "verify":
            shutil.copy(original / MANIFEST, made / MANIFEST)
            return 0
        shutil.copytree(original, made)
        if words[0] == "expand":
            manifest = json.loads((made / MANIFEST).read_text())
            (made / MANIFEST).write_text(json.dumps({**manifest, "receipt": None}))
        return 0

    return carry_out


def edit(path: Path, **changes: Any) -> None:
    """Change values of a file of JSON; ``a__b`` is the ``b`` in ``a``. Its sums follow."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *above, last = name.split("__")
        inside = content
        for key in above:
            inside = inside[key]
        inside[last] = value
    if path.name == MANIFEST:
        path.write_bytes(sealed(content))
    else:
        path.write_text(json.dumps(with_sum(content) if SUM in content else content))
