"""megatron-core's own muP: its own model computes the same before growth and after.

The judge is GPTModel of megatron-core 0.19 with nothing in it but the arguments that were written.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import accepted
from growing import tokens_for
from pico import CONFIGS, make_checkpoint
from repository import ROOT
from stage_runs import NEWER

from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.forward import logits
from flmgrow.surgery.weights import CheckpointWeights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NEWER, reason="FLMGROW_MEGATRON_019 names no folder with a wheel in it"),
]
EXACT = 1e-10
PLAIN = replace(CONFIGS["tele"], positions="none")
TOKENS = tokens_for(PLAIN.vocab, 12)
ZERO = ("--hidden-size", 30, "--num-layers", 5, "--ffn-hidden-size", 25, "--method", "zero")
COPY = ("--hidden-size", 24, "--num-layers", 5, "--method", "copy")
Case = tuple[dict[str, Any], tuple[object, ...], dict[str, Any]]

CASES: dict[str, Case] = {
    "from the base": (
        {},
        COPY,
        {"mup_base_hidden_size": 12, "mup_output_mult": 1.0000000000000002},
    ),
    "left to megatron-core": ({"mup_base_hidden_size": 8}, ZERO, {"mup_output_mult": 1 / 1.5}),
    "all given": (
        {"mup_base_hidden_size": 5, "mup_output_mult": 0.3, "mup_embedding_mult": 2.5,
         "mup_base_head_dim": 9.0, "mup_attn_scale_power": 0.7},
        ZERO,
        {"mup_output_mult": 0.3, "mup_base_hidden_size": 5},
    ),
    "scores as usual": (
        {"mup_base_hidden_size": 24, "mup_attn_scale_power": 0.5},
        COPY,
        {"mup_base_hidden_size": 24, "mup_output_mult": 2.0},
    ),
}  # fmt: skip


def stock_logits(models: list[tuple[Path, dict[str, Any]]]) -> list[torch.Tensor]:
    """What megatron-core 0.19 computes from folders, with arguments changed."""
    asked = {"tokens": TOKENS.tolist(), "models": [(str(path), c) for path, c in models]}
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    own = {"PYTHONPATH": os.pathsep.join([NEWER, str(ROOT / "tests" / "support")])}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("native_mup_runs.py"))],
        input=json.dumps(asked), env={**os.environ, **alone, **own, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.tensor(one, dtype=torch.float64) for one in json.loads(done.stdout)]


def reference(path: Path) -> torch.Tensor:
    with open_checkpoint(path) as opened:
        return logits(opened.config, CheckpointWeights(opened, torch.float64), TOKENS)


def test_its_own_model_computes_the_same_after_growth(tmp_path: Path) -> None:
    """And one that is left to itself, or whose multiplier stays as it was stored, does not."""
    models: list[tuple[Path, dict[str, Any]]] = []
    for name, (given, growth, _) in CASES.items():
        small, large = tmp_path / name / "small", tmp_path / name / "large"
        make_checkpoint(small, PLAIN, use_mup=True, multiple=1, **given)
        accepted("expand", small, large, *growth)
        accepted("verify", small, large)
        models += [(small, {}), (large, {}), (large, {"mup_output_mult": 1.0})]
        models += [(large, {"use_mup": False})]
    found = iter(stock_logits(models))
    for name, (_, _, written) in CASES.items():
        before, after, trapped, without = (next(found) for _ in range(4))
        assert before.abs().max() > 0.1
        assert (after - before).abs().max() <= EXACT, name
        for size, computed in (("small", before), ("large", after)):
            assert (reference(tmp_path / name / size) - computed).abs().max() <= EXACT, name
        for wrong in (trapped, without):
            assert (wrong - before).abs().max() > 1e-2, name
        (file,) = (tmp_path / name / "large").rglob("model_optim_rng.pt")
        args = vars(torch.load(file, weights_only=False)["args"])
        assert {n: args[n] for n in written} == pytest.approx(written, rel=1e-16), name
        assert args["use_mup"] is True
