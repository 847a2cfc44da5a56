"""Tests need real Megatron checkpoints and Megatron's own verdict on ours.

Both come from ``examples/tiny_megatron.py``, run under torchrun in processes of its own: what makes
megatron-core run on a CPU changes torch itself, and must not leak into the tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from repository import ROOT

SCRIPT = ROOT / "examples" / "tiny_megatron.py"
BATCH = Path(__file__).with_name("megatron_batch.py")
TIMEOUT = 900
# What the tiny models of examples/tiny_megatron.py are grown to: in all dimensions but the hidden
# size and the query groups, and in all but the groups, which only the GQA model has.
UNITS = "--num-attention-heads 16 --ffn-hidden-size 264 --num-layers 8"
ALL = f"--hidden-size 96 {UNITS}"
GROUPS = "--num-query-groups 8"


def torchrun(ranks: int, *arguments: str | Path) -> str:
    """Run the script on ``ranks`` processes and return its output, or raise with its errors."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{SCRIPT.name} {arguments[0]} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def torchrun_batch(ranks: int, commands: list[list[str]]) -> None:
    """Run several of the script's commands in one start of ``ranks`` processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, f"--nproc-per-node={ranks}", str(BATCH), json.dumps(commands)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def told_by(script: str | Path) -> dict[str, Any]:
    """Run a script as the only rank there is and return the JSON it prints."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    own = {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tests" / "support"),
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **alone, **own},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def train_tiny(
    out: Path,
    *,
    tp: int = 1,
    pp: int = 1,
    vpp: int | None = None,
    arch: str = "llama",
    steps: int = 30,
    pipeline_layers: str | None = None,
    optimizer: bool = False,
) -> Path:
    """Train a tiny model, save it in ``out`` as a legacy checkpoint, and return ``out``.

    ``arch`` is "llama" or "gpt". ``pipeline_layers`` is a layout such as "Ettt|tL", or the layers
    of the first and the last stage, such as "1,3".
    """
    options: list[str | Path] = ["--tp", str(tp), "--pp", str(pp)]
    options += ["--arch", arch, "--steps", str(steps)]
    if vpp is not None:
        options += ["--vpp", str(vpp)]
    if pipeline_layers is not None:
        options += ["--pipeline-layers", pipeline_layers]
    if optimizer:
        options += ["--optimizer"]
    torchrun(tp * pp, "train", out, *options)
    return out


def megatron_logits(checkpoint: Path, tokens: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    """Return the logits (batch x length x true vocabulary) that megatron-core computes.

    It loads every rank's file strictly, in the layout the checkpoint's own arguments name; the
    script refuses to run on another number of ranks than those make.
    """
    with TemporaryDirectory() as scratch:
        given, result = Path(scratch, "tokens.pt"), Path(scratch, "logits.pt")
        torch.save(tokens, given)
        options = ("--tokens", given, "--dtype", dtype)
        torchrun(model_ranks(checkpoint), "logits", checkpoint, result, *options)
        logits: torch.Tensor = torch.load(result, weights_only=True)["logits"]
    return logits


def model_ranks(checkpoint: Path) -> int:
    """Return how many model ranks wrote the checkpoint: each has a folder of its own."""
    latest = (checkpoint / "latest_checkpointed_iteration.txt").read_text()
    folder = latest if latest == "release" else f"iter_{int(latest):07d}"
    return len(list((checkpoint / folder).glob("mp_rank_*")))
